"""Common Crawl's recipe on real web pages: packed as Common Crawl packs them, every record accounted for.

The pages are newspaper4k's own test pages, publishers' news in many languages. They are fetched from a registry when
this runs, kept outside the repository, and in no commit; without a registry the test is skipped, and says so.
"""

import gzip
import json
import subprocess
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from crawl2chat.data import explain
from crawl2chat.data.config import DataConfig
from crawl2chat.data.packages import fetch
from crawl2chat.recipe import load_recipe

ROOT = Path(__file__).parents[1]
SHA256 = "a3f2f0e017dddb6f1019ee77aaa8980e13e6ecea0b949abc7167aae4770d2d0e"
LINE = "crawl-data/CC-MAIN-2024-10/segments/1707947473347.0/warc/CC-MAIN-20240220211055-20240221001055-00000.warc.gz"
NEWS = "https://news.example.com/2024/"


@pytest.fixture(scope="module")
def pages() -> list[Path]:
    try:
        folder = fetch("newspaper4k", "0.9.6", SHA256, "*/tests/data/html/*.html", source=True)
    except SystemExit as error:
        pytest.skip(f"the real pages are not at hand: {error}")
    found = sorted(folder.rglob("*.html"))
    assert len(found) == 30
    return found


def pack(pages: list[Path], path: Path) -> None:
    """A WARC file as Common Crawl's: warcinfo, then request, response, metadata of each page, each a gzip member."""
    path.parent.mkdir(parents=True)
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=True)
        writer.write_record(writer.create_warcinfo_record(path.name, {"isPartOf": "CC-MAIN-2024-10"}))
        for page in pages:
            url, body = NEWS + page.stem, page.read_bytes()
            kind = "application/rss+xml" if "rss" in page.name else "text/html"
            asked = StatusAndHeaders(
                f"GET /2024/{page.stem} HTTP/1.1", [("Host", "news.example.com")], is_http_request=True
            )
            answered = StatusAndHeaders(
                "200 OK",
                [("Content-Type", kind), ("X-Crawl-Content-Encoding", "gzip"), ("Content-Length", str(len(body)))],
                protocol="HTTP/1.1",
            )
            more = {"WARC-Identified-Payload-Type": kind}
            request = writer.create_warc_record(url, "request", http_headers=asked)
            response = writer.create_warc_record(
                url, "response", BytesIO(body), http_headers=answered, warc_headers_dict=more
            )
            writer.write_request_response_pair(request, response)
            writer.write_record(writer.create_warc_record(url, "metadata", BytesIO(b"fetchTimeMs: 12\r\n")))


@pytest.mark.slow
def test_every_record_of_real_pages_is_accounted_for(pages, tmp_path: Path, capsys) -> None:
    pack(pages, tmp_path / "crawl" / LINE)
    (tmp_path / "warc.paths").write_text(LINE + "\n")
    out = tmp_path / "data"
    recipe = [str(ROOT / "recipes/common-crawl/data.yaml"), "--warc_paths", str(tmp_path / "warc.paths")]
    recipe += ["--warc_prefix", f"file://{tmp_path}/crawl/", "--output_dir", str(out), "--workers", "1"]
    recipe += ["--extraction_timeout", "10"]  # of a machine that is busy
    question = "What does the old fox of the mill say to the seven ravens in the evening before they fly?"
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": question}) + "\n")
    benchmarks = {"benchmarks": {"questions": str(tmp_path / "questions.jsonl")}}  # the recipe's own are on the hub
    recipe += ["--decontamination", json.dumps(benchmarks)]
    command = [sys.executable, str(ROOT / "scripts" / "data.py"), *recipe]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    with capsys.disabled():
        print(f"\n{done.stdout}")

    kept = [row for file in out.glob("shards/*/*.parquet") for row in pq.read_table(file).to_pylist()]
    rejected = [row for file in out.glob("rejected/*.gz") for row in map(json.loads, gzip.open(file, "rt"))]
    funnel, metrics = (json.loads((out / name).read_text()) for name in ("funnel.json", "metrics.json"))
    assert funnel["read"] == 30 == funnel["kept"] + funnel["rejected"] + funnel["damaged"]
    assert (len(kept), len(rejected)) == (funnel["kept"], funnel["rejected"])
    assert len({row["id"] for row in kept + rejected}) == len(kept + rejected) and metrics["documents_read"] == 30
    assert {row["dump"] for row in kept} == {"CC-MAIN-2024-10"} and all(row["language"] == "en" for row in kept)

    # pages of other languages go for their language, the feed for being none, and English articles stay
    fates = {row["url"].removeprefix(NEWS): row["reason"] for row in rejected}
    assert fates["sample_rss"] == "not_html"
    wanted = {"arabic_article": "ar", "japanese_article": "ja", "thai_article": "th", "spanish_article": "es"}
    assert {name: fates.get(name) for name in wanted} == {name: f"language_{code}" for name, code in wanted.items()}
    assert len(kept) >= 5 and {row["url"].removeprefix(NEWS) for row in kept} & {"cnn_article", "time_001", "cnn_001"}

    # the same fates when a page is asked for
    (config,) = load_recipe(DataConfig, args=[*recipe, "--url_lists", "words"]).configs
    reasons = Counter()
    for name in ["spanish_article", "sample_rss", kept[0]["url"].removeprefix(NEWS)]:
        (verdicts,) = explain.explain(config, NEWS + name)
        assert verdicts[-1].reason == fates.get(name, "") and verdicts[-1].measured
        reasons[verdicts[-1].verdict] += 1
    assert reasons == {"rejected": 2, "passed": 1}
