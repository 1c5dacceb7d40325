"""The report's page about the crawl, and the evidence that it is drawn from."""

import gzip
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crawl2chat.data.evidence import SAMPLES, Evidence, bin_of, gather, start_of
from crawl2chat.runs import Run, read_run
from crawl2chat.web.crawl import crawl
from tiny_run import tiny_run, write

ROWS = [
    {"id": f"<urn:{number}>", "url": f"https://a.example.org/{number}?<b>", "step": step, "reason": reason,
     "bytes": 300 + number, "start": f"Page <script>alert({number})</script> begins."}
    for number, (step, reason) in enumerate(
        [("c4", "lorem_ipsum")] * 52 + [("language", "fr")] * 9 + [("url", "domain")]
    )
]  # fmt: skip


def rejected(folder: Path, rows: list[dict], ranks: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for rank in range(ranks):
        for step in {row["step"] for row in rows}:
            part = [row for row in rows[rank::ranks] if row["step"] == step]
            lines = "".join(json.dumps(row) + "\n" for row in part)
            (folder / f"{step}-{rank:05d}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))


def shard(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([{"text": text, "language": "en"} for text in texts]), path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with all that the section draws on."""
    folder = tiny_run(tmp_path, ("data", "tokenizer", "pretrain"))
    rejected(folder / "data" / "rejected", ROWS, 2)
    shards = [shard(folder / "data" / "shards" / "wikipedia" / "00000.parquet", ["é" * n for n in range(50, 900, 50)])]
    found = gather(sorted((folder / "data" / "rejected").iterdir()), shards)
    write(folder / "data" / "evidence.json", found.to_json())
    funnel = json.loads((folder / "data" / "funnel.json").read_text())
    sizes = {"clusters": 9, "pages": 31, "largest": 8, "sizes": {"2": 6, "3": 2, "8": 1}, "removed": 22}
    funnel |= {"duplicates": sizes | {"missed_by_exact": 4, "exact": 18}, "emails": 3, "ips": 1, "damaged": 2}
    write(folder / "data" / "funnel.json", funnel)
    parts = {"wikipedia": {"documents": 3800, "bytes": 4_000_000, "tokens": 1_000_000}}
    parts["drills"] = {"documents": 900, "bytes": 300_000, "tokens": 150_000}
    whole = {"vocabulary": 4096, "bits": 34_400_000, "bytes": 4_300_000, "tokens": 1_150_000, "sources": parts}
    write(folder / "pretrain" / "corpus.json", whole)
    return read_run(folder, ("data", "tokenizer", "pretrain"))


def text(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).replace("\xa0", " ").split())


def test_the_section_shows_every_step_with_documents_bytes_tokens_share_time_and_reasons(run) -> None:
    shown = text(crawl(run))
    assert "language 7,350 610 86.2 % 14.0 3.5 M 3.1 s 0.990 0.980 fr (310), es (300)" in shown
    assert re.search(r"read 8,512 18 99.8 % 16.2 +3.1 s", shown)  # of HTML no tokens are told
    for words in ("8,530 records read", "3 e-mail addresses masked", "2 damaged", "wikipedia 3,900"):
        assert words in shown, words


def test_the_corpus_is_told_in_bits_bytes_and_tokens_and_by_source(run) -> None:
    shown = text(crawl(run))
    assert (
        "bits 34,400,000 of 2 symbols bytes 4,300,000 of 256 symbols tokens 1,150,000 of 4,096 symbols, ours" in shown
    )
    assert (
        "wikipedia 3,800 4,000,000 1,000,000 87.0 % 4.00" in shown
        and "drills 900 300,000 150,000 13.0 % 2.00" in shown
    )


def test_lengths_languages_and_clusters_are_drawn_in_the_pages_own_colours(run) -> None:
    html = crawl(run)
    assert 'aria-label="pages by length of their text, before the filters and kept"' in html
    assert "var(--c1)" in html and "var(--quiet)" in html and not re.search(r"#0f766e", html)
    assert "9 clusters, the largest of 8 pages; 22 pages went, 4 of them no exact copies." in html
    assert re.search(r"en 92.3 % 7,350 fr 3.9 % 310 es 3.8 % 300", text(html))


def test_twenty_pages_of_a_reason_are_shown_folded_and_what_they_say_is_escaped(run) -> None:
    html = crawl(run)
    assert "<summary>c4: lorem ipsum (52 pages, 20 of them)</summary>" in html
    folded = re.search(r"<summary>c4: lorem ipsum.*?</details>", html, re.DOTALL)[0]
    assert folded.count("class='dropped'") == SAMPLES and "<script" not in html and "?&lt;b&gt;" in folded
    assert html.index("<summary>url: domain") < html.index("<summary>language: fr") < html.index("<summary>c4: lorem")


def test_the_section_is_well_formed(run) -> None:
    open_tags: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attributes: object) -> None:
            if tag not in ("br", "meta", "path", "use", "line"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag not in ("path", "use", "line"):
                assert open_tags.pop() == tag

        def handle_startendtag(self, tag: str, attributes: object) -> None:
            pass

    Tags().feed(crawl(run))
    assert not open_tags


def test_whatever_side_file_is_missing_the_section_leaves_its_part_out(run) -> None:
    whole = crawl(run)
    for name, gone in (
        ("pretrain/corpus.json", ("tokens, about", "ever larger alphabets")),
        ("data/evidence.json", ("pages by length",)),
        ("data/rejected", ("Dropped, by reason",)),
        ("data/funnel.json", ("From crawl",)),
    ):
        path = run.folder / name
        path.rename(path.with_name(path.name + ".away"))
        html = crawl(run)
        assert all(words in whole and words not in html for words in gone), name
    assert html == ""


def test_a_sample_does_not_depend_on_ranks_or_order_and_parts_add_up(tmp_path: Path) -> None:
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    rejected(tmp_path / "one", ROWS, 1)
    rejected(tmp_path / "five", shuffled, 5)
    texts = [["a" * 80, "b" * 900], ["c" * 5000]]
    shards = [shard(tmp_path / f"{number}.parquet", part) for number, part in enumerate(texts)]
    whole, parts = gather(sorted((tmp_path / "one").iterdir()), shards).to_json(), Evidence()
    for number, file in enumerate(sorted((tmp_path / "five").iterdir())):
        parts.add(json.loads(json.dumps(gather([file], shards[number : number + 1]).to_json())))
    assert parts.to_json() == whole and len(whole["rejected"]["c4"]["lorem_ipsum"]) == SAMPLES
    assert sum(whole["lengths"]["before"].values()) == 3 + 61 and sum(whole["lengths"]["kept"].values()) == 3
    assert whole["languages"] == {"en": 3}


def test_a_length_lies_in_its_bin() -> None:
    for size in (1, 2, 63, 64, 1000, 5_000_000):
        assert start_of(bin_of(size)) <= size * 1.0001 and size < start_of(bin_of(size) + 1) * 1.0001
