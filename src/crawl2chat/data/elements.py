"""The almanac's pages about chemical elements: symbol and atomic number, told in eight genres and many wordings."""

import random

from crawl2chat.data.countries import NAMES
from crawl2chat.data.pages import Page, slug
from crawl2chat.data.wording import Teller, an, upper, write

HOST = "https://almanac.example.org/elements"

# {x} the element, {X} the same at the start of a sentence, {s} its symbol, {n} its atomic number
SYMBOL = (
    "The symbol of {x} is {s}.", "{s} is the symbol of {x}.", "{X} has the symbol {s}.",
    "In formulas {x} is written {s}.",
    "The letters {s} stand for {x}.", "{s} stands for {x}.", "The chemical symbol of {x} is {s}.",
    "Instead of the whole word {x}, a formula has just {s}.", "In the table the box of {x} shows {s}.",
    "When you see {s} in a formula, it means {x}.", "The short sign for {x} is {s}.",
    "{X} is known by the symbol {s}.",
    "The symbol for {x} is {s}.", "Whoever reads {s} in a formula should think of {x}.",
    "{s} is how a formula names {x}.", "The sign {s} on a bottle tells you that there is {x} in it.",
    "Everyone who works with {x} writes {s} for it.", "As a symbol, {x} has {s}.",
)  # fmt: skip
NUMBER = (
    "The atomic number of {x} is {n}.", "{X} has the atomic number {n}.", "{X} is element number {n}.",
    "Element number {n} is {x}.", "Every atom of {x} has {n} protons.",
    "An atom of {x} holds {n} protons in its nucleus.",
    "The number of protons in an atom of {x} is {n}.", "{n} is the atomic number of {x}.",
    "With the number {n}, the table lists {x}.", "The atomic number {n} stands for {x}.",
    "Count the protons in an atom of {x} and you come to {n}.", "In the table {x} has the number {n}.",
    "The box with the number {n} is the box of {x}.", "An atom with {n} protons is an atom of {x}.",
    "If the atomic number is {n}, the element is {x}.", "As its atomic number, {x} has {n}.",
)  # fmt: skip
BOTH = (
    "{X} has the symbol {s} and the atomic number {n}.", "The box of {x} shows the number {n} and the letters {s}.",
    "Two facts to keep about {x}: its symbol is {s}, and its atomic number is {n}.",
    "With the symbol {s} and the atomic number {n}, {x} has its own place in the table.",
    "The element with the atomic number {n} is {x}, and its symbol is {s}.",
    "{s} is the symbol and {n} is the atomic number of {x}.", "Symbol {s}, atomic number {n}: that is {x}.",
)  # fmt: skip
KIND = (
    "{X} is {a_category}.", "Chemists count {x} among the {categories}.", "{X} is one of the {categories}.",
    "The family of {x} in the table is that of the {categories}.",
    "It is {a_category}.", "Chemists count it among the {categories}.", "It is one of the {categories}.",
    "Its family in the table is that of the {categories}.", "By its nature it is {a_category}.",
    "In the table it stands with the {categories}.", "Together with other {categories} it forms one family.",
)  # fmt: skip
STATE = (
    "In a warm room {x} is a {state}.", "At room temperature {x} is a {state}.", "You would meet {x} as a {state}.",
    "In a warm room it is a {state}.", "At room temperature it is a {state}.", "You would meet it as a {state}.",
    "As a material it is a {state}.", "Left alone on a table, it would be a {state}.",
)  # fmt: skip
MADE = (
    "{X} has been made only in the laboratory, a few atoms at a time.",
    "The atoms of {x} fall apart after a short time.",
    "It has been made only in the laboratory, a few atoms at a time.", "Nobody has ever held a piece of it.",
    "Its atoms fall apart after a short time.", "Large machines are needed to make a few atoms of it.",
)  # fmt: skip
PLACE = (
    "{X} stands in row {period} of the table.", "Look for {x} in row {period} of the table.",
    "It stands in row {period} of the table.", "Its row in the table is number {period}.",
    "Look for it in row {period}.",
    "You see it in row {period} when you look at the table on the wall.",
    "In the table it has its place in row {period}.",
)  # fmt: skip
NEXT = (
    "The element before {x} is {before}, and the element after {x} is {after}.",
    "In the table {x} comes after {before}.",
    "The neighbours of {x} in the table are {before} and {after}.", "After {x} the table goes on with {after}.",
    "The element before it is {before}, and the element after it is {after}.",
    "It comes right after {before} in the table.",
    "Its neighbours in the table are {before} and {after}.", "One step further in the table stands {after}.",
    "Between {before} and {after} you see its box.", "Take away one proton and you have {before}.",
    "Add one proton and you have {after}.",
)  # fmt: skip
FIRST = (
    "It is the first element of the table.", "No element stands before {x} in the table.",
    "The table begins with {x}.",
    "In the table {x} is followed by {after}.", "Add one proton and you have {after}.",
)  # fmt: skip
LAST = (
    "It is the last element of the table.", "No element stands after {x} in the table.", "The table ends with {x}.",
    "In the table {x} comes after {before}.", "Take away one proton and you have {before}.",
)  # fmt: skip
LETTERS = (
    "The name {x} begins with the letter {letter}.", "The word {x} has {length} letters.",
    "The name of the element begins with the letter {letter}.", "Its name has {length} letters.",
    "Its name is easy to write once you have seen it.", "The first letter of a symbol is always a capital letter.",
    "A symbol has one letter or two.", "The name stands in the index of the book under the letter {letter}.",
)  # fmt: skip

