"""People's decisions in an append-only file, each on the disk before anyone is told so; how far the labelers agree."""

import fcntl
import hashlib
import json
import os
import statistics
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from itertools import combinations
from pathlib import Path
from typing import Any

DATASET = ("prompt", "replies", "labeler", "split")  # columns beside what was decided


def key_of(row: dict) -> str:
    """What a prompt and its replies are known by, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps([row["prompt"], row["replies"]], sort_keys=True).encode()).hexdigest()[:16]


def is_order(order: object, count: int) -> bool:
    """Whether `order` lists the whole numbers below `count`, each once."""
    return isinstance(order, list) and all(type(n) is int for n in order) and sorted(order) == list(range(count))


class Decisions:
    """The decisions of every labeler in `path`, whichever threads and processes write it.

    A line is a decision, {"prompt", "replies", `field`: what was decided, or null: skipped, "labeler", "split",
    "decision": its id, "shown", "seconds", "at"}, or takes one back, {"retracts": its id, "labeler", "decision"}. The
    `field` of an order is "order", numbers of the replies, best first. Lines that a crash cut, or that are no such
    rows, are left out: `unreadable` has their numbers. Attributes may be used inside `with decisions.held():` alone.
    """

    def __init__(
        self, path: str | Path, field: str = "order", valid: Callable[[object, int], bool] = is_order
    ) -> None:
        """Makes the file where there is none; `valid` says whether a value of `field` fits so many replies.

        Raises OSError.
        """
        self.field, self.valid = field, valid
        self.path, self.lock, self.offset, self.line = Path(path), threading.Lock(), 0, 0
        self.cut = False  # the last line has no end
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        folder = os.open(self.path.parent, os.O_RDONLY)
        os.fsync(folder)  # the name, too, outlives a crash
        os.close(folder)
        self.standing: dict[tuple[str, str], dict] = {}  # by labeler and prompt, oldest first
        self.retracted: dict[tuple[str, str], Any] = {}  # what was decided and taken back, newest last
        self.seen: set[str] = set()  # ids of all rows
        self.gone: set[str] = set()  # ids of those taken back
        self.unreadable: list[int] = []

    @contextmanager
    def held(self) -> Iterator[None]:
        """The file, locked against every other writer and read to its end. Raises OSError."""
        with self.lock, open(self.path, "rb+", buffering=0) as self.handle:
            fcntl.flock(self.handle, fcntl.LOCK_EX)
            self.catch_up(self.handle)
            yield

    def catch_up(self, handle: FileIO) -> None:
        """Read what was appended since the last time. Nobody writes meanwhile: a line without an end was cut."""
        if os.fstat(handle.fileno()).st_size < self.offset:
            raise OSError(f"{self.path} has become shorter than it was; start the page again")
        handle.seek(self.offset)
        content = handle.read()
        # an end that was put to a cut line, by whoever wrote after it, opens no line of its own
        lines = content.removeprefix(b"\n" if self.cut else b"").split(b"\n")
        self.cut = self.cut if not content else not content.endswith(b"\n")
        for line in lines[: -1 if lines[-1] == b"" else None]:
            self.line += 1
            if line.strip():
                try:
                    self.take(json.loads(line))
                except (ValueError, KeyError, TypeError, RecursionError):
                    self.unreadable.append(self.line)
        self.offset += len(content)

    def take(self, row: dict) -> None:
        """Raises ValueError, KeyError or TypeError for what is no row of this file."""
        name, who = row["decision"], row["labeler"]
        if not isinstance(name, str) or not isinstance(who, str):
            raise ValueError("ids and names are texts")
        if "retracts" in row:
            where = next((at for at, old in self.standing.items() if old["decision"] == row["retracts"]), None)
            if where and where[0] == who:
                self.retracted.pop(where, None)
                self.retracted[where] = self.standing.pop(where)[self.field]
                self.gone.add(row["retracts"])
        elif name not in self.seen:
            value, replies, where = row[self.field], row["replies"], (who, key_of(row))
            if not isinstance(replies, list) or value is not None and not self.valid(value, len(replies)):
                raise ValueError(f"no {self.field} of these replies")
            self.standing.pop(where, None)
            self.standing[where] = {"split": "train", **row}
        self.seen.add(name)

    def append(self, row: dict) -> None:
        """Write a row, inside `held`, and return when the disk has it. Raises OSError with nothing left behind."""
        size = os.fstat(self.handle.fileno()).st_size
        line = json.dumps(row).encode() + b"\n"
        if size:
            self.handle.seek(size - 1)
            line = line if self.handle.read(1) == b"\n" else b"\n" + line  # never on the end of a cut line
        try:
            self.handle.seek(size)
            rest = memoryview(line)
            while rest:
                rest = rest[self.handle.write(rest) :]
            os.fsync(self.handle.fileno())
        except OSError:
            with suppress(OSError):
                os.ftruncate(self.handle.fileno(), size)
            raise
        self.catch_up(self.handle)

    def of(self, labeler: str) -> dict[str, dict]:
        """A labeler's decisions that stand, by prompt, oldest first."""
        return {key: row for (name, key), row in self.standing.items() if name == labeler}

    def labelers(self) -> set[str]:
        return {name for name, _ in self.standing}

    def dataset(self) -> list[dict]:
        """The decisions that stand, as {"prompt", "replies", `field`, "labeler", "split"}; skips are left out."""
        rows = (row for row in self.standing.values() if row[self.field] is not None)
        return [{name: row[name] for name in (*DATASET, self.field)} for row in rows]


def tau(one: Sequence[int], other: Sequence[int]) -> float:
    """Kendall's tau of two orders of the same replies: 1 where they agree, -1 where one is the other reversed."""
    place = {reply: rank for rank, reply in enumerate(other)}
    pairs = [place[better] < place[worse] for better, worse in combinations(one, 2)]
    return 2 * sum(pairs) / len(pairs) - 1


def agreement(rows: Sequence[dict]) -> list[dict]:
    """{"labelers": [two names], "prompts", "tau"} for any two labelers of `rows` who ordered the same replies; "tau"
    is the mean over those prompts. Rows without an order count for nothing."""
    orders: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for row in rows:
        if row["order"] is not None:
            orders[row["labeler"]][key_of(row)] = row["order"]
    found = []
    for one, other in combinations(sorted(orders), 2):
        if both := orders[one].keys() & orders[other].keys():
            mean = statistics.fmean(tau(orders[one][key], orders[other][key]) for key in sorted(both))
            found.append({"labelers": [one, other], "prompts": len(both), "tau": round(mean, 4)})
    return found


def said(pair: dict) -> str:
    """One line of `agreement` for people."""
    return f"{' and '.join(pair['labelers'])}: Kendall's tau {pair['tau']:+.2f} on {pair['prompts']} prompts"
