"""Read documents back: parquet or JSON-lines shards of a folder, or rows streamed from a dataset on the hub."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from pyarrow.lib import ArrowInvalid

from crawl2chat.stage import fail

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")


def shard_files(path: str | Path) -> list[Path]:
    """The shards below `path` (a folder or one file) in a stable order."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.name.endswith(SUFFIXES))
    if not files:
        fail(f"{path}: no shards ({', '.join(SUFFIXES)}); run scripts/data.py, or correct the path in the recipe")
    return files


def read_shard(file: Path, columns: tuple[str, ...]) -> Iterator[dict]:
    if file.stat().st_size == 0:
        fail(f"{file}: the shard is empty (0 bytes); write it again")
    if file.suffix == ".parquet":
        try:
            table = pq.ParquetFile(file)
            present = [column for column in columns if column in table.schema_arrow.names]
            if columns[0] not in present:
                fail(f"{file}: no column {columns[0]!r} (it has {', '.join(table.schema_arrow.names)})")
            for batch in table.iter_batches(batch_size=1024, columns=present):
                yield from batch.to_pylist()
        except (ArrowInvalid, OSError) as error:
            fail(f"{file}: not a whole parquet file ({error}); write it again")
        return
    opened = gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else open(file, encoding="utf-8")
    number = 1
    try:
        with opened as lines:
            for line in lines:
                row = json.loads(line)
                if not isinstance(row, dict):
                    fail(f"{file}:{number}: a row must be an object with {columns[0]!r}, got {line[:80]!r}")
                if columns[0] not in row:
                    fail(f"{file}:{number}: no key {columns[0]!r} (it has {', '.join(row)})")
                yield {column: row.get(column) for column in columns}
                number += 1
    # broken JSON or UTF-8 (both ValueError), a cut or damaged gzip stream
    except (ValueError, EOFError, OSError, zlib.error) as error:
        fail(f"{file}:{number}: cannot be read ({error}); mend or remove the file")


def documents(path: str | Path, columns: tuple[str, ...] = ("text",), limit: int | None = None) -> Iterator[dict]:
    """Rows with `columns` (the first must be there) from local shards, or streamed from the hub for a name like
    owner/set.

    A hub name may carry a configuration after a colon: HuggingFaceFW/fineweb-edu:sample-10BT. Raises SystemExit with
    one line for a folder without shards, an empty or damaged shard, or a source without documents.
    """
    local = Path(path).exists() or str(path).startswith(("output/", "./", "../", "/")) or str(path).count("/") != 1
    if local:
        rows = (row for file in shard_files(path) for row in read_shard(file, columns))
    else:
        from datasets import load_dataset

        name, _, configuration = str(path).partition(":")
        stream = load_dataset(name, configuration or None, split="train", streaming=True)
        known = stream.column_names or columns  # some sets do not say
        if columns[0] not in known:
            fail(f"{path}: no column {columns[0]!r} (it has {', '.join(known)})")
        rows = iter(stream.select_columns([column for column in columns if column in known]))
    count = 0
    for row in rows:
        if limit is not None and count >= limit:
            return
        yield row
        count += 1
    if not count:
        fail(f"{path}: the shards hold no documents; write it again")


def count_rows(path: str | Path, limit: int | None = None) -> int:
    """Rows of local shards by parquet's footers and by line ends, not by reading them; at most `limit`."""
    rows = 0
    for file in shard_files(path):
        try:
            if file.suffix == ".parquet":
                rows += pq.ParquetFile(file).metadata.num_rows
            else:
                with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as lines:
                    rows += sum(1 for _ in lines)
        except (ArrowInvalid, EOFError, OSError, zlib.error) as error:
            fail(f"{file}: cannot be read ({error}); write it again")
    return rows if limit is None else min(rows, limit)
