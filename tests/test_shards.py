"""Shards are read back whole, in a stable order; a damaged one is one clear line that names it."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crawl2chat.data.shards import documents, shard_files

ROWS = [{"text": f"The capital of place {i} is Größe {i}.", "id": f"page/{i}", "source": "web"} for i in range(40)]


def write(path: Path, rows: list[dict] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def complaint(path: Path, *args) -> str:
    """The one line that reading `path` stops with."""
    with pytest.raises(SystemExit) as stop:
        list(documents(path, *args))
    assert stop.value.code.startswith("error: ") and "\n" not in stop.value.code
    return stop.value.code


NAMES = ["a.parquet", "a.jsonl", "a.jsonl.gz"]


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_shard_gives_its_rows_back(tmp_path, name):
    write(tmp_path / name)
    assert [row["text"] for row in documents(tmp_path)] == [row["text"] for row in ROWS]
    assert list(documents(tmp_path / name, ("text", "id"))) == [{k: row[k] for k in ("text", "id")} for row in ROWS]


def test_a_folder_is_read_in_the_order_of_its_paths_and_other_files_are_left_alone(tmp_path):
    for place, name in enumerate(["a/00000.parquet", "a/00001.jsonl", "b/00000.jsonl.gz"]):
        write(tmp_path / name, ROWS[place : place + 1])
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "a" / "notes.txt").write_text("no shard")
    assert [path.name for path in shard_files(tmp_path)] == ["00000.parquet", "00001.jsonl", "00000.jsonl.gz"]
    assert [row["text"] for row in documents(tmp_path)] == [row["text"] for row in ROWS[:3]]


@pytest.mark.parametrize("limit", [0, 1, 39, 40, 99])
def test_a_limit_takes_the_first_rows(tmp_path, limit):
    write(tmp_path / "a.jsonl", ROWS[:15])
    write(tmp_path / "b.parquet", ROWS[15:])
    assert [row["text"] for row in documents(tmp_path, limit=limit)] == [row["text"] for row in ROWS[:limit]]


@pytest.mark.parametrize("name", NAMES)
def test_a_column_that_may_be_missing_is_no_error(tmp_path, name):
    write(tmp_path / name, [{"text": "x"}])
    (row,) = documents(tmp_path, ("text", "id"))
    assert row["text"] == "x" and row.get("id") is None


@pytest.mark.parametrize("name", NAMES)
def test_a_shard_without_the_wanted_column_names_what_it_has(tmp_path, name):
    path = write(tmp_path / name, [{"content": "x", "url": "y"}])
    found = complaint(tmp_path)
    assert str(path) in found and "'text'" in found and "content, url" in found


@pytest.mark.parametrize("where", ["nowhere", "nowhere/at/all"])
def test_a_missing_folder_is_named(tmp_path, where):
    assert str(tmp_path / where) in complaint(tmp_path / where)


def test_a_relative_path_below_output_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "output/shards" in complaint("output/shards")


def test_a_folder_without_shards_is_named(tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    assert f"{tmp_path}: no shards" in complaint(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_file_is_named(tmp_path, name):
    write(tmp_path / "0.jsonl")
    (tmp_path / name).touch()
    assert f"{tmp_path / name}: the shard is empty" in complaint(tmp_path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_cut_file_is_named(tmp_path, name, share):
    path = write(tmp_path / name)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert str(path) in complaint(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_other_bytes_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x93NUMPY\x01\x00 not what its name says")
    assert str(tmp_path / name) in complaint(tmp_path)


def test_a_gzip_of_damaged_bytes_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl.gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)
    assert str(path) in complaint(tmp_path)


def test_a_parquet_with_a_damaged_page_is_named(tmp_path):
    path = write(tmp_path / "a.parquet")
    data = bytearray(path.read_bytes())
    data[4:400] = b"\xff" * 396
    path.write_bytes(data)
    assert str(path) in complaint(tmp_path)


@pytest.mark.parametrize("line", [b'{"text": "\xff\xfe"}', b'{"text": ', b"[1, 2]", b'"text"', b"null", b"7", b""])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_broken_line_is_named_by_its_number(tmp_path, line, name):
    data = b'{"text": "x"}\n' * 2 + line + b"\n"
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert f"{tmp_path / name}:" in complaint(tmp_path)
    if b"\xff" not in line:  # broken UTF-8 is found by the block
        assert f"{tmp_path / name}:3:" in complaint(tmp_path)


def test_shards_that_hold_no_rows_are_named(tmp_path):
    schema = pa.schema([("text", pa.string())])
    pq.write_table(schema.empty_table(), tmp_path / "a.parquet")
    assert f"{tmp_path}: the shards hold no documents" in complaint(tmp_path)
