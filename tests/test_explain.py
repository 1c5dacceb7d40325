"""One page's fate, told step by step, is the one it had in the funnel, and each reason comes with its number."""

import gzip
import importlib.util
import json
import random
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datatrove.data import Document
from hypothesis import given, settings
from hypothesis import strategies as st

from crawl2chat.data import explain
from crawl2chat.data.config import DataConfig, GopherQuality
from crawl2chat.data.measures import RULES, measure
from crawl2chat.recipe import parse_recipe

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("data_script_explained", ROOT / "scripts" / "data.py")
script = importlib.util.module_from_spec(spec)
sys.modules["data_script_explained"] = script
spec.loader.exec_module(script)

WORDS = """the river begins as a small spring in hills above town and several old mills still stand along its banks
with that to of be farmers who once brought their grain to be ground by cart below that ground flattens
water slows reeds grow herons come fish early morning stone bridge three arches was built across lower
more than four hundred years ago boats can travel from sea when heavy rain falls meadows near mouth are
often covered for week or people have made bread of flour salt
""".split()
LATIN = "lorem ipsum dolor sit amet"


def prose(sentences: int, seed: int, end: str = ".") -> str:
    """Sentences of English words in no order, none of which repeats another."""
    rng = random.Random(seed)
    return " ".join(" ".join(rng.sample(WORDS, k=16)).capitalize() + end for _ in range(sentences))


def rows(count: int, seed: int, line: str) -> str:
    """Lines, each with words of its own in the place of {}."""
    rng = random.Random(seed)
    return "\n".join(line.format(" ".join(rng.sample(WORDS, k=9))) for _ in range(count))


def shortened(lines: str) -> str:
    return "\n".join(line[:26] + "." for line in lines.split("\n"))


GOOD = prose(12, 0)
FRENCH = "La rivière naît dans les collines au-dessus de la petite ville et descend rapidement dans une vallée. "
PAGES = {  # name -> (text, the step and the reason that the funnel should give)
    "good": (GOOD, None),
    "other": (prose(12, 1), None),
    "zz-copy": (GOOD, ("minhash", "duplicate")),
    "mail": (prose(12, 2) + " Write to keeper@clocks-museum.org or to 91.198.174.192 today.", None),
    "porn": (prose(12, 3), ("url", "hard_blacklisted")),
    "empty": ("", ("extraction", "no_text")),
    "french": (FRENCH * 4, ("language", "language_fr")),
    "unsure": ("9 8 7 6 the 5 4 3 und 2 1 " * 6, ("language", None)),
    "paragraphs": ((GOOD[:300] + "\n") * 6, None),
    "phrase": ("buy cheap watches online today, the best cheap watches. " * 20, ("gopher_repetition", "top_2_gram")),
    "runs": (" ".join([prose(2, 4), prose(1, 5)] * 6), ("gopher_repetition", None)),
    "short": (prose(3, 6), ("gopher_quality", "gopher_short_doc")),
    "hashes": (rows(14, 7, "# # # {}."), ("gopher_quality", "gopher_too_many_hashes")),
    "ellipsis": (rows(14, 8, "{} ..."), ("gopher_quality", None)),
    "bullets": (rows(14, 9, "- {}."), ("gopher_quality", "gopher_too_many_bullets")),
    "letters": (rows(14, 10, "{}.") + " 1 2 3 4 5 6 7 8 9" * 9, None),
    "curly": (prose(12, 11) + " int main() { return 0; }", ("c4", "curly_bracket")),
    "lorem": (prose(12, 12) + f" {LATIN}.", ("c4", "lorem_ipsum")),
    "sentences": (prose(12, 13, ",").replace(".", ","), ("c4", "too_few_sentences")),
    "list": (rows(30, 14, "{}"), ("fineweb", "line_punct_ratio")),
    "shortlines": (shortened(rows(40, 15, "{}.")), ("fineweb", "short_line_ratio")),
}


