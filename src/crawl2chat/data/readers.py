"""Readers that count what they cannot read: pages of WARC files, rows of a dataset, the documents kept so far."""

import codecs
import copy
import hashlib
import re
from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path

import charset_normalizer
import pyarrow.parquet as pq
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from crawl2chat.data import warc
from crawl2chat.data.shards import documents, shard_files
from crawl2chat.data.steps import Rejected
from crawl2chat.stage import fail

UNREADABLE = (OSError, ValueError)
HTML = ("text/html", "application/xhtml+xml")
LARGEST = 5 << 20  # bytes of a page: where Common Crawl cuts since March 2025
LOOKED_AT = 1 << 16  # bytes of a page that a charset is guessed from
# Python's codecs that no page is written in: slow, or they make text that is none
NO_CHARSETS = {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "utf-7", "mbcs", "oem"}
DUMP = re.compile(r"CC-MAIN-\d{4}-\d{2,}")


class Pages(PipelineStep):
    """Read this rank's HTML pages out of WARC files; what is no HTML is rejected, what cannot be decoded is damaged.

    `damaged` names the files whose records are salvaged one by one. With fewer files than ranks records are dealt out.
    dump: the crawl's name, else what its files' paths say. largest: bytes of a page that is still read.
    """

    type, name = "📖 - READER", "Pages of WARC files"

    def __init__(
        self,
        files: list[Path],
        damaged: set[Path],
        rejected: Rejected,
        dump: str | None = None,
        largest: int = LARGEST,
        names: dict[Path, str] | None = None,
    ):
        super().__init__()
        self.files, self.damaged, self.rejected = files, damaged, rejected
        self.dump, self.largest, self.names = dump, largest, names or {}

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        by_file = len(self.files) >= world_size
        with self.rejected as rejected:
            for path in self.files[rank::world_size] if by_file else self.files:
                for index, record in enumerate(self.records(path, path in self.damaged)):
                    if by_file or index % world_size == rank:
                        yield from self.take(record, self.names.get(path, str(path)), rank, rejected)

    def take(self, record: WarcRecord | None, where: str, rank: int, rejected: Rejected) -> Iterator[Document]:
        """The record's page, or none, once it is counted as rejected or damaged."""
        with self.track_time():
            self.stat_update("records")
            document, reason = page(record, self.largest) if record else (None, "record")
        if document is None:
            self.stat_update("damaged", f"damaged_{reason}")
            return
        dump = self.dump or DUMP.search(where)
        document.metadata |= {"dump": dump if dump is None or isinstance(dump, str) else dump[0], "file_path": where}
        if reason:
            document.metadata["filter_reason"] = reason
            rejected.write(document, rank)
        else:
            yield document

    def records(self, path: Path, salvage: bool) -> Iterator[WarcRecord | None]:
        """The response records of a file; salvage: by our own walk, None for one that the reader cannot take."""
        if not salvage:
            yield from ArchiveIterator(str(path), record_types=WarcRecordType.response, parse_http=False)
            return
        for record in warc.walk(path):
            if record.data is not None and record.type == "response":
                try:
                    yield next(iter(ArchiveIterator(BytesIO(record.data), parse_http=False)), None)
                except UNREADABLE:
                    yield None


def page(record: WarcRecord, largest: int = LARGEST) -> tuple[Document | None, str]:
    """A response record as (document with HTML, ""), (document, reason to reject it) or (None, why it is damaged)."""
    try:
        large = record.content_length > largest + warc.LONGEST_HEADER
        if not large:
            record.freeze()
            record = copy.copy(record)  # what breaks in it would break the file's reader at its next step
        record.parse_http(auto_decode="none" if large else "all")
        body = b"" if large else record.reader.read(largest + 1)
        url, identity, date = (record.headers.get(f"WARC-{name}") for name in ("Target-URI", "Record-ID", "Date"))
        kind = record.headers.get("WARC-Identified-Payload-Type") or record.http_content_type
        charset = record.http_charset
    except UNREADABLE:
        return None, "http"
    # without an id of its own, as no crawler writes it
    identity = sound(identity) or f"<sha256:{hashlib.sha256(body).hexdigest()}>"
    metadata = {"url": sound(url), "date": sound(date)}
    if kind not in HTML:
        return Document("", identity, metadata=metadata), "not_html"
    if large or len(body) > largest:
        return Document("", identity, metadata=metadata), "too_large"
    text = decode(body, charset)
    if text is None:
        return None, "charset"
    return Document(text, identity, metadata=metadata), "" if url else "no_url"


def sound(text: str | None) -> str | None:
    """A header's value that can be written as UTF-8."""
    return text and text.encode("utf-8", "replace").decode("utf-8")


def decode(body: bytes, declared: str | None) -> str | None:
    """The text of a page: UTF-8, else the charset that server or page declares, else a detected one, else None."""
    inside = re.search(rb"charset=[\"']?([\w-]+)", body[:2048])
    for charset in ("utf-8", declared, inside and inside[1].decode("ascii", "replace")):
        try:
            if charset and codecs.lookup(charset).name not in NO_CHARSETS:
                return body.decode(charset) if charset == "utf-8" else sound(body.decode(charset))
        except (ValueError, LookupError):  # ValueError: what cannot be decoded, and names that are none
            continue
    found = None if b"\0" in body else charset_normalizer.from_bytes(body[:LOOKED_AT]).best()
    if found is None or len(body) <= LOOKED_AT:
        return sound(str(found)) if found else None
    try:
        return sound(body.decode(found.encoding))
    except (ValueError, LookupError):
        return None


class Rows(PipelineStep):
    """Read this rank's rows of parquet or JSON-lines shards, or of a hub dataset; a row without text is damaged."""

    type, name = "📖 - READER", "Rows of a dataset"

    def __init__(self, path: str, configuration: str | None, text_column: str, limit: int | None):
        super().__init__()
        self.path, self.configuration, self.limit = path, configuration, limit
        self.columns = (text_column, "id", "url", "date", "dump", "file_path", "language", "language_score")

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        rows = self.local(rank, world_size) if is_local(self.path) else self.streamed(rank, world_size)
        for index, row in enumerate(rows):
            self.stat_update("records")
            text = row.get(self.columns[0])
            if isinstance(text, str):
                metadata = {name: row.get(name) for name in self.columns[2:]}
                yield Document(sound(text), str(row.get("id") or f"{self.path}/{rank}/{index}"), metadata=metadata)
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


def is_local(path: str) -> bool:
    return Path(path).exists() or path.startswith(("/", ".", "output/"))


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
