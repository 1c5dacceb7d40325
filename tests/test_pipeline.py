"""The pipeline's own parts: walking WARC files, reading pages, words, single steps, the arithmetic of the funnel."""

import gzip
import json
import multiprocessing
import time
from pathlib import Path

import datasets
import psutil
import pytest
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.word_tokenizers import SpaCyTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from crawl2chat.data import executors, filters, readers, steps, warc, words
from crawl2chat.data.funnel import Funnel, Step, judge
from crawl2chat.data.words import english


def record(url: str, body: bytes, kind: str = "text/html", record_type: str = "response") -> bytes:
    http = b"HTTP/1.1 200 OK\r\nContent-Type: " + kind.encode() + b"\r\n\r\n" + body
    header = (
        f"WARC/1.0\r\nWARC-Type: {record_type}\r\nWARC-Record-ID: <urn:{url}>\r\nWARC-Target-URI: {url}\r\n"
        f"WARC-Date: 2026-01-01T00:00:00Z\r\nContent-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(http)}\r\n\r\n"
    )
    return header.encode() + http + b"\r\n\r\n"


def page(text: str) -> bytes:
    return f"<html><body><article><p>{text}</p></article></body></html>".encode()


RECORDS = [record(f"https://site.example.org/{i}", page(f"Page number {i}. " * (i + 1))) for i in range(6)]
SOUND = b"".join(gzip.compress(part, mtime=0) for part in RECORDS)


def write(path: Path, records: list[bytes]) -> Path:
    path.write_bytes(b"".join(gzip.compress(part, mtime=0) for part in records))
    return path


def read(path: Path, damaged: bool = False) -> list[Document]:
    return list(readers.Pages([path], {path} if damaged else set(), Bin()).run())


class Bin:
    """Stands for a writer of rejected pages; keeps them."""

    def __init__(self):
        self.documents = []

    def __enter__(self) -> "Bin":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, document: Document, rank: int = 0) -> None:
        self.documents.append(document)


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "whole.warc.gz"])
def test_the_count_is_the_readers_on_a_sound_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    parts = [record("x", b"", record_type="request"), *RECORDS]
    if name == "a.warc.gz":
        write(path, parts)
    else:
        path.write_bytes(b"".join(parts) if name == "a.warc" else gzip.compress(b"".join(parts)))
    found = warc.count(path)
    assert (found.responses, found.damage) == (6, [])
    assert len(read(path)) == 6


def test_a_cut_file_is_refused_with_its_name_and_byte_offset(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.warc.gz", RECORDS)
    last = len(gzip.compress(RECORDS[-1], mtime=0))
    start = path.stat().st_size - last
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SystemExit) as stopped:
        warc.count_files([path], "here", skip=False)
    assert str(path) in stopped.value.code and f"byte {start:,}" in stopped.value.code and "cut" in stopped.value.code


@pytest.mark.parametrize("cut", [2, 9, 20, 60, 200])
def test_a_cut_file_loses_its_last_record_alone_and_counts_it(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "cut.warc.gz", RECORDS)
    last = len(gzip.compress(RECORDS[-1], mtime=0))
    path.write_bytes(path.read_bytes()[: cut - last])
    assert warc.count_files([path], "here", skip=True) == (6, 1, {path})
    assert [page.id for page in read(path, damaged=True)] == [f"<urn:https://site.example.org/{i}>" for i in range(5)]


def test_a_flipped_bit_costs_one_record(tmp_path: Path) -> None:
    path = write(tmp_path / "flip.warc.gz", RECORDS)
    raw = bytearray(path.read_bytes())
    raw[len(gzip.compress(RECORDS[0], mtime=0)) + 60] ^= 0x55
    path.write_bytes(raw)
    assert warc.count_files([path], "here", skip=True) == (6, 1, {path})
    assert len(read(path, damaged=True)) == 5


