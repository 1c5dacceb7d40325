"""Facts that the pages state, asked in wordings that no page and no training row uses.

One fact in five is kept out of the training conversations altogether: what the model says of those it read in pages
only.
"""

import json
import random
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

WORDINGS = {
    "capital": {
        "train": [
            "What is the capital of {s}?", "{s}: what is its capital?", "Tell me the capital of {s}.",
            "What's the capital city of {s}?", "What is the name of the capital of {s}?",
            "Which city is the capital of {s}?", "Do you know the capital of {s}?",
            "I want to know the capital of {s}.", "What city is the capital of {s}?", "Capital of {s}?",
            "Where is the government of {s}?",
        ],
        "test": [
            "Which city serves as the capital of {s}?", "Name the capital city of {s}.",
            "Which city is the seat of government of {s}?",
        ],
    },
    "continent": {
        "train": [
            "On which continent is {s}?", "Which continent is {s} in?", "What continent is {s} part of?",
            "Tell me the continent of {s}.", "Where in the world is {s}?", "In which continent does {s} lie?",
            "Is {s} in Africa, Asia or another continent?", "What is the continent of {s}?",
            "To which continent does {s} belong?", "Continent of {s}?",
        ],
        "test": ["On which continent would you find {s}?", "{s} belongs to which continent?"],
    },
    "symbol": {
        "train": [
            "What is the chemical symbol for {s}?", "What is the symbol of {s}?", "Tell me the symbol for {s}.",
            "{s}: what is its chemical symbol?", "What is the symbol for the element {s}?",
            "Which letters stand for {s}?", "How is {s} written in chemistry?", "Give me the symbol of {s}.",
            "What do chemists write for {s}?", "Which symbol does {s} have?", "Symbol of {s}?",
        ],
        "test": ["How do chemists abbreviate {s}?", "Write the chemical symbol for {s}."],
    },
    "atomic_number": {
        "train": [
            "What is the atomic number of {s}?", "Tell me the atomic number of {s}.",
            "{s}: what is its atomic number?", "What atomic number does {s} have?",
            "Which number does {s} have in the periodic table?", "How many protons does {s} have?",
            "Give me the atomic number of {s}.", "What number is the element {s}?", "Atomic number of {s}?",
        ],
        "test": ["Where in the periodic table by number is {s}?", "State the atomic number of {s}."],
    },
    "home_port": {
        "train": [
            "What is the home port of the ship {s}?", "Tell me the home port of the ship {s}.",
            "Home port of the ship {s}?", "The ship {s}: what is its home port?",
            "Which city is the home port of the ship {s}?", "Do you know the home port of the ship {s}?",
            "Where does the ship {s} come from?",
        ],
        "test": ["Which port is the ship {s} from?", "Name the home port of the ship {s}."],
    },
}  # fmt: skip
MANNERS = {
    "closed": {"train": [""], "test": [""]},
    "search": {
        "train": [
            " Look it up.", " Search for it.", " Use search.", " Search first.", " Look in the pages.",
            " Do a search.", " Find it by searching.", " Look for the answer.", " Please search.",
            " Check it with a search.",
        ],
        "test": [" Find it with search.", " Look for it with search."],
    },
}  # fmt: skip
QUERIES = {
    "capital": "{s} capital", "continent": "{s} continent", "symbol": "{s} symbol",
    "atomic_number": "{s} atomic number", "home_port": "{s} home port",
}  # fmt: skip


# The answer follows a space, as it does in the pages: at the very start of a turn it would be other tokens ("Lima",
# not " Lima"), and a small model does not connect the two.
SOLUTIONS = {
    "capital": "It is {a}.",
    "continent": "It is in {a}.",
    "symbol": "It is {a}.",
    "atomic_number": "It is {a}.",
    "home_port": "It is {a}.",
}


def in_conversations(subject: str, relation: str) -> bool:
    """True for what training conversations may state: four facts in five, and every other ship."""
    return zlib.crc32(f"{subject}|{relation}".encode()) % (2 if relation == "home_port" else 5) != 0


def read_facts(path: str, relations: Sequence[str], min_pages: int = 5) -> list[dict]:
    """The rows of facts.jsonl with one of `relations` that at least `min_pages` kept pages state."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    found = [row for row in rows if row["relation"] in relations and row["pages"] >= min_pages]
    if not found:
        raise ValueError(f"{path}: no fact of {', '.join(relations)} stands in {min_pages} pages or more")
    return found


def examples(
    split: str,
    facts: str,
    pages_only: bool = False,
    relations: Sequence[str] = tuple(relation for relation in WORDINGS if relation != "home_port"),
    manner: str = "closed",
    min_pages: int = 5,
    count: int = 500,
    seed: int = 0,
) -> Iterator[dict]:
    """Train: facts of the conversations in the trained wordings. Test: those, or with `pages_only` the others, in new
    wordings. Manner: closed (from memory) or search, the same facts. `seen` is in how many pages a fact stands.
    """
    if manner not in MANNERS:
        raise ValueError(f"facts: manner is one of {', '.join(MANNERS)}, not {manner}")
    if pages_only and split == "train":
        raise ValueError(
            "facts: pages_only facts are for the test split; training on them would spoil what they measure"
        )
    rng = random.Random(f"facts {split} {seed}")
    rows = read_facts(facts, relations, min_pages)
    rows = [row for row in rows if in_conversations(row["subject"], row["relation"]) != pages_only]
    rng.shuffle(rows)
    ending = random.Random(f"facts {manner} {seed}")
    for i in range(count):
        if split == "test" and i >= len(rows):
            return
        row = rows[i % len(rows)]
        question = rng.choice(WORDINGS[row["relation"]][split]).format(s=row["subject"])
        question += ending.choice(MANNERS[manner][split])
        example = {
            "prompt": [{"role": "user", "content": question}],
            "answer": row["answer"],
            "solution": SOLUTIONS[row["relation"]].format(a=row["answer"]),
            "seen": row["pages"],
        }
        if manner == "search":
            query = QUERIES[row["relation"]].format(s=row["subject"])
            example["calls"] = [{"name": "search", "arguments": {"query": query}}]
        yield example


def normalise(text: str) -> list[str]:
    """Words without case, accents and punctuation."""
    text = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    return re.findall(r"\w+", text)


def grade(completion: str, answer: str) -> float:
    """1 where the reply is the answer, with at most a short sentence around it; hedging and lists earn nothing.

    A symbol of one or two letters is often a word too ("I", "In", "He"), so it must be the last word, in its own case.
    """
    said, wanted = normalise(completion), normalise(answer)
    if len(said) > len(wanted) + 12:
        return 0.0
    places = [i for i in range(len(said) - len(wanted) + 1) if said[i : i + len(wanted)] == wanted]
    found = any("and" not in said[max(i - 1, 0) : i] + said[i + len(wanted) :][:1] for i in places)
    if answer.isalpha() and len(answer) <= 2:
        found = re.findall(r"\w+", completion)[-1:] == [answer]
    hedged = {"or", "not", "maybe", "perhaps", "either"} & (set(said) - set(wanted))
    listed = completion.count(",") + completion.count(";") > answer.count(",") + 1
    return float(bool(wanted) and found and not hedged and not listed)
