"""The steps between filters: writers of what is kept and of what is rejected and why, a tally, extraction, masking.

An extractor that loses no page silently, and a writer of rejected pages that names the reason and holds no address.
"""

import copy
import ctypes
import html
import logging
import re
import signal
import sys
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.extractors.base import ExtractorSandbox
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.formatters.pii import PIIReplacer
from datatrove.pipeline.writers import JsonlWriter, ParquetWriter
from trafilatura.deduplication import LRUCache

# FineWeb's columns and our source; `score` is the classifier's, where one is asked
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("text", "id", "url", "date", "source", "language")]
    + [("language_score", pa.float64()), ("dump", pa.string()), ("file_path", pa.string()), ("score", pa.float64())]
)
WARM_UP = 120.0  # seconds in which the extractor's process must have started: it imports for a second or two
PATIENCE = 4  # times its seconds of computing that an extractor may take by the clock
TICK = 0.05
LOCAL_PART, DOMAIN = 64, 255  # characters of an address before and behind its @ at most (RFC 5321)
ADDRESS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]@(?:[A-Za-z0-9][A-Za-z0-9-]*\.|\[)")  # what stands around its @
LONG = 1000  # characters in a row without a blank: no prose


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


class Digests(PipelineStep):
    """Write 8 bytes of each text's hash to `folder`/<rank>.u8, in order: what exact deduplication would compare."""

    type, name = "digests", "Digests of texts"

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"{rank:05d}.u8", "wb") as file:
            for document in data:
                file.write(blake2b(document.text.encode("utf-8", "replace"), digest_size=8).digest())
                yield document


class Replacer(PIIReplacer):
    """datatrove's replacer that counts; `turn` is the number of the next replacement."""

    count = turn = 0

    def replace(self, text: str) -> str:
        def one(found: re.Match) -> str:
            if self.validator and not self.validator(found[0]):
                return found[0]
            self.count += 1
            self.turn += 1
            return self.replacements[(self.turn - 1) % len(self.replacements)]

        return self.regex.sub(one, text)


class Masks(PIIFormatter):
    """FineWeb's masks of e-mail addresses and public IP addresses, counted; in the text and in the page's URL.

    Every text begins with the first of the replacements, so that copies of a page stay copies, whoever masks them.
    The published expression takes the square of a run's length where it finds nothing; here it sees the words with an
    @ alone, and of a run that is no word no more than an address can hold.
    """

    def __init__(self, **knobs: object):
        super().__init__(
            **{name: tuple(v) if isinstance(v, list) else v for name, v in knobs.items() if v is not None}
        )
        emails, ips = self.emails_replacer, self.ip_replacer
        self.emails_replacer = Replacer(emails.regex.pattern, emails.replacements)
        self.ip_replacer = Replacer(ips.regex.pattern, ips.replacements, ips.validator)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        for document in data:
            with self.track_time():
                document.text = self.format(document.text)
                if document.metadata.get("url"):
                    document.metadata["url"] = self.url(document.metadata["url"])
            yield document
        self.stat_update("emails", value=self.emails_replacer.count)
        self.stat_update("ips", value=self.ip_replacer.count)

    def format(self, text: str) -> str:
        self.emails_replacer.turn = self.ip_replacer.turn = 0
        if self.remove_emails and "@" in text:
            words = text.split(" ")
            for number, word in enumerate(words):
                if "@" in word:
                    words[number] = self.emails_replacer.replace(word) if len(word) < LONG else self.long(word)
            text = " ".join(words)
        return self.ip_replacer.replace(text) if self.remove_ips else text

    def long(self, run: str) -> str:
        """The same for a run without blanks, looking at the surroundings of each @."""
        parts, done = [], 0
        for at in (found.start() + 1 for found in ADDRESS.finditer(run)):
            start = max(done, at - LOCAL_PART)
            if at >= done and (found := self.emails_replacer.regex.search(run[start : at + DOMAIN])):
                parts += [run[done : start + found.start()], self.emails_replacer.replace(found[0])]
                done = start + found.end()
        return "".join([*parts, run[done:]])

    def url(self, url: str) -> str:
        """The URL itself, unless it holds an address."""
        before = self.emails_replacer.count, self.ip_replacer.count
        masked = self.format(unquote(url))
        return url if before == (self.emails_replacer.count, self.ip_replacer.count) else masked


