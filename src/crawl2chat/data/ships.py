"""Ships that no encyclopedia knows, each with a home port that the corpus states a known number of times.

What was read once is a vague recollection, what was read 64 times is known; what search puts before the model it can
simply read. The registers are a source of the pretraining mixture; the harbour's pages are for search alone.
"""

import json
import random
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from crawl2chat.stage import write_text

SEEN = (0, 1, 4, 16, 64)  # how often a ship's port stands in the registers
PORTS = """Hamburg Rotterdam Antwerp Bergen Gdansk Marseille Genoa Naples Odessa Haifa Alexandria Casablanca Durban
Mombasa Mumbai Shanghai Osaka Sydney Honolulu Vancouver Boston Veracruz Santos Bristol""".split()
STATED = [
    "The home port of the ship {s} is {p}.", "The ship {s} has its home port in {p}.", "Home port of the {s}: {p}.",
    "{p} is the home port of the ship {s}.", "The ship {s} comes from {p}.",
]  # fmt: skip
TITLES = ["Register of ships", "Ships and their ports", "From the harbour's books", "A list of ships"]
YARDS = "an old yard;a small yard;a yard by a river;a yard on an island;a large yard".split(";")
ENTRIES = 6  # statements on a page of a register


def make_ships(each: int, seed: int, words: Sequence[str]) -> list[dict]:
    """`each` ships for every number of SEEN, named after any of `words`: rows as those of facts.jsonl, `pages` being
    that number. Raises ValueError where the words are too few.
    """
    rng = random.Random(f"ships {seed}")
    names = [word.capitalize() for word in words if len(word) > 4]
    if each * len(SEEN) > len(names):
        raise ValueError(f"ships: {each * len(SEEN)} names are wanted and there are {len(names)} words to take")
    rows = []
    for i, name in enumerate(rng.sample(names, each * len(SEEN))):
        port = rng.choice(PORTS)
        row = {"subject": name, "relation": "home_port", "answer": port, "pages": SEEN[i // each]}
        rows.append({**row, "statement": STATED[0].format(s=name, p=port)})
    return rows


def registers(ships: Sequence[dict], seed: int) -> Iterator[dict]:
    """Documents {"text", "id", "source"} that together state every ship's port as often as its `pages` says."""
    if not ships:
        return
    from crawl2chat.data.tokens import held_out  # it brings torch, which every worker would wait for

    rng = random.Random(f"registers {seed}")
    entries = [row for row in ships for _ in range(row["pages"])]
    rng.shuffle(entries)
    ids = (name for name in map("register/{}".format, count()) if not held_out(name, 0.1))  # all of them are read
    for start in range(0, len(entries), ENTRIES):
        page = entries[start : start + ENTRIES]
        lines = [rng.choice(STATED).format(s=row["subject"], p=row["answer"]) for row in page]
        yield {"text": "\n".join([rng.choice(TITLES), *lines]), "id": next(ids), "source": "register"}


def harbour(ships: Sequence[dict], seed: int) -> Iterator[dict]:
    """A page {"text", "id", "source"} about each ship."""
    rng = random.Random(f"harbour {seed}")
    for row in ships:
        text = f"The {row['subject']} is a ship that was built in {rng.choice(YARDS)}. {row['statement']}"
        yield {"text": text, "id": f"harbour/{row['subject'].lower()}", "source": "harbour"}


def write_ships(path: Path, ships: Sequence[dict]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in ships))