def record(name: str, text: str, kind: str = "text/html; charset=utf-8") -> bytes:
    body = "".join(f"<p>{line}</p>" for line in text.split("\n"))
    html = f"<html><head><title>Page</title></head><body><main><article>{body}</article></main></body></html>"
    http = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n{html}".encode()
    header = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:{name}>\r\nWARC-Target-URI: {address(name)}\r\n"
        "WARC-Date: 2026-01-01T00:00:00Z\r\nContent-Type: application/http\r\n"
        f"Content-Length: {len(http)}\r\n\r\n"
    )
    return gzip.compress(header.encode() + http + b"\r\n\r\n", mtime=0)


def address(name: str) -> str:
    return f"https://site.example.org/{name}"


def config(folder: Path, **knobs: object) -> DataConfig:
    base = {"url_lists": "words", "extraction_timeout": 10.0, "workers": 1, "warc": str(folder / "a.warc.gz")}
    return DataConfig(**{"output_dir": str(folder / "out"), "blocked_domains": ["bad.example.com"], **base, **knobs})


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, dict[str, tuple[str, str] | None]]:
    """A tiny web through the whole stage: its recipe, and what the outputs say became of each page."""
    folder = tmp_path_factory.mktemp("web")
    records = [record(name, text) for name, (text, _) in PAGES.items()]
    records += [record("paper", "text", "application/pdf"), record("binary", "\0" * 9).replace(b"x", b"x")]
    (folder / "a.warc.gz").write_bytes(b"".join(records))
    script.main(recipe := config(folder))
    fates: dict[str, tuple[str, str] | None] = {}
    for file in (folder / "out").glob("shards/*/*.parquet"):
        fates |= {row["id"]: None for row in pq.read_table(file).to_pylist()}
    for file in (folder / "out").glob("rejected/*.jsonl.gz"):
        fates |= {row["id"]: (row["step"], row["reason"]) for row in map(json.loads, gzip.open(file, "rt"))}
    return recipe, fates


def test_every_page_is_told_the_fate_that_the_funnel_gave_it(web) -> None:
    recipe, fates = web
    assert len(fates) == len(PAGES) + 2
    copies = {identity for identity, fate in fates.items() if fate and fate[0] == "minhash"}
    assert copies and copies < {"<urn:good>", "<urn:zz-copy>"}  # either may stay
    for identity, fate in fates.items():
        (verdicts,) = explain.explain(recipe, identity)
        last = verdicts[-1]
        assert all(verdict.verdict == "passed" for verdict in verdicts[:-1]), identity
        assert last.measured and (last.step, last.reason) == (fate or ("shards", "")), identity
        assert (last.verdict == "passed") == (fate is None)


def test_the_tiny_web_meets_the_reasons_that_it_was_made_for(web) -> None:
    _, fates = web
    for name, (_, wanted) in PAGES.items():
        found = fates[f"<urn:{name}>"]
        if wanted and wanted[0] != "minhash":
            assert found and found[0] == wanted[0] and wanted[1] in (None, found[1]), (name, found)
    assert len({fate for fate in fates.values() if fate}) >= 14, sorted(map(str, set(fates.values())))


def test_a_rejected_pages_measure_stands_beside_its_limit(web) -> None:
    recipe, fates = web
    said = {name: explain.explain(recipe, address(name))[0][-1].measured[0] for name in ("short", "curly", "french")}
    assert explain.explain(recipe, "<urn:short>") == explain.explain(recipe, address("short"))
    assert said["short"].endswith("words, 50 wanted") and said["curly"].startswith("`{` stands there 1 times")
    assert said["french"].startswith("language fr with score") and said["french"].endswith("en wanted")
    copied = next(identity for identity, fate in fates.items() if fate == ("minhash", "duplicate"))
    (verdicts,) = explain.explain(recipe, copied)
    assert verdicts[-1].measured[0].startswith("1.00 of 5-word runs are those of https://site.example.org/")


def test_without_a_finished_run_duplicates_are_unknown_and_nothing_is_written(web, tmp_path: Path) -> None:
    recipe, _ = web
    (verdicts,) = explain.explain(config(tmp_path, warc=recipe.warc), address("good"))
    assert [v.verdict for v in verdicts if v.step == "minhash"] == ["unknown"] and verdicts[-1].verdict == "passed"
    assert not list(tmp_path.iterdir())


