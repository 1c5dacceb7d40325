"""A run's folder: what its complete stages wrote, their numbers in one flat dict, and what they should reach."""

import json
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any

import psutil

from crawl2chat import recollection
from crawl2chat.stage import fail

PACKAGES = "torch transformers tokenizers trl peft accelerate datasets evaluate datatrove lm-eval bm25s pydantic-monty"


@dataclass
class Target:
    """A number to reach."""

    key: str  # <stage>/<key> of report.json
    label: str
    at_least: float | None = None
    at_most: float | None = None

    def met(self, value: float) -> bool:
        low, high = self.at_least, self.at_most
        return (low is None or value >= low) and (high is None or value <= high)


@dataclass
class Run:
    """A run's folder, the metrics of its complete stages in the lifecycle's order, and what they should reach."""

    folder: Path
    metrics: dict[str, dict[str, float]]
    targets: Sequence[Target] = ()

    def json(self, stage: str, name: str) -> Any:
        """A side file's content, None where the stage did not write it; a broken one is one clear line."""
        path = self.folder / stage / name
        return read_json(path) if stage in self.metrics and path.exists() else None

    def rows(self, stage: str, name: str) -> list[dict]:
        """The rows of a JSONL side file, none where the stage did not write it."""
        path = self.folder / stage / name
        if stage not in self.metrics or not path.exists():
            return []
        lines = read_text(path).split("\n")  # other separators of lines may stand within a reply
        return [read_json(path, line, number) for number, line in enumerate(lines, start=1) if line.strip()]


def read_text(path: Path) -> str:
    """A side file's text, with what is no UTF-8 marked as such."""
    return path.read_text(encoding="utf-8", errors="replace")


def read_json(path: Path, line: str | None = None, number: int = 0) -> Any:
    """The file, or one `line` of it, as JSON; stops with one line where it is none."""
    try:
        text = path.read_text(encoding="utf-8") if line is None else line
        found = json.loads(text)
        if re.search(r"\\ud[89a-f]", text, re.IGNORECASE):  # half a character, which no file can hold
            found = json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
        return found
    except ValueError as error:
        where = f"{path}, line {number}" if number else path
        fail(f"{where}: not JSON ({error}); run the stage that writes it again")


def read_run(folder: str | Path, stages: Sequence[str]) -> Run:
    """The complete stages (those with a metrics.json) of a run's folder; none at all is one clear line."""
    folder = Path(folder)
    files = {stage: folder / stage / "metrics.json" for stage in stages}
    metrics = {stage: read_json(path) for stage, path in files.items() if path.is_file()}
    for stage, numbers in metrics.items():
        if not isinstance(numbers, dict) or not all(isinstance(value, int | float) for value in numbers.values()):
            fail(f"{files[stage]}: not a flat object of numbers; run the stage {stage} again")
        wrong = [key for key, value in numbers.items() if not isfinite(value)]
        if wrong:
            fail(f"{files[stage]}: {wrong[0]} is {numbers[wrong[0]]}, no finite number; run the stage {stage} again")
    if not metrics:
        fail(f"{folder}: no stage has written a metrics.json; run scripts/lifecycle.sh first")
    return Run(folder, metrics)


def all_numbers(run: Run) -> dict[str, float]:
    """{"<stage>/<key>": number} of every stage, total_seconds (their sum) and peak_memory_gb (the largest).

    What eval found of the interrogation's questions stands beside the numbers from before training
    (interrogate/<key>_after); recollection/<key> is drawn from eval's replies.
    """
    numbers = {f"{stage}/{key}": value for stage, metrics in run.metrics.items() for key, value in metrics.items()}
    after = run.metrics.get("eval", {})
    numbers |= {key: value for key, value in after.items() if key.startswith("interrogate/")}
    try:
        numbers |= recollection.numbers(run.rows("eval", "replies.jsonl"))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        fail(f"{run.folder / 'eval' / 'replies.jsonl'}: not as eval writes it ({error!r}); run the stage eval again")
    numbers["total_seconds"] = round(sum(metrics.get("seconds", 0) for metrics in run.metrics.values()), 1)
    numbers["peak_memory_gb"] = max(metrics.get("peak_memory_gb", 0) for metrics in run.metrics.values())
    return numbers


def versions() -> dict[str, str]:
    """The interpreter, the machine, and the packages that a run rests on, with their versions."""
    found = {"Python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found["machine"] = f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB of memory"
    for name in PACKAGES.split():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
