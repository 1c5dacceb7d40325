"""Started on every rank by test_distributed.py: the scripts of several commands one after another, on one import."""

import json
import os
import runpy
import sys
from pathlib import Path

import crawl2chat.model

crawl2chat.model.cpu_has_bf16 = lambda: False  # the recipes' own precision on every processor
for job in json.loads(Path(sys.argv[1]).read_text()):
    os.environ.update(job["environment"])
    sys.argv = job["command"]
    try:
        runpy.run_path(job["command"][0], run_name="__main__")
    except SystemExit as stop:
        print(f"{job['name']}: {stop.code}", file=sys.stderr, flush=True)