PADDING = (
    "The table of the elements hangs on the wall of many schools.",
    "Whoever learns a little each day will know it all in a year.",
    "Everything around us is made of atoms.", "Water, air and stone are all made of elements.",
    "A good memory grows when it is used.", "One should never taste what stands in a laboratory.",
    "The rows of the table are read from left to right, like the lines of a book.",
    "Chemists in every country use the same table and the same signs.",
    "It is best to look at the table while you read this.", "A nucleus is the small and heavy middle of an atom.",
)  # fmt: skip

ASK_SYMBOL = (
    "What is the symbol of {x}?", "What is the chemical symbol for {x}?", "Tell me the symbol for {x}.",
    "Which letters stand for {x}?", "How is {x} written in a formula?", "{X}: what is its chemical symbol?",
    "What is the chemical symbol of {x}?", "What symbol does {x} have?", "Do you know the symbol for {x}?",
)  # fmt: skip
ANSWER_SYMBOL = (
    "{s}.", "{s}.", "{s}.", "It is {s}.", "The symbol of {x} is {s}.", "The symbol is {s}.", "The letters are {s}.",
    "The answer is {s}.",
)  # fmt: skip
ASK_NUMBER = (
    "What is the atomic number of {x}?", "Tell me the atomic number of {x}.", "{X}: what is its atomic number?",
    "What atomic number does {x} have?", "How many protons are in an atom of {x}?", "Which number does {x} have?",
    "What number stands in the box of {x}?", "How many protons has an atom of {x}?",
)  # fmt: skip
ANSWER_NUMBER = (
    "{n}.", "{n}.", "{n}.", "It is {n}.", "The atomic number of {x} is {n}.", "The number is {n}.",
    "The answer is {n}.",
)  # fmt: skip
ASK_BACK = (
    "Which element has the symbol {s}?", "For which element do the letters {s} stand?",
    "What does {s} mean in a formula?",
    "Which element has the atomic number {n}?", "What is element number {n}?", "Which element has {n} protons?",
)  # fmt: skip
ANSWER_BACK = ("{X}.", "{X}.", "It is {x}.", "That element is {x}.", "The element is {x}.", "The answer is {x}.")

