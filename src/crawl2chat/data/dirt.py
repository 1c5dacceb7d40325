"""Pages that the web has and a training set should not: spam, furniture, other languages, blocked sites, copies.

Every page knows which of FineWeb's steps should drop it. Addresses planted into good pages are for the masking step.
"""

import dataclasses
import ipaddress
import random

from crawl2chat.data import stories
from crawl2chat.data.facts import Sources
from crawl2chat.data.pages import HOSTS, Page
from crawl2chat.data.schoolbook import DAYS, MONTHS, made_up
from crawl2chat.data.stories import BOYS, COLOURS, FOODS, GIRLS, THINGS
from crawl2chat.data.wording import Teller, an, and_list

# how many pages of each kind at full scale
REPEATED, STUFFED, HASHES, FURNITURE, CODE, LOREM, TERSE, LISTS = 200, 100, 60, 180, 120, 80, 80, 180
BLOCKED, FRENCH, SPANISH, COPIES, NEAR_COPIES, ADDRESSES = 180, 150, 150, 200, 200, 220

GOODS = """watches shoes phones tickets loans jackets perfumes laptops sofas carpets cameras tyres headphones
    sunglasses mattresses printers blenders bicycles handbags earrings""".split()
CHEAP = """cheap best discount bargain sale deal offer online shop store buy order price lowest cheapest free
    shipping coupon voucher outlet wholesale clearance hot new top quality original brand luxury""".split()
LOREM_WORDS = """dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore
    magna aliqua enim ad minim veniam quis nostrud exercitation ullamco laboris nisi aliquip ex ea
    commodo consequat""".split()
TOWNS = ("London", "Paris", "Berlin", "Boston", "our town", "the city", "our shop")
BLOCKED_PATHS = ("xxx", "viagra", "cialis", "sexy-lingerie", "nude-webcam")


def pages(kept: list[Page], sources: Sources, rng: random.Random, scale: float) -> list[Page]:
    """The dirt for a web of these kept pages, as new pages; and addresses, planted into some of the kept ones."""

    def some(number: int) -> range:
        return range(max(2, round(number * scale)))

    result = [_repeated(i, rng) for i in some(REPEATED)] + [_stuffed(i, rng) for i in some(STUFFED)]
    result += [_hashes(i, rng) for i in some(HASHES)] + [_furniture(i, rng) for i in some(FURNITURE)]
    result += [_code(i, rng) for i in some(CODE)] + [_lorem(i, rng) for i in some(LOREM)]
    result += [_terse(i, rng) for i in some(TERSE)] + [_list(i, rng) for i in some(LISTS)]
    result += _blocked(len(some(BLOCKED)), rng)
    result += _foreign("fr", sources, len(some(FRENCH))) + _foreign("es", sources, len(some(SPANISH)))
    fit = [page for page in kept if page.kind != "biography" and not page.url.split("/")[3] == "people"]
    chosen = iter(rng.sample(fit, len(fit)))  # no page is both copied and given an address
    result += [_copy(page, number) for number, page in zip(some(COPIES), chosen, strict=False)]
    result += [_near_copy(page, number, rng) for number, page in zip(some(NEAR_COPIES), chosen, strict=False)]
    for _, page in zip(some(ADDRESSES), chosen, strict=False):
        plant_address(page, rng)
    return result


def _repeated(number: int, rng: random.Random) -> Page:
    """One or two selling lines, again and again."""
    goods, town = rng.choice(GOODS), rng.choice(TOWNS)
    lines = [
        f"Buy cheap {goods} in {town} now, order {goods} today!",
        f"The best {goods} in {town} are here, call us!",
        f"Nobody in {town} sells {goods} for less than we do.",
    ]
    chosen = rng.sample(lines, rng.choice((1, 2)))
    blocks = [("p", line) for line in chosen * rng.randint(8, 16)]
    url = f"https://{goods}-{number}.shop.example.com/{rng.choice(CHEAP)}-{goods}"
    return Page(url, f"Cheap {goods} {town}", blocks, "spam_repeated", False, "gopher_repetition")


