"""FineWeb's pipeline (https://arxiv.org/abs/2406.17557) wired from datatrove's own steps.

Pages pass every filter in one go, from URL to MinHash signature; then duplicates are found over all of them; then what
stays is held against benchmarks and a classifier where the recipe asks for it, and written. The recipe's defaults are
the published parameters (config.py). Addresses are masked before the first page is written down, not at the end as in
FineWeb: what a killed run leaves of a page holds none; a crawl's file that was being read is left as it came.
"""

import json
from dataclasses import asdict
from pathlib import Path

from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import PipelineStats

from crawl2chat.data import warc
from crawl2chat.data.config import DataConfig
from crawl2chat.data.contamination import Contamination, Decontaminate, build_index, contamination
from crawl2chat.data.crawl import Crawl, fetch_all
from crawl2chat.data.dedup import MinHashStages
from crawl2chat.data.executors import Workers, tick
from crawl2chat.data.filters import Marks, page_filters
from crawl2chat.data.funnel import Funnel, Recount, make_funnel
from crawl2chat.data.readers import Kept, Pages, Rows, is_local
from crawl2chat.data.shards import count_rows
from crawl2chat.data.steps import Extract, Masks, Rejected, Shards, Source, Tally
from crawl2chat.stage import write_text


def open_reader(
    config: DataConfig, where: str, urls: list[str], workers: Workers, tasks: int
) -> tuple[PipelineStep, int | None, int]:
    """(reader, records counted without it or None, damaged ones it will not see).

    where: what config.warc or the laptop's web is. urls: of a crawl; where they are fewer than the tasks, they are
    fetched here and their records dealt out, else each task fetches its own.
    """
    rejected, largest = Rejected(workers.work / "rejected", "read"), int(config.max_page_mb * (1 << 20))
    skip = config.on_damage == "skip"
    if config.dataset_name:
        reader = Rows(config.dataset_name, config.dataset_config, config.text_column, config.limit)
        return reader, count_rows(config.dataset_name, config.limit) if is_local(config.dataset_name) else None, 0
    if urls and len(urls) >= tasks:
        return Crawl(urls, workers.work / "fetched", skip, rejected, config.dump, largest), None, 0
    files = fetch_all(urls, workers.work / "inputs") if urls else warc.warc_files(where)
    at_once = map if sum(file.stat().st_size for file in files) < warc.FEW else workers.map
    records, cut, damaged = warc.count_files(files, where, skip, at_once)
    names = dict(zip(files, urls, strict=True)) if urls else {}
    return Pages(files, damaged, rejected, config.dump, largest, names), records, cut


def page_steps(config: DataConfig, rejected: Path) -> list[PipelineStep]:
    """The chosen steps that look at one page alone, in FineWeb's order, each followed by a tally under its name."""
    made: dict[str, PipelineStep] = dict(page_filters(config, rejected))
    if "extraction" in config.chosen():
        writer = Rejected(rejected, "extraction")
        made["extraction"] = Extract(config.extraction_timeout, writer, config.extraction_precision)
    if "pii" in config.chosen():
        made["pii"] = Masks(**vars(config.pii))
    return [part for step in config.chosen() if step in made for part in (made[step], Tally(step))]


def run_funnel(
    config: DataConfig, workers: Workers, reader: PipelineStep, tasks: int, records: int | None, cut: int,
    labels: list[dict],
) -> Funnel:  # fmt: skip
    """Run every step over the reader's documents, and count what came of it.

    Writes, under workers.work: shards/<source>/<rank>.parquet and rejected/<step>-<rank>.jsonl.gz.
    """
    work, steps = workers.work, config.chosen()
    kept, rejected, index = work / "kept", work / "rejected", work / "benchmarks"
    source = Source(config.sources, config.default_source)  # of the URL as it is: its host may be masked
    first = [reader, Tally("read", tick), source, *page_steps(config, rejected), Shards(kept, "${rank}.parquet")]
    second: list[PipelineStep] = [Kept(kept)]
    later = [step for step in ("minhash", "decontamination", "educational") if step in steps]
    stages = MinHashStages(config.minhash, work) if "minhash" in steps else None
    left = ("kept/{rank:05d}.parquet", "fetched/{rank:05d}/*")
    left += tuple(f"rejected/{step}-{{rank:05d}}.jsonl.gz" for step in ("read", *steps) if step not in later)
    stats = workers.run("filter", [*first, *(stages.sign() if stages else [])], tasks, records, left).stats
    if stages:
        stages.compare(workers)
        second += [stages.drop(), Tally("minhash")]
    if config.decontamination:
        told = told_of(config, index)
        writer = Rejected(rejected, "decontamination")
        second += [Decontaminate(index, config.decontamination.n_grams, writer), Tally("decontamination")]
    if config.educational:
        second += [Marks(config.educational, Rejected(rejected, "educational")), Tally("educational")]
    second.append(Shards(work / "shards", "${source}/${rank}.parquet"))
    left = ("shards/*/{rank:05d}.parquet", *(f"rejected/{step}-{{rank:05d}}.jsonl.gz" for step in later))
    stats += workers.run("write", second, tasks, leftovers=left).stats
    workers.run("recount", [Recount(work)], tasks)
    funnel = make_funnel(PipelineStats(stats), work, records, cut, labels)
    funnel.duplicates = stages.report(workers) if stages else None
    if config.decontamination:
        reasons = next(step.reasons for step in funnel.steps if step.step == "decontamination")
        funnel.contamination = contamination(told, index, reasons)
    return funnel


def told_of(config: DataConfig, index: Path) -> dict[str, Contamination]:
    """The index of the benchmarks' questions, made once: an earlier start's is as good."""
    told = index / "told.json"
    if not told.exists():
        made = build_index(config.decontamination, index)
        write_text(told, json.dumps({name: asdict(counts) for name, counts in made.items()}))
    return {name: Contamination(**counts) for name, counts in json.loads(told.read_text(encoding="utf-8")).items()}