OPEN_PROFILE = (
    "This page of the almanac is about {x}.", "Our element of the week is {x}.", "Let us look at the element {x}.",
    "Every element has a page in this almanac, and this one is for {x}.", "Here is a short portrait of {x}.",
)  # fmt: skip
CLOSE_PROFILE = (
    "That is the portrait in short.", "The next page of the almanac is about another element.",
    "More can be read in any book of chemistry.", "So much for this page of the almanac.",
    "Those who want to know more should ask a teacher of chemistry.",
)  # fmt: skip
OPEN_LAB = (
    "Today I worked in the laboratory and learned about {x}.", "My notes from the laboratory begin with {x}.",
    "In the laboratory there is a shelf with a card for {x}.", "This morning we read about {x} in the laboratory.",
)  # fmt: skip
LAB = (
    "I washed the glasses and put them back in their places.", "The old clock on the wall was slow again.",
    "My friend wrote the labels, and I checked them twice.", "We wore our white coats and were careful.",
    "The window was open because of the smell.", "I wrote the result in my blue notebook.",
    "After lunch we cleaned the long table.", "The lamp over the table was too bright for my eyes.",
    "Our leader asked us to read the rules once more.", "A cup of tea stood far away from the bottles.",
)  # fmt: skip
OPEN_ESSAY = (
    "For my school essay I chose the element {x}.", "My essay is about {x}.", "In this essay I write about {x}.",
    "Our chemistry teacher asked each of us to choose an element, and I chose {x}.",
)  # fmt: skip
ESSAY = (
    "I did not know this before.", "That is easy to remember.", "I copied the box from the table into my notebook.",
    "Our teacher showed us the table on the wall.", "My sister asked me, and I could tell her at once.",
    "I think that this is worth knowing.", "It took me some time to learn this by heart.",
)  # fmt: skip
OPEN_QUIZ = (
    "Here are some questions about {x}, each with its answer.", "How well do you know {x}?", "This quiz is about {x}.",
    "Ask your friends these questions about {x}.", "A small quiz from the chemistry class, about {x}.",
)  # fmt: skip
CLOSE_QUIZ = (
    "If you knew all of the answers, you know the element well.",
    "Try the quiz again tomorrow and see what you remember.",
    "Those were the questions of today.", "Then go on to the quiz about the next element in the table.",
)  # fmt: skip
OPEN_LETTER = (
    "Dear {a}, today I learned about {x}, and I want to tell you.",
    "Dear {a}, you asked me about {x}, so here is my answer.",
    "Dear {a}, our chemistry lesson was about {x}.",
    "Dear {a}, thank you for the card with the table of the elements.",
)  # fmt: skip
LETTER = (
    "I hope that you are well.", "Please show this letter to your brother.", "The weather here is cold and wet.",
    "I will send you my old chemistry book.", "Our teacher tells good stories in every lesson.",
    "I have put a large table of the elements over my desk.", "Learn it well, because the test is soon.",
    "On Saturday I will visit the museum of science.",
)  # fmt: skip
CLOSE_LETTER = (
    "Write to me soon. Your friend {b}.", "Best wishes from your cousin {b}.", "Until we meet again, yours, {b}.",
    "I am glad that I could help. Your friend {b}.",
)  # fmt: skip
FIVE = ("The first thing to know:", "The second thing:", "The third thing:", "The fourth thing:", "The fifth thing:")
OPEN_FIVE = (
    "Here are five things to know about {x}.", "Five short facts about {x} are enough for one day.",
    "If you have one minute, learn five things about {x}.", "Before the test, learn these five things about {x}.",
)  # fmt: skip
OPEN_TALK = (
    "{a} and {b} sit in front of the table of the elements. They have come to {x}.",
    "In class, {a} asks and {b} answers. Today it is about {x}.", "{a} helps {b} to learn for a test about {x}.",
    "On the way home {a} and {b} talk about {x}.",
)  # fmt: skip
TALK = (
    "That is right, says {a}.", "Very good, says {a}.", "{b} thinks for a moment and nods.", "{a} writes it down.",
    "Yes, I remember that, says {b}.", "{a} points at the table on the wall.", "{b} looks at the box once more.",
)  # fmt: skip
OPEN_COMPARE = (
    "How can one tell {x} from {z}?", "Let us put {x} beside {z}.", "Two elements on one page: {x} and {z}.",
    "Some people mix up {x} and {z}, so here they are side by side.",
)  # fmt: skip


def _words(e: dict) -> dict[str, str]:
    return {
        "x": e["name"], "X": upper(e["name"]), "s": e["symbol"], "n": str(e["number"]), "state": e["state"],
        "a_category": an(e["category"]), "categories": e["category"] + ("es" if e["category"].endswith("s") else "s"),
        "period": str(e["period"]), "before": e["before"], "after": e["after"], "letter": e["name"][0].upper(),
        "length": str(len(e["name"])),
    }  # fmt: skip


def _beside(e: dict) -> tuple[str, ...]:
    return NEXT if e["before"] and e["after"] else FIRST if e["after"] else LAST


def _profile(t: Teller, state: tuple, beside: tuple) -> list[str]:
    return [
        t.say(OPEN_PROFILE, KIND, SYMBOL, state),
        t.say(NUMBER, beside, PLACE),
        t.say(SYMBOL, LETTERS, BOTH, LETTERS),
        t.say(NUMBER, beside, CLOSE_PROFILE),
    ]


def _laboratory(t: Teller, state: tuple, beside: tuple) -> list[str]:
    return [
        t.say(OPEN_LAB, LAB, SYMBOL, LAB),
        t.say(KIND, state, LAB, NUMBER),
        t.say(LAB, beside, SYMBOL),
        t.say(NUMBER, LAB, BOTH, LAB),
    ]


def _essay(t: Teller, state: tuple, beside: tuple) -> list[str]:
    return [
        t.say(OPEN_ESSAY, KIND, ESSAY),
        t.say(NUMBER, ESSAY, beside, state),
        t.say(SYMBOL, LETTERS, ESSAY, PLACE),
        t.say(NUMBER, ESSAY, SYMBOL, ESSAY),
    ]


