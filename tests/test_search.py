"""Search over shards: the passage that answers, its source, and an index that is whole or absent."""

import json
import os
import random
import shutil
import subprocess
import sys

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crawl2chat.tools import search as module
from crawl2chat.tools.limit import CUT, MAX_RESULT
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


def test_the_index_is_kept_until_the_shards_change(shards, tmp_path):
    index = tmp_path / "index"
    size = build_index([shards], index)
    (manifest,) = index.glob("*/manifest.json")
    made = manifest.stat().st_mtime_ns
    assert build_index([shards], index) == size
    assert manifest.stat().st_mtime_ns == made
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


def made_up(tmp_path, pages=400):
    words = [f"word{i}" for i in range(60)]
    rng = random.Random(0)
    rows = [
        {"text": " ".join(rng.choices(words, range(60, 0, -1), k=rng.randint(5, 40))) + f" page{i}.", "url": f"p/{i}"}
        for i in range(pages)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [row["text"] for row in rows]


def test_an_index_built_in_chunks_scores_as_bm25s_does(tmp_path, monkeypatch):
    texts = made_up(tmp_path)
    monkeypatch.setattr(module, "CHUNK", 7)
    build_index([tmp_path], tmp_path / "index")
    (manifest,) = (tmp_path / "index").glob("*/manifest.json")
    ours = module.bm25s.BM25.load(manifest.parent, mmap=True)
    theirs = module.bm25s.BM25(backend="numpy")
    theirs.index([module._words(text) for text in texts], show_progress=False)
    for query in (["word0"], ["word3", "word59", "page17"], ["word1", "word1"]):
        numpy.testing.assert_allclose(ours.get_scores(query), theirs.get_scores(query), rtol=1e-5)


def test_many_results_come_best_first(tmp_path):
    made_up(tmp_path)
    build_index([tmp_path], tmp_path / "index")
    lines = open_index(tmp_path / "index", results=3)("word3 page17").splitlines()
    assert len(lines) == 3 and lines[0].endswith("[p/17]")
    assert len(open_index(tmp_path / "index", results=1000)("page17").splitlines()) == 1


def test_a_page_without_an_address_is_named_by_its_title(tmp_path):
    row = {"text": "Lima\nThe capital of Peru lies by the sea."}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    build_index([tmp_path], tmp_path / "index")
    assert open_index(tmp_path / "index")("capital Peru") == "Lima: The capital of Peru lies by the sea. [Lima]"


def test_a_passage_that_is_too_long_to_show_keeps_its_source(tmp_path):
    row = {"text": "Lima\nThe capital of Peru " + "antidisestablishmentarianism " * 30 + "lies here.", "url": "a.page"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    build_index([tmp_path / "a.jsonl"], tmp_path / "index")
    result = open_index(tmp_path / "index")("capital Peru")
    assert len(result) <= MAX_RESULT and result.endswith(f"{CUT} [a.page]") and result.startswith("Lima: The capital")


def test_an_index_of_changed_shards_is_refused_and_made_again_with_a_line(shards, tmp_path, capsys):
    index = tmp_path / "index"
    build_index([shards], index)
    os.utime(shards / "web" / "00001.jsonl", (1, 1))  # touched, but the same
    open_index(index)
    with open(shards / "web" / "00001.jsonl", "a") as handle:
        handle.write(json.dumps({"text": "The capital of Peru is Lima, by the sea.", "url": "x"}) + "\n")
    with pytest.raises(ValueError, match="00001.jsonl: changed since"):
        open_index(index)
    build_index([shards], index)
    assert "made again: the shards changed" in capsys.readouterr().out
    assert "Lima" in open_index(index)("Peru")


def test_an_index_of_other_code_is_refused_and_made_again_with_a_line(shards, tmp_path, capsys, monkeypatch):
    build_index([shards], tmp_path / "index")
    monkeypatch.setattr(module, "MAX_WORDS", 49)
    with pytest.raises(ValueError, match="made by other code; run"):
        open_index(tmp_path / "index")
    build_index([shards], tmp_path / "index")
    assert "made again: the code" in capsys.readouterr().out
    open_index(tmp_path / "index")


def test_an_index_needs_no_shards_once_it_is_built(shards, tmp_path):
    build_index([shards], tmp_path / "index")
    shutil.rmtree(shards)
    assert "Paris" in open_index(tmp_path / "index")("capital of France")


def test_an_index_that_is_not_whole_is_refused(shards, tmp_path):
    build_index([shards], tmp_path / "index")
    (data,) = (tmp_path / "index").glob("*/data.csc.index.npy")
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(ValueError, match="not whole"):
        open_index(tmp_path / "index")
    build_index([shards], tmp_path / "index")
    assert "Paris" in open_index(tmp_path / "index")("capital of France")


def test_the_manifest_counts_what_was_dropped(tmp_path):
    row = {"text": "The capital of Peru is Lima, by the sea.", "url": "x"}
    (tmp_path / "a.jsonl").write_text((json.dumps(row) + "\n") * 5 + '{"text": "ok", "url": "y"}\n')
    build_index([tmp_path], tmp_path / "index")
    (manifest,) = (tmp_path / "index").glob("*/manifest.json")
    manifest = json.loads(manifest.read_text())
    assert (manifest["passages"], manifest["dropped"]["seen before"]) == (1, 4)


def test_jax_is_not_started_where_it_is_installed(tmp_path):
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("print('jax was started')\n")
    (tmp_path / "jax" / "lax.py").write_text("")
    code = "import crawl2chat.tools.search, sys; print('jax' in sys.modules); import jax"
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.split("\n")[:2] == ["False", "jax was started"]
