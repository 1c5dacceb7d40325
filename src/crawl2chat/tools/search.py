"""Search over a folder of pages: BM25 over passages, each answered with its source.

A passage is a run of whole sentences of one paragraph, at most about 50 words, with the page's title and the nearest
heading before it where the paragraph does not name them: short enough to be read, complete enough to answer.

The index is bm25s's, and bm25s reads and scores it. It is written here in chunks, because bm25s's own build holds
every posting several times over in memory; and it is opened memory-mapped, so that opening does not read it.
"""

import hashlib
import inspect
import json
import os
import re
import shutil
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from crawl2chat.tools.limit import shown

# bm25s starts JAX where it finds it, which takes most of a GPU's memory: it is told that there is none
_jax = {name: sys.modules.pop(name) for name in list(sys.modules) if name == "jax" or name.startswith("jax.")}
sys.modules["jax"] = None  # type: ignore[assignment]
try:
    import bm25s
finally:
    del sys.modules["jax"]
    sys.modules.update(_jax)

K1, B = 1.5, 0.75  # of BM25 (Robertson et al. 1994), in Lucene's form: bm25s's defaults
CHUNK = 50_000  # passages whose postings are in memory at a time
MIN_WORDS, MAX_WORDS = 5, 50
LEAD = 1.15  # weight of a page's first passage that has every word asked for: it says what the page is about
NO_RESULTS = "no results"
STOP_WORDS = frozenset(
    "a an and are as at be but by did do does for from had has have how i if in into is it its me my no not of on or "
    "please s such tell that the their then there these they this to was were what when where which who whom whose "
    "why will with you your".split()
)


def build_index(shards: Iterable[str | Path], index_dir: str | Path) -> int:
    """Index the passages of `shards`: parquet or JSONL files, or folders of them, with a column `text` and, where the
    pages have addresses, `url`; a page without one is named by its title.

    An index in `index_dir` that this code made from the same contents is kept; one that it did not is made again, with
    a line that says why. A new one appears at once when it is complete. Returns the number of passages. Raises
    FileNotFoundError where there are no shards, ValueError for broken ones and for shards without a passage.
    """
    files = list(_files(shards))
    index_dir = Path(index_dir)
    described = [_describe(file) for file in files]
    present = [path.parent for path in index_dir.glob("*/manifest.json")]
    for folder in present:
        manifest = json.loads((folder / "manifest.json").read_text())
        same = [d["sha256"] for d in described] == [d["sha256"] for d in manifest["files"]]
        whole = not _missing(folder, manifest)
        if same and whole and manifest["code"] == _code():
            return manifest["passages"]
        why = "the shards changed" if not same else "the code that makes it changed" if whole else "it was not whole"
        print(f"search: {index_dir} is made again: {why}", flush=True)
    digest = hashlib.sha256(json.dumps([_code(), [d["sha256"] for d in described]]).encode()).hexdigest()[:16]
    final, temporary = index_dir / digest, index_dir / f".{digest}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        found = _write(files, temporary)
        sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        manifest = {"code": _code(), **found, "files": described, "sizes": sizes}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        shutil.rmtree(final, ignore_errors=True)  # a damaged one
        os.rename(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for other in index_dir.iterdir():
        if other.is_dir() and other != final and ((other / "manifest.json").is_file() or (other / "size").is_file()):
            shutil.rmtree(other, ignore_errors=True)
    return found["passages"]


def open_index(index_dir: str | Path, results: int = 1) -> Callable[[str], str]:
    """The `search` tool over an index that build_index made; it answers with the best `results` passages.

    Raises FileNotFoundError where there is no index, ValueError for one that is not whole, that other code made, or
    whose shards have changed since (shards that are no longer there do not matter).
    """
    found = sorted(Path(index_dir).glob("[0-9a-f]*/manifest.json"), key=lambda path: path.stat().st_mtime)
    again = "run scripts/conversations.py again"
    if not found:
        if list(Path(index_dir).glob("[0-9a-f]*/size")):
            raise ValueError(f"{index_dir}: the search index was made by other code; {again}")
        raise FileNotFoundError(f"{index_dir}: no search index here; scripts/conversations.py builds it")
    folder = found[-1].parent
    manifest = json.loads(found[-1].read_text())
    if manifest["code"] != _code():
        raise ValueError(f"{index_dir}: the search index was made by other code; {again}")
    if missing := _missing(folder, manifest):
        raise ValueError(f"{folder / missing}: the search index is not whole; {again}")
    for was in manifest["files"]:
        if Path(was["path"]).is_file() and not _unchanged(was):
            raise ValueError(f"{was['path']}: changed since the search index was made from it; {again}")
    index = bm25s.BM25.load(folder, mmap=True, backend="numpy", show_progress=False)
    offsets, weights = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("offsets", "weights"))
    texts = np.memmap(folder / "passages.jsonl", dtype=np.uint8, mode="r")
    starts, documents = index.scores["indptr"], index.scores["indices"]

    def search(query: str) -> str:
        """Search the pages and return the passage that fits best, with its source.

        Args:
            query: A few words to look for.
        """
        ids = index.get_tokens_ids(list(dict.fromkeys(_words(query))))
        if not ids:
            return NO_RESULTS
        scores = index.get_scores_from_ids(ids)  # (passages,)
        postings = sorted((documents[starts[i] : starts[i + 1]] for i in ids), key=len)
        whole = reduce(_common, postings)  # passages that have every word
        scores[whole] *= weights[whole]
        count = min(results, len(scores))
        least = scores.max() if count == 1 else np.partition(scores, -count)[-count]
        best = np.flatnonzero(scores >= max(least, 1e-9))
        best = best[np.argsort(-scores[best], kind="stable")][:results]
        rows = [json.loads(texts[offsets[i] : offsets[i + 1]].tobytes()) for i in best]
        return "\n".join(shown(text, f" [{source}]") for text, source in rows) or NO_RESULTS

    return search


