"""A stage's rows as a data set of the hub: which files are rows, and the card that names their columns and recipe."""

import json
from pathlib import Path

import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData

from crawl2chat.stage import fail

SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (float("inf"), "1M<n<10M"))
ALONGSIDE = ("recipe.yaml", "metrics.json")
NOT_ROWS = ("checkpoint-", "outbox", "tokens")
SPLITS = ("train", "test", "validation")
TEXT = """# {name}

{counts} Made by crawl2chat{recipe_title}.

## Rows

| configuration | split | rows | columns |
|---|---|---|---|
{table}

A row of `{first}`, shortened:

````json
{example}
````
{recipe}"""


def row_files(folder: Path) -> dict[tuple[str, str], list[Path]]:
    """(configuration, split) -> files of rows, those of the folder and of the folders in it; empty ones are left out.

    train.jsonl and test.jsonl are splits of the configuration that their folder names (`default` at the top), any
    other file is a configuration of its own. Parquet shards, a configuration a folder, are taken where there is no
    JSON: a data set of the hub has one format.
    """
    found: dict[tuple[str, str], list[Path]] = {}
    inner = [path for path in sorted(folder.glob("[!_.]*/*")) if not path.parent.name.startswith(NOT_ROWS)]
    files = [path for path in [*sorted(folder.glob("*")), *inner] if path.is_file() and path.stat().st_size]
    kinds = [path.suffix for path in files]
    for path in (path for path in files if path.suffix == (".jsonl" if ".jsonl" in kinds else ".parquet")):
        above = path.parent.name if path.parent != folder else ""
        if path.stem in SPLITS:
            key = (above or "default", path.stem)
        elif path.suffix == ".parquet":
            key = (above or "default", "train")
        else:
            key = ("_".join(filter(None, (above, path.stem))), "train")
        found.setdefault(key, []).append(path)
    if not found:
        fail(f"hub: {folder}: there are no rows in it (*.jsonl, *.parquet) to push as a data set")
    return dict(sorted(found.items(), key=lambda item: item[0][0] != "default"))


def dataset_card(folder: Path, files: dict[tuple[str, str], list[Path]], repo_id: str, license: str) -> str:
    """README.md for the rows of `folder`: licence, splits, columns, one row, and the recipe that made them."""
    table, counts, configurations, example = [], 0, {}, None
    for (configuration, split), paths in files.items():
        rows, first = 0, None
        for path in paths:
            more, row = _look(path)
            rows, first = rows + more, first or row
        counts, example = counts + rows, example or first
        columns = ", ".join(f"`{name}` ({_kind(value)})" for name, value in first.items())
        table.append(f"| {configuration} | {split} | {rows:,} | {columns} |")
        where = [path.relative_to(folder).as_posix() for path in paths]
        configurations.setdefault(configuration, []).append({"split": split, "path": where})
    recipe = folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    title = text.splitlines()[0].lstrip("# ") if text else ""
    data = DatasetCardData(
        license=license,
        size_categories=[next(name for bound, name in SIZES if counts < bound)],
        tags=["crawl2chat"],
        configs=[{"config_name": name, "data_files": splits} for name, splits in configurations.items()],
    )
    body = TEXT.format(
        name=repo_id.rpartition("/")[2],
        counts=f"{counts:,} rows.",
        recipe_title=f": {title}" if title else "",
        table="\n".join(table),
        first=next(iter(configurations)),
        example=_shown(example),
        recipe=f"\n## The recipe that made them\n\n````yaml\n{text.replace('````', '')}\n````\n" if text else "",
    )
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _look(path: Path) -> tuple[int, dict]:
    """(rows, the first of them) of a file."""
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        return file.metadata.num_rows, next(file.iter_batches(1)).to_pylist()[0] if file.metadata.num_rows else {}
    with open(path, encoding="utf-8") as lines:
        try:
            first = json.loads(next(lines))
        except ValueError:
            first = None
        if not isinstance(first, dict):
            fail(f"hub: {path}: its first line is no JSON object; nothing was sent")
        return 1 + sum(1 for line in lines if line.strip()), first


def _kind(value: object) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]:
        return "messages"
    names = {bool: "true or false", int: "number", float: "number", str: "text", list: "list", dict: "mapping"}
    return names.get(type(value), "empty" if value is None else type(value).__name__)


def _shown(row: dict) -> str:
    """A row as JSON in which long texts are cut, and no backtick ends the block that it is shown in."""

    def cut(value: object) -> object:
        if isinstance(value, str):
            return value if len(value) <= 200 else f"{value[:200]}..."
        if isinstance(value, dict):
            return {name: cut(inner) for name, inner in value.items()}
        return [cut(inner) for inner in value[:4]] if isinstance(value, list) else value

    return json.dumps(cut(row), ensure_ascii=False, indent=1, default=str).replace("`", "\\u0060")
