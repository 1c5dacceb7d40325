"""Pages that carry real prose: the encyclopedia (Wikipedia's intros) and the biographies (dated people)."""

import random
import re
from itertools import groupby

from crawl2chat.data.facts import be
from crawl2chat.data.pages import Page, slug
from crawl2chat.data.wording import Teller, lettered, write

ENCYCLOPEDIA = "https://encyclopedia.example.org"
BIOGRAPHIES = "https://biographies.example.org"


def encyclopedia(articles: list[dict]) -> list[Page]:
    """Every article's intro, three or more neighbours of one topic to a page.

    A page is full at 1,600 characters, or later where its numbers and commas leave too few tokens with letters (Gopher
    asks for 80 %).
    """
    result = []
    for topic, rows in groupby(articles, key=lambda row: row.get("topic") or "Various"):
        groups: list[list[dict]] = [[]]
        for row in rows:
            group = groups[-1]
            group.append(row)
            text = " ".join(member["extract"] for member in group)
            if len(group) >= 3 and len(text) >= 1600 and (lettered(text) >= 0.808 or len(group) == 8):
                groups.append([])
        if len(groups) > 1 and len(groups[-1]) < 3:
            groups[-2:] = [groups[-2] + groups[-1]]
        result += [_encyclopedia_page(topic, group, len(result) + i) for i, group in enumerate(groups)]
    return result


def whole_sentences(extract: str) -> list[str]:
    """An intro's paragraphs, without what follows the last full sentence (the heads of lists that were cut off)."""
    paragraphs = []
    for line in extract.splitlines():
        match = re.match(r".*[.!?][\"”’')]*(?=\s|$)", re.sub(r":(?=[A-Z])", ": ", line.strip()))
        if match:
            paragraphs.append(match[0])
    return paragraphs


def _encyclopedia_page(topic: str, group: list[dict], number: int) -> Page:
    blocks = []
    for row in group:
        blocks += [("h2", row["title"]), *(("p", paragraph) for paragraph in whole_sentences(row["extract"]))]
    url = f"{ENCYCLOPEDIA}/{slug(topic)}/{number:04d}"
    return Page(url, f"{topic}: {group[0]['title']} to {group[-1]['title']}", blocks, "encyclopedia")


# {n} the name, {b} and {d} the years, {k} "an English mathematician", {K} the century of birth in words
FIRST_DEAD = ("{n} ({b}-{d}) {be} {k}.",)
FIRST_LIVING = ("{n} (born {b}) {be} {k}.",)
DATES = (
    "{n} was born in {b} and died in {d}.", "Born in {b}, {n} died in {d}.", "{n} lived from {b} to {d}.",
    "The life of {n} went from {b} to {d}.", "{n} came into the world in {b} and left it in {d}.",
)  # fmt: skip
BIRTH = (
    "{n} was born in {b}.", "In {b} {n} was born.", "{n} came into the world in {b}.", "The life of {n} began in {b}.",
    "The year in which {n} was born is {b}.", "It was in {b} that {n} was born.", "{b} is the birth year of {n}.",
    "When was {n} born? In {b}.", "In what year was {n} born? {b}.", "When was {n} born? {n} was born in {b}.",
    "Those who ask when {n} was born are told the year {b}.", "The birth of {n} falls in the year {b}.",
)  # fmt: skip
KNOWN = (
    "{n} is remembered as {k}.", "Readers know {n} as {k}.", "Who {be} {n}? {n} {be} {k}.", "In short, {n} {be} {k}.",
    "Books describe {n} as {k}.", "{n} is known as {k}.", "To most people {n} is known as {k}.",
    "An encyclopedia calls {n} {k}.",
)  # fmt: skip
CENTURY = (
    "{n} was a child of the {century} century.",
    "The {century} century had just seen many changes, and {n} grew up among them.",
    "That was in the {century} century.", "The {century} century is the time to which the early years of {n} belong.",
    "A history of the {century} century has a place for the name of {n}.",
)  # fmt: skip
NEARBY = (
    "In the same years {o} was born, later known as {ok}.", "{o}, {ok}, was born at nearly the same time.",
    "Not far from that year lies the birth of {o}, {ok}.", "{o}, {ok}, belongs to the same generation.",
    "Of nearly the same age was {o}, {ok}.", "Another name from that generation is {o}, {ok}.",
)  # fmt: skip
AGE = (
    "{n} lived for about {age} years.", "It was a life of about {age} years.",
    "Between the two dates lie about {age} years.",
)  # fmt: skip
PADDING = (
    "This page tells the life in a few lines, and the encyclopedia tells more.",
    "The years given here are those that most books agree on.",
    "Much of what is known comes from letters and old papers.",
    "Other pages of this collection are about people of the same time.",
    "Some say that a life cannot be told on one page.",
    "Readers who want to know more should ask for a good book in a library.",
    "A portrait hangs in more than one museum.",
    "Every life is longer than the page that tells it.", "Old dates are not always certain to the day.",
    "What others wrote about it would fill a shelf.", "It is worth reading more than one account of the same life.",
    "The collection has been put together from many short notes.", "Names were not always written as they are today.",
    "Libraries in several countries keep papers from that time.", "A few lines can only show the outline.",
)  # fmt: skip
CENTURIES = """first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth
    fifteenth sixteenth seventeenth eighteenth nineteenth twentieth twenty-first""".split()


def biographies(people: list[dict], rng: random.Random) -> list[Page]:
    """One page a person; the paragraphs name the person, so that each can be read alone."""
    by_birth = sorted(people, key=lambda person: person["born"])
    near = {id(person): by_birth[max(0, i - 5) : i + 6] for i, person in enumerate(by_birth)}
    return [_biography(person, near[id(person)], number, rng) for number, person in enumerate(people)]


def _biography(person: dict, near: list[dict], number: int, rng: random.Random) -> Page:
    name, born, died = person["name"], person["born"], person["died"]
    words = {"n": name, "b": str(born), "d": str(died), "k": person["known_as"], "be": be(person),
             "age": str((died or 0) - born), "century": CENTURIES[(born - 1) // 100]}  # fmt: skip
    extract = opening(person["extract"], 220)
    others = [other for other in near if other["name"] != name] or [person]

    def plan(t: Teller) -> list[str]:
        first = t.say(FIRST_DEAD, DATES) if died else t.say(FIRST_LIVING, BIRTH)
        other = t.rng.choice(others)
        last = t.say(CENTURY, NEARBY, AGE if died else KNOWN, BIRTH, o=other["name"], ok=other["known_as"])
        return [first, t.say(BIRTH, KNOWN), extract, last]

    blocks = [("p", text) for text in write(plan, rng, words, PADDING)]
    return Page(
        f"{BIOGRAPHIES}/people/{number:04d}", name, blocks, "biography", facts=[(name, "born"), (name, "known_as")]
    )


def opening(extract: str, length: int) -> str:
    """The first sentences of an intro, about `length` characters."""
    text = " ".join(whole_sentences(extract))
    end = re.search(r"(?<=[a-z0-9)])\.(?= [A-Z])", text[length:])
    return text[: length + end.start() + 1] if end else text
