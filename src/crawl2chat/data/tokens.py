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
    path = folder / f"{source.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
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
    return Tokens(source.name, np.memmap(ids_file, dtype, "r"), **meta)


class PackedRows(Dataset):
    """Row i of the run, for every i: a pure function of the seed, so the position of a run is one number.

    Sources take turns by their weights (each row goes to the source that lags its share most); within a source every
    epoch cuts the stream at another offset and visits the rows in another order. `self[i]` is {"input_ids":
    (max_length,) int64}.
    """

    def __init__(self, sources: Sequence[Tokens], weights: Sequence[float], max_length: int, rows: int, seed: int):
        self.sources, self.max_length, self.seed = sources, max_length, seed
        shares = np.array(weights) / sum(weights)
        for source in sources:
            if len(source.ids) < 2 * max_length:
                fail(
                    f"{source.name}: {len(source.ids)} tokens are fewer than two rows of {max_length}; give it more"
                )
        # the smallest remainder rule: after n rows each source has taken shares * n, give or take one
        taken, self.turns = np.zeros(len(sources)), np.empty((rows, 2), np.int32)
        for i in range(rows):
            which = int(np.argmax(shares * (i + 1) - taken))
            self.turns[i] = which, taken[which]
            taken[which] += 1
        self.taken = taken.astype(int)
        self.orders: dict[tuple[int, int], tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.turns)

    def epochs(self) -> dict[str, float]:
        """How often each source is read."""
        return {s.name: n * self.max_length / len(s.ids) for s, n in zip(self.sources, self.taken, strict=True)}

    def row(self, i: int) -> np.ndarray:
        which, nth = self.turns[i]
        ids = self.sources[which].ids
        per_epoch = len(ids) // self.max_length - 1
        epoch, nth = divmod(int(nth), per_epoch)
        if (which, epoch) not in self.orders:
            rng = np.random.default_rng((self.seed, int(which), epoch))
            self.orders[which, epoch] = int(rng.integers(self.max_length)), rng.permutation(per_epoch)
        offset, order = self.orders[which, epoch]
        start = offset + int(order[nth]) * self.max_length
        return ids[start : start + self.max_length]

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.from_numpy(self.row(i).astype(np.int64))}


def held_out_texts(sources: Sequence[Tokens], most: int) -> Iterator[dict]:
    """Up to `most` held-out documents of each source: {"text", "source"}."""
    for source in sources:
        for text in source.held_out[:most]:
            yield {"text": text, "source": source.name}
