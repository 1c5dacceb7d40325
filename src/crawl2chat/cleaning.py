"""Conversations cleaned before training: what says the same, and what holds a question of the evaluation.

    python -m crawl2chat.cleaning output/laptop/conversations/facts/train.jsonl --tokenizer output/laptop/tokenizer

A word is a run of letters and digits, a decimal number, one ideograph, a sign that is no prose punctuation, or a run
of one sign. So two sums that differ in a digit or a sign are two conversations, and two that differ in capitals or a
question mark are one.
"""

import argparse
import hashlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from crawl2chat.data.shards import documents
from crawl2chat.stage import fail

GRAM = 13  # words in a row that are no coincidence: Brown et al. 2020, appendix C
ENOUGH = 50  # words of a row that may be a near-duplicate
CONTAINED = 8  # a shorter question is matched as a whole turn alone: "Who are you?" stands inside many others
SKETCH = 128  # smallest hashes that stand for a row's grams
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: no bit of an earlier word is lost
ROWS = 1000  # looked through at once
LOOKED_UP = 6  # of them; a pair of similarity .8 shares none of these in about one pair of 10,000
WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\d+(?:[.,:]\d+)*|[^\W_]+|[^\w\s.,;:!?'\"()\[\]\u2018-\u201f]|([^\w\s])\1+"
)


def words(text: str) -> list[str]:
    """The words of a text as the comparisons see them."""
    text = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return [found[0] for found in WORD.finditer(text)]


def said(turn: dict) -> str:
    """The words of a turn: its content, else its tool calls as JSON."""
    calls = json.dumps(turn["tool_calls"], sort_keys=True) if turn.get("tool_calls") else ""
    return f"{turn.get('content') or ''} {calls}".strip()


