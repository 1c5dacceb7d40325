"""Documents to memory-mapped tokens to packed rows: row i of a run is a pure function of its seed."""

import fcntl
import hashlib
import json
import os
import zlib
from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from crawl2chat.data.encoding import Encoder, state_of
from crawl2chat.data.shards import documents, shard_files
from crawl2chat.protocol import END_OF_TEXT
from crawl2chat.stage import fail, write_text

BLOCK = 64_000_000  # characters of text that are held in memory, and shuffled, together
KEPT = 1_000  # held-out documents of a source whose texts are kept
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


def place(document_id: str) -> int:
    """A number below 2**32, the same in every run, that decides whether a document is held out."""
    return zlib.crc32(document_id.encode(errors="surrogatepass"))


def held_out(document_id: str, share: float) -> bool:
    """True for the documents whose id hashes into the held-out share; the same ones in every run."""
    return place(document_id) < share * 2**32


@dataclass
class Tokens:
    """A source's training tokens on disk (documents shuffled, each after an end-of-text token) and its held-out
    texts.
    """

    name: str
    ids: np.ndarray  # (tokens,) memory-mapped, uint16 or uint32
    bytes: int
    documents: int
    held_out: list[str]
    key: str = ""  # hash of the ids


@dataclass
class Progress:
    """How far a source is encoded; kept beside the tokens, so that a broken stream or run goes on from here.

    read = documents + held_out_documents + empty + broken.
    """

    read: int = 0  # documents taken from the source
    documents: int = 0  # to train on
    held_out_documents: int = 0
    empty: int = 0  # dropped: no text
    broken: int = 0  # dropped: halves of surrogate pairs, which no encoding can hold
    bytes: int = 0
    tokens: int = 0
    dtype: str = ""
    blocks: int = 0
    digest: str = ""  # chained over the blocks' ids
    held_out: list[list] = field(default_factory=list)  # [place, text] of the KEPT with the lowest places


def write_tokens(
    source: Source, tokenizer: PreTrainedTokenizerBase, folder: Path, held_out_share: float, seed: int
) -> Tokens:
    """Encode a source once, in memory that does not grow with it. The files are keyed by what they depend on, so a
    second run reads them back; one that was interrupted goes on after its last whole block.

    Control tokens spelt out in a document stay text. Documents are shuffled within blocks of 64 million characters,
    small sources as a whole. Several processes may call this at once: one encodes, the others wait and read. Stops
    with one line where the source cannot be read, the disk is full, or a file is not whole.
    """
    stamp = source.path
    if Path(source.path).exists():
        files = [(file, file.stat()) for file in shard_files(source.path)]
        stamp = [(os.path.relpath(file, source.path), stat.st_size, stat.st_mtime_ns) for file, stat in files]
    parts = (stamp, source.documents, held_out_share, seed, BLOCK, KEPT, state_of(tokenizer))
    stem = f"{source.name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"
    ids_file, meta_file = folder / f"{stem}.bin", folder / f"{stem}.json"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system lets go of it when the process ends, however it ends
        if not meta_file.exists():
            progress_file = folder / f"{stem}.progress"
            progress = encode(source, tokenizer, folder / f"{stem}.tmp", progress_file, held_out_share, seed)
            os.replace(folder / f"{stem}.tmp", ids_file)
            write_text(meta_file, json.dumps(asdict(progress)))
            progress_file.unlink()
    meta = Progress(**json.loads(meta_file.read_text(encoding="utf-8")))
    size = ids_file.stat().st_size if ids_file.exists() else 0
    if size != meta.tokens * np.dtype(meta.dtype).itemsize:
        fail(f"{ids_file}: {size:,} bytes, which are not its {meta.tokens:,} tokens; delete {meta_file} and run again")
    texts = [text for _, text in meta.held_out]
    return Tokens(source.name, np.memmap(ids_file, meta.dtype, "r"), meta.bytes, meta.documents, texts, meta.digest)


