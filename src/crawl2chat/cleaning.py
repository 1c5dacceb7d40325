"""Conversations cleaned before training: duplicates, questions of the evaluation sets, and how long they are.

    python -m crawl2chat.cleaning output/laptop/conversations/facts/train.jsonl --tokenizer output/laptop/tokenizer

A word is a run of letters and digits, a decimal number, one ideograph, a sign that is no prose punctuation, or a run
of one sign. So two sums that differ in a digit or a sign are two conversations, and two that differ in capitals or a
question mark are one.
"""

import argparse
import bisect
import hashlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from crawl2chat.data.shards import documents
from crawl2chat.protocol import load_tokenizer, loss_mask
from crawl2chat.stage import fail

GRAM = 13  # words in a row that are no coincidence: Brown et al. 2020, appendix C
ENOUGH = 50  # words of a row that may be a near-duplicate
CONTAINED = 8  # a shorter question is matched as a whole turn alone: "Who are you?" stands inside many others
SKETCH = 128  # smallest hashes that stand for a row's grams
LOOKED_UP = 6  # of them; a pair of similarity .8 shares none of these in about one pair of 10,000
WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\d+(?:[.,:]\d+)*|[^\W_]+|[^\w\s.,;:!?'\"()\[\]\u2018-\u201f]|([^\w\s])\1+"
)


def words(text: str) -> list[str]:
    """The words of a text as the comparisons see them."""
    return [found[0] for found in WORD.finditer(unicodedata.normalize("NFKC", text).casefold())]


def said(turn: dict) -> str:
    """The words of a turn: its content, else its tool calls as JSON."""
    calls = json.dumps(turn["tool_calls"], sort_keys=True) if turn.get("tool_calls") else ""
    return f"{turn.get('content') or ''} {calls}".strip()


def grams(sequence: Sequence[str], length: int = GRAM) -> Iterator[int]:
    """A 64-bit hash of each `length` words in a row; none for a shorter sequence."""
    for start in range(len(sequence) - length + 1):
        text = " ".join(sequence[start : start + length]).encode("utf-8", "replace")
        yield int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


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
        hashes = sorted(set(grams(spoken))) if len(spoken) >= ENOUGH else []
        sketch = np.array(hashes[:SKETCH], np.uint64)
        close = {holder for gram in hashes[:LOOKED_UP] for holder in holders[gram]} if hashes else set()
        if any(similarity(sketch, sketches[holder]) >= threshold for holder in close):
            dropped.append({**row, "reason": "nearly_the_same"})
            continue
        for gram in hashes[:LOOKED_UP]:
            holders[gram].append(len(sketches))
        if hashes:
            sketches.append(sketch)
        kept.append(row)
    return kept, dropped


def read_questions(paths: Iterable[str]) -> list[str]:
    """The last turn of the user in each row of held-out files ({"prompt": messages}, as conversations.py writes)."""
    questions = []
    for path in paths:
        for number, row in enumerate(documents(path, ("prompt",)), 1):
            turns = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
            asked = [turn["content"] for turn in turns if isinstance(turn, dict) and turn.get("role") == "user"]
            if not asked or not isinstance(asked[-1], str):
                fail(f"{path}: row {number}: no turn of a user in `prompt`; write the held-out questions again")
            questions.append(asked[-1])
    return questions


def decontaminate(rows: Iterable[dict], questions: Iterable[str]) -> tuple[list[dict], list[dict]]:
    """(kept, dropped): rows that hold a question of the evaluation go, with `reason`.

    `asks_the_question`: a turn of the user is the question in other capitals and punctuation. `holds_the_question`: a
    question of 8 to 12 words stands whole in some turn. `shares_13_words`: 13 words in a row of a longer one do.
    """
    whole: set[tuple[str, ...]] = set()
    pieces: dict[int, set[int]] = defaultdict(set)
    for question in questions:
        if spoken := words(question):
            whole.add(tuple(spoken))
            if len(spoken) >= CONTAINED:
                pieces[min(len(spoken), GRAM)].update(grams(spoken, min(len(spoken), GRAM)))

    def reason(row: dict) -> str | None:
        turns = [(turn["role"], words(said(turn))) for turn in row["messages"]]
        if any(role == "user" and tuple(spoken) in whole for role, spoken in turns):
            return "asks_the_question"
        for length, known in sorted(pieces.items()):
            if any(not known.isdisjoint(grams(spoken, length)) for _, spoken in turns):
                return "shares_13_words" if length == GRAM else "holds_the_question"
        return None

    kept, dropped = [], []
    for row in tqdm(rows, desc="decontamination", unit="row"):
        why = reason(row)
        (dropped if why else kept).append({**row, "reason": why} if why else row)
    return kept, dropped


