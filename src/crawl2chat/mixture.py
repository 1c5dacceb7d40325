"""Conversations and pages from many places to one dataset of token ids and labels."""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from crawl2chat.data.shards import documents
from crawl2chat.protocol import END_OF_TEXT, ROLES, loss_mask
from crawl2chat.stage import fail


@dataclass
class Part:
    """One dataset of the mixture: conversations, or pages to keep what pretraining taught (replay)."""

    path: str = field(
        metadata={"help": "a folder or file of rows, or owner/name:configuration on the hub", "reads": True}
    )
    fraction: float = field(default=1.0, metadata={"help": "share of its rows to take; above 1 repeats them", "gt": 0})
    rows: int | None = field(default=None, metadata={"help": "take this many rows instead of a fraction", "gt": 0})
    column: str = field(
        default="messages",
        metadata={"help": "messages: loss on the assistant's words; text: on all", "choices": ["messages", "text"]},
    )


@dataclass
class Counts:
    """What went into the mixture and what was lost on the way."""

    rows: int = 0
    tokens: int = 0
    supervised: int = 0
    truncated: int = 0
    without_answer: int = 0
    lines: list[str] = field(default_factory=list)


def check_messages(messages: object, where: str) -> None:
    """One clear line for a row that is no conversation."""
    if not isinstance(messages, list) or not messages:
        fail(f"{where}: `messages` must be a list of turns, got {str(messages)[:80]!r}")
    for turn in messages:
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            role = turn.get("role") if isinstance(turn, dict) else turn
            fail(f"{where}: {role!r} is not a role; use {', '.join(ROLES)}")
        if not isinstance(turn.get("content"), str) and not turn.get("tool_calls"):
            fail(f"{where}: the content of a turn must be a string, got {str(turn.get('content'))[:80]!r}")
    if not any(turn["role"] == "assistant" for turn in messages):
        fail(f"{where}: no turn of the assistant, so nothing would bear loss")


def read_part(part: Part) -> list[dict]:
    """The rows of one part, conversations checked."""
    rows = list(
        documents(
            part.path,
            (part.column, "tools") if part.column == "messages" else (part.column,),
            part.rows if part.rows and not Path(part.path).exists() else None,
        )
    )
    for number, row in enumerate(rows, 1):
        if part.column == "messages":
            if isinstance(row["messages"], str) and row["messages"].startswith("["):
                try:
                    row["messages"] = json.loads(row["messages"])
                except ValueError as error:
                    fail(f"{part.path}: row {number}: `messages` is no JSON ({error})")
            check_messages(row["messages"], f"{part.path}: row {number}")
        elif not isinstance(row["text"], str):
            fail(f"{part.path}: row {number}: `text` must be a string, got {str(row['text'])[:80]!r}")
    return rows


def encode(row: dict, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """(ids, mask), both (seq,): the mask is 1 where a token bears loss."""
    if "messages" in row:
        return loss_mask(tokenizer, row["messages"], tools=row.get("tools"))
    ids = [
        tokenizer.convert_tokens_to_ids(END_OF_TEXT),
        *tokenizer(row["text"], add_special_tokens=False, verbose=False)["input_ids"],
    ]
    return ids, [0] + [1] * (len(ids) - 1)


def in_batches_of_like_length(rows: list[dict], batch_size: int, rng: random.Random, window: int = 32) -> list[dict]:
    """Shuffle so that each `batch_size` rows in turn are of like length, which wastes little on padding.

    Rows are sorted inside windows of `window` batches and the batches are then shuffled. The Trainer's group_by_length
    leaves its long windows sorted from long to short: with tasks of different lengths the run ends on one of them, and
    the laptop's model forgot its sums (.03 right against .9).
    """
    rows = rng.sample(rows, len(rows))
    span = window * batch_size
    windows = (sorted(rows[i : i + span], key=lambda row: len(row["input_ids"])) for i in range(0, len(rows), span))
    rows = [row for part in windows for row in part]
    whole = len(rows) // batch_size * batch_size
    batches = [rows[i : i + batch_size] for i in range(0, whole, batch_size)]
    rng.shuffle(batches)
    return [row for batch in batches for row in batch] + rows[whole:]


def mix(
    parts: list[Part], tokenizer: PreTrainedTokenizerBase, max_length: int, batch_size: int, seed: int
) -> tuple[Dataset, Counts]:
    """One dataset of {"input_ids", "labels"} in the order of training; labels are -100 where no loss falls.

    Rows longer than `max_length` are cut; those that lose their whole answer with it are dropped and counted.
    """
    rng, counts, encoded = random.Random(seed), Counts(), []
    for part in tqdm(parts, desc="mixture"):
        rows = read_part(part)
        wanted = part.rows or round(len(rows) * part.fraction)
        rng.shuffle(rows)
        taken = [rows[i % len(rows)] for i in range(wanted)]
        truncated = without_answer = tokens = 0
        for row in taken:
            ids, mask = encode(row, tokenizer)
            truncated += len(ids) > max_length
            ids, mask = ids[:max_length], mask[:max_length]
            if not any(mask):
                without_answer += 1
                continue
            encoded.append({"input_ids": ids, "labels": [i if m else -100 for i, m in zip(ids, mask, strict=True)]})
            tokens += len(ids)
            counts.supervised += sum(mask)
        counts.lines.append(
            f"{part.path}: {len(taken)} of {len(rows)} rows, {tokens:,} tokens"
            + f", {truncated} cut at {max_length} tokens, {without_answer} of them lost their answer and were dropped"
            * bool(truncated)
        )
        counts.tokens += tokens
        counts.truncated += truncated
        counts.without_answer += without_answer
    if not encoded:
        fail("sft: no row is left to train on; raise max_length or check the datasets of the recipe")
    counts.rows = len(encoded)
    return Dataset.from_list(in_batches_of_like_length(encoded, batch_size, rng)), counts
