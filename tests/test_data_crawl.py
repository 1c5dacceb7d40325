"""Common Crawl by a list of paths: fetched with every fault of a net, counted, read, with FineWeb's columns."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from crawl2chat.data import crawl
from test_data_resume import shards
from test_data_script import BREAD, CLOCK, FRENCH, RIVER, config, rows, script, stops, warc_record

SEGMENT = "crawl-data/CC-MAIN-2024-10/segments/1.0/warc"
TEXTS = [RIVER, BREAD, CLOCK, FRENCH]


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """Four files of a crawl below dump/, and their list, as Common Crawl has them."""
    folder = tmp_path / "dump" / SEGMENT
    folder.mkdir(parents=True)
    for number, text in enumerate(TEXTS):
        page = warc_record(f"https://a.example.org/{number}", text)
        (folder / f"CC-MAIN-{number}.warc.gz").write_bytes(page + warc_record(f"https://b.example.org/{number}", ""))
    lines = "".join(f"{SEGMENT}/CC-MAIN-{number}.warc.gz\n" for number in range(4))
    (tmp_path / "dump" / "warc.paths.gz").write_bytes(gzip.compress(lines.encode()))
    return tmp_path / "dump"


@pytest.fixture
def faults() -> dict[str, list[str]]:
    """What the server does to the first requests of a file: 503, half, hang up; and whom it asked."""
    return {}


@pytest.fixture
def server(dump: Path, faults: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, whole: bool) -> None:
            path = dump / self.path.lstrip("/")
            fault = faults.get(path.name, []).pop(0) if whole and faults.get(path.name) else ""
            if fault == "503" or not path.is_file():
                self.send_error(503 if fault else 404)
                return
            raw = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            if whole:
                self.wfile.write(raw[: len(raw) // 2] if fault == "half" else b"" if fault == "gone" else raw)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(crawl, "PAUSE", 0.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def test_a_file_comes_whole_after_any_fault(server: str, dump: Path, faults: dict, tmp_path: Path) -> None:
    faults["CC-MAIN-0.warc.gz"] = ["503", "half", "gone", "503"]
    url = f"{server}{SEGMENT}/CC-MAIN-0.warc.gz"
    path = crawl.fetch(url, tmp_path / "cache")
    assert path.read_bytes() == (dump / SEGMENT / path.name).read_bytes()
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [path.name]
    faults["CC-MAIN-0.warc.gz"] = ["half"] * 9
    with pytest.raises(SystemExit, match="6 tries failed") as stopped:
        crawl.fetch(url, tmp_path / "other")
    assert "\n" not in stopped.value.code and not list((tmp_path / "other").glob("*.gz"))
    with pytest.raises(SystemExit, match="cannot be fetched .FileNotFoundError"):
        crawl.fetch(f"{server}nowhere.warc.gz", tmp_path / "other")


@pytest.mark.parametrize("workers", [1, 5])
def test_a_crawl_is_read_by_its_list(workers: int, server: str, dump: Path, tmp_path: Path) -> None:
    """By tasks that fetch a file each; where they are more than the files, the records are dealt out."""
    knobs = {"warc_paths": f"{server}warc.paths.gz", "warc_prefix": server, "tasks": workers, "steps": ["extraction"]}
    script.main(config(tmp_path, **knobs, drills=1))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [metrics[f"documents_{name}"] for name in ("read", "kept", "rejected", "damaged")] == [8, 4, 4, 0]
    kept = [row for row in rows(tmp_path / "out") if row["source"] == "web"]
    assert {row["dump"] for row in kept} == {"CC-MAIN-2024-10"}
    assert Counter(row["file_path"] for row in kept) == {f"{server}{SEGMENT}/CC-MAIN-{n}.warc.gz": 1 for n in range(4)}
    assert {row["id"] for row in kept} == {f"<urn:https://a.example.org/{n}>" for n in range(4)}
    assert not (tmp_path / "out" / "work").exists()


def test_files_of_a_folder_are_a_crawl_too_and_damage_is_counted(dump: Path, tmp_path: Path) -> None:
    cut = dump / SEGMENT / "CC-MAIN-3.warc.gz"
    cut.write_bytes(cut.read_bytes()[:-9])
    lists = {"warc_paths": str(dump / "warc.paths.gz"), "warc_prefix": dump.as_uri(), "steps": ["extraction"]}
    assert "CC-MAIN-3.warc.gz: the gzip stream is cut" in stops(tmp_path / "a", **lists)
    script.main(config(tmp_path / "b", **lists, on_damage="skip", dump="mine"))
    metrics = json.loads((tmp_path / "b" / "out" / "metrics.json").read_text())
    assert [metrics[f"documents_{name}"] for name in ("read", "kept", "rejected", "damaged")] == [8, 4, 3, 1]
    assert {row["dump"] for row in rows(tmp_path / "b" / "out")} == {"mine"}
    script.main(config(tmp_path / "c", **lists, limit=2))
    assert len(rows(tmp_path / "c" / "out")) == 2 and shards(tmp_path / "c" / "out") != shards(tmp_path / "b" / "out")


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"", "names no file"), (b"\x1f\x8b\x08half", "not a list of paths"), (b"\xff\xfe", "not a list of paths"),
        (b"a.warc.gz\na.warc.gz\n", "names 1 files twice"), (b"../../etc/passwd\n", "is no path of a WARC file"),
        (b"../up.warc.gz\n", "is no path of a WARC file"), (b"<html>not found</html>", "is no path of a WARC file"),
    ],
)  # fmt: skip
def test_a_list_that_is_none_is_one_line(content: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "warc.paths").write_bytes(content)
    assert complaint in stops(tmp_path, warc_paths=str(tmp_path / "warc.paths"), warc_prefix=tmp_path.as_uri())


def test_an_address_without_its_library_or_of_no_kind_is_one_line(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "warc.paths").write_text("a.warc.gz\n")
    assert "is no https://" in stops(tmp_path, warc_paths=str(tmp_path / "warc.paths"), warc_prefix="/data/")
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(SystemExit, match="pip install s3fs"):
        crawl.fetch("s3://commoncrawl/a.warc.gz", tmp_path)
