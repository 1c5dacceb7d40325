"""Documents to memory-mapped tokens to packed rows: row i of a run is a pure function of its seed."""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from crawl2chat.data.shards import documents, shard_files
from crawl2chat.protocol import END_OF_TEXT
from crawl2chat.stage import fail, write_text

PERIOD = 10_000  # rows after which the sources' turns repeat

@dataclass
class Source:
    """One part of the pretraining mixture."""

    name: str = field(metadata={"help": "what metrics call it"})
    path: str = field(
        metadata={"help": "a folder of shards, or a dataset on the hub (owner/name:configuration)", "reads": True}
    )
    weight: float = field(
        default=1.0, metadata={"help": "share of the training tokens, relative to the others", "gt": 0}
    )
    real_prose: bool = field(default=False, metadata={"help": "written by people, not by a program of ours"})
    documents: int | None = field(default=None, metadata={"help": "read no more than this many documents", "gt": 0})


def held_out(document_id: str, share: float) -> bool:
    """True for the documents whose id hashes into the held-out share; the same ones in every run."""
    return zlib.crc32(document_id.encode()) < share * 2**32


@dataclass
class Tokens:
    """A source's training tokens on disk (documents shuffled, joined by the end-of-text token) and its held-out
    texts.
    """

    name: str
    ids: np.ndarray  # (tokens,) memory-mapped, uint16 or uint32
    bytes: int
    documents: int
    held_out: list[str]
    key: str = ""  # hash of all that the ids depend on


def write_tokens(
    source: Source, tokenizer: PreTrainedTokenizerBase, folder: Path, held_out_share: float, seed: int
) -> Tokens:
    """Encode a source once. The files are keyed by what they depend on, so a second run, or a resumed one, reads them
    back.
    """
    local = Path(source.path).exists()
    stamp = (
        [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in shard_files(source.path)] if local else source.path
    )
    key = repr((stamp, source.documents, held_out_share, seed, tokenizer.backend_tokenizer.to_str()))
    key = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = folder / f"{source.name}-{key}"
    meta_file, ids_file = path.with_suffix(".json"), path.with_suffix(".bin")
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    if not meta_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rows = list(documents(source.path, ("text", "id"), source.documents))
        order = np.random.default_rng(seed).permutation(len(rows))
        kept = [rows[i]["text"] for i in order if not held_out(rows[i].get("id") or rows[i]["text"], held_out_share)]
        apart = [rows[i]["text"] for i in order if held_out(rows[i].get("id") or rows[i]["text"], held_out_share)]
        if not kept:
            fail(f"{source.path}: no document is left for training after holding out {held_out_share:.0%}")
        end = np.array([tokenizer.convert_tokens_to_ids(END_OF_TEXT)], dtype)
        temporary = ids_file.with_suffix(".tmp")
        with open(temporary, "wb") as handle:
            for start in tqdm(range(0, len(kept), 512), desc=f"encode {source.name}", leave=False):
                for encoding in tokenizer.backend_tokenizer.encode_batch_fast(
                    kept[start : start + 512], add_special_tokens=False
                ):
                    handle.write(end.tobytes() + np.array(encoding.ids, dtype).tobytes())
        os.replace(temporary, ids_file)
        meta = {"bytes": sum(len(t.encode()) for t in kept), "documents": len(kept), "held_out": apart}
        write_text(meta_file, json.dumps(meta))
    meta = json.loads(meta_file.read_text(encoding="utf-8"))
    return Tokens(source.name, np.memmap(ids_file, dtype, "r"), **meta, key=key)