@lru_cache(2**18)
def number(word: str) -> int:
    """64 bits that stand for a word, the same in every run."""
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def grams(spoken: Sequence[str], length: int = GRAM) -> np.ndarray:
    """A 64-bit hash of each `length` words in a row, (words - length + 1,); none for a shorter sequence."""
    count = max(len(spoken) - length + 1, 0)
    each = np.fromiter(map(number, spoken), np.uint64, len(spoken))
    found = np.zeros(count, np.uint64)
    for k in range(length):
        found = found * FACTOR + each[k : k + count]
    return found


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Estimated share of grams in common, (,), from two rows' smallest hashes: of the smallest of both together, how
    many both hold (bottom-k sketches: Broder 1997). Exact for rows of up to SKETCH grams in all."""
    together = np.union1d(one, other)[:SKETCH]
    return np.isin(together, np.intersect1d(one, other)).mean() if len(together) else 0.0


def deduplicate(rows: Iterable[dict], threshold: float = 0.8) -> tuple[list[dict], list[dict]]:
    """(kept, dropped): the first of conversations that say the same stays; dropped ones get `reason`.

    `same_words`: all turns of all roles alike. `nearly_the_same`: user and assistant share at least
    `threshold` of their 13-grams with one earlier row. A page that a tool answered with and a system message do not
    count, for they stand in many rows; a row under 50 words is never a near-duplicate, for there a word decides.
    About 1.2 kB of memory a row.
    """
    kept, dropped, exact = [], [], set()
    sketches: list[np.ndarray] = []
    holders: dict[int, list[int]] = defaultdict(list)
    for row in tqdm(rows, desc="duplicates", unit="row"):
        turns = [(turn["role"], words(said(turn))) for turn in row["messages"]]
        name = hashlib.blake2b(repr(turns).encode("utf-8", "replace"), digest_size=16).digest()
        if name in exact:
            dropped.append({**row, "reason": "same_words"})
            continue
        exact.add(name)
        spoken = [word for role, part in turns if role in ("user", "assistant") for word in part]
        if len(spoken) >= ENOUGH:
            sketch = np.unique(grams(spoken))[:SKETCH]
            looked_up = sketch[:LOOKED_UP].tolist()
            close = {holder for gram in looked_up for holder in holders[gram]}
            if any(similarity(sketch, sketches[holder]) >= threshold for holder in close):
                dropped.append({**row, "reason": "nearly_the_same"})
                continue
            for gram in looked_up:
                holders[gram].append(len(sketches))
            sketches.append(sketch)
        kept.append(row)
    return kept, dropped


def read_questions(paths: Iterable[str]) -> list[str]:
    """The last turn of the user in each row of held-out files ({"prompt": messages}, as conversations.py writes); of a
    folder, all its test.jsonl that are not empty. One clear line for a folder without any."""
    questions = []
    for path in paths:
        files = [path]
        if Path(path).is_dir():
            files = sorted(str(file) for file in Path(path).rglob("test.jsonl") if file.stat().st_size)
            if not files:
                fail(f"{path}: no test.jsonl below this folder; run the stage that writes the held-out questions")
        for file, number, row in ((f, n, row) for f in files for n, row in enumerate(documents(f, ("prompt",)), 1)):
            turns = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
            asked = [turn["content"] for turn in turns if isinstance(turn, dict) and turn.get("role") == "user"]
            if not asked or not isinstance(asked[-1], str):
                fail(f"{file}: row {number}: no turn of a user in `prompt`; write the held-out questions again")
            questions.append(asked[-1])
    return questions


def decontaminate(rows: Iterable[dict], questions: Iterable[str]) -> tuple[list[dict], list[dict]]:
    """(kept, dropped): rows that hold a question of the evaluation go, with `reason`.

    `asks_the_question`: a turn of the user is the question in other capitals and punctuation. `holds_the_question`: a
    question of 8 to 12 words stands whole in some turn. `shares_13_words`: 13 words in a row of a longer one do. A
    drilled problem with other numbers, or in another wording, is another question and stays.
    """
    whole: set[tuple[str, ...]] = set()
    pieces: dict[int, list[np.ndarray]] = defaultdict(list)
    for question in questions:
        if spoken := words(question):
            whole.add(tuple(spoken))
            if len(spoken) >= CONTAINED:
                length = min(len(spoken), GRAM)
                pieces[length].append(grams(spoken, length))
    known = {length: np.unique(np.concatenate(found)) for length, found in sorted(pieces.items())}

    def look_through(some: list[dict]) -> Iterator[str | None]:
        spoken, ends, asks = [], [], []
        for row in some:
            turns = [(turn["role"], words(said(turn))) for turn in row["messages"]]
            asks.append(any(role == "user" and tuple(part) in whole for role, part in turns))
            spoken += [
                word for _, part in turns for word in (*part, "\n")
            ]  # no gram with a line's end is a question's
            ends.append(len(spoken))
        holds = np.full(len(some), GRAM + 1)  # the shortest question's words
        for length, questions in reversed(known.items()):
            found = grams(spoken, length)
            likely = np.zeros(2**16, bool)
            likely[questions >> np.uint64(48)] = True
            places = np.flatnonzero(likely[found >> np.uint64(48)])
            places = places[np.isin(found[places], questions)]
            holds[np.searchsorted(ends, places, side="right")] = length
        for asked, length in zip(asks, holds, strict=True):
            why = "shares_13_words" if length == GRAM else "holds_the_question" if length < GRAM else None
            yield "asks_the_question" if asked else why

    kept, dropped, rows = [], [], iter(rows)
    with tqdm(desc="decontamination", unit="row") as progress:
        while some := list(islice(rows, ROWS)):
            for row, why in zip(some, look_through(some), strict=True):
                (dropped if why else kept).append({**row, "reason": why} if why else row)
            progress.update(len(some))
    return kept, dropped


def reasons(dropped: Iterable[dict]) -> dict[str, int]:
    """How many rows went for which reason, most first."""
    return dict(Counter(row["reason"] for row in dropped).most_common())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m crawl2chat.cleaning", description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="+", help="files or folders of conversations ({'messages'})")
    parser.add_argument("--questions", nargs="*", default=[], help="held-out files: rows that hold their questions")
    parser.add_argument("--tokenizer", help="folder of a tokenizer: how long the rows are")
    parser.add_argument("--max_length", type=int, default=2048, help="tokens at which training cuts a row")
    parser.add_argument("--batch_size", type=int, default=8, help="rows a batch, for the share that is padding")
    arguments = parser.parse_args()
    rows = [row for path in arguments.rows for row in documents(path, ("messages", "tools"))]
    kept, dropped = deduplicate(rows)
    kept, contaminated = decontaminate(kept, read_questions(arguments.questions))
    why = ", ".join(f"{count:,} {reason}" for reason, count in reasons([*dropped, *contaminated]).items())
    print(f"{len(rows):,} rows: {len(kept):,} kept; {why or 'nothing to drop'}")
    if arguments.tokenizer:
        from crawl2chat.lengths import (
            cells_line,
            measure,
            packing,
        )  # what renders a conversation takes seconds to load
        from crawl2chat.protocol import load_tokenizer

        lengths = measure(kept, load_tokenizer(arguments.tokenizer), arguments.max_length)
        print(*lengths.lines(), sep="\n")
        print(cells_line(packing(lengths.rows, arguments.max_length, arguments.batch_size)))


if __name__ == "__main__":
    main()
