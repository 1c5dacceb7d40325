"""Search over a folder of pages: BM25 over passages, each answered with its source.

A passage is a run of whole sentences of one paragraph, at most about 50 words, with the page's title and the nearest
heading before it where the paragraph does not name them: short enough to be read, complete enough to answer.
"""

import hashlib
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import bm25s
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FORMAT = 2  # of the index; a new one is built where this changed
MIN_WORDS, MAX_WORDS = 5, 50
LEAD = 1.15  # weight of a page's first passage that has every word asked for: it says what the page is about
NO_RESULTS = "no results"
STOP_WORDS = frozenset(
    "a an and are as at be but by did do does for from had has have how i if in into is it its me my no not of on or "
    "please s such tell that the their then there these they this to was were what when where which who whom whose "
    "why will with you your".split()
)


def build_index(shards: Iterable[str | Path], index_dir: str | Path) -> int:
    """Index the passages of `shards`: parquet or JSONL files, or folders of them, with columns `text` and `url`.

    An index in `index_dir` that was made from the same files is kept. A new one appears at once when it is complete.
    Returns the number of passages. Raises FileNotFoundError where there are no shards, ValueError for broken ones and
    for shards without a passage.
    """
    files = list(_files(shards))
    fingerprint = _fingerprint(files)
    index_dir = Path(index_dir)
    final = index_dir / fingerprint
    if not final.is_dir():
        temporary = index_dir / f".{fingerprint}.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            _write(files, temporary)
            os.rename(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    for other in index_dir.iterdir():
        if other.is_dir() and other != final and (other / "size").is_file():
            shutil.rmtree(other, ignore_errors=True)
    return int((final / "size").read_text())


def open_index(index_dir: str | Path, results: int = 1) -> Callable[[str], str]:
    """The `search` tool over an index that build_index made; it answers with the best `results` passages.

    Raises FileNotFoundError where there is no index.
    """
    found = [path.parent for path in Path(index_dir).glob("[0-9a-f]*/size")]
    if not found:
        raise FileNotFoundError(f"{index_dir}: no search index here; scripts/conversations.py builds it")
    folder = max(found, key=lambda path: path.stat().st_mtime)
    index = bm25s.BM25.load(folder, load_corpus=True, mmap=True)
    weights = np.load(folder / "weights.npy", mmap_mode="r")

    def search(query: str) -> str:
        """Search the pages and return the passage that fits best, with its source.

        Args:
            query: A few words to look for.
        """
        ids = index.get_tokens_ids(list(dict.fromkeys(_words(query))))
        if not ids:
            return NO_RESULTS
        by_word = np.stack([index.get_scores_from_ids([i]) for i in ids])  # (words, passages)
        scores = by_word.sum(0) * np.where((by_word > 0).all(0), weights, 1)
        best = np.argsort(-scores, kind="stable")[:results] if results > 1 else [int(scores.argmax())]
        passages = [index.corpus[int(i)] for i in best if scores[i] > 0]
        return "\n".join(f"{passage['text']} [{passage['source']}]" for passage in passages) or NO_RESULTS

    return search


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


def _write(files: list[Path], folder: Path) -> None:
    corpus, tokens, weights, seen = [], [], [], set()
    vocabulary: dict[str, int] = {}
    for text, url in _rows(files):
        for number, passage in enumerate(passages(text)):
            key = hashlib.blake2b(passage.encode(), digest_size=8).digest()
            if key in seen:
                continue
            seen.add(key)
            weights.append(1.0 if number else LEAD)
            corpus.append({"text": passage, "source": _short(url)})
            words = _words(passage)
            tokens.append(np.array([vocabulary.setdefault(word, len(vocabulary)) for word in words], dtype=np.int32))
    if not any(len(ids) for ids in tokens):
        raise ValueError(f"{files[0]}: no passage of {MIN_WORDS} words in {len(files)} shards; check the data stage")
    index = bm25s.BM25()
    index.index((tokens, vocabulary), show_progress=len(corpus) > 100_000)
    index.save(folder, corpus=corpus, show_progress=False)
    np.save(folder / "weights.npy", np.array(weights, dtype=np.float32))
    (folder / "size").write_text(str(len(corpus)))


def _rows(files: list[Path]) -> Iterator[tuple[str, str]]:
    for file in files:
        try:
            if file.suffix == ".parquet":
                for batch in pq.ParquetFile(file).iter_batches(batch_size=1000, columns=["text", "url"]):
                    yield from zip(batch["text"].to_pylist(), batch["url"].to_pylist(), strict=True)
            else:
                with open(file, encoding="utf-8") as handle:
                    for line in handle:
                        row = json.loads(line)
                        yield row["text"], row["url"]
        except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
            raise ValueError(f"{file}: no rows of text and url ({str(error)[:200]}); make it again") from error


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


def _fingerprint(files: list[Path]) -> str:
    """Sixteen hex digits that change with the shards' names, sizes and times, and with the index's format."""
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([FORMAT, stats]).encode()).hexdigest()[:16]


def _short(url: str) -> str:
    """A page's address without what every address has."""
    return re.sub(r"^(https?://)?(www\.)?|[?#].*$|/$", "", url or "")