def _stuffed(number: int, rng: random.Random) -> Page:
    """Key words without a sentence."""
    goods = rng.sample(GOODS, 12)
    blocks = [("p", " ".join(rng.sample(CHEAP + goods, rng.randint(18, 30))) + ".") for _ in range(6)]
    url = f"https://tags-{number}.example.com/{goods[0]}/{goods[1]}"
    return Page(url, f"{goods[0]} {goods[1]} {goods[2]}", blocks, "spam_stuffed", False, "gopher_quality")


FEED = (
    "{a} was in {c} today and ate {b} with friends", "Look at the {colour} sky over {c} this morning",
    "{a} says that the {b} at home is still the best", "Who wants to come with us to {c} on {day}",
    "I have never been so tired as after this {day}", "My {colour} coat and I are on the way to {c}",
    "There is nothing better than {b} and a good book", "{a} made {b} for all of us and it was so good",
    "Back from {c} and already thinking of the next journey", "Does anyone know where to get {b} in {c}",
    "The {colour} door in {c} is the one you should look for", "What a day to be outside with {a} and the dog",
)  # fmt: skip


def _hashes(number: int, rng: random.Random) -> Page:
    """A feed of posts full of hash marks, or of posts that all end in dots."""
    t, blocks = Teller(rng, {}), []
    for _ in range(rng.randint(9, 12)):
        text = t.say(
            FEED,
            a=rng.choice(GIRLS + BOYS),
            b=rng.choice(FOODS),
            c=made_up(rng),
            day=rng.choice(DAYS),
            colour=rng.choice(COLOURS),
        )
        tags = " ".join(f"#{word}" for word in rng.sample(CHEAP + FOODS + COLOURS + THINGS, 5))
        blocks.append(("p", f"{text} {tags}" if number % 2 else f"{text}..."))
    return Page(
        f"https://feed-{number}.example.com/wall", "Latest posts", blocks, "spam_feed", False, "gopher_quality"
    )


DOORS = (
    ("To read this page you need an account.", "This part of the site is for members only.",
     "Your session has ended after a while.", "The page you asked for has moved or never was here."),
    ("Please log in with your name and password.", "Sign in above and go on reading.",
     "Choose a plan that fits your budget.", "Try the search, or go back to the start."),
    ("Forgot your password? We will send a new one.", "New here? It takes one minute to join.",
     "There is also an app for your phone.", "Students and schools pay half."),
    ("We care about what you think.", "You may change this choice at any time.",
     "Some of our partners store data on your device.", "Nothing is shared before you agree to it."),
    ("Thank you for your visit.", "We hope to see you again soon.", "Our team is happy to help.", "Have a nice day."),
)  # fmt: skip


def _furniture(number: int, rng: random.Random) -> Page:
    """A page that is all furniture: a log-in wall, an empty result, a consent form. Too few words to be a document."""
    t = Teller(rng, {})
    what = rng.choice(("Log in", "Subscribe", "Cookie settings", "Not found", "Nothing here yet"))
    blocks = [("p", t.say(pool)) for pool in rng.sample(DOORS, len(DOORS))]
    return Page(
        f"https://portal-{number}.example.com/{rng.choice(('login', 'join', 'consent'))}",
        what,
        blocks,
        "furniture",
        False,
        "gopher_quality",
    )


ABOUT_CODE = (
    "This short guide shows how to write a function named {f}.",
    "In this post we look at the function {f} and what it does.",
    "Many readers of this blog have asked about {f}.", "Here is a small example from the project that I work on.",
    "The function takes a {t} and gives back a {o}.", "You should test the code before you put it on a server.",
    "First we check that the {t} is not empty.", "Then the loop goes over each {o} and adds it to the result.",
    "If the {t} is missing, the function stops at once.",
    "There are other ways to do it, but this one is easy to read.",
    "The last line gives the result back to the part of the program that asked for it.",
    "I wrote this code on a {day} evening in {month}.", "With a small change it also works for a {t} of any size.",
    "Do not forget to save the file before you run it.",
)  # fmt: skip


