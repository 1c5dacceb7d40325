"""The schoolbook: pages answered from the page itself (read, then copy the name, number or word), and letters.

Most names on these pages are made up, so that a model can only answer by looking back.
"""

import random

from crawl2chat.data.facts import be
from crawl2chat.data.pages import Page
from crawl2chat.data.prose import opening
from crawl2chat.data.stories import ANIMALS, BOYS, COLOURS, FOODS, GIRLS, NUMBERS, THINGS, TRADES
from crawl2chat.data.wording import Teller, an, and_list, upper, write

HOST = "https://schoolbook.example.org"
SYLLABLES = """al an ar ba bel bri cas da del dor el en fa fen gar hal il jo ka kel la len lo mar mi mo nar ne nor ol
    pa per ran ri ros sa sel ta tel tor ul va ver wen wil ya zan zo""".split()
ENDINGS = "burg ton ville field stad mouth ford haven bridge wick".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
SUBJECTS = "history music geography chemistry painting mathematics biology reading swimming cooking".split()
INSTRUMENTS = "piano violin flute guitar trumpet harp cello".split()

# what a passage can say of somebody: ways to say it, ways to ask for it, ways to answer; {p} the person, {v} the value
TOLD = {
    "town": (
        ("{p} lives in {v}.", "The home of {p} is in {v}.", "{v} is the town where {p} lives.",
         "{p} has a house in {v}."),
        ("Where does {p} live?", "In which town does {p} live?", "What is the name of the town where {p} lives?"),
        ("{v}.", "In {v}.", "{p} lives in {v}.", "It is {v}."),
    ),
    "pet": (
        ("{p} has {av} at home.", "The animal of {p} is {av}.", "Every evening {p} feeds {av}.",
         "{av2} belongs to {p}."),
        ("What animal does {p} have?", "Which animal does {p} feed?", "What kind of animal belongs to {p}?"),
        ("{av2}.", "{p} has {av}.", "It is {av}."),
    ),
    "pet_name": (
        ("The dog of {p} is called {v}.", "{p} has a dog named {v}.",
         "A dog with the name {v} sleeps at the door of {p}."),
        ("What is the dog of {p} called?", "What is the name of the dog of {p}?", "How is the dog of {p} called?"),
        ("{v}.", "The dog is called {v}.", "Its name is {v}."),
    ),
    "colour": (
        ("The door of {p} is {v}.", "{p} painted the door {v}.", "{p} lives behind {av} door."),
        ("What colour is the door of {p}?", "Which colour did {p} choose for the door?"),
        ("{v2}.", "The door is {v}.", "It is {v}."),
    ),
    "trade": (
        ("{p} is {av}.", "{p} works as {av}.", "By trade {p} is {av}.", "{p} became {av} after school."),
        ("What is the work of {p}?", "What does {p} work as?", "What is {p} by trade?"),
        ("{av2}.", "{p} is {av}.", "{p} works as {av}."),
    ),
    "year": (
        ("{p} was born in {v}.", "In {v} {p} was born.", "{p} came into the world in {v}.",
         "The year {v} is when {p} was born."),
        ("When was {p} born?", "In what year was {p} born?", "What year was {p} born in?"),
        ("{v}.", "In {v}.", "{p} was born in {v}.", "It was in {v}."),
    ),
    "food": (
        ("For breakfast {p} likes {v}.", "{p} eats {v} every morning.",
         "There is nothing that {p} likes more than {v}."),
        ("What does {p} like to eat?", "What does {p} like for breakfast?", "Which food does {p} like?"),
        ("{v2}.", "{p} likes {v}.", "It is {v}."),
    ),
    "friend": (
        ("The best friend of {p} is {v}.", "{p} often plays chess with {v}.",
         "{v} has been a friend of {p} for years."),
        ("Who is the friend of {p}?", "With whom is {p} friends?", "What is the name of the friend of {p}?"),
        ("{v}.", "It is {v}.", "The friend of {p} is {v}."),
    ),
    "day": (
        ("{p} goes to the market on {v}.", "On {v} {p} goes to the market.", "The market day of {p} is {v}."),
        ("On which day does {p} go to the market?", "When does {p} go to the market?"),
        ("On {v}.", "{v}.", "{p} goes there on {v}."),
    ),
    "bought": (
        ("Last week {p} bought {av}.", "{p} came home with {av}.", "At the fair {p} bought {av}."),
        ("What did {p} buy?", "What did {p} bring home?"),
        ("{av2}.", "{p} bought {av}.", "It was {av}."),
    ),
    "instrument": (
        ("{p} plays the {v}.", "In the evening you can hear {p} play the {v}.", "The {v} is the instrument of {p}."),
        ("Which instrument does {p} play?", "What does {p} play in the evening?"),
        ("The {v}.", "{p} plays the {v}.", "It is the {v}."),
    ),
    "count": (
        ("{p} has {v} children.", "There are {v} children in the house of {p}.", "{p} is proud of {v} children."),
        ("How many children does {p} have?", "How many children live in the house of {p}?"),
        ("{v2}.", "{p} has {v} children.", "There are {v} of them."),
    ),
}  # fmt: skip
OPEN_READING = (
    "Read this text and then answer the questions.", "Here is a short text with questions.", "Read carefully.",
    "The answers to the questions are all in the text.", "Read the text twice before you look at the questions.",
    "This is an exercise in reading.",
)  # fmt: skip
OPEN_QUESTIONS = (
    "Now the questions.", "Here are the questions.", "What have you read?", "Now answer these questions.",
)  # fmt: skip