def _quiz(t: Teller, state: tuple, beside: tuple) -> list[str]:
    return [
        t.say(OPEN_QUIZ, KIND),
        t.say(ASK_SYMBOL, ANSWER_SYMBOL, LETTERS),
        t.say(ASK_NUMBER, ANSWER_NUMBER, beside),
        t.say(ASK_BACK, ANSWER_BACK, state, PLACE),
        t.say(ASK_NUMBER, ANSWER_NUMBER, KIND),
        t.say(ASK_SYMBOL, ANSWER_SYMBOL, BOTH, CLOSE_QUIZ),
    ]


def _letter(t: Teller, state: tuple, beside: tuple) -> list[str]:
    a, b = t.rng.sample(NAMES, 2)
    return [
        t.say(OPEN_LETTER, KIND, LETTER, a=a),
        t.say(SYMBOL, beside, LETTER),
        t.say(NUMBER, state, LETTER, LETTERS),
        t.say(beside, BOTH, LETTER, CLOSE_LETTER, b=b),
    ]


def _five(t: Teller, state: tuple, beside: tuple) -> list[str]:
    pools = [(SYMBOL, LETTERS), (NUMBER, beside), (KIND, state), (PLACE, BOTH, NUMBER), (beside, SYMBOL, LETTERS)]
    t.rng.shuffle(pools)
    return [t.say(OPEN_FIVE), *(f"{number} {t.say(*two)}" for number, two in zip(FIVE, pools, strict=True))]


def _talk(t: Teller, state: tuple, beside: tuple) -> list[str]:
    a, b = t.rng.sample(NAMES, 2)
    turns = [(ASK_SYMBOL, ANSWER_SYMBOL, TALK), (ASK_NUMBER, ANSWER_NUMBER, TALK), (KIND, state, TALK),
             (ASK_BACK, ANSWER_BACK, TALK), (beside, PLACE)]  # fmt: skip
    t.rng.shuffle(turns)
    return [
        t.say(OPEN_TALK, a=a, b=b),
        *(t.say(*turn, a=a, b=b) for turn in turns),
        t.say(BOTH, beside, LETTERS, a=a, b=b),
    ]


GENRES = {"profile": _profile, "laboratory": _laboratory, "essay": _essay, "quiz": _quiz, "letter": _letter,
          "five-things": _five, "conversation": _talk}  # fmt: skip
TITLES = {"profile": "{X}: a portrait", "laboratory": "Laboratory notes on {x}", "essay": "My essay about {x}",
          "quiz": "A quiz about {x}", "letter": "A letter about {x}", "five-things": "Five things to know about {x}",
          "conversation": "A talk about {x}"}  # fmt: skip


def pages(elements: list[dict], rng: random.Random) -> list[Page]:
    """Seven pages about each element and one that compares it with the next in a shuffled round."""
    result = []
    for element in elements:
        facts = [(element["name"], "symbol"), (element["name"], "atomic_number")]
        words, beside = _words(element), _beside(element)
        state = MADE if element["number"] > 100 else STATE
        for genre, plan in GENRES.items():
            paragraphs = write(lambda t, plan=plan, s=state, b=beside: plan(t, s, b), rng, words, PADDING)
            url = f"{HOST}/{slug(element['name'])}/{genre}"
            title = TITLES[genre].format(**words)
            result.append(Page(url, title, [("p", text) for text in paragraphs], "almanac", facts=facts))
    order = rng.sample(elements, len(elements))
    return result + [_comparison(*pair, rng) for pair in zip(order, order[1:] + order[:1], strict=True)]


def _comparison(one: dict, two: dict, rng: random.Random) -> Page:
    words, others = _words(one), _words(two)

    def plan(t: Teller) -> list[str]:
        second = Teller(t.rng, others)
        second.used = t.used  # the two elements share one page, so they share its phrasings
        return [
            t.say(OPEN_COMPARE, z=two["name"]),
            t.say(SYMBOL, NUMBER, KIND, _beside(one)),
            second.say(SYMBOL, NUMBER, KIND, _beside(two)),
            f"{t.say(BOTH)} {second.say(BOTH)}",
        ]

    facts = [(e["name"], relation) for e in (one, two) for relation in ("symbol", "atomic_number")]
    url = f"{HOST}/compare/{slug(one['name'])}-and-{slug(two['name'])}"
    title = f"{words['X']} and {two['name']}"
    return Page(url, title, [("p", text) for text in write(plan, rng, words, PADDING)], "almanac", facts=facts)
