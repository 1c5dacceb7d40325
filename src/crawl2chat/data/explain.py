"""One page's fate, step by step: each step's verdict with what it measured against its limit.

Reads: a recipe of scripts/data.py, the pages it names, and, where that run is finished, its shards and rejected pages

python scripts/data.py recipes/laptop/data.yaml --explain https://storybook.example.org/
python scripts/data.py recipes/common-crawl/data.yaml --explain URL

The page goes through the pipeline's own steps alone. What needs all other pages (MinHash) is read from the finished
run. A page may be named by its URL or its id; where a URL was crawled several times, each page is told.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupSignature
from fastwarc.warc import ArchiveIterator
from loguru import logger
from tqdm import tqdm

from crawl2chat.data import crawl, warc
from crawl2chat.data.config import DataConfig
from crawl2chat.data.contamination import Decontaminate, build_index
from crawl2chat.data.dedup import MinHashStages
from crawl2chat.data.filters import Marks
from crawl2chat.data.funnel import read_rejected
from crawl2chat.data.measures import RULES, measure
from crawl2chat.data.pipeline import page_steps
from crawl2chat.data.readers import Rows, page
from crawl2chat.data.steps import Masks, Tally, size, source_of
from crawl2chat.data.words import english
from crawl2chat.stage import fail


@dataclass
class Verdict:
    """A step's: passed, rejected (and the reason), damaged or unknown; and what it measured."""

    step: str
    verdict: str
    reason: str = ""
    measured: list[str] = field(default_factory=list)

    def lines(self) -> str:
        first, *more = self.measured or [""]
        why = f"{self.reason}: " if self.reason else ""
        return "\n".join([f"{self.step:<18} {self.verdict:<9} {why}{first}".rstrip(), *(f"{'':28} {m}" for m in more)])


class Caught:
    """Stands for the writer of rejected pages, and keeps them."""

    def __init__(self):
        self.documents: list[Document] = []

    def __enter__(self) -> "Caught":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, document: Document, rank: int = 0) -> None:
        self.documents.append(document)


def explain(config: DataConfig, url: str) -> list[list[Verdict]]:
    """The verdicts on every page at `url` (or of that id), in the pipeline's order up to the one that rejects it."""
    logger.remove()  # datatrove's words about each step
    told = [fate(config, document, first) for document, first in find(config, url)]
    if not told:
        fail(f"{url}: no page with this URL or id among those that the recipe reads")
    return told


def fate(config: DataConfig, document: Document, first: Verdict) -> list[Verdict]:
    """One page through all steps."""
    verdicts = [first]
    source = source_of(document.metadata.get("url") or "", config.sources, config.default_source)
    for name, step in steps_of(config):
        if verdicts[-1].verdict != "passed":
            return verdicts
        before = Document(document.text, document.id, metadata=document.metadata)
        passed, reason = alone(step, document)
        verdicts.append(Verdict(name, "passed" if passed else "rejected", reason))
        rules = measure(name, step, before) if name in RULES else []
        verdicts[-1].measured = [rule.said for rule in rules if rule.broken] or [rule.said for rule in rules]
        if reason.startswith("broke_"):
            verdicts[-1].measured.insert(0, f"the filter broke on it ({reason.removeprefix('broke_')})")
        elif reason == "timeout":
            seconds = config.extraction_timeout if name == "extraction" else config.filter_timeout
            verdicts[-1].measured = [f"took more than {seconds:g} s of computing"]
        elif name == "extraction":
            verdicts[-1].measured = [f"{size(before):,} bytes of HTML, {size(document) if passed else 0:,} of text"]
        elif name == "pii":
            emails, ips = step.emails_replacer.count, step.ip_replacer.count
            verdicts[-1].measured = [f"{emails} e-mail addresses and {ips} IP addresses masked"]
    return verdicts if verdicts[-1].verdict != "passed" else [*verdicts, *afterwards(config, document, source)]


def steps_of(config: DataConfig) -> Iterator[tuple[str, PipelineStep]]:
    """The steps that look at one page alone, by name."""
    with TemporaryDirectory() as folder:  # where their writers would write
        made = page_steps(config, Path(folder))
        for step, tally in zip(made[::2], made[1::2], strict=True):
            assert isinstance(tally, Tally), "each step has its tally"
            yield tally.name.removeprefix("tally: "), step


def alone(step: PipelineStep, document: Document) -> tuple[bool, str]:
    """(passed, reason) of one page in a step of the pipeline's; the page is changed as the step changes it."""
    caught = Caught()
    setattr(step, "rejected" if hasattr(step, "rejected") else "exclusion_writer", caught)
    passed = list(step.run(iter([document])))
    return bool(passed), "" if passed else caught.documents[0].metadata.get("filter_reason", "")


def afterwards(config: DataConfig, document: Document, source: str) -> Iterator[Verdict]:
    """What follows the steps of one page: duplicates by the finished run, benchmarks, the classifier, the shards."""
    if "minhash" in config.chosen():
        yield (verdict := duplicates(config, document))
        if verdict.verdict == "rejected":
            return
    if config.decontamination:
        yield (verdict := contaminated(config, document))
        if verdict.verdict == "rejected":
            return
    if config.educational:
        passed, reason = alone(Marks(config.educational, None), document)
        said = f"score {document.metadata['score']:.2f}, {config.educational.threshold} wanted once rounded"
        yield Verdict("educational", "passed" if passed else "rejected", reason, [said])
        if not passed:
            return
    yield Verdict("shards", "passed", "", [f"{size(document):,} bytes of text, source {source}"])