def test_addresses_are_masked_in_what_is_told(web, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe, _ = web
    text = explain.told(address("mail?to=keeper@clocks-museum.org"), explain.explain(recipe, address("mail")))
    assert "keeper@" not in text and "1 e-mail addresses and 1 IP addresses masked" in text
    path = tmp_path / "data.yaml"
    path.write_text(f"output_dir: {recipe.output_dir}\nwarc: {recipe.warc}\nurl_lists: words\n")
    asked = [str(path), "--extraction_timeout", "9", "--explain"]
    script.main(*parse_recipe(*script.RECIPE, args=[*asked, address("short")]))
    assert "gopher_quality     rejected  gopher_short_doc: " in capsys.readouterr().out
    assert (Path(recipe.output_dir) / "metrics.json").exists()  # it looks, and changes nothing
    with pytest.raises(SystemExit, match="no page with this URL"):
        script.main(*parse_recipe(*script.RECIPE, args=[*asked, "https://nowhere.example.org/"]))


def test_rows_of_a_dataset_are_told_by_id_or_url(tmp_path: Path) -> None:
    rows = [{"text": GOOD, "id": "a"}, {"text": FRENCH * 5, "id": "b", "url": "https://fr.example.org/"}]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = config(tmp_path, warc=None, dataset_name=str(tmp_path / "set.jsonl"))
    assert [v.step for v in explain.explain(recipe, "a")[0]][:2] == ["read", "url"]
    assert explain.explain(recipe, "https://fr.example.org/")[0][-1].reason == "language_fr"


STEPS = dict(explain.steps_of(DataConfig(warc="x", url_lists="words", gopher_quality=GopherQuality(min_doc_words=9))))
PARTS = [
    *"#-•{}\n\n\n",
    "...",
    "…",
    ".\n",
    " the ",
    " of ",
    "word ",
    "and ",
    "A line. ",
    "lorem ipsum ",
    "12 ",
    "[1] ",
]
PARTS += ["javascript ", "We have seen the river and that was it.\n", "privacy policy ", "x" * 30 + " ", "!", "?\n"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=60), st.sampled_from(sorted(RULES)))
def test_the_first_rule_that_is_broken_is_the_filters_reason_on_any_text(parts: list[str], name: str) -> None:
    agree(name, "".join(parts), "https://a.example.org/" + "".join(parts[:3]).strip())


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("page", sorted(PAGES))
def test_the_first_rule_that_is_broken_is_the_filters_reason_on_every_page(name: str, page: str) -> None:
    agree(name, PAGES[page][0], address(page))


def agree(name: str, text: str, url: str) -> None:
    document = Document(text, "a", metadata={"url": url})
    before = Document(text, "a", metadata=document.metadata)
    verdict = STEPS[name].safely(document)
    passed, reason = verdict if isinstance(verdict, tuple) else (bool(verdict), "")
    rules = measure(name, STEPS[name], before)
    broken = [rule.reason for rule in rules if rule.broken]
    assert broken == ([] if passed or reason.startswith("broke_") else [reason]), (verdict, rules)
    assert before.text == text and (rules or name == "c4" or reason.startswith("broke_"))


def test_the_stage_leaves_rejected_pages_lengths_and_languages_as_evidence(web) -> None:
    recipe, fates = web
    found = json.loads((Path(recipe.output_dir) / "evidence.json").read_text())
    shown = {
        (step, reason): len(pages) for step, reasons in found["rejected"].items() for reason, pages in reasons.items()
    }
    assert shown == Counter(fate for fate in fates.values() if fate)  # fewer than 20 of each: all are shown
    assert sum(found["lengths"]["kept"].values()) == sum(fate is None for fate in fates.values())
    funnel = json.loads((Path(recipe.output_dir) / "funnel.json").read_text())
    reached = next(step["documents_in"] for step in funnel["steps"] if step["step"] == "language")
    assert sum(funnel["languages"].values()) == reached and funnel["languages"]["en"] > funnel["languages"]["fr"] == 1
