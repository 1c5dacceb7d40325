"""Pages that carry real prose: the encyclopedia (Wikipedia's intros) and the biographies (dated people)."""

import random
import re
from itertools import groupby

from crawl2chat.data.facts import be
from crawl2chat.data.pages import Page, slug

ENCYCLOPEDIA = "https://encyclopedia.example.org"
BIOGRAPHIES = "https://biographies.example.org"
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"“])")


def encyclopedia(articles: list[dict]) -> list[Page]:
    """Every article's intro, three to five neighbours of one topic to a page so that a page has sentences enough."""
    pages = []
    for topic, rows in groupby(articles, key=lambda row: row.get("topic") or "Various"):
        group, length = [], 0
        rows = list(rows)
        for i, row in enumerate(rows):
            group.append(row)
            length += len(row["extract"])
            if (len(group) >= 3 and length >= 1700 and len(rows) - i > 3) or i == len(rows) - 1:
                pages.append(_encyclopedia_page(topic, group, len(pages)))
                group, length = [], 0
    return pages


def _encyclopedia_page(topic: str, group: list[dict], number: int) -> Page:
    blocks = []
    for row in group:
        paragraphs = [line.strip() for line in row["extract"].splitlines() if line.strip()]
        blocks += [("h2", row["title"]), *(("p", paragraph) for paragraph in paragraphs)]
    url = f"{ENCYCLOPEDIA}/{slug(topic)}/{number:04d}"
    return Page(url, f"{topic}: {group[0]['title']} to {group[-1]['title']}", blocks, "encyclopedia")


BORN_AND_DIED = (
    "{n} was born in {b} and died in {d}.", "Born in {b}, {n} died in {d}.", "{n} lived from {b} to {d}.",
    "The life of {n} began in {b} and ended in {d}.", "{n} came into the world in {b} and left it in {d}.",
)  # fmt: skip
LIVING = (
    "{n} was born in {b}.", "The year of birth of {n} is {b}.", "{n} came into the world in {b}.",
    "The life of {n} began in {b}.",
)  # fmt: skip
YEARS = (
    "The birth year of {n} is {b}.", "{b} is the year in which {n} was born.", "In the year {b}, {n} was born.",
    "When was {n} born? {n} was born in {b}.", "Those who ask for the year of birth of {n} are told {b}.",
    "What is the birth year of {n}? It is {b}.", "The year {b} is the birth year of {n}.",
)  # fmt: skip
KNOWN = (
    "{n} is remembered as {k}.", "Readers know {n} as {k}.", "Who {be} {n}? {n} {be} {k}.",
    "In short, {n} {be} {k}.", "Books describe {n} as {k}.", "{n} is known as {k}.",
)  # fmt: skip
AGE = (
    "{n} reached the age of about {age} years.", "That makes a life of about {age} years for {n}.",
    "When {n} died, about {age} years had passed since the year {b}.", "{n} lived for about {age} years.",
)  # fmt: skip


def biographies(people: list[dict], rng: random.Random) -> list[Page]:
    """One page a person; every paragraph names the person, so that it can be read alone."""
    return [_biography(person, number, rng) for number, person in enumerate(people)]


def _biography(person: dict, number: int, rng: random.Random) -> Page:
    name, born, died = person["name"], person["born"], person["died"]
    words = {"n": name, "b": born, "d": died, "k": person["known_as"], "be": be(person), "age": (died or 0) - born}
    years = f"{born}-{died}" if died else f"born {born}"
    first = f"{name} ({years}) {be(person)} {person['known_as']}. {rng.choice(BORN_AND_DIED if died else LIVING)}"
    second = f"{rng.choice(YEARS)} {rng.choice(KNOWN)}"
    extract = " ".join(person["extract"].split())
    third = f"{rng.choice(AGE)} {rng.choice(YEARS)}" if died else rng.choice(KNOWN)
    paragraphs = [first, second, extract, third]
    blocks = [("p", text.format(**words)) if text is not extract else ("p", text) for text in paragraphs]
    url = f"{BIOGRAPHIES}/people/{number:04d}-{slug(name)}"
    return Page(url, name, blocks, "biography", facts=[(name, "born"), (name, "known_as")])