def test_a_wrong_length_costs_one_record(tmp_path: Path) -> None:
    for wrong in (b"Content-Length: 9\r", b"Content-Length: 99999\r", b"Content-Length: -4\r", b"X: 1\r"):
        broken = [*RECORDS[:2], RECORDS[2].replace(b"Content-Length: ", wrong + b"\nX-Was: "), *RECORDS[3:]]
        path = tmp_path / "length.warc"
        path.write_bytes(b"".join(broken))
        assert len(read(path, damaged=True)) == 5
        assert warc.count(path).damage


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_damage_makes_the_walk_crash_or_alter_a_record(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(raw) - 1))
        how = data.draw(st.sampled_from(["flip", "cut", "insert", "drop"]))
        if how == "flip":
            raw[where] ^= data.draw(st.integers(1, 255))
        elif how == "cut":
            del raw[max(where, 50) :]
        elif how == "insert":
            raw[where:where] = data.draw(st.binary(min_size=1, max_size=30))
        else:
            del raw[where : where + 10]
    path = tmp_path_factory.mktemp("fuzz") / "f.warc.gz"
    path.write_bytes(raw)
    walked = list(warc.walk(path))
    assert all(found.data in RECORDS for found in walked if found.data is not None and found.type == "response")
    found = warc.count(path)
    assert found.responses - found.cut == len(read(path, damaged=True))
    # silence means that all are there; only a cut between two members cannot be seen
    assert found.damage or found.responses == 6 or SOUND.startswith(bytes(raw))


def test_pages_in_other_charsets_are_decoded(tmp_path: Path) -> None:
    text = "Le château est près de la forêt, et la rivière coule à côté du vieux moulin depuis des siècles."
    bodies = {
        "declared by the server": (text.encode("latin-1"), "text/html; charset=iso-8859-1"),
        "declared by the page": (b'<meta charset="windows-1252">' + text.encode("cp1252"), "text/html"),
        "detected": (("Это страница о старом городе и его истории. " * 5).encode("cp1251"), "text/html"),
        "utf-8": (text.encode(), "text/html"),
    }
    path = write(
        tmp_path / "a.warc.gz", [record(f"https://a.example.org/{name}", *body) for name, body in bodies.items()]
    )
    pages = read(path)
    assert len(pages) == 4
    assert all("château" in page.text for page in (pages[0], pages[1], pages[3])) and "старом" in pages[2].text


def test_what_is_no_page_is_rejected_and_what_cannot_be_decoded_is_damaged(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.warc.gz",
        [
            record("https://a.example.org/1", b"%PDF-1.4", "application/pdf"),
            record("https://a.example.org/2", b"\x00\xff\xfe\x80\x81" * 50),
        ],
    )
    reader = readers.Pages([path], set(), bin := Bin())
    assert list(reader.run()) == []
    assert [document.metadata["filter_reason"] for document in bin.documents] == ["not_html"]
    assert reader.stats["damaged_charset"].total == 1


def test_ranks_share_the_records_of_one_file_without_loss_or_doubling(tmp_path: Path) -> None:
    path = write(tmp_path / "a.warc.gz", RECORDS)
    ranks = [[page.id for page in readers.Pages([path], set(), Bin()).run(None, rank, 3)] for rank in range(3)]
    assert sorted(sum(ranks, [])) == sorted(page.id for page in read(path)) and all(ranks)


def test_ranks_share_the_rows_of_a_folder_or_a_stream_without_loss_or_doubling(tmp_path: Path, monkeypatch) -> None:
    for number in range(3):
        rows = [json.dumps({"text": f"row {number} {i}"}) for i in range(4)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(rows) + "\n")
    files = sorted(str(file) for file in tmp_path.iterdir())
    streamed = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_args, **_knobs: streamed)
    for name in (str(tmp_path), "owner/name"):
        for ranks, limit in ((1, None), (2, None), (5, None), (2, 7)):
            parts = [readers.Rows(name, None, "text", limit).run(None, rank, ranks) for rank in range(ranks)]
            texts = [document.text for part in parts for document in part]
            assert len(texts) == len(set(texts)) == (limit or 12), (name, ranks, limit)
    with pytest.raises(SystemExit, match="no column 'body'"):
        list(readers.Rows("owner/name", None, "body", None).run())


