"""What every stage does at its end: write metrics.json last, and say in one line what it read, wrote and found."""

import json
import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import NoReturn

import psutil

from crawl2chat import tracking
from crawl2chat.checkpoint_folder import mark_finished


def fail(message: str) -> NoReturn:
    """Stop with one line on stderr (what, where, what to do) and exit code 1."""
    sys.exit(f"error: {' '.join(message.split())}")


def write_text(path: str | Path, text: str) -> None:
    """Write a file under a temporary name, sync it, then rename it: a final name never holds half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def peak_memory_gb() -> float:
    """Peak resident memory of this process, or of its largest child if that was larger, in GB (1e9 bytes)."""
    scale = 1 if sys.platform == "darwin" else 1024
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(peaks) * scale / 1e9


def finish(output_dir: str | Path, metrics: dict[str, float], read: str, wrote: str, headline: str) -> None:
    """Write `output_dir`/metrics.json, the mark of a complete stage, print the stage's line, and log it (tracking.py).

    Adds `seconds` since the process began and `peak_memory_gb`. Raises ValueError for a metric that is not a finite
    number, so that a diverged run never looks complete.
    """
    seconds = time.time() - psutil.Process().create_time()
    metrics = {
        **metrics,
        "seconds": round(metrics.get("seconds", seconds), 1),
        "peak_memory_gb": round(peak_memory_gb(), 3),
    }
    for key, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{output_dir}/metrics.json: {key} must be a finite number, got {value!r}")
    write_text(Path(output_dir) / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    mark_finished(Path(output_dir))
    stage = Path(sys.argv[0]).stem
    print(f"{stage}: read {read} | wrote {wrote} | {headline} | {seconds:.0f} s", flush=True)
    tracking.end(output_dir, metrics)