def made_up(rng: random.Random) -> str:
    """An invented word of two or three syllables with a capital letter."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3)))).capitalize()


def somebody(rng: random.Random) -> str:
    """A person's name: mostly invented, one to three words."""
    first = rng.choice(GIRLS + BOYS) if rng.random() < 0.5 else made_up(rng)
    return " ".join([first, *(made_up(rng) for _ in range(rng.choice((0, 1, 1, 1, 2))))])


def _value(kind: str, rng: random.Random) -> str:
    pools = {
        "pet": ANIMALS,
        "colour": COLOURS,
        "trade": TRADES,
        "food": FOODS,
        "day": DAYS,
        "bought": THINGS,
        "instrument": INSTRUMENTS,
        "count": NUMBERS,
    }
    if kind in pools:
        return rng.choice(pools[kind])
    if kind == "year":
        return str(rng.randint(1100, 2015))
    if kind == "town":
        return made_up(rng) + (rng.choice(ENDINGS) if rng.random() < 0.5 else "")
    return made_up(rng) if kind == "pet_name" else somebody(rng)


def _passage(t: Teller) -> list[str]:
    rng = t.rng
    people, paragraphs, questions = [], [t.say(OPEN_READING)], []
    for _ in range(rng.choice((1, 2, 2, 2, 3))):
        person, kinds = somebody(rng), rng.sample(sorted(TOLD), rng.choice((3, 4, 4)))
        people.append(person)
        sentences = []
        for kind in kinds:
            value = _value(kind, rng)
            words = {"p": person, "v": value, "v2": upper(value), "av": an(value), "av2": upper(an(value))}
            told, asked, answered = TOLD[kind]
            sentences.append(t.say(told, **words))
            questions.append(t.say(asked, answered, **words))
        paragraphs.append(" ".join(sentences))
    rng.shuffle(questions)
    questions = questions[: rng.choice((4, 5, 6))]
    return [*paragraphs, f"{t.say(OPEN_QUESTIONS)} {' '.join(questions[:2])}", " ".join(questions[2:])]


def readings(count: int, rng: random.Random) -> list[Page]:
    """Passages about invented people, then questions whose answers stand in the passage."""
    result = []
    for number in range(count):
        blocks = [("p", text) for text in write(_passage, rng, {})]
        result.append(Page(f"{HOST}/reading/{number:04d}", f"Reading exercise {number + 1}", blocks, "reading"))
    return result


SAID = ("Books describe {p} as {k}.", "{p} is remembered as {k}.", "We know {p} as {k}.", "{p} {be} {k}.")
ASK_WHO = ("Who {be} {p}?", "What does the text say about {p}?", "Who {be} this person?")
ANSWER_WHO = ("{p} {be} {k}.", "{K}.", "The text says that {p} {be} {k}.")