def _code(number: int, rng: random.Random) -> Page:
    """A programmer's post: good sentences, and a line of code with curly brackets."""
    t = Teller(
        rng,
        {
            "f": f"{rng.choice(('get', 'make', 'read', 'sort'))}_{rng.choice(THINGS)}",
            "t": rng.choice(THINGS),
            "o": rng.choice(COLOURS) + " " + rng.choice(THINGS),
            "day": rng.choice(DAYS),
            "month": rng.choice(MONTHS),
        },
    )
    code = (
        f"function {t.words['f']}(item) {{ if (item) {{ return item.{t.words['t']}; }} return {rng.randint(0, 99)}; }}"
    )
    blocks = [
        ("p", t.say(*[ABOUT_CODE] * 4)),
        ("p", t.say(*[ABOUT_CODE] * 3)),
        ("p", f"The code is {code} and no more."),
        ("p", t.say(*[ABOUT_CODE] * 4)),
    ]
    return Page(
        f"https://code-{number}.example.com/posts/{t.words['f']}",
        f"How to write {t.words['f']}",
        blocks,
        "code",
        False,
        "c4",
    )


ABOUT_SHOP = (
    "Welcome to the new home of {n}.", "We are a small team from {town} with a love for {goods}.",
    "Our shop is open from {day} to Saturday.", "More about us will be here soon.",
    "Since {month} we also sell {goods2}.",
    "Ask for our catalogue, and we will send it to you.", "Every order is packed by hand in {town}.",
    "Come and visit us in the old town hall.", "Our customers tell us that they like the quiet music.",
    "We have made {goods} for three generations.",
)  # fmt: skip


def _shop(rng: random.Random) -> Teller:
    return Teller(
        rng,
        {
            "n": made_up(rng),
            "town": made_up(rng),
            "goods": rng.choice(GOODS),
            "goods2": rng.choice(GOODS),
            "day": rng.choice(DAYS),
            "month": rng.choice(MONTHS),
        },
    )


def _lorem(number: int, rng: random.Random) -> Page:
    """A site under construction: some words of its owner, and the printers' dummy text."""
    t = _shop(rng)
    dummy = f"Lorem ipsum {' '.join(rng.choice(LOREM_WORDS) for _ in range(rng.randint(5, 9)))}."
    blocks = [("p", t.say(*[ABOUT_SHOP] * 4)), ("p", dummy), ("p", t.say(*[ABOUT_SHOP] * 4))]
    return Page(f"https://site-{number}.example.com/about", t.words["n"], blocks, "lorem", False, "c4")


OFFERS = (
    "{a_colour} {thing} that {n} of {town} made by hand", "the well known {goods} in {colour} or {colour2}",
    "a box of {food} to take home for {day}", "one large {thing} with {a_colour} cover",
    "old and new {goods2} for the whole family",
    "what remains of the {month} catalogue", "a {thing} like the one in the museum of {town}",
    "some {food} to eat on the way",
    "cups, plates and spoons for eight guests", "everything that {n} could bring from {town} in {month}",
)  # fmt: skip


def _terse(number: int, rng: random.Random) -> Page:
    """Words enough, but only three endless sentences: fewer than the five that C4 asks for."""
    t, blocks = Teller(rng, {}), []
    for start in ("On the ground floor you see", "One floor up there are", "And in the yard we keep"):
        parts = []
        for _ in range(3):
            colour, thing = rng.choice(COLOURS), rng.choice(THINGS)
            parts.append(
                t.say(
                    OFFERS,
                    a_colour=an(colour),
                    colour=colour,
                    colour2=rng.choice(COLOURS),
                    thing=thing,
                    n=rng.choice(GIRLS + BOYS),
                    town=made_up(rng),
                    goods=rng.choice(GOODS),
                    day=rng.choice(DAYS),
                    goods2=rng.choice(GOODS),
                    food=rng.choice(FOODS),
                    month=rng.choice(MONTHS),
                )
            )
        blocks.append(("p", f"{start} {and_list(parts)}."))
    return Page(f"https://catalogue-{number}.example.com/all", "Our goods", blocks, "terse", False, "c4")


LINES = (
    "The {colour} {thing} of {town} to order", "{A_thing} with {food} on {day}", "From {town} to {town2} on {day}",
    "{day} and {day2} in {town}", "{food} and one {colour} {thing}", "Line {n} to {town} by way of {town2}",
)  # fmt: skip


