"""Pages a second a core over the whole funnel and per step: ours, with its evidence, against plain datatrove.

python benchmarks/data.py
python benchmarks/data.py --web output/laptop/data/web --rounds 4

Prints a table and, last, one JSON line: {"pages_per_second_core", "vs_plain_datatrove"}. Both sides read the same WARC
files (the laptop's web, built at a share of its size where --web names none), run FineWeb's steps with the same
parameters in one task, write what they reject with the reason, find duplicates in MinHash's four stages, mask
addresses and write parquet. Ours also counts every record without the reader, counts copies, reads back what it wrote
and gathers the report's evidence. The sides take turns (A B B A), each in a process of its own; a figure is pages over
seconds of processor time of that process and its children, imports of the first one left out. `startup` is the
stage from its launch to its end on one page without a URL filter.

With --scale 0.1 on two cores of an AMD EPYC (Zen 5), 2026-11-23: 120 pages a second a core, 1.65 times plain
datatrove (1.61 to 1.68); startup 4.8 s.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import ModuleType

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--web", help="folder of WARC files")
parser.add_argument("--scale", type=float, default=0.2, help="share of the laptop's web to build without --web")
parser.add_argument("--rounds", type=int, default=2, help="measurements of each side")
parser.add_argument("--side", choices=["ours", "plain"], help=argparse.SUPPRESS)
parser.add_argument("--out", help=argparse.SUPPRESS)
options = parser.parse_args()
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
ROOT = Path(__file__).parents[1]
STEPS = ("read", "url", "extraction", "language", "gopher_repetition", "gopher_quality", "c4", "fineweb")
TIMEOUT = 10.0  # seconds a page may take to extract, as no page does


def ours(web: str, out: Path) -> dict:
    """{"read", "kept", "steps": {step: [documents in, seconds]}} of the stage's own funnel."""
    from crawl2chat.data.config import DataConfig
    from crawl2chat.data.evidence import collect
    from crawl2chat.data.executors import Workers
    from crawl2chat.data.pipeline import open_reader, run_funnel

    began = spent()
    config = DataConfig(output_dir=str(out), warc=web, url_lists="words", extraction_timeout=TIMEOUT, workers=1)
    with Workers(1, out / "logs", "local", out) as workers:
        reader, records, cut = open_reader(config, web, [], workers, 1)
        funnel = run_funnel(config, workers, reader, 1, records, cut, [])
        (out / "evidence.json").write_text(json.dumps(collect(out)))
        (out / "funnel.json").write_text(funnel.to_json())
        workers.wait()
    steps = {step.step: [step.documents_in, step.seconds] for step in funnel.steps}
    return {"read": funnel.read, "kept": funnel.kept, "steps": steps, "seconds": spent() - began}