def people_readings(people: list[dict], rng: random.Random) -> list[Page]:
    """Short texts about real people and what can be answered from them."""
    result = []
    for number, person in enumerate(people):
        words = {
            "p": person["name"],
            "v": str(person["born"]),
            "be": be(person),
            "k": person["known_as"],
            "K": upper(person["known_as"]),
        }
        start = opening(person["extract"], 150)

        def plan(t: Teller, words: dict = words, start: str = start) -> list[str]:
            told, asked, answered = TOLD["year"]
            questions = [t.say(asked, answered, **words), t.say(ASK_WHO, ANSWER_WHO, **words)]
            t.rng.shuffle(questions)
            return [
                t.say(OPEN_READING),
                f"{start} {t.say(SAID, told, **words)}",
                t.say(OPEN_QUESTIONS),
                " ".join(questions),
                t.say(CLOSE_READING),
            ]

        blocks = [("p", text) for text in write(plan, rng, words, MORE_READING)]
        facts = [(person["name"], "born"), (person["name"], "known_as")]
        url = f"{HOST}/people/{number:04d}"
        result.append(Page(url, f"Reading about {person['name']}", blocks, "reading", facts=facts))
    return result


MORE_READING = (
    "One reads a text best with a pencil in the hand.", "Some words in a text are more important than others.",
    "Look for names, for places and for years while you read.",
    "Do not hurry when you read a text for the first time.",
    "A text about a person often begins with the name.", "It helps to read the hard sentences aloud.",
    "Whoever reads a lot will soon read fast.", "A good reader asks who, when, where and why.",
    "A quiet corner is the best place to read.", "Some answers are short, and others need a whole sentence.",
    "Mark each line that you do not understand.", "Two pairs of eyes see more than one.",
    "Learn the new words by heart and use them tomorrow.",
)  # fmt: skip
CLOSE_READING = (
    "If you did not know an answer, look at the text again.", "Check each answer with the words of the text.",
    "Close the book now and tell a friend what you have read.", "Then write two sentences of your own.",
    "Every answer is a word, a name or a number from the text.", "Well done if you knew them all.",
)  # fmt: skip

OPEN_LETTER = (
    "Dear {a}, thank you for your letter.", "Dear {a}, I have not written for a long time.", "Dear {a}, how are you?",
    "Dear {a}, I hope that this letter finds you well.", "Dear {a}, I have some news for you.",
)  # fmt: skip
LETTER_NEWS = (
    "We have moved to {town}, and our new house has {colour} walls.",
    "My sister has learned to play the {instrument}.",
    "I have a new teacher for {subject}, and I like the lessons.", "We now have {animal} in the garden.",
    "In {month} we will travel to {town} by train.", "On {day} I baked {food} for the first time.",
    "My brother works as {trade} in {town}.", "I read {count} books in {month}.",
    "Our school will have a feast on {day}.",
    "I lost my {colour} {thing} on the way to school.", "My grandmother turned ninety in {month}.",
    "There was a storm, and a tree fell on the old barn.", "A new family has come to live next door.",
    "I have started to learn {subject} with my cousin.", "Last {day} we saw {animal} by the river.",
    "My father built {count} chairs for the kitchen.", "The bridge near {town} is closed, so we go the long way.",
)  # fmt: skip
LETTER_FEEL = (
    "I was very glad about it.", "At first I did not like it, but now I do.", "You would have laughed.",
    "My mother says that it is good for me.", "I think of you when I am there.",
    "It was more work than I had thought.",
    "Nobody had told us before.", "I wish that you had been with us.", "Perhaps you can come and see it.",
)  # fmt: skip
LETTER_ASK = (
    "How is your work?", "Is your {animal2} well again?", "Do you still play the {instrument}?",
    "What is new in {town2}?",
    "Have you read any good books?", "Can you come to visit us in {month}?", "Did you get my card from {town2}?",
    "Please tell me about your new school.", "Please bring your {thing} when you come.",
)  # fmt: skip
LETTER_END = (
    "With best wishes, your friend {b}.", "Yours, {b}.", "I send you a warm hug. Your {b}.",
    "Write back soon! Your {b}.",
    "Greetings to your family from your old friend {b}.", "Until we see each other again, your {b}.",
)  # fmt: skip