def encode(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    temporary: Path,
    progress_file: Path,
    held_out_share: float,
    seed: int,
) -> Progress:
    """Encode what is left of a source, block after block; the progress is written down after each."""
    encoder = Encoder(tokenizer)
    width = encoder.dtype.itemsize
    progress = Progress(dtype=encoder.dtype.name)
    end = np.array([tokenizer.convert_tokens_to_ids(END_OF_TEXT)], encoder.dtype).tobytes()
    if temporary.exists() and progress_file.exists():
        progress = Progress(**json.loads(progress_file.read_text(encoding="utf-8")))
        if temporary.stat().st_size < progress.tokens * width:  # cut short by another hand
            progress = Progress(dtype=encoder.dtype.name)
    if progress.read:
        print(f"tokens: {source.name}: goes on after {progress.read:,} documents, {progress.tokens:,} tokens")
    rows = read(source, progress.read)
    try:
        with (
            open(temporary, "r+b" if progress.read else "wb") as handle,
            tqdm(
                desc=f"encode {source.name}", unit=" tokens", unit_scale=True, initial=progress.tokens, leave=False
            ) as bar,
        ):
            handle.truncate(progress.tokens * width)
            handle.seek(progress.tokens * width)
            while (texts := next_block(rows, progress, held_out_share)) is not None:
                order = np.random.default_rng((seed, progress.blocks)).permutation(len(texts))
                digest = hashlib.sha256(progress.digest.encode())
                for start in range(0, len(texts), 512):
                    ids = encoder.encode_batch([texts[i] for i in order[start : start + 512]])
                    part = b"".join(end + one.tobytes() for one in ids)
                    handle.write(part)
                    digest.update(part)
                    progress.tokens += len(part) // width
                    bar.update(len(part) // width)
                progress.blocks, progress.digest = progress.blocks + 1, digest.hexdigest()
                handle.flush()
                os.fsync(handle.fileno())
                write_text(progress_file, json.dumps(asdict(progress)))
    except OSError as error:
        fail(f"{temporary}: {error.strerror}; mend that and run the same command again: it goes on from there")
    if not progress.documents:
        fail(f"{source.path}: no document is left for training after holding out {held_out_share:.0%}")
    print(
        f"tokens: {source.name}: {progress.read:,} documents read, {progress.documents:,} to train on "
        f"({progress.bytes:,} bytes, {progress.tokens:,} tokens), {progress.held_out_documents:,} held out, "
        f"{progress.empty:,} empty and {progress.broken:,} of broken Unicode dropped"
    )
    return progress


def read(source: Source, start: int) -> Iterator[dict]:
    """The documents of a source from number `start` on; an error of the stream ends the run with one line."""
    number = start
    try:
        for row in islice(documents(source.path, ("text", "id"), source.documents), start, None):
            if not isinstance(row.get("text"), str):
                fail(f"{source.path}: document {number:,} has no text, but the keys {', '.join(row)}")
            yield row
            number += 1
    except Exception as error:  # of a dozen kinds: the network's, the hub's, the file formats'
        fail(
            f"{source.path}: the stream broke after {number:,} documents ({type(error).__name__}: "
            f"{str(error)[:200]}); run the same command again: it goes on from the last block written"
        )


def next_block(rows: Iterator[dict], progress: Progress, held_out_share: float) -> list[str] | None:
    """The training texts of the next BLOCK characters, None at the end; counts all that it reads."""
    texts, characters, start = [], 0, progress.read
    while characters < BLOCK and (row := next(rows, None)) is not None:
        progress.read += 1
        text = row["text"]
        characters += len(text)
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            progress.broken += 1
            continue
        name = str(row.get("id") or text)
        if not size:
            progress.empty += 1
        elif held_out(name, held_out_share):
            progress.held_out_documents += 1
            insort(progress.held_out, [place(name), text])
            del progress.held_out[KEPT:]
        else:
            progress.documents += 1
            progress.bytes += size
            texts.append(text)
    return texts if progress.read > start else None


def corpus(sources: Sequence[Tokens], vocabulary: int) -> dict:
    """The ladder of all that is trained on: bits, bytes, tokens (an end-of-text for each document among them) of
    `vocabulary` symbols, and documents, bytes and tokens of each source.
    """
    parts = {s.name: {"documents": s.documents, "bytes": s.bytes, "tokens": len(s.ids)} for s in sources}
    size, tokens = (sum(part[key] for part in parts.values()) for key in ("bytes", "tokens"))
    print(f"tokens: the corpus is {8 * size:,} bits, {size:,} bytes, {tokens:,} tokens of {vocabulary:,} symbols")
    return {"vocabulary": vocabulary, "bits": 8 * size, "bytes": size, "tokens": tokens, "sources": parts}


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
                fail(f"{source.name}: {len(source.ids)} tokens are fewer than two rows of {max_length}; give it more")
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
    """Up to `most` held-out documents of each source, at most KEPT: {"text", "source"}."""
    if most > KEPT:
        fail(f"held_out_documents {most:,}: no more than {KEPT:,} are kept of a source; ask for fewer")
    for source in sources:
        for text in source.held_out[:most]:
            yield {"text": text, "source": source.name}
