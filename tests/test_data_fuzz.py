"""Hostile crawls: whatever a file or a page holds, nothing crashes, nothing hangs, every record has its fate."""

import gc
import gzip
import random
import signal
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from datatrove.data import Document
from hypothesis import given, settings
from hypothesis import strategies as st

from crawl2chat.data import filters, readers, warc
from crawl2chat.data.config import DataConfig
from crawl2chat.data.steps import Extract, Masks
from crawl2chat.data.words import english
from test_pipeline import RECORDS, SOUND, Bin, page, record, write

WORDS = "the of and river stone bridge a to in that was built".split()


def fates(path: Path, salvage: bool) -> tuple[int, int, int]:
    """(pages, rejected, damaged) that the reader makes of a file."""
    reader = readers.Pages([path], {path} if salvage else set(), bin := Bin())
    pages = sum(1 for _ in reader.run())
    return pages, len(bin.documents), int(reader.stats["damaged"].total)


def mutate(raw: bytes, data: st.DataObject) -> bytes:
    raw = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, max(len(raw) - 1, 0)))
        how = data.draw(st.sampled_from(["flip", "cut", "insert", "drop", "double", "zeros"]))
        if how == "flip" and raw:
            raw[where] ^= data.draw(st.integers(1, 255))
        elif how == "cut":
            del raw[max(where, 50) :]
        elif how == "insert":
            raw[where:where] = data.draw(st.binary(min_size=1, max_size=30))
        elif how == "drop":
            del raw[where : where + data.draw(st.integers(1, 300))]
        elif how == "double":
            raw[where:where] = raw[where : where + data.draw(st.integers(1, 300))]
        else:
            raw[where : where + 20] = bytes(20)
    return bytes(raw)