def contaminated(config: DataConfig, document: Document) -> Verdict:
    recipe = config.decontamination
    with TemporaryDirectory() as folder:
        build_index(recipe, Path(folder))
        step = Decontaminate(Path(folder), recipe.n_grams, None)
        passed, reason = alone(step, document)
    said = f"{recipe.n_grams} words in a row stand in a question" if not passed else "no question stands there"
    return Verdict("decontamination", "passed" if passed else "rejected", reason, [said])


def duplicates(config: DataConfig, document: Document) -> Verdict:
    """Whether the finished run took the page for a copy, and which kept page is most like it."""
    output = Path(config.folder)
    if not config.folder or not (output / "funnel.json").exists():
        return Verdict("minhash", "unknown", "", ["it needs all pages: run the stage to its end, then ask again"])
    for file in sorted((output / "rejected").glob("minhash-*.jsonl.gz")):
        if any(row["id"] == document.id for row in read_rejected(file)):
            share, url = most_alike(config, document, output)
            found = 1 - (1 - share**config.minhash.hashes_per_bucket) ** config.minhash.num_buckets
            said = f"{share:.2f} of {config.minhash.n_grams}-word runs are those of {url}, which was kept"
            return Verdict("minhash", "rejected", "duplicate", [said, f"{found:.0%} of such pairs are found"])
    return Verdict("minhash", "passed", "", ["no copy of a page that was kept, in the finished run"])


def most_alike(config: DataConfig, document: Document, output: Path) -> tuple[float, str]:
    """(Jaccard index of the shingles, URL) of the kept page that shares most with this one; reads all shards."""
    with TemporaryDirectory() as folder:
        stages = MinHashStages(config.minhash, Path(folder))
        step = MinhashDedupSignature(folder, stages.config, language=english())
    own, best = np.unique(step.get_shingles(document.text)), (0.0, "another page")
    files = sorted((output / "shards").glob("*/*.parquet"))
    for file in tqdm(files, desc="look for the page it copies", unit="file", leave=False):
        for batch in pq.ParquetFile(file).iter_batches(256, columns=["text", "url", "id"]):
            for row in batch.to_pylist():
                if row["url"] is None:  # it passed no filter
                    continue
                other = np.unique(step.get_shingles(row["text"]))
                common = len(np.intersect1d(own, other, assume_unique=True))
                best = max(best, (common / max(len(own) + len(other) - common, 1), row["url"]))
    return best


def find(config: DataConfig, url: str) -> Iterator[tuple[Document, Verdict]]:
    """The pages at `url` among those that the recipe reads, with the reader's verdict."""
    if config.dataset_name:
        rows = Rows(config.dataset_name, config.dataset_config, config.text_column, config.limit)
        for document in tqdm(rows.run(), desc="look for the page", unit="page", leave=False):
            if is_named(url, document.metadata.get("url"), document.id):
                yield document, Verdict("read", "passed", "", [f"{size(document):,} bytes of text"])
        return
    for path in files_of(config):
        for record in tqdm(warc.walk(path), desc=f"look in {path.name}", unit="record", leave=False):
            if record.type == "response" and record.data is not None and is_in(url, record.data):
                yield from read(config, record.data)


def files_of(config: DataConfig) -> Iterator[Path]:
    """The WARC files, a crawl's fetched one by one and taken away again."""
    if config.warc_paths:
        for address in crawl.read_paths(config.warc_paths, config.warc_prefix, config.limit):
            with TemporaryDirectory() as folder:
                yield crawl.fetch(address, Path(folder))
        return
    where = str(Path(config.folder) / "web") if config.make_web else config.warc
    if not (files := warc.warc_files(where)):
        fail(f"{where}: no WARC files there; run scripts/data.py first, or correct `warc` in the recipe")
    yield from files


def is_in(url: str, record: bytes) -> bool:
    header = warc.header_fields(record[: record.find(b"\r\n\r\n")])
    names = (header.get(name, b"").decode("utf-8", "replace") for name in (b"warc-target-uri", b"warc-record-id"))
    return is_named(url, *names)


def is_named(url: str, *names: str | None) -> bool:
    """Whether one of the names is `url`, or is shown as `url` where it holds an address."""
    return any(name and (name == url or "@" in name and Masks().url(name) == url) for name in names)


def read(config: DataConfig, data: bytes) -> Iterator[tuple[Document, Verdict]]:
    """A record through the pipeline's reader."""
    largest = int(config.max_page_mb * (1 << 20))
    for record in ArchiveIterator(BytesIO(data), parse_http=False):
        document, reason = page(record, largest)
        if document is None:
            yield Document("", ""), Verdict("read", "damaged", reason, [f"{len(data):,} bytes that cannot be read"])
        elif reason:
            said = f"over {largest:,} bytes" if reason == "too_large" else f"{len(data):,} bytes that are no HTML"
            yield document, Verdict("read", "rejected", reason, [said])
        else:
            yield document, Verdict("read", "passed", "", [f"{size(document):,} bytes, at most {largest:,} allowed"])


def told(url: str, fates: list[list[Verdict]]) -> str:
    """The verdicts as text, addresses masked."""
    parts = ["\n".join(verdict.lines() for verdict in verdicts) for verdicts in fates]
    return f"{Masks().url(url)}\n" + "\n\n".join(parts)
