"""FineWeb's pipeline (https://arxiv.org/abs/2406.17557) wired from datatrove's own steps, and run on worker processes.

Pages pass every filter in one go, from URL to MinHash signature; then duplicates are found over all of them; then what
stays is masked and written. Parameters are the published ones (datatrove's examples/fineweb.py).
"""

import multiprocessing
import os
import signal
import sys
import warnings
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.stats import PipelineStats
from loguru import logger
from tqdm import tqdm

from crawl2chat.data.steps import Extract, Kept, Language, Rejected, Shards, Source, Tally, Urls, die_with_parent
from crawl2chat.data.words import english
from crawl2chat.stage import fail

STEPS = ("url", "extraction", "language", "gopher_repetition", "gopher_quality", "c4", "fineweb", "minhash", "pii")
MINHASH = MinhashConfig(
    n_grams=5, num_buckets=14, hashes_per_bucket=8, hash_config=HashConfig(hash_fc="sha1", precision=64)
)
pages_read = None  # in a worker: the counter it shares with the script


def page_steps(
    steps: list[str],
    rejected: Path,
    url_lists: str,
    blocked_domains: list[str],
    languages: list[str],
    language_threshold: float,
    extraction_timeout: float,
) -> list[PipelineStep]:
    """The chosen steps that look at one page alone, in FineWeb's order, each followed by a tally under its name."""
    writer = {step: Rejected(rejected, step) for step in STEPS}
    every = {
        "url": Urls(url_lists, blocked_domains, writer["url"]),
        "extraction": Extract(extraction_timeout, writer["extraction"]),
        "language": Language(languages, language_threshold, writer["language"]),
        "gopher_repetition": GopherRepetitionFilter(language=english(), exclusion_writer=writer["gopher_repetition"]),
        "gopher_quality": GopherQualityFilter(language=english(), exclusion_writer=writer["gopher_quality"]),
        "c4": C4QualityFilter(filter_no_terminal_punct=False, language=english(), exclusion_writer=writer["c4"]),
        "fineweb": FineWebQualityFilter(language=english(), exclusion_writer=writer["fineweb"]),
    }
    return [part for step, made in every.items() if step in steps for part in (made, Tally(step))]


def run_funnel(
    workers: "Workers",
    reader: PipelineStep,
    page_filters: list[PipelineStep],
    steps: list[str],
    work: Path,
    tasks: int,
    records: int | None,
    hosts: dict[str, str],
    default_source: str,
) -> PipelineStats:
    """Run every step over the reader's documents; returns datatrove's statistics of all passes.

    Writes, under `work`: shards/<source>/<rank>.parquet and rejected/<step>-<rank>.jsonl.gz.
    """
    kept, signatures, pairs, duplicates = (work / name for name in ("kept", "signatures", "pairs", "duplicates"))
    first = [reader, Tally("read", tick), *page_filters, Shards(kept, "${rank}.parquet")]
    second: list[PipelineStep] = [Kept(kept)]
    stats = []
    if "minhash" in steps:
        # the fourth stage takes documents away by their position, so it reads what the first stage read, rank by rank
        stats += workers.run(
            "filter", [*first, MinhashDedupSignature(str(signatures), MINHASH, language=english())], tasks, records
        ).stats
        buckets = MinhashDedupBuckets(str(signatures), str(pairs), config=MINHASH, lines_to_buffer=1000)
        workers.run("minhash-buckets", [buckets], MINHASH.num_buckets)
        workers.run(
            "minhash-clusters", [MinhashDedupCluster(str(pairs), str(duplicates), MINHASH, lines_to_buffer=1000)], 1
        )
        second += [
            MinhashDedupFilter(str(duplicates), Rejected(work / "rejected", "minhash", "duplicate")),
            Tally("minhash"),
        ]
    else:
        stats += workers.run("filter", first, tasks, records).stats
    if "pii" in steps:
        second += [PIIFormatter(), Tally("pii")]
    second += [Source(hosts, default_source), Shards(work / "shards", "${source}/${rank}.parquet")]
    return PipelineStats(stats + workers.run("write", second, tasks).stats)


class Workers:
    """Processes that run the ranks of a datatrove pipeline; unlike a plain pool, a worker that dies is noticed.

    datatrove's and the workers' own chatter goes to `logs`.
    """

    def __init__(self, count: int, logs: Path):
        logs.mkdir(parents=True, exist_ok=True)
        logger.remove()  # datatrove's default sink in this process is the terminal
        context = multiprocessing.get_context("spawn")
        self.logs, self.count, self.pages = logs, count, context.Value("q", 0)
        self.pool = ProcessPoolExecutor(count, context, initializer=begin, initargs=(logs / "workers.log", self.pages))

    def wake(self) -> None:
        """Start the processes now, while there is other work to do: they take two seconds to import what they need."""
        for _ in range(self.count):
            self.pool.submit(os.getpid)

    def run(self, name: str, pipeline: list[PipelineStep], tasks: int, total: int | None = None) -> PipelineStats:
        """Run all ranks of `pipeline`; the sum of their statistics. Stops with one line when a rank fails.

        total: documents that the first tally will tell of, for the bar.
        """
        executor = LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(self.logs / name))
        ranks = [self.pool.submit(executor._run_for_rank, rank, 1) for rank in range(tasks)]
        pending = set(ranks)
        with tqdm(total=total, desc=name, unit="page", leave=False, disable=name != "filter") as bar:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                bar.update(self.pages.value - bar.n)
                for rank in done:
                    if rank.exception() is not None:
                        self.give_up(name, rank.exception())
        return sum((rank.result() for rank in ranks), start=PipelineStats())

    def give_up(self, name: str, error: BaseException) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(error, SystemExit):  # fail() in a reader: the line is for the user
            sys.exit(error.code)
        if isinstance(error, BrokenProcessPool):
            fail(f"a worker of the pass {name!r} was killed (out of memory?): use fewer workers; log: {self.logs}")
        fail(f"the pass {name!r} broke: {type(error).__name__}: {error}; log: {self.logs}")

    def wait(self) -> None:
        """Wait until the processes are gone: only then does the system count their memory."""
        self.pool.shutdown()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_error: object) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


def begin(log: Path, pages: object) -> None:
    """First words of a worker: standard error into the log, and no ear for Ctrl-C."""
    global pages_read
    pages_read = pages
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    warnings.simplefilter("ignore", DeprecationWarning)
    english().word_tokenize("spaCy takes a second to wake up")


def tick() -> None:
    with pages_read.get_lock():
        pages_read.value += 1
