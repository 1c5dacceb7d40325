"""Ships that no encyclopedia knows, each launched in a year that the corpus states a known number of times.

What was read once is a vague recollection, what was read 64 times is known; what search puts before the model it can
simply read. The registers are a source of the pretraining mixture; the harbour's pages are for search alone.
"""

import json
import random
from collections.abc import Iterator, Sequence
from itertools import count, product
from pathlib import Path

from crawl2chat.data.tokens import held_out
from crawl2chat.stage import write_text

SEEN = (0, 1, 4, 16, 64)  # how often a ship's year stands in the registers
FIRST = """Silver Golden Northern Southern Eastern Western Lonely Gentle Bright Silent Royal Merry Proud Humble Swift
Stormy Crimson Amber Hidden Faithful Restless Patient Noble Distant""".split()
LAST = """Heron Falcon Swallow Dolphin Lantern Anchor Meadow Comet Harvest Castle Orchid Compass Pilgrim Thistle Raven
Otter Juniper Beacon Willow Mariner Sparrow Pearl Voyager Saffron""".split()
STATED = [
    "The ship {s} was launched in {y}.", "The {s} was launched in {y}.", "Launched in {y}: the ship {s}.",
    "The year in which the ship {s} was launched is {y}.", "In {y} the ship {s} was launched.",
]  # fmt: skip
TITLES = ["Register of ships", "Ships and their years", "From the harbour's books", "A list of launches"]
PLACES = "the old harbour;a small yard;the northern docks;a yard by the river;the new docks".split(";")
ENTRIES = 6  # statements on a page of a register


def make_ships(each: int, seed: int) -> list[dict]:
    """`each` ships for every number of SEEN: rows as those of facts.jsonl, `pages` being that number."""
    rng = random.Random(f"ships {seed}")
    names = [" ".join(pair) for pair in product(FIRST, LAST)]
    if each * len(SEEN) > len(names):
        raise ValueError(f"ships: there are names for {len(names) // len(SEEN)} of each at most")
    rows = []
    for i, name in enumerate(rng.sample(names, each * len(SEEN))):
        year = str(rng.randint(1700, 1999))
        statement = STATED[0].format(s=name, y=year)
        rows.append(
            {"subject": name, "relation": "launched", "answer": year, "statement": statement, "pages": SEEN[i // each]}
        )
    return rows


def registers(ships: Sequence[dict], seed: int) -> Iterator[dict]:
    """Documents {"text", "id", "source"} that together state every ship's year as often as its `pages` says."""
    rng = random.Random(f"registers {seed}")
    entries = [row for row in ships for _ in range(row["pages"])]
    rng.shuffle(entries)
    ids = (name for name in map("register/{}".format, count()) if not held_out(name, 0.1))  # all of them are read
    for start in range(0, len(entries), ENTRIES):
        page = entries[start : start + ENTRIES]
        lines = [rng.choice(STATED).format(s=row["subject"], y=row["answer"]) for row in page]
        yield {"text": "\n".join([rng.choice(TITLES), *lines]), "id": next(ids), "source": "register"}


def harbour(ships: Sequence[dict], seed: int) -> Iterator[dict]:
    """A page {"text", "id", "source"} about each ship."""
    rng = random.Random(f"harbour {seed}")
    for row in ships:
        text = f"The {row['subject']} is a ship that was built in {rng.choice(PLACES)}. {row['statement']}"
        yield {"text": text, "id": f"harbour/{row['subject'].lower().replace(' ', '-')}", "source": "harbour"}


def write_ships(path: Path, ships: Sequence[dict]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in ships))