TEXTS = [
    "The U.S. won't pay $3.50 for it (so they say). \"Really?\" she asked... He's in N.Y.C., e.g. near 5th Ave.!",
    "See https://www.example.org/a,b;c?d=e#f and mail me@x.org :-) ok :) don't can't o'clock 10km 3.14 -- well—yes.",
    "One.  Two spaces.\tA tab. A non-breaking\u00a0blank.\n\nNew line! « Quoted. » 中文。 IS_ALPHA is a word.",
    "... . ! leading marks. a.b.c",
    "",
]


SPACY = SpaCyTokenizer("en")


def same(text: str) -> None:
    assert english().word_tokenize(text) == SPACY.word_tokenize(text)
    for line in text.splitlines():
        assert english().span_tokenize(line.strip()) == SPACY.span_tokenize(line.strip())


@pytest.mark.parametrize("text", TEXTS)
def test_words_and_sentences_are_those_of_datatroves_tokenizer(text: str) -> None:
    same(text)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*" .,!?'\"()-:/\n\t", "  ", "word", "don't", "U.S.", "3.5", "(x)", "e.g.", "a-b", "…", "\u00a0"]
        ),
        max_size=40,
    )
)
def test_words_and_sentences_are_those_of_datatroves_tokenizer_on_any_text(parts: list[str]) -> None:
    same("".join(parts))