class PackedRows(Dataset):
    """Row i of the run, for every i: a pure function of the seed, so the position of a run is one number.

    Sources take turns by their weights in a pattern of 10,000 rows that repeats, so shares are exact to 1 in 10,000;
    within a source every epoch cuts the stream at another offset and visits the rows in another order. `self[i]` is
    {"input_ids": (max_length,) int64}. Memory is 4 bytes for each row of the epoch at hand, whatever `rows` is.
    """

    def __init__(self, sources: Sequence[Tokens], weights: Sequence[float], max_length: int, rows: int, seed: int):
        self.sources, self.weights, self.max_length, self.rows, self.seed = sources, weights, max_length, rows, seed
        for source in sources:
            if len(source.ids) < 2 * max_length:
                fail(
                    f"{source.name}: {len(source.ids)} tokens are fewer than two rows of {max_length}; give it more"
                )
        shares = np.array(weights) / sum(weights)
        # the smallest remainder rule: after n rows each source has taken shares * n, give or take one
        taken = np.zeros(len(sources), int)
        self.turn, self.nth = np.empty(PERIOD, int), np.empty(PERIOD, int)  # whose row it is, and which of its own
        for i in range(PERIOD):
            which = int(np.argmax(shares * (i + 1) - taken))
            self.turn[i], self.nth[i] = which, taken[which]
            taken[which] += 1
        self.per_period = taken
        for source, count in zip(sources, taken, strict=True):
            if not count:
                fail(f"{source.name}: its share of the mixture is under 1 in {PERIOD:,} rows; raise its weight")
        # every place a row can start at, over the memory-mapped file itself: (tokens - max_length + 1, max_length)
        self.windows = [np.lib.stride_tricks.sliding_window_view(np.asarray(s.ids), max_length) for s in sources]
        self.orders: list[dict[int, tuple[int, np.ndarray]]] = [{} for _ in sources]

    def __len__(self) -> int:
        return self.rows

    def epochs(self) -> dict[str, float]:
        """How often each source is read."""
        periods, rest = divmod(self.rows, PERIOD)
        taken = periods * self.per_period + np.bincount(self.turn[:rest], minlength=len(self.sources))
        return {s.name: n * self.max_length / len(s.ids) for s, n in zip(self.sources, taken.tolist(), strict=True)}

    def fingerprint(self) -> str:
        """16 hex digits of all that decides what row i holds: the token files, weights, max_length and seed.

        A run that resumes with another fingerprint reads other rows. The number of rows is not part of it.
        """
        sources = [(s.name, s.key, len(s.ids), float(w)) for s, w in zip(self.sources, self.weights, strict=True)]
        return hashlib.sha256(repr((sources, self.max_length, self.seed)).encode()).hexdigest()[:16]

    def batch(self, rows: Sequence[int] | range) -> np.ndarray:
        """The rows with these numbers, cut from the memory-mapped files in one go: (len(rows), max_length) int64.

        Raises IndexError for a number below 0 or past the run's last row.
        """
        numbers = np.asarray(rows, np.int64)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < self.rows:
            raise IndexError(f"rows {numbers.min()} to {numbers.max()} of a run of {self.rows}")
        periods, places = np.divmod(numbers, PERIOD)
        turns = self.turn[places]
        nth = periods * self.per_period[turns] + self.nth[places]  # of the source's own rows, over all its epochs
        out = np.empty((len(numbers), self.max_length), np.int64)
        for which in np.unique(turns):
            per_epoch = len(self.sources[which].ids) // self.max_length - 1
            epochs, rows_of_epoch = np.divmod(nth, per_epoch)
            for epoch in np.unique(epochs[turns == which]):
                chosen = (turns == which) & (epochs == epoch)
                offset, order = self._order(int(which), int(epoch), per_epoch)
                starts = offset + order[rows_of_epoch[chosen]].astype(np.int64) * self.max_length
                out[chosen] = self.windows[which][starts]
        return out

    def _order(self, which: int, epoch: int, per_epoch: int) -> tuple[int, np.ndarray]:
        """Where an epoch of a source cuts its stream, and in which order it visits the rows."""
        orders = self.orders[which]
        if epoch not in orders:
            if len(orders) > 1:  # a batch spans two epochs at most but where the source is tiny
                orders.pop(next(iter(orders)))
            rng = np.random.default_rng((self.seed, which, epoch))
            orders[epoch] = int(rng.integers(self.max_length)), rng.permutation(np.arange(per_epoch, dtype=np.int32))
        return orders[epoch]

    def row(self, i: int) -> np.ndarray:
        """Row i: (max_length,) int64."""
        return self.batch([i])[0]

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.from_numpy(self.row(i))}


def held_out_texts(sources: Sequence[Tokens], most: int) -> Iterator[dict]:
    """Up to `most` held-out documents of each source: {"text", "source"}."""
    for source in sources:
        for text in source.held_out[:most]:
            yield {"text": text, "source": source.name}
