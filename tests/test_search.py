"""Search over shards: the passage that answers, its source, and an index that is whole or absent."""

import json
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crawl2chat.tools import search as module
from crawl2chat.tools.search import build_index, open_index, passages

PAGES = [
    (
        "https://www.atlas.example/france/",
        "France\nFrance is a country in Europe. Its capital is Paris. It borders Spain.",
    ),
    (
        "https://atlas.example/japan?x=1",
        "Japan\nHistory\nTokyo has been the capital city since 1868, in place of Kyoto.\nok",
    ),
    (
        "http://people.example/ada",
        "Ada Lovelace was born on 10 December 1815 in London. " + "She wrote notes on the engine. " * 20,
    ),
    (
        "http://music.example/b",
        "Beyoncé's life\nBeyoncé Giselle Knowles-Carter is an American singer, born in Houston.",
    ),
]


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards" / "web"
    folder.mkdir(parents=True)
    rows = [{"text": text, "url": url, "id": str(i)} for i, (url, text) in enumerate(PAGES)]
    pq.write_table(pa.Table.from_pylist(rows[:2]), folder / "00000.parquet")
    (folder / "00001.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[2:]))
    return tmp_path / "shards"


@pytest.fixture
def search(shards, tmp_path):
    build_index([shards], tmp_path / "index")
    return open_index(tmp_path / "index")


def test_the_answering_passage_comes_with_its_source(search):
    assert search("capital of France") == f"{PAGES[0][1].splitlines()[1]} [atlas.example/france]"
    assert search("Ada Lovelace born").startswith("Ada Lovelace was born on 10 December 1815")


@pytest.mark.parametrize(
    "query", ["CAPITAL of japan?", "What is the capital of Japan, please!", "japan's capital", "«Japan» capital"]
)
def test_case_and_punctuation_do_not_matter(search, query):
    assert "Tokyo" in search(query)


def test_accents_do_not_matter(search):
    assert "Houston" in search("Where was Beyonce born?")


@pytest.mark.parametrize("query", ["", "   ", "?!", "the of", "xylophone zebra", "\ud800"])
def test_a_query_that_finds_nothing_says_so(search, query):
    assert search(query) == "no results"


def test_title_and_heading_stand_before_a_paragraph_that_does_not_name_them():
    assert list(passages(PAGES[1][1])) == [
        "Japan: History: Tokyo has been the capital city since 1868, in place of Kyoto."
    ]
    assert list(passages(PAGES[0][1])) == [PAGES[0][1].splitlines()[1]]


def test_a_passage_that_names_its_own_heading_stands_by_itself():
    text = "People: Ada to Byron (poet)\nLord Byron\nLord Byron was an English poet.\nHe died in Greece in 1824."
    assert list(passages(text)) == [
        "Lord Byron was an English poet.",
        "People: Ada to Byron (poet): Lord Byron: He died in Greece in 1824.",
    ]


def test_the_page_about_something_comes_before_pages_that_name_it(tmp_path):
    about = "Ada Lovelace (1815-1852) was an English mathematician. She wrote the first program."
    other = "Old letters\nThe post went out at nine.\nAda Lovelace wrote about the weather of that year to Babbage."
    rows = [
        {"text": text, "url": str(i)}
        for i, text in enumerate([other, about, *[f"Page {i} of all." for i in range(9)]])
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_index([tmp_path / "a.jsonl"], tmp_path / "index")
    assert open_index(tmp_path / "index")("Ada Lovelace") == f"{about} [1]"


def test_passages_are_short_and_end_at_a_sentence():
    found = list(passages(PAGES[2][1]))
    assert len(found) > 2
    assert all(len(passage.split()) <= module.MAX_WORDS and passage.endswith(".") for passage in found)
    assert " ".join(found).split() == PAGES[2][1].split()


def test_the_index_is_kept_until_the_shards_change(shards, tmp_path, monkeypatch):
    index = tmp_path / "index"
    size = build_index([shards], index)
    monkeypatch.setattr(module, "_write", lambda *_: pytest.fail("built again"))
    assert build_index([shards], index) == size
    monkeypatch.undo()
    (shards / "more.jsonl").write_text(
        json.dumps({"text": "The capital of Peru is Lima, by the sea.", "url": "x"}) + "\n"
    )
    assert build_index([shards], index) == size + 1
    assert "Lima" in open_index(index)("capital Peru")
    assert len(list(index.iterdir())) == 1


def test_a_build_that_fails_leaves_no_index_behind(shards, tmp_path):
    (shards / "web" / "00002.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(ValueError, match="00002.parquet"):
        build_index([shards], tmp_path / "index")
    assert list((tmp_path / "index").iterdir()) == []
    with pytest.raises(FileNotFoundError, match="no search index"):
        open_index(tmp_path / "index")


def test_missing_empty_and_foreign_shards_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build_index([tmp_path / "nowhere"], tmp_path / "index")
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(ValueError, match="a.jsonl"):
        build_index([tmp_path / "a.jsonl"], tmp_path / "index")
    (tmp_path / "b.jsonl").write_text('{"text": "too short", "url": "x"}\n')
    with pytest.raises(ValueError, match="no passage"):
        build_index([tmp_path / "b.jsonl"], tmp_path / "index")


def test_the_same_passage_on_many_pages_is_indexed_once(tmp_path):
    row = {"text": "The capital of Peru is Lima, by the sea.", "url": "x"}
    (tmp_path / "a.jsonl").write_text((json.dumps(row) + "\n") * 50)
    assert build_index([tmp_path / "a.jsonl"], tmp_path / "index") == 1


def test_a_query_takes_about_a_millisecond(tmp_path):
    rows = [
        {"text": f"Page {i} tells about thing{i % 97} and place{i} in the year {i}.", "url": str(i)}
        for i in range(5000)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_index([tmp_path / "a.jsonl"], tmp_path / "index")
    search = open_index(tmp_path / "index")
    start = time.perf_counter()
    for i in range(200):
        assert f"place{i}" in search(f"where is place{i}?")
    assert (time.perf_counter() - start) / 200 < 0.01
