"""Turn crawled pages into clean shards with FineWeb's pipeline; show the funnel, with a reason for every page dropped.

Reads: WARC files, a list of Common Crawl's, or rows of a dataset; on the laptop, a web that it builds itself
Writes: shards/<source>/*.parquet, rejected/*.jsonl.gz, words.txt, funnel.json, evidence.json, metrics.json; with
`recital` recital.jsonl; on the laptop also web/, labels.jsonl, facts.jsonl, translation.jsonl

python scripts/data.py recipes/laptop/data.yaml
accelerate launch scripts/data.py recipes/laptop/data.yaml
python scripts/data.py recipes/laptop/data.yaml --explain https://storybook.example.org/
python scripts/data.py recipes/common-crawl/data.yaml --executor slurm --workers 200
"""

import json
import os
import shutil
import time
from pathlib import Path

from crawl2chat.data.config import DataConfig, check
from crawl2chat.data.crawl import read_paths
from crawl2chat.data.evidence import collect
from crawl2chat.data.executors import Workers
from crawl2chat.data.explain import explain, told
from crawl2chat.data.funnel import read_labels
from crawl2chat.data.laptop import make_web, publish, write_extras, write_words
from crawl2chat.data.pipeline import open_reader, run_funnel
from crawl2chat.data.recital import reserve
from crawl2chat.data.resume import begin_work, copy_shards, inputs_of, name_of_run
from crawl2chat.recipe import parse_recipe
from crawl2chat.stage import fail, finish, write_text

RECIPE = (DataConfig,)


def main(config: DataConfig) -> None:
    # where pages come from: WARC files, a crawl's list of them, or rows of a dataset
    check(config)
    if config.explain:
        print(told(config.explain, explain(config, config.explain)))
        return
    if os.environ.get("RANK", "0") != "0":
        return  # of a launcher's processes one does the work: it starts workers of its own
    output, cores = Path(config.output_dir), config.workers or os.cpu_count()
    tasks = config.tasks or cores
    if config.make_web:
        make_web(output, config.seed, config.web_scale)
    where = str(output / "web") if config.make_web else config.warc or config.warc_paths or config.dataset_name
    urls = read_paths(config.warc_paths, config.warc_prefix, config.limit) if config.warc_paths else []
    labels = output / "labels.jsonl" if config.make_web else config.labels
    labels = read_labels(Path(labels)) if labels else []

    # the funnel, on worker processes; what an earlier start of the same recipe finished is not done again
    work, lock = begin_work(output / "work", name_of_run(config, tasks, urls or inputs_of(config, where)))
    began = time.perf_counter()
    with Workers(cores, work / "logs", config.executor, work, config.memory_gb, config.slurm) as workers:
        if config.make_web:  # nothing there can be wrong, so that no line of an error is lost among theirs
            workers.wake()
        reader, records, cut = open_reader(config, where, urls, workers, tasks)
        funnel = run_funnel(config, workers, reader, tasks, records, cut, labels)
        seconds = time.perf_counter() - began
        print(funnel.table(), flush=True)
        if not funnel.kept:
            fail(f"{where}: no document passed the filters; the table says at which step, {work}/rejected why")

        # the sources past the filters, beside copies of the shards: what is finished stays as it is until the end
        final = copy_shards(work)
        passages = reserve(final / "shards", config.recital) if config.recital else []
        funnel.bytes_kept -= sum(len(passage["text"].encode()) + 1 for passage in passages)
        write_words(final / "shards", final / "words.txt")
        sizes = {name: getattr(config, name) for name in ("drills", "phrasebook", "ships", "seed")}
        extras = write_extras(final, passages, output / "facts.jsonl", **sizes)
        write_text(final / "funnel.json", funnel.to_json())
        write_text(final / "evidence.json", json.dumps(collect(work)) + "\n")

        # everything to its final name
        for path in sorted(final.iterdir()):
            publish(path, output / path.name)
        workers.wait()

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
    lock.release()
    shutil.rmtree(output / "work")


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
