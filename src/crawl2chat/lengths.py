"""How long conversations are in tokens, what `max_length` cuts off them, and how much of a batch is padding."""

import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from crawl2chat.protocol import loss_mask


@dataclass
class Lengths:
    """Tokens of conversations, of whole rows and of what bears loss in them, and what `max_length` does to them."""

    max_length: int
    rows: list[int] = field(default_factory=list)
    supervised: list[int] = field(default_factory=list)
    truncated: int = 0
    answer_cut: int = 0
    answer_lost: int = 0

    def add(self, mask: Sequence[int]) -> None:
        """Count a row by its mask, (seq,): 1 where a token bears loss."""
        lost, left = any(mask[self.max_length :]), any(mask[: self.max_length])
        self.rows.append(len(mask))
        self.supervised.append(sum(mask))
        self.truncated += len(mask) > self.max_length
        self.answer_cut += lost and left
        self.answer_lost += lost and not left

    def lines(self) -> list[str]:
        """What a person reads before training: a table, and the rows that lose their answer."""
        table = [f"{'tokens':<12}{'rows':>9}{'median':>9}{'95 %':>9}{'max':>9}{'sum':>13}"]
        for name, sizes in {"whole row": self.rows, "bear loss": self.supervised}.items():
            middle, high = np.percentile(sizes, [50, 95]) if sizes else (0, 0)
            table.append(
                f"{name:<12}{len(sizes):>9,}{middle:>9,.0f}{high:>9,.0f}{max(sizes, default=0):>9,}{sum(sizes):>13,}"
            )
        if self.truncated:
            table.append(
                f"warning: {self.truncated:,} of {len(self.rows):,} rows exceed max_length {self.max_length}: "
                f"{self.answer_lost:,} lose their whole answer, {self.answer_cut:,} more a part of it"
            )
        return table


def measure(rows: Iterable[dict], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Lengths:
    """The lengths of conversations as training renders them."""
    lengths = Lengths(max_length)
    for row in tqdm(rows, desc="lengths", unit="row"):
        lengths.add(loss_mask(tokenizer, row["messages"], tools=row.get("tools"))[1])
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

    rows, free, left = 0, [], Counter()  # packed rows; what is free in them, ascending, and in how many
    for size in sorted(sizes, reverse=True):
        at = bisect.bisect_left(free, size)
        room = free[at] if at < len(free) else max_length
        if at == len(free):
            rows += 1
        else:
            left[room] -= 1
            if not left[room]:
                del free[at]
        if not left[room - size]:
            bisect.insort(free, room - size)
        left[room - size] += 1
    packed = sum(sizes) / (rows * max_length)
    return {"padded": padded(sizes), "padded by length": padded(sorted(sizes)), "packed": packed}


def cells_line(used: dict[str, float]) -> str:
    """What `packing` found, in words."""
    return "cells of a batch that hold a token: " + ", ".join(f"{name} {share:.0%}" for name, share in used.items())