@pytest.mark.parametrize("kind", ["members", "plain", "whole"])
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_every_record_that_is_counted_gets_a_fate(
    kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The count goes by the bytes alone; the reader is FastWARC, on the whole file where the walk found no damage."""
    parts = b"".join(RECORDS)
    raw = {"members": SOUND, "plain": parts, "whole": gzip.compress(parts, mtime=0)}[kind]
    path = tmp_path_factory.mktemp("fuzz") / ("f.warc" if kind == "plain" else "f.warc.gz")
    path.write_bytes(mutate(raw, data))
    found = warc.count(path)
    assert sum(fates(path, salvage=bool(found.damage))) + found.cut == found.responses


@settings(max_examples=150, deadline=None)
@given(
    body=st.binary(max_size=400),
    head=st.sampled_from(
        [b"", b"Content-Encoding: gzip\r\n", b"Content-Encoding: br\r\n", b"Content-Encoding: deflate\r\n",
         b"Transfer-Encoding: chunked\r\n", b"Content-Length: 7\r\n", b"Content-Length: -1\r\n", b"\xff\xfe: \x00\r\n"]
    ),
    kind=st.sampled_from(
        ["text/html", "text/html; charset=idna", "text/html; charset=punycode", "text/html; charset=utf-16",
         "text/html; charset=unicode_escape", "text/html; charset=undefined", "text/html; charset=zlib",
         "text/html; charset=utf-7", "text/html; charset=a b", "TEXT/HTML", "", "application/xhtml+xml; charset=\"\""]
    ),
)  # fmt: skip
def test_any_answer_of_a_server_is_read_rejected_or_damaged(
    body: bytes, head: bytes, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = record("https://a.example.org/1", body, kind)
    broken = whole.replace(b"\r\n\r\n" + body, b"\r\n" + head + b"\r\n" + body) if body else whole
    length = len(broken.split(b"\r\n\r\n", 1)[1]) - 4
    broken = b"\r\n".join(
        b"Content-Length: %d" % length if line.startswith(b"Content-Length: ") and number == 6 else line
        for number, line in enumerate(broken.split(b"\r\n"))
    )
    path = write(tmp_path_factory.mktemp("fuzz") / "f.warc.gz", [broken, RECORDS[3]])
    found = warc.count(path)
    assert (found.responses, found.damage) == (2, [])
    pages, rejected, damaged = fates(path, salvage=False)
    assert pages + rejected + damaged == 2 and pages >= 1  # what stands behind it is read all the same


def test_a_length_of_five_thousand_digits_is_damage(tmp_path: Path) -> None:
    wrong = RECORDS[1].replace(b"Content-Length: ", b"Content-Length: " + b"9" * 5000)
    path = tmp_path / "a.warc"
    path.write_bytes(RECORDS[0] + wrong + RECORDS[2])
    assert warc.count_files([path], "here", skip=True) == (3, 1, {path}) and fates(path, salvage=True) == (2, 0, 0)


def test_a_huge_page_is_rejected_and_a_small_one_that_unpacks_to_one_too(tmp_path: Path) -> None:
    bomb = zlib.compress(b"<p>" + b"0" * (64 << 20), 9)
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: deflate\r\n\r\n" + bomb
    first, _ = RECORDS[0].split(b"\r\n\r\n", 1)
    start = b"\r\n".join(line for line in first.split(b"\r\n") if not line.startswith(b"Content-Length"))
    packed = start + b"\r\nContent-Length: %d\r\n\r\n" % len(http) + http + b"\r\n\r\n"
    huge = record("https://a.example.org/huge", b"<p>" + b"word " * (8 << 20))
    path = write(tmp_path / "a.warc.gz", [RECORDS[1], huge, packed, RECORDS[2]])
    reader = readers.Pages([path], set(), bin := Bin())
    assert len(list(reader.run())) == 2
    assert [document.metadata["filter_reason"] for document in bin.documents] == ["too_large"] * 2
    assert all(document.text == "" for document in bin.documents)


def test_a_member_that_unpacks_to_more_than_a_gigabyte_is_one_damaged_record(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(warc, "LARGEST_MEMBER", 1 << 20)
    path = write(tmp_path / "a.warc.gz", [RECORDS[0], record("x", b"0" * (4 << 20)), RECORDS[1]])
    found = warc.count(path)
    assert (found.responses, found.cut) == (3, 1) and fates(path, salvage=True) == (2, 0, 0)


def test_broken_utf_8_is_text_or_damage_and_can_always_be_written(tmp_path: Path) -> None:
    bodies = [b"<p>caf\xc3 \xff au lait</p>" * 9, b"\xed\xa0\x80<p>half a pair</p>", b"\xff\xfe\x00", b"\x80" * 300]
    path = write(tmp_path / "a.warc.gz", [record(f"https://a.example.org/{n}", body) for n, body in enumerate(bodies)])
    reader = readers.Pages([path], set(), Bin())
    pages = list(reader.run())
    assert len(pages) + reader.stats["damaged"].total == 4
    assert all(page.text.encode("utf-8") for page in pages)


def nasty() -> dict[str, str]:
    """Texts that are slow or strange for one filter or another."""
    rng, size = random.Random(0), 40_000
    prose = " ".join(rng.choice(WORDS) for _ in range(size // 5))
    return {
        "nothing": "", "blank": " " * size, "no letter": "\u200b" * 9, "one word": "a" * size, "dots": "1." * size,
        "run of addresses": "a@b." * size, "no address": "a!" * size + "@", "signs": "@" * size, "braces": "{" * size,
        "lines": "a\n" * size, "same line": "The same line again.\n" * 9000, "prose": prose, "nul": "\0" * 999,
        "half a pair": "\ud800 and more", "chinese": "中文" * size, "smileys": ":-) " * 9999, "quotes": '"' * size,
    }  # fmt: skip


def test_no_text_breaks_a_filter_or_the_masks(tmp_path: Path) -> None:
    config = DataConfig(url_lists="none", filter_timeout=0.3)
    for name, text in nasty().items():
        for step, made in filters.page_filters(config, tmp_path).items():
            made.exclusion_writer = Bin()
            document = Document(text, name, metadata={"url": "https://a.example.org/"})
            kept = len(list(made.run([document])))
            assert kept + len(made.exclusion_writer.documents) == 1, (name, step)
        assert isinstance(Masks().format(text), str)


@settings(max_examples=80, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("ab .,!?\n\t{}#•…-\"'\u200b\u00a0中@1\ud800"), max_size=200))
def test_no_text_breaks_a_filter_that_runs_alone(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    for made in STEPS:
        verdict = made.safely(Document(text, "", metadata={"url": text}))
        assert verdict is True or verdict is False or verdict[0] is False


english().wake()
STEPS = list(filters.page_filters(DataConfig(url_lists="words"), Path("nowhere")).values())


def test_no_collection_swallows_the_end_of_a_pages_time() -> None:
    began, calls = time.process_time(), []

    def back(phase: str, info: dict) -> None:  # as some libraries have one: what a signal raises in it is lost
        if signal.getitimer(signal.ITIMER_PROF)[0]:
            calls.append(phase)

    gc.callbacks.append(back)
    try:
        with pytest.raises(filters.OutOfTime), filters.at_most(0.05):
            rows = []
            while time.process_time() - began < 3:
                rows.append([[]])
        assert not calls and gc.isenabled()
    finally:
        gc.callbacks.remove(back)


def test_a_filter_that_takes_too_long_rejects_the_page_and_goes_on() -> None:
    class Slow(filters.Safe, filters.BaseFilter):
        name = "slow"

        def filter(self, doc: Document) -> bool:
            while doc.text == "slow":
                pass
            return doc.text != "zero" or bool(1 / 0)

    step = Slow(bin := Bin())
    step.seconds = 0.05
    kept = list(step.run(Document(text, text, metadata={}) for text in ("a", "slow", "zero", "b")))
    reasons = [document.metadata["filter_reason"] for document in bin.documents]
    assert [document.text for document in kept] == ["a", "b"] and reasons == ["timeout", "broke_ZeroDivisionError"]


def test_a_filter_that_was_cut_off_among_words_begins_anew_with_them() -> None:
    step = filters.page_filters(DataConfig(url_lists="none", filter_timeout=0.05), Path("nowhere"))["gopher_quality"]
    step.exclusion_writer = Bin()
    long = Document(" ".join(f"({number}a)" for number in range(200_000)), "long", metadata={})
    good = Document(" ".join(f"the {word} and" for word in WORDS * 9), "good", metadata={})
    assert [document.id for document in step.run([long, good])] == ["good"]
    assert step.exclusion_writer.documents[0].metadata["filter_reason"] == "timeout"
    assert english().word_tokenize("It isn't (here).") == ["It", "is", "n't", "(", "here", ")", "."]


def test_all_filters_of_a_page_share_its_time() -> None:
    document = Document("a", "a", metadata={"filter_seconds": 9.0})

    class Busy(filters.Safe, filters.BaseFilter):
        name = "busy"

        def filter(self, doc: Document) -> bool:
            return sum(range(3_000_000)) > 0

    assert Busy().safely(document) == (False, "timeout")


def nested() -> Iterator[Document]:
    deep = {
        "divs": "<div>" * 10_000 + "text" + "</div>" * 10_000, "tables": "<table><tr><td>" * 10_000 + "text",
        "lists": "<ul><li>" * 10_000, "unclosed": "<b><i>" * 10_000 + "text", "attributes": "<p " + "a='1' " * 50_000,
        "comments": "<!--" * 10_000, "entities": "&amp;" * 50_000, "angles": "<" * 50_000, "nul": "\0" * 1000,
    }  # fmt: skip
    for name, html in deep.items():
        yield Document(html, name, metadata={})
    yield Document(
        page("The old bridge still stands, and boats can pass below it. " * 20).decode(), "sound", metadata={}
    )


def test_deeply_nested_pages_are_passed_or_rejected_and_the_next_page_is_read() -> None:
    extractor = Extract(timeout=5, rejected=(bin := Bin()))
    kept = [document.id for document in extractor.run(nested())]
    assert len(kept) + len(bin.documents) == 10 and kept[-1] == "sound"
    assert {document.metadata["filter_reason"] for document in bin.documents} <= {"no_text", "timeout", "crash"}


def test_an_extractor_is_stopped_for_its_own_time_and_not_for_the_machines(monkeypatch) -> None:
    """A page that computes is ended by the second; one that waits, as on a stopped machine, has longer."""

    def extract(self: Extract, text: str) -> str:
        if text == "computes":
            filters.signal.setitimer(filters.signal.ITIMER_PROF, self.timeout)
            while True:
                pass
        time.sleep(0.9 if text == "waits" else 0)
        return text

    monkeypatch.setattr(Extract, "extract", extract)
    extractor = Extract(timeout=0.5, rejected=(bin := Bin()))
    kept = list(extractor.run(Document(text, text, metadata={}) for text in ("a", "computes", "waits", "b")))
    assert [document.id for document in kept] == ["a", "waits", "b"]
    assert [document.metadata["filter_reason"] for document in bin.documents] == ["timeout"]