def plain(web: str, out: Path) -> dict:
    """The same of datatrove alone, wired as its examples/fineweb.py."""
    # WarcReader asks for python-magic and faust-cchardet, and calls them for records without
    # WARC-Identified-Payload-Type, and for those that are no UTF-8
    for name in ("magic", "cchardet"):
        if not find_spec(name):
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__spec__ = ModuleSpec(name, None)

    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline import dedup, filters
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.formatters import PIIFormatter
    from datatrove.pipeline.readers import ParquetReader, WarcReader
    from datatrove.pipeline.writers import JsonlWriter, ParquetWriter
    from datatrove.utils._import_utils import ASSETS_PATH
    from datatrove.utils.hashing import HashConfig
    from loguru import logger
    from tldextract import TLDExtract

    from crawl2chat.data.filters import Language

    began = spent()
    logger.remove()
    WarcReader._requires_dependencies = []
    stats: dict[str, list[float]] = {}

    def run(name: str, pipeline: list, tasks: int = 1) -> list:
        return (
            LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(out / "logs" / name)).run().stats
        )

    def bin(step: str) -> JsonlWriter:
        return JsonlWriter(str(out / "rejected" / step))

    words = {
        name: [line for line in Path(ASSETS_PATH, f"{name}.txt").read_text().splitlines() if line]
        for name in ("banned_words", "banned_subwords", "soft_banned_words")
    }
    url = filters.URLFilter(use_integrated_lists=False, exclusion_writer=bin("url"), **words)
    url.tldextractor = TLDExtract(cache_dir=None, suffix_list_urls=())  # else it asks the network
    pipeline = [
        WarcReader(web, glob_pattern="*.warc.gz"),
        url,
        Trafilatura(favour_precision=True, timeout=TIMEOUT),
        Language(["en"], 0.65, bin("language")),  # datatrove's would fetch its model
        filters.GopherRepetitionFilter(exclusion_writer=bin("gopher_repetition")),
        filters.GopherQualityFilter(exclusion_writer=bin("gopher_quality")),
        filters.C4QualityFilter(filter_no_terminal_punct=False, exclusion_writer=bin("c4")),
        filters.FineWebQualityFilter(exclusion_writer=bin("fineweb")),
        ParquetWriter(str(out / "kept")),
    ]
    first = run("filter", pipeline)
    knobs = dedup.MinhashConfig(
        hash_config=HashConfig(hash_fc="sha1", precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=5
    )
    folders = [str(out / name) for name in ("signatures", "pairs", "duplicates")]
    run("sign", [ParquetReader(str(out / "kept")), dedup.MinhashDedupSignature(folders[0], knobs)])
    run("pairs", [dedup.MinhashDedupBuckets(folders[0], folders[1], config=knobs)], 14)
    run("clusters", [dedup.MinhashDedupCluster(folders[1], folders[2], knobs)])
    removed = dedup.MinhashDedupFilter(folders[2], exclusion_writer=bin("minhash"))
    last = [ParquetReader(str(out / "kept")), removed, PIIFormatter(), ParquetWriter(str(out / "shards"))]
    written = run("write", last)
    read = first[0].stats["documents"].total
    for step, before, row in zip(STEPS, [None, *first], first, strict=False):
        entered = before.stats["documents"].total if step == "url" else row.stats["total"].total
        stats[step] = [read if step == "read" else entered, row.time_stats.total]
    return {"read": read, "kept": written[-1].stats["total"].total, "steps": stats, "seconds": spent() - began}


def spent() -> float:
    """Seconds of processor time of this process and of its children that ended."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in parts)


def measure(side: str, web: str, folder: Path, number: int) -> dict:
    out = folder / f"{side}-{number}"
    command = [sys.executable, __file__, "--side", side, "--web", web, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side} broke:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def startup(web: str, folder: Path) -> tuple[float, float]:
    """(seconds by the clock, of processor time) of scripts/data.py on one page, without a URL filter."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    page = folder / "one.warc"
    first = sorted(Path(web).glob("*.warc*"))[0]
    with open(page, "wb") as file:
        for record in ArchiveIterator(str(first), record_types=WarcRecordType.response, parse_http=False):
            if record.content_length > 4000:
                record.write(file)
                break
    steps = '["extraction", "minhash", "pii"]'
    command = [sys.executable, str(ROOT / "scripts" / "data.py"), "--warc", str(page), "--steps", steps]
    command += ["--output_dir", str(folder / "one"), "--workers", "1"]
    began, before = time.perf_counter(), spent()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"startup broke:\n{done.stderr[-3000:]}")
    return time.perf_counter() - began, spent() - before


def main() -> None:
    if options.side:
        made = {"ours": ours, "plain": plain}[options.side](options.web, Path(options.out))
        print(json.dumps(made))
        return
    with tempfile.TemporaryDirectory() as name:
        folder, web = Path(name), options.web
        if web is None:
            from crawl2chat.data.laptop import make_web

            make_web(folder, 0, options.scale)
            web = str(folder / "web")
        found: dict[str, list[dict]] = {"plain": [], "ours": []}
        for number in range(options.rounds):
            for side in list(found)[:: 1 if number % 2 == 0 else -1]:
                found[side].append(measure(side, web, folder, number))
        clock, processor = startup(web, folder)
    a, b = found["plain"], found["ours"]
    assert len({one["read"] for one in a + b}) == 1, "the sides read different pages"
    kept = [one[0]["kept"] for one in (a, b)]
    print(f"{a[0]['read']:,} pages of {web}; kept: plain {kept[0]:,}, ours {kept[1]:,}; {options.rounds} rounds\n")
    print(f"{'step':<20}{'plain':>12}{'ours':>12}{'ratio':>8}   pages a second, by the step's own clock")
    for step in STEPS:
        rates = [
            median(part["steps"][step][0] / max(part["steps"][step][1], 1e-9) for part in side) for side in (a, b)
        ]
        print(f"{step:<20}{rates[0]:>12,.0f}{rates[1]:>12,.0f}{rates[1] / rates[0]:>8.2f}")
    rates = [median(part["read"] / part["seconds"] for part in side) for side in (a, b)]
    ratios = [one["seconds"] / other["seconds"] for one, other in zip(a, b, strict=True)]
    print(f"{'whole funnel':<20}{rates[0]:>12,.0f}{rates[1]:>12,.0f}{median(ratios):>8.2f}   ", end="")
    print(f"pages a second of processor time; ratio {min(ratios):.2f} to {max(ratios):.2f}")
    print(
        f"startup: {clock:.1f} s by the clock, {processor:.1f} s of processor time, for one page without a URL filter"
    )
    print(json.dumps({"pages_per_second_core": round(rates[1], 1), "vs_plain_datatrove": round(median(ratios), 3)}))


if __name__ == "__main__":
    main()
