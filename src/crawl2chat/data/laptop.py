"""What the laptop's data stage makes itself: its web, kept until its code changes; its list of words; the sources that
no web filter would keep.
"""

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from crawl2chat.data import web
from crawl2chat.data.dialogues import dialogues
from crawl2chat.data.drills import drill_documents
from crawl2chat.data.recital import copies, write_passages
from crawl2chat.data.ships import harbour, make_ships, registers, write_ships
from crawl2chat.data.steps import SCHEMA
from crawl2chat.data.translation import word_lists, write_pairs
from crawl2chat.stage import write_text
from crawl2chat.tasks.spelling import read_words

EXTRAS = ("drills", "phrasebook", "recital", "register", "harbour")  # the sources that pass no filter
ROWS = 5000  # documents a parquet row group


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


def write_extras(
    work: Path, passages: list[dict], facts: Path, drills: int, phrasebook: int, ships: int, seed: int
) -> dict[str, int]:
    """Write the sources that pass no filter below work/shards, and what later stages ask about them beside it.

    Returns {source: documents}, 0 where nothing of it is wanted. passages: see recital.reserve. facts: facts.jsonl.
    """
    words = read_words(str(work / "words.txt"))
    subjects = {json.loads(line)["subject"].lower() for line in facts.read_text().splitlines()} if ships else ()
    fleet = make_ships(ships, seed, [word for word in words if word not in subjects])
    rows = (
        drill_documents(drills, seed, words),
        phrasebook_documents(phrasebook, seed, str(facts), fleet),
        copies(passages),
        registers(fleet, seed),
        harbour(fleet, seed),
    )
    if phrasebook:
        write_pairs(work / "translation.jsonl")
    if passages:
        write_passages(work / "recital.jsonl", passages)
    if fleet:
        write_ships(work / "ships.jsonl", fleet)
    return {name: write_source(work / "shards" / name, part) for name, part in zip(EXTRAS, rows, strict=True)}


def phrasebook_documents(count: int, seed: int, facts: str, ships: Sequence[dict] = ()) -> Iterator[dict]:
    """`count` documents {"text", "id", "source"}: two word lists, then a dialogue about facts, and so on."""
    lists, talks = word_lists(count, seed), dialogues(count, seed, facts, ships)
    for i in range(count):
        yield {"text": next(talks if i % 3 == 2 else lists), "id": f"phrasebook/{i}", "source": "phrasebook"}


def write_source(folder: Path, documents: Iterator[dict]) -> int:
    """Write documents {"text", "id", "source"} to folder/00000.parquet with the shards' columns (no url, no date), and
    return their number; where there are none, no folder is made.
    """
    count = 0
    bar = tqdm(desc=folder.name, unit="document", leave=False)
    writer = None
    while batch := list(islice(documents, ROWS)):
        if writer is None:
            folder.mkdir(parents=True)
            writer = pq.ParquetWriter(folder / "00000.parquet", SCHEMA)
        rows = [row | {"url": None, "date": None, "language": "en", "language_score": None} for row in batch]
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
        count += len(batch)
        bar.update(len(batch))
    if writer is not None:
        writer.close()
    bar.close()
    return count


def publish(made: Path, final: Path) -> None:
    """Give a finished file or folder its final name; an older one of that name goes."""
    if final.is_dir():
        shutil.rmtree(final)
    os.replace(made, final)
