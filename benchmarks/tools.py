"""The price of a tool call: Python by monty and by CPython under bubblewrap, and a search in a large index.

python benchmarks/tools.py
python benchmarks/tools.py --passages 1000000 --calls 500 --many 10000

Prints a table and, last, one JSON line: {"python_monty_ms", "python_cpython_ms" (where bubblewrap can isolate),
"python_leaked" (by `--many` calls from eight threads: [processes, files, MB]), "python_most_processes", "search_ms",
"search_open_seconds", "search_build_seconds", "search_build_mb", "passages"}. A figure is a median over calls of
wall-clock milliseconds. The passages are made up: words of a Zipf distribution with new names all the time, so that
the vocabulary grows as it does in text. The index is built in a process of its own, whose peak memory counts.
"""

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import psutil

from crawl2chat.tools.interpreter import open_interpreter
from crawl2chat.tools.search import build_index, open_index

CODE = "total = 23 * 2 + 177 * 4\nprint(total)\nsorted(str(total))"


def milliseconds(calls: Iterable[Callable[[], str]]) -> float:
    times = []
    for call in calls:
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return median(times)


def leaked(calls: int) -> tuple[list[int], int]:
    """What so many calls leave behind, every two of them a reply of its own, from eight threads: processes, files and
    megabytes more than after the first hundred; and the most workers at work at a time."""
    python, process = open_interpreter(), psutil.Process()
    most = 0

    def held() -> list[int]:
        workers = process.children(recursive=True)
        return [len(workers), process.num_fds(), sum(p.memory_info().rss for p in [process, *workers])]

    def reply(i: int) -> None:
        nonlocal most
        session = python.session()
        session(f"x = [{i}] * 100")
        assert session("x[99]") == str(i)
        if i % 100 == 0:
            most = max(most, len(process.children()))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(reply, range(50)))
        before = held()
        list(threads.map(reply, range(calls // 2)))
        after = held()
    return [after[0] - before[0], after[1] - before[1], round((after[2] - before[2]) / 1e6)], most


def write_pages(path: Path, passages: int) -> None:
    """Pages of one passage of 20 to 45 words each: 50,000 common words, and two names that no other page has."""
    rng = random.Random(0)
    words = ["".join(rng.choices("aeioutnshrdlcmpg", k=rng.randint(3, 10))) for _ in range(50_000)]
    often = [0.0]
    for i in range(len(words)):
        often.append(often[-1] + 1 / (i + 10))
    with open(path, "w") as handle:
        for i in range(passages):
            body = " ".join(rng.choices(words, cum_weights=often[1:], k=rng.randint(18, 43)))
            handle.write(json.dumps({"text": f"Name{i} place{i % 1000} {body}.", "url": f"made.up/{i}"}) + "\n")


def build(pages: Path, index: Path, answers: multiprocessing.Queue) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    size = build_index([pages], index)
    seconds = time.perf_counter() - start
    answers.put((size, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=200_000, help="passages of the index")
    parser.add_argument("--calls", type=int, default=300, help="calls of monty and of search, a tenth for CPython")
    parser.add_argument("--many", type=int, default=10_000, help="calls of monty after which nothing may be left")
    options = parser.parse_args()
    results: dict[str, float | list[int]] = {}

    # python
    for backend, calls in (("monty", options.calls), ("cpython", max(5, options.calls // 10))):
        try:
            python = open_interpreter(backend=backend)
        except RuntimeError as error:
            print(f"python, {backend}: not measured, {error}")
            continue
        per_call = milliseconds(lambda python=python: python(CODE) for _ in range(calls))
        results[f"python_{backend}_ms"] = round(per_call, 3)
        session = python.session()
        kept = milliseconds(lambda session=session: session("x = 1\nx") for _ in range(min(calls, 5)))
        once = results[f"python_{backend}_ms"]
        print(f"python, {backend:8} {once:8.2f} ms a call; {kept:.2f} ms with variables kept")

    results["python_leaked"], results["python_most_processes"] = leaked(options.many)
    processes, files, megabytes = results["python_leaked"]
    print(
        f"after {options.many:,} calls from 8 threads, at most {results['python_most_processes']} workers at a time: "
        f"{processes} processes, {files} files, {megabytes} MB more"
    )

    # search
    with tempfile.TemporaryDirectory() as folder:
        pages, index = Path(folder) / "pages.jsonl", Path(folder) / "index"
        write_pages(pages, options.passages)
        context = multiprocessing.get_context("spawn")
        answers = context.Queue()
        process = context.Process(target=build, args=(pages, index, answers))
        process.start()
        size, seconds, megabytes = answers.get()
        process.join()
        start = time.perf_counter()
        search = open_index(index)
        opened = time.perf_counter() - start
        rng = random.Random(1)
        lines = pages.read_text().splitlines()
        queries = [" ".join(json.loads(rng.choice(lines))["text"].split()[1:6]) for _ in range(options.calls)]
        search_ms = milliseconds(lambda query=query: search(query) for query in queries)
    print(f"search          {search_ms:8.2f} ms a query of five words over {size:,} passages")
    print(f"its index       {seconds:8.1f} s to build in {megabytes:.0f} MB of memory, {opened:.2f} s to open")
    results |= {"search_ms": round(search_ms, 3), "search_open_seconds": round(opened, 3)}
    results |= {"search_build_seconds": round(seconds, 1), "search_build_mb": round(megabytes), "passages": size}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
