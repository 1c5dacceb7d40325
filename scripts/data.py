"""Turn crawled pages into clean shards with FineWeb's pipeline; show the funnel, with a reason for every page dropped.

Reads: WARC files, or rows of a dataset (local shards or on the hub); on the laptop, a web that it builds itself
Writes: shards/<source>/*.parquet, rejected/*.jsonl.gz, words.txt, funnel.json, metrics.json; with `recital`
recital.jsonl; on the laptop also web/, labels.jsonl, facts.jsonl, translation.jsonl

python scripts/data.py recipes/laptop/data.yaml
"""

import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from crawl2chat.data import warc
from crawl2chat.data.funnel import make_funnel, read_labels
from crawl2chat.data.laptop import EXTRAS, make_web, publish, write_extras, write_words
from crawl2chat.data.pipeline import STEPS, Workers, page_steps, run_funnel
from crawl2chat.data.recital import Recital, reserve
from crawl2chat.data.steps import Pages, Rejected, Rows
from crawl2chat.recipe import parse_recipe
from crawl2chat.stage import fail, finish, write_text


@dataclass
class DataConfig:
    """Where pages come from, which steps they pass, and where they go."""

    output_dir: str | None = field(default=None, metadata={"help": "where everything below is written"})
    make_web: bool = field(default=False, metadata={"help": "build the laptop's web under output_dir and read that"})
    web_scale: float = field(default=1.0, metadata={"help": "share of the laptop's web to build", "gt": 0, "le": 1})
    seed: int = field(default=0, metadata={"help": "of the laptop's web and the drills", "ge": 0})
    warc: str | None = field(default=None, metadata={"help": "WARC files: a file, a folder or a glob", "reads": True})
    labels: str | None = field(default=None, metadata={"help": "the right answers, labels.jsonl", "reads": True})
    on_damage: str = field(default="refuse", metadata={"help": "damaged records", "choices": ["refuse", "skip"]})
    dataset_name: str | None = field(default=None, metadata={"help": "or a folder of shards, or a name on the hub"})
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of a dataset on the hub"})
    text_column: str = field(default="text", metadata={"help": "the dataset's column that holds the text"})
    limit: int | None = field(default=None, metadata={"help": "read at most this many rows of the dataset", "gt": 0})
    steps: list[str] = field(default_factory=lambda: list(STEPS), metadata={"help": f"out of {', '.join(STEPS)}"})
    url_lists: str = field(
        default="all", metadata={"help": "all takes 5 s and 1 GB a worker", "choices": ["all", "words", "none"]}
    )
    blocked_domains: list[str] = field(default_factory=list, metadata={"help": "further domains to drop"})
    extraction_timeout: float = field(default=1.0, metadata={"help": "seconds a page may take to extract", "gt": 0})
    languages: list[str] = field(default_factory=lambda: ["en"], metadata={"help": "languages to keep"})
    language_threshold: float = field(default=0.65, metadata={"help": "least language score", "ge": 0, "le": 1})
    sources: dict[str, str] = field(default_factory=dict, metadata={"help": "host ending -> source of its pages"})
    default_source: str = field(default="web", metadata={"help": "source of every other page"})
    drills: int = field(default=0, metadata={"help": "documents of drill to add, past the filters", "ge": 0})
    phrasebook: int = field(default=0, metadata={"help": "word lists and dialogues to add likewise", "ge": 0})
    ships: int = field(default=0, metadata={"help": "made-up ships stated 0, 1, 4, 16 and 64 times, of each", "ge": 0})
    recital: Recital | None = field(default=None, metadata={"help": "passages to stand there many times"})
    workers: int = field(default=0, metadata={"help": "processes; 0 is one a core", "ge": 0})


RECIPE = (DataConfig,)