def letters(count: int, rng: random.Random) -> list[Page]:
    """Letters between friends about small things."""
    result = []

    def plan(t: Teller) -> list[str]:
        a, b = somebody(t.rng), somebody(t.rng)
        news = []
        for _ in range(4):
            kinds = {kind: _value(kind, t.rng) for kind in ("town", "colour", "instrument", "day", "food", "count")}
            more = {
                "animal": an(t.rng.choice(ANIMALS)),
                "trade": an(t.rng.choice(TRADES)),
                "thing": t.rng.choice(THINGS),
                "month": t.rng.choice(MONTHS),
                "subject": t.rng.choice(SUBJECTS),
            }
            news.append(t.say(LETTER_NEWS, LETTER_FEEL, **kinds, **more))
        ask = {
            "animal2": t.rng.choice(ANIMALS),
            "town2": _value("town", t.rng),
            "month": t.rng.choice(MONTHS),
            "instrument": t.rng.choice(INSTRUMENTS),
            "thing": t.rng.choice(THINGS),
        }
        return [
            f"{t.say(OPEN_LETTER, a=a)} {news[0]}",
            f"{news[1]} {news[2]}",
            f"{news[3]} {t.say(LETTER_ASK, **ask)}",
            t.say(LETTER_ASK, LETTER_END, b=b, **ask),
        ]

    for number in range(count):
        blocks = [("p", text) for text in write(plan, rng, {})]
        result.append(Page(f"{HOST}/letters/{number:04d}", f"A letter to a friend ({number + 1})", blocks, "letter"))
    return result


OPEN_LIST = (
    "{a} has written a list for the day.", "Here is the list of {a}.",
    "This is what {a} packed for the journey to {town}.",
    "{a} went to the market in {town} with a list.", "On the table of {a} there lies a list.",
)  # fmt: skip
LIST = (
    "On it there are {items}.", "It names {items}, in this order.", "There are {count} things on it: {items}.",
    "In order, the things are {items}.",
)  # fmt: skip
ORDER = "first second third fourth fifth sixth seventh".split()
ASK_ORDER = (
    "What is the {nth} thing on the list?", "Which thing comes {nth}?", "What stands in the {nth} place?",
    "What did {a} write in the {nth} place?",
)  # fmt: skip
ANSWER_ORDER = ("{Item}.", "It is {item}.", "The {nth} thing is {item}.", "That is {item}.")
LIST_MORE = (
    "Before noon {a} had everything but one thing.", "The bag was heavy, and {b} helped to carry it.",
    "{b} wanted to add something, but there was no more room.", "A list helps you not to forget.",
    "{a} read the list to {b} in a loud voice.", "{b} has a shorter list.",
    "When a thing is done, {a} draws a line under it.",
)  # fmt: skip
ASK_LENGTH = ("How many things are on the list?", "How long is the list?", "How many things did {a} write down?")
ANSWER_LENGTH = ("{Count}.", "There are {count} things on the list.", "The list has {count} things.")
AFTER = (
    "What do you read after {one}? After {one} you read {two}.", "What is next to {one} on the list? It is {two}.",
    "What do you read before {two}? Before {two} you read {one}.",
)  # fmt: skip


def lists(count: int, rng: random.Random) -> list[Page]:
    """Lists told in prose, and questions about their order."""
    goods = [f"{an(colour)} {thing}" for colour in COLOURS for thing in THINGS]

    def plan(t: Teller) -> list[str]:
        items = t.rng.sample(goods, t.rng.choice((3, 4))) + t.rng.sample(FOODS, t.rng.choice((1, 2)))
        t.rng.shuffle(items)
        number = dict(zip(range(2, 9), NUMBERS, strict=False))[len(items)]
        words = {
            "a": somebody(t.rng),
            "b": rng.choice(GIRLS + BOYS),
            "town": _value("town", t.rng),
            "count": number,
            "Count": upper(number),
            "items": and_list(items),
        }
        asked = t.rng.sample(range(len(items)), 3)
        questions = [
            t.say(ASK_ORDER, ANSWER_ORDER, nth=ORDER[i], item=items[i], Item=upper(items[i]), **words) for i in asked
        ]
        i = t.rng.randrange(len(items) - 1)
        follow = t.say(AFTER, one=items[i], two=items[i + 1])
        return [
            t.say(OPEN_LIST, LIST, LIST_MORE, **words),
            f"{questions[0]} {questions[1]} {t.say(LIST_MORE, **words)}",
            f"{t.say(ASK_LENGTH, ANSWER_LENGTH, **words)} {follow}",
            f"{questions[2]} {t.say(LIST_MORE, CLOSE_READING, **words)}",
        ]

    result = []
    for number in range(count):
        blocks = [("p", text) for text in write(plan, rng, {})]
        result.append(Page(f"{HOST}/lists/{number:04d}", f"A list to remember ({number + 1})", blocks, "list"))
    return result