def reasons(dropped: Iterable[dict]) -> dict[str, int]:
    """How many rows went for which reason, most first."""
    return dict(Counter(row["reason"] for row in dropped).most_common())


@dataclass
class Lengths:
    """Tokens of conversations: of whole rows and of each role's words, and what `max_length` does to them."""

    max_length: int
    rows: list[int] = field(default_factory=list)
    roles: dict[str, list[int]] = field(default_factory=dict)
    truncated: int = 0
    answer_cut: int = 0
    answer_lost: int = 0

    def lines(self, batch_size: int) -> list[str]:
        """What a person reads before training: a table, the rows that lose their answer, what packing gains."""
        table = [f"{'tokens':<12}{'count':>9}{'median':>9}{'95 %':>9}{'max':>9}{'sum':>13}"]
        for name, sizes in {"row": self.rows, **self.roles}.items():
            middle, high = np.percentile(sizes, [50, 95]) if sizes else (0, 0)
            table.append(
                f"{name:<12}{len(sizes):>9,}{middle:>9,.0f}{high:>9,.0f}{max(sizes, default=0):>9,}{sum(sizes):>13,}"
            )
        if self.truncated:
            table.append(
                f"warning: {self.truncated:,} of {len(self.rows):,} rows exceed max_length {self.max_length}: "
                f"{self.answer_lost:,} lose their whole answer, {self.answer_cut:,} more a part of it"
            )
        used = packing(self.rows, self.max_length, batch_size)
        return [*table, "cells that hold a token: " + ", ".join(f"{name} {share:.0%}" for name, share in used.items())]


def measure(rows: Iterable[dict], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Lengths:
    """The lengths of conversations as training renders them; a role's tokens are those of its words alone."""
    lengths = Lengths(max_length)
    for row in tqdm(rows, desc="lengths", unit="row"):
        ids, mask = loss_mask(tokenizer, row["messages"], tools=row.get("tools"))
        lengths.rows.append(len(ids))
        for turn in row["messages"]:
            size = len(tokenizer(said(turn), add_special_tokens=False, verbose=False)["input_ids"])
            lengths.roles.setdefault(turn["role"], []).append(size)
        lost, left = any(mask[max_length:]), any(mask[:max_length])
        lengths.truncated += len(ids) > max_length
        lengths.answer_cut += lost and left
        lengths.answer_lost += lost and not left
    return lengths


def packing(lengths: Sequence[int], max_length: int, batch_size: int) -> dict[str, float]:
    """Share of a batch's cells that hold a token, rows cut at `max_length`: in the order given and padded to the
    batch's longest, sorted by length and padded, and packed into rows of `max_length` (best fit, longest first)."""
    sizes = [min(size, max_length) for size in lengths]
    if not sizes:
        return {}

    def padded(order: list[int]) -> float:
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        return sum(order) / sum(len(batch) * max(batch) for batch in batches)

    free: list[int] = []  # ascending: what is left in each packed row
    for size in sorted(sizes, reverse=True):
        at = bisect.bisect_left(free, size)
        left = free.pop(at) - size if at < len(free) else max_length - size
        bisect.insort(free, left)
    packed = sum(sizes) / (len(free) * max_length)
    return {"padded": padded(sizes), "padded by length": padded(sorted(sizes)), "packed": packed}


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
        lengths = measure(kept, load_tokenizer(arguments.tokenizer), arguments.max_length)
        print(*lengths.lines(arguments.batch_size), sep="\n")


if __name__ == "__main__":
    main()