@pytest.mark.parametrize(
    "text", ["{" * 40_000, "a@b." * 9000 + " and " + "word " * 30_000, "a\t" * 60_000, "word. " * 30_000]
)
def test_a_page_is_cut_up_before_spacy_meets_what_it_cannot_end(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, met = words.English(), []
    tokenizer.wake()
    learn = words.English.learn
    monkeypatch.setattr(words.English, "learn", lambda self, pieces: met.extend(pieces) or learn(self, pieces))
    found = list(words.parts(text))
    assert [at for at, _ in found] == [sum(len(part) for _, part in found[:i]) for i in range(len(found))]
    assert sum(len(part) for _, part in found) == len(text)
    assert all(len(part) <= words.AT_ONCE for _, part in found)
    tokenizer.word_tokenize(text)
    assert max(map(len, met)) <= words.LONG
    spans = tokenizer.span_tokenize(text)
    assert all(start < end <= following for (start, end), (following, _) in zip(spans, spans[1:], strict=False))


def test_a_long_ordinary_page_has_the_words_that_datatroves_tokenizer_finds() -> None:
    page = " ".join(TEXTS[:2]).replace(":-) ok :) ", "") * 400
    assert len(page) > words.AT_ONCE and english().word_tokenize(page) == SPACY.word_tokenize(page)


def test_what_is_remembered_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST", 3)
    tokenizer = words.English()
    for _ in range(3):
        assert tokenizer.word_tokenize("One (two) three four, five and six.") == SPACY.word_tokenize(
            "One (two) three four, five and six."
        )
        assert tokenizer.word_tokenize("Seven five") == ["Seven", "five"]
    assert len(tokenizer.words) < 12


def test_a_page_that_hangs_or_kills_its_extractor_is_rejected_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def extract(self: steps.Extract, text: str) -> str:
        if text == "hang":
            time.sleep(60)
        if text == "die":
            raise MemoryError
        return text

    monkeypatch.setattr(steps.Extract, "extract", extract)
    extractor = steps.Extract(timeout=0.5, rejected=(bin := Bin()))
    began = time.monotonic()
    kept = list(extractor.run(Document(text, text, metadata={}) for text in ("a", "hang", "b", "die", "c")))
    assert [document.text for document in kept] == ["a", "b", "c"]
    assert [document.metadata["filter_reason"] for document in bin.documents] == ["timeout", "crash"]
    assert time.monotonic() - began < 10


def test_a_pages_text_does_not_depend_on_the_pages_before_it() -> None:
    html = page(
        "The river begins as a small spring in the hills above the town, and several old mills stand along its banks. "
        * 3
    ).decode()
    kept = list(steps.Extract(timeout=5, rejected=Bin()).run(Document(html, str(i), metadata={}) for i in range(8)))
    assert len(kept) == 8 and len({document.text for document in kept}) == 1


def test_a_page_nested_ten_thousand_deep_is_passed_or_rejected_in_time() -> None:
    deep = "<div>" * 10_000 + "text" + "</div>" * 10_000
    extractor = steps.Extract(timeout=5, rejected=(bin := Bin()))
    began = time.monotonic()
    kept = list(extractor.run(Document(text, "", metadata={}) for text in (deep, "<p>Just a short text.</p>")))
    assert len(kept) + len(bin.documents) == 2 and time.monotonic() - began < 10


def test_blocked_domains_reach_their_subdomains_and_word_lists_need_no_domain_list() -> None:
    urls = {
        "https://casino.example.com/a": (False, "subdomain"),
        "https://www.blocked.org/a": (False, "domain"),
        "https://fine.org/hardcore-porn": False,
        "https://fine.org/cooking": True,
    }
    step = filters.Urls("words", ["casino.example.com", "blocked.org"], None)
    for url, expected in urls.items():
        verdict = step.filter(Document("", "", metadata={"url": url}))
        assert verdict == expected or (expected is False and verdict[0] is False), url


def test_the_longest_matching_host_names_the_source() -> None:
    hosts = {"example.org": "web", "wiki.example.org": "wikipedia"}
    assert steps.source_of("https://en.wiki.example.org/x", hosts, "other") == "wikipedia"
    assert steps.source_of("https://shop.example.org/x", hosts, "other") == "web"
    assert steps.source_of("https://example.com/", hosts, "other") == "other"


def label(url: str, keep: bool, filter: str | None = None, cluster: str | None = None) -> dict:
    return {"url": url, "keep": keep, "filter": filter, "cluster": cluster, "pii": []}


def test_precision_and_recall_are_counted_per_funnel_and_per_filter() -> None:
    labels = [
        label("good", True),
        label("lost", True),
        label("spam", False, "c4"),
        label("early", False, "c4"),
        label("slipped", False, "c4"),
        label("copy1", True, None, "k"),
        label("copy2", False, "minhash", "k"),
    ]
    fates = {
        "good": ["kept"],
        "lost": ["c4"],
        "spam": ["c4"],
        "early": ["url"],
        "slipped": ["kept"],
        "copy1": ["minhash"],
        "copy2": ["kept"],
    }
    funnel = Funnel(7, 3, 4, 0, 0, {}, [Step(name, 0, 0, 0, 0, 0) for name in ("url", "c4", "minhash")])
    judge(funnel, labels, fates)
    assert funnel.precision == 2 / 3  # good and one of the copies, of three kept
    assert funnel.recall == 2 / 3  # lost is missing
    url, c4, minhash = funnel.steps
    assert (url.precision, url.recall) == (1.0, None)
    assert (c4.precision, c4.recall) == (1 / 2, 1 / 2)  # early never reached it
    assert (minhash.precision, minhash.recall) == (1.0, 1.0)  # whichever copy goes


class Die(PipelineStep):
    type, name = "test", "die"

    def run(self, data: object, rank: int = 0, world_size: int = 1) -> object:
        import os

        os._exit(9)


def test_a_worker_that_is_killed_stops_the_run_with_one_line(tmp_path: Path) -> None:
    with executors.Workers(1, tmp_path / "logs") as workers, pytest.raises(SystemExit) as stopped:
        workers.run("test", [Die()], 1)
    assert "was killed" in stopped.value.code and "\n" not in stopped.value.code


def test_a_sandbox_that_dies_after_files_are_open_is_started_again(tmp_path, monkeypatch):
    spawn = multiprocessing.get_context("spawn").Process  # how workers start it: what it is given is pickled
    monkeypatch.setattr("datatrove.pipeline.extractors.base.Process", spawn)
    html = page("Paris is the capital of France and a fine city. " * 20).decode()
    extractor = steps.Extract(timeout=20, rejected=steps.Rejected(tmp_path, "extraction"))

    def documents():
        yield Document("", "empty", metadata={})  # rejected: the file of rejected pages is open now
        yield Document(html, "first", metadata={})
        for child in psutil.Process().children(recursive=True):
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
        time.sleep(0.5)
        yield Document(html, "second", metadata={})

    assert [document.id for document in extractor.run(documents())][-1] == "second"