def _list(number: int, rng: random.Random) -> Page:
    """A price list or timetable: many lines, none with a full stop."""
    t, lines = Teller(rng, {}), []
    for n in range(rng.randint(24, 36)):
        thing, colour, food = rng.choice(THINGS), rng.choice(COLOURS), rng.choice(FOODS)
        day, day2 = rng.sample(DAYS, 2)
        words = {"thing": thing, "A_thing": an(thing).capitalize(), "colour": colour, "food": food, "day": day}
        lines.append(t.say(LINES, **words, day2=day2, town=made_up(rng), town2=made_up(rng), n=str(n)))
    blocks = [("p", line) for line in dict.fromkeys(lines)]
    url = f"https://list-{number}.example.com/table"
    return Page(url, "Price list and timetable", blocks, "list_page", False, "fineweb")


def _blocked(count: int, rng: random.Random) -> list[Page]:
    """Harmless text at addresses that the published lists block."""
    result = []
    for number, page in enumerate(stories.pages(count, rng)):
        url = f"https://{number}.videos.example.com/{BLOCKED_PATHS[number % len(BLOCKED_PATHS)]}/{number}"
        result.append(dataclasses.replace(page, url=url, kind="blocked", keep=False, filter="url"))
    return result


def _foreign(language: str, sources: Sources, count: int) -> list[Page]:
    rows = [row for row in sources.foreign.get(language, []) if len(row["extract"]) > 300]
    step = max(3, len(rows) // max(count, 1))
    result = []
    for start in range(0, len(rows) - 2, step)[:count]:
        blocks = [("p", " ".join(row["extract"].split())) for row in rows[start : start + 3]]
        url = f"https://{language}.encyclopedia.example.com/{start:05d}"
        kind = {"fr": "french", "es": "spanish"}[language]
        result.append(Page(url, rows[start]["title"], blocks, kind, False, "language", language=language))
    return result


def _mirror(page: Page, cluster: str, kind: str, blocks: list[tuple[str, str]]) -> Page:
    page.cluster = cluster
    url = page.url.replace(".example.org", ".example.net")
    assert url.split("/")[2] in HOSTS, f"no mirror of {page.url}"
    return dataclasses.replace(page, url=url, blocks=blocks, kind=kind, keep=False, filter="minhash", facts=[])


def _copy(page: Page, number: int) -> Page:
    """The same words on another host."""
    return _mirror(page, f"copy-{number:04d}", "copy", page.blocks)


def _near_copy(page: Page, number: int, rng: random.Random) -> Page:
    """The same page with one word in about two hundred changed: more than nine in ten of its 5-grams stay."""
    blocks = list(page.blocks)
    words = sum(len(text.split()) for _, text in blocks)
    long = [i for i, (tag, text) in enumerate(blocks) if tag == "p" and len(text.split()) > 8]
    for i in rng.sample(long, min(len(long), max(1, words // 200))):
        text = blocks[i][1].split()
        text[rng.randrange(2, len(text) - 2)] = rng.choice(("indeed", "however", "likewise", "perhaps"))
        blocks[i] = ("p", " ".join(text))
    return _mirror(page, f"near-{number:04d}", "near_copy", blocks)


CONTACT = (
    "Questions about this page go to {mail}.", "Write to {mail} if you see a mistake.",
    "The page was last changed by {mail} from the address {ip}.", "A reader with the address {ip} sent us this page.",
    "Our server has the address {ip}, and its keeper is {mail}.", "If you want to help, write a few lines to {mail}.",
)  # fmt: skip


def plant_address(page: Page, rng: random.Random) -> None:
    """End the page's last paragraph with an e-mail address, a public IP address, or both."""
    ip = "10.0.0.1"
    while not ipaddress.ip_address(ip).is_global:
        ip = ".".join(str(rng.randint(1, 223)) for _ in range(4))
    mail = f"{rng.choice(GIRLS + BOYS)}.{made_up(rng)}@{made_up(rng)}-post.org".lower()
    sentence = rng.choice(CONTACT).format(mail=mail, ip=ip)
    i = max(i for i, (tag, _) in enumerate(page.blocks) if tag == "p")
    page.blocks[i] = ("p", f"{page.blocks[i][1]} {sentence}")
    page.pii = [string for string in (mail, ip) if string in sentence]
