"""What the laptop's data stage makes itself: its web, kept until its code changes; its list of words; the drills."""

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from crawl2chat.data import web
from crawl2chat.data.drills import drill_documents
from crawl2chat.data.steps import SCHEMA
from crawl2chat.stage import write_text
from crawl2chat.tasks.spelling import read_words

ROWS = 5000  # drills a parquet row group


def make_web(output_dir: Path, seed: int, scale: float) -> None:
    """Build web/, labels.jsonl and facts.jsonl under `output_dir`, unless this code wrote them for this seed."""
    code = hashlib.sha256()
    for file in sorted(Path(web.__file__).parent.glob("*.py")):
        code.update(file.read_bytes())
    wanted = json.dumps({"seed": seed, "scale": scale, "code": code.hexdigest()})
    mark = output_dir / "web" / "made.json"
    parts = [output_dir / name for name in ("labels.jsonl", "facts.jsonl")]
    if mark.exists() and mark.read_text() == wanted and all(part.exists() for part in parts):
        return
    mark.unlink(missing_ok=True)
    build = output_dir / "web.tmp"
    shutil.rmtree(build, ignore_errors=True)
    web.build_web(build, seed=seed, scale=scale)
    for name in ("web", "labels.jsonl", "facts.jsonl"):
        publish(build / name, output_dir / name)
    shutil.rmtree(build)
    write_text(mark, wanted)


def write_words(shards: Path, path: Path, most: int = 20_000) -> None:
    """The lower-case words of the shards, most frequent first, one a line: spelling and counting ask about them."""
    counts: Counter[str] = Counter()
    for file in sorted(shards.glob("*/*.parquet")):
        for text in pq.read_table(file, columns=["text"])["text"].to_pylist():
            counts.update(re.findall(r"(?<![\w'-])[a-z]{2,}(?![\w'-])", text))
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]]
    write_text(path, "\n".join(words) + "\n")


def write_drills(folder: Path, count: int, seed: int, words: Path) -> None:
    """Write `count` drills to folder/00000.parquet with the shards' columns; they have no url and no date."""
    words = read_words(str(words))
    folder.mkdir(parents=True)
    rows = []
    with pq.ParquetWriter(folder / "00000.parquet", SCHEMA) as writer:
        for row in tqdm(drill_documents(count, seed, words), total=count, desc="drills", unit="document", leave=False):
            rows.append(row | {"url": None, "date": None, "language": "en", "language_score": None})
            if len(rows) == ROWS:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
                rows.clear()
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))


def publish(made: Path, final: Path) -> None:
    """Give a finished file or folder its final name; an older one of that name goes."""
    if final.is_dir():
        shutil.rmtree(final)
    os.replace(made, final)