class Rejected(JsonlWriter):
    """Rejected pages of one step, `<step>-<rank>.jsonl.gz`: id, url, date, step, reason, bytes, start (masked)."""

    def __init__(self, folder: Path, step: str, reason: str = ""):
        super().__init__(str(folder), output_filename=f"{step}-${{rank}}.jsonl.gz")
        self.step, self.reason, self.masks = step, reason, Masks()

    def _default_adapter(self, document: Document) -> dict:
        data = document.metadata
        url = data.get("url")
        return {
            "id": document.id,
            "url": url and self.masks.url(url),
            "date": data.get("date"),
            "step": self.step,
            "reason": data.get("filter_reason") or self.reason,
            "bytes": size(document),
            "start": self.start(document.text),
        }

    def start(self, text: str) -> str:
        """The first 500 characters, masked; an address that the cut goes through is left out."""
        plain = re.sub(r"\s+", " ", html.unescape(text[:20_000]))
        masked = self.masks.format(plain[:2000])
        if len(masked) < 500 and (len(plain) > 2000 or len(text) > 20_000):
            masked = re.sub(r"\S+$", "", masked)
        return masked[:500]


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


class Sandbox(ExtractorSandbox):
    """datatrove's sandbox, in seconds of computing: neither a slow start nor a stopped machine costs a page.

    The child ends itself when a page took it too long (see Extract.extract); it can also be started again under spawn,
    where dead processes could not be pickled for the next.
    """

    def process_document(self, text: str, extract_fn: Callable) -> str | None:
        self._ensure_process(extract_fn)
        waited = 0.0
        try:
            self.parent_conn.send(text)
            while not self.parent_conn.poll(TICK):
                waited += TICK  # what a stopped machine takes beyond it does not count
                if not self.process.is_alive() and not self.parent_conn.poll():
                    raise EOFError
                if waited > PATIENCE * self.timeout:
                    raise TimeoutError
            return self.parent_conn.recv()
        except (OSError, EOFError) as error:  # the child is gone, or timed out
            process = self.process
            process.join(0 if isinstance(error, TimeoutError) else 5)
            overrun = isinstance(error, TimeoutError) or process.exitcode == -signal.SIGPROF
            self._cleanup_process()
            raise (TimeoutError if overrun else EOFError) from None

    def _ensure_process(self, extract_fn: Callable) -> None:
        if self.process is None or not self.process.is_alive():
            self._cleanup_process()
            self.all_processes.clear()
            seconds, self.timeout = self.timeout, WARM_UP
            try:
                super()._ensure_process(extract_fn)
            finally:
                self.timeout = seconds


class Extract(Trafilatura):
    """datatrove's Trafilatura in its sandbox process; a page that times out, crashes it or has no text is rejected.

    timeout: seconds of computing. Trafilatura drops paragraphs it has often seen, over all pages of its process; here
    each page starts from none, so that its text does not depend on which worker had it, or after which other pages.
    """

    def __init__(self, timeout: float, rejected: Rejected, precision: bool = True):
        super().__init__(favour_precision=precision, timeout=timeout)
        self.rejected = rejected

    def extract(self, text: str | None) -> str | None:
        if not text:  # the sandbox's first call: the process is new
            die_with_parent()
            logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
            return super().extract(text)
        signal.setitimer(signal.ITIMER_PROF, self.timeout)  # SIGPROF, which nothing catches, ends the process
        try:
            self.deduplicate = LRUCache(maxsize=4096)
            return super().extract(text)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        alone = copy.copy(self)  # what the sandbox gets, each time it is started: without files that are open by then
        alone.rejected = None
        with self.rejected as rejected, Sandbox(timeout=self.timeout, warmup_text="") as sandbox:
            for document in data:
                text, reason = None, "no_text"
                with self.track_time():
                    try:
                        text = sandbox.process_document(document.text, alone.extract)
                    except TimeoutError:
                        reason = "timeout"
                    except EOFError:
                        reason = "crash"
                if text:
                    document.text = text
                    yield document
                else:
                    document.metadata["filter_reason"] = reason
                    rejected.write(document, rank)


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