def main(config: DataConfig) -> None:
    # where pages come from: WARC files, their records counted here without the reader, or rows of a dataset
    check(config)
    output, cores = Path(config.output_dir), config.workers or os.cpu_count()
    work = output / "work"
    shutil.rmtree(work, ignore_errors=True)
    # datatrove's marks of completed ranks live in its logs: kept apart by the recipe's hash
    key = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()[:12]
    workers = Workers(cores, work / "logs" / key)
    if config.make_web:
        workers.wake()
        make_web(output, config.seed, config.web_scale)
    labels = output / "labels.jsonl" if config.make_web else config.labels
    labels = read_labels(Path(labels)) if labels else []
    began = time.perf_counter()
    if config.dataset_name:
        where, records, cut = config.dataset_name, None, 0
        reader = Rows(where, config.dataset_config, config.text_column, config.limit)
    else:
        where = str(output / "web") if config.make_web else config.warc
        files = warc.warc_files(where)
        records, cut, damaged = warc.count_files(files, where, config.on_damage == "skip")
        reader = Pages(files, damaged, Rejected(work / "rejected", "read"))

    # the funnel, on worker processes
    steps = [step for step in config.steps if not (config.dataset_name and step == "extraction")]
    filters = page_steps(
        steps,
        work / "rejected",
        config.url_lists,
        config.blocked_domains,
        config.languages,
        config.language_threshold,
        config.extraction_timeout,
    )
    with workers:
        stats = run_funnel(
            workers, reader, filters, steps, work, cores, records, config.sources, config.default_source
        )
    passages = reserve(work / "shards", config.recital) if config.recital else []
    funnel = make_funnel(stats, work, records, cut, labels)
    seconds = time.perf_counter() - began
    print(funnel.table(), flush=True)
    if not funnel.kept:
        fail(f"{where}: no document passed the filters; the table says which step dropped them, {work}/rejected why")

    # the sources past the filters, then everything to its final name
    write_words(work / "shards", work / "words.txt")
    sizes = {name: getattr(config, name) for name in ("drills", "phrasebook", "ships", "seed")}
    extras = write_extras(work, passages, output / "facts.jsonl", **sizes)
    write_text(work / "funnel.json", funnel.to_json())
    asked = ("recital.jsonl", "translation.jsonl", "ships.jsonl")  # what later stages ask about
    for name in ("shards", "rejected", "words.txt", "funnel.json", *asked):
        (work / name).exists() and publish(work / name, output / name)
    workers.wait()
    shutil.rmtree(work)

    rate = funnel.read / seconds
    share = f"precision {funnel.precision:.3f}, recall {funnel.recall:.3f}" if labels else f"{funnel.kept} kept"
    numbers = {f"kept/{name}": count for name, count in extras.items()}
    numbers |= {"pages_per_second": rate, "pages_per_second_core": rate / cores}
    finish(
        output,
        funnel.metrics() | {name: round(number, 1) for name, number in numbers.items()},
        f"{funnel.read:,} documents of {where}",
        f"{funnel.kept:,} pages and {sum(extras.values()):,} documents past the filters to {output}/shards",
        f"{share}, {rate / cores:.0f} pages a second a core",
    )


def check(config: DataConfig) -> None:
    """Refuse what types and ranges cannot: not exactly one origin, unknown steps, names that are no folder's."""
    origins = [name for name in ("make_web", "warc", "dataset_name") if getattr(config, name)]
    if len(origins) != 1:
        fail(f"the recipe has {' and '.join(origins) or 'no pages'}; give one of make_web, warc, dataset_name")
    if unknown := [step for step in config.steps if step not in STEPS]:
        fail(f"steps: {', '.join(unknown)} unknown; there are {', '.join(STEPS)}")
    for source in [*config.sources.values(), config.default_source]:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", source) or source in EXTRAS:
            fail(f"sources: {source!r} cannot be a folder; use a-z, 0-9, _ and - ({', '.join(EXTRAS)} are taken)")
    for name in ("phrasebook", "ships"):
        if getattr(config, name) and not config.make_web:
            fail(f"{name}: it goes with the facts of the laptop's web; set it to 0 without make_web")


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