def _common(few: np.ndarray, many: np.ndarray) -> np.ndarray:
    """What two ascending arrays share, in time of the shorter one times the logarithm of the longer."""
    at = np.minimum(np.searchsorted(many, few), len(many) - 1)
    return few[many[at] == few]


def passages(text: str) -> Iterator[str]:
    """The passages of a page's text, whose paragraphs are lines and whose headings are short lines without an end."""
    title = heading = None
    for line in text.splitlines():
        line = " ".join(line.split())
        count = len(line.split())
        if line and count <= 12 and line[-1] not in ".!?…:;,\"'”’":
            title, heading = title or line, line
        elif count >= MIN_WORDS:
            for passage in _chunks(line):
                # a passage that names its own heading stands by itself
                above = [] if heading and _names(passage, heading) else [title, heading]
                yield ": ".join([*(h for h in dict.fromkeys(above) if h and not _names(passage, h)), passage])


def _chunks(paragraph: str) -> Iterator[str]:
    chunk: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+(?=[\"'“‘(]?[^\W_a-z])", paragraph):
        words = sentence.split()
        if len(words) > 2 * MAX_WORDS:  # no sentence to a reader: a list, a table
            words = [*words[:MAX_WORDS], "..."]
        if chunk and len(chunk) + len(words) > MAX_WORDS:
            yield " ".join(chunk)
            chunk = []
        chunk += words
    yield " ".join(chunk)


def _names(passage: str, heading: str) -> bool:
    return set(_words(heading)) <= set(_words(passage))


def _words(text: str) -> list[str]:
    """Words in lower case, without accents, punctuation and stop words."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    return [word for word in re.findall(r"\w+", plain.replace("'s ", " ")) if word not in STOP_WORDS]


def _write(files: list[Path], folder: Path) -> dict:
    """The index's files, in bm25s's layout, and what the manifest says of it. Memory holds the vocabulary, a digest of
    every passage and one chunk's postings; those of the chunks before lie in `folder` until they are all known."""
    start, dropped = time.monotonic(), Counter()
    lengths: list[int] = []
    weights: list[float] = []
    offsets = [0]
    seen: set[int] = set()
    vocabulary: dict[str, int] = {}
    counts = np.zeros(0, dtype=np.int64)  # passages that have a word
    tokens: list[list[int]] = []
    chunks: list[Path] = []

    def close_chunk() -> None:
        nonlocal counts
        first = len(lengths) - len(tokens)
        sizes = np.array([len(ids) for ids in tokens])
        words = np.fromiter((i for ids in tokens for i in ids), dtype=np.int64, count=int(sizes.sum()))
        numbers = np.repeat(np.arange(first, len(lengths)), sizes)
        pairs, times = np.unique(words << 32 | numbers, return_counts=True)  # by word, then by passage
        counts = np.pad(counts, (0, len(vocabulary) - len(counts)))
        counts += np.bincount(pairs >> 32, minlength=len(vocabulary))
        chunks.append(folder / f"chunk{len(chunks)}.npz")
        np.savez(chunks[-1], pairs=pairs, times=times.astype(np.float32))
        tokens.clear()

    with open(folder / "passages.jsonl", "wb") as handle:
        for text, url in tqdm(_rows(files), desc="search index", unit=" pages", delay=3):
            first_passage = True
            for passage in passages(text):
                key = int.from_bytes(hashlib.blake2b(passage.encode(), digest_size=8).digest(), "little")
                if key in seen:
                    dropped["seen before"] += 1
                    continue
                seen.add(key)
                words = _words(passage)
                tokens.append([vocabulary.setdefault(word, len(vocabulary)) for word in words])
                lengths.append(len(words))
                weights.append(LEAD if first_passage else 1.0)
                source = _short(url) or text.strip().partition("\n")[0][:80].strip()
                offsets.append(
                    offsets[-1] + handle.write(json.dumps([passage, source], ensure_ascii=False).encode() + b"\n")
                )
                first_passage = False
                if len(tokens) == CHUNK:
                    close_chunk()
            dropped["pages without a passage"] += first_passage
    if not sum(lengths):
        raise ValueError(f"{files[0]}: no passage of {MIN_WORDS} words in {len(files)} shards; check the data stage")
    if tokens:
        close_chunk()
    del seen

    # every posting to its place: words one after the other, the passages of a word in order
    n, total = len(lengths), int(counts.sum())
    indptr = np.concatenate([[0], np.cumsum(counts)])
    idf = np.log(1 + (n - counts + 0.5) / (counts + 0.5))
    norm = K1 * (1 - B + B * np.array(lengths) / np.mean(lengths))
    data = np.lib.format.open_memmap(folder / "data.csc.index.npy", "w+", np.float32, (total,))
    indices = np.lib.format.open_memmap(folder / "indices.csc.index.npy", "w+", np.int32, (total,))
    heads = indptr[:-1].copy()
    for chunk in chunks:
        with np.load(chunk) as saved:
            pairs, times = saved["pairs"], saved["times"]
        words, numbers = pairs >> 32, pairs & 0xFFFFFFFF
        here = np.bincount(words, minlength=len(heads))
        rank = np.arange(len(words)) - np.repeat(np.cumsum(here) - here, here)
        at = heads[words] + rank
        data[at] = idf[words] * times / (norm[numbers] + times)
        indices[at] = numbers
        heads += here
        chunk.unlink()
    data.flush()
    indices.flush()
    np.save(folder / "indptr.csc.index.npy", indptr)
    np.save(folder / "weights.npy", np.array(weights, dtype=np.float32))
    np.save(folder / "offsets.npy", np.array(offsets, dtype=np.int64))
    (folder / "vocab.index.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    parameters = {"k1": K1, "b": B, "delta": 0.5, "method": "lucene", "idf_method": "lucene", "dtype": "float32",
                  "int_dtype": "int32", "num_docs": n, "version": bm25s.__version__, "backend": "numpy"}  # fmt: skip
    (folder / "params.index.json").write_text(json.dumps(parameters))
    return {
        "passages": n,
        "words": len(vocabulary),
        "dropped": dict(dropped),
        "seconds": round(time.monotonic() - start, 2),
    }


def _rows(files: list[Path]) -> Iterator[tuple[str, str]]:
    for file in files:
        try:
            if file.suffix == ".parquet":
                table = pq.ParquetFile(file)
                columns = ["text", *(["url"] if "url" in table.schema_arrow.names else [])]
                for batch in table.iter_batches(batch_size=1000, columns=columns):
                    yield from ((row["text"] or "", row.get("url") or "") for row in batch.to_pylist())
            else:
                with open(file, encoding="utf-8") as handle:
                    for line in handle:
                        row = json.loads(line)
                        yield row["text"] or "", row.get("url") or ""
        except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
            raise ValueError(f"{file}: no rows with a text ({str(error)[:200]}); make it again") from error


def _files(shards: Iterable[str | Path]) -> Iterator[Path]:
    for shard in map(Path, [shards] if isinstance(shards, str | Path) else shards):
        inside = (
            sorted(path for path in shard.rglob("*") if path.suffix in (".parquet", ".jsonl"))
            if shard.is_dir()
            else [shard]
        )
        if not inside or not inside[0].is_file():
            raise FileNotFoundError(f"{shard}: no parquet or JSONL shards here; run the data stage first")
        yield from inside


def _describe(file: Path) -> dict:
    """A shard as the manifest knows it."""
    with open(file, "rb") as handle:
        digest = hashlib.sha256()
        while block := handle.read(1 << 22):
            digest.update(block)
    stat = file.stat()
    return {"path": str(file), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest.hexdigest()}


def _missing(folder: Path, manifest: dict) -> str:
    """The first of an index's files that is not there or has another size; "" where all is well."""
    for name, size in manifest["sizes"].items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            return name
    return ""


def _unchanged(was: dict) -> bool:
    stat = Path(was["path"]).stat()
    if stat.st_size != was["bytes"]:
        return False
    return stat.st_mtime_ns == was["mtime_ns"] or _describe(Path(was["path"]))["sha256"] == was["sha256"]


def _code() -> str:
    """Sixteen hex digits that change with the code that decides what an index holds."""
    parts = [inspect.getsource(part) for part in (passages, _chunks, _names, _words, _write, _rows, _short)]
    constants = [MIN_WORDS, MAX_WORDS, LEAD, K1, B, sorted(STOP_WORDS), bm25s.__version__]
    return hashlib.sha256(json.dumps([parts, constants]).encode()).hexdigest()[:16]


def _short(url: str) -> str:
    """A page's address without what every address has."""
    return re.sub(r"^(https?://)?(www\.)?|[?#].*$|/$", "", url or "")
