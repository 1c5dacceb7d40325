"""scripts/data.py on a tiny crawl: every page's fate with its reason, the evidence, one clear line for bad input."""

import gzip
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crawl2chat.data.pages import HOSTS
from crawl2chat.data.recital import Recital
from crawl2chat.recipe import load_recipe

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("data_script", ROOT / "scripts" / "data.py")
script = importlib.util.module_from_spec(spec)
sys.modules["data_script"] = script
spec.loader.exec_module(script)

RIVER = """The river begins as a small spring in the hills above the town. In the first ten miles it drops steeply
through a narrow valley, and several old mills still stand along its banks. Farmers once brought their grain to
these mills by cart. Below the town the ground flattens and the water slows. Reeds grow in the shallows, and herons
come to fish there in the early morning. A stone bridge with three arches was built across the lower river more than
four hundred years ago. Boats can travel from the bridge to the sea. When heavy rain falls in the hills, the meadows
near the mouth of the river are often covered with water for a week or more."""
BREAD = """Bread has been baked in almost every part of the world for thousands of years. The simplest loaf needs
only flour, water, salt and something that makes the dough rise. A baker mixes these by hand and leaves the dough in
a warm place. As the yeast feeds on the flour it gives off a gas, and the dough slowly doubles in size. Then it is
folded, shaped and left to rest again. A hot oven turns the outside into a firm brown crust while the inside stays
soft. People who bake at home learn to judge by the smell and the sound whether a loaf is ready. Most bakers agree
that good bread cannot be hurried, because the flavour comes from time."""
CLOCK = """A pendulum clock keeps time by the swing of a weight on a long rod. The Dutch scientist Christiaan
Huygens built the first one in the middle of the seventeenth century. Before that, a good clock could lose a quarter
of an hour each day. With a pendulum the error fell to a few seconds. The length of the rod decides how fast the
weight swings, so a warm room makes the clock run slow because metal grows longer with heat. Clock makers found
clever ways around this trouble, such as rods made from two metals. For almost three hundred years no other machine
could measure time so well. You can write to the keeper of the collection at keeper@clocks-museum.org or visit the
server at 91.198.174.192 for more."""
FRENCH = """La rivière naît dans les collines au-dessus de la petite ville. Elle descend rapidement dans une vallée
étroite, et de vieux moulins se dressent encore sur ses rives. Les paysans y apportaient autrefois leur grain. Plus
bas, le terrain devient plat et l'eau ralentit. Des roseaux poussent au bord, et les hérons viennent y pêcher le
matin. Un pont de pierre traverse la rivière depuis plus de quatre cents ans. Les bateaux peuvent aller du pont
jusqu'à la mer."""
PAGES = {  # url -> (paragraphs, step that should drop it)
    "https://wiki.example.org/river": (RIVER, None),
    "https://wiki.example.org/bread": (BREAD, None),
    "https://clocks.example.com/clock": (CLOCK, None),
    "https://mirror.example.net/river": (RIVER, "minhash"),
    "https://casino.example.com/luck": (BREAD.replace("Bread", "Luck"), "url"),
    "https://empty.example.com/": ("", "extraction"),
    "https://fr.example.com/riviere": (FRENCH, "language"),
    "https://spam.example.com/": (
        "Buy cheap watches online today, the best cheap watches. " * 20,
        "gopher_repetition",
    ),
    "https://short.example.com/": (BREAD.partition("As the yeast")[0][:220], "gopher_quality"),
    "https://code.example.com/": (BREAD.replace("A baker", "int main() { return 0; } A baker"), "c4"),
    "https://list.example.com/": (
        "\n".join(" ".join(CLOCK.split()[i : i + 4]).replace(".", "") for i in range(0, 100, 4)),
        "fineweb",
    ),
}


def warc_record(url: str, text: str, kind: str = "text/html; charset=utf-8") -> bytes:
    body = "".join(f"<p>{line}</p>" for line in (text.split("\n") if text.count("\n") > 20 else [text]))
    html = f"<html><head><title>Page</title></head><body><main><article>{body}</article></main></body></html>"
    http = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n{html}".encode()
    header = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:{url}>\r\nWARC-Target-URI: {url}\r\nWARC-Date: "
        f"2026-01-01T00:00:00Z\r\nContent-Type: application/http\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return gzip.compress(header.encode() + http + b"\r\n\r\n", mtime=0)


def config(folder: Path, **knobs: object) -> object:
    return script.DataConfig(
        **{"output_dir": str(folder / "out"), "url_lists": "none", "extraction_timeout": 10.0, "workers": 1, **knobs}
    )


def rows(folder: Path, pattern: str = "shards/*/*.parquet") -> list[dict]:
    return [row for file in sorted(folder.glob(pattern)) for row in pq.read_table(file).to_pylist()]


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run over PAGES on two workers, with labels, a PDF, a cut record, and drills."""
    folder = tmp_path_factory.mktemp("crawl")
    (folder / "warc").mkdir()
    records = [warc_record(url, text) for url, (text, _) in PAGES.items()]
    records += [
        warc_record("https://a.example.org/x.pdf", "%PDF", "application/pdf"),
        warc_record("https://a.example.org/cut", RIVER)[:-30],
    ]
    (folder / "warc" / "a.warc.gz").write_bytes(b"".join(records[:5]))
    (folder / "warc" / "b.warc.gz").write_bytes(b"".join(records[5:]))
    labels = [
        {
            "url": url,
            "keep": not step,
            "filter": step,
            "cluster": "river" if "/river" in url else None,
            "pii": ["keeper@clocks-museum.org", "91.198.174.192"] if "clock" in url else [],
        }
        for url, (_, step) in PAGES.items()
    ]
    (folder / "labels.jsonl").write_text("".join(json.dumps(label) + "\n" for label in labels))
    script.main(
        config(
            folder,
            warc=str(folder / "warc"),
            labels=str(folder / "labels.jsonl"),
            on_damage="skip",
            workers=2,
            drills=40,
            blocked_domains=["casino.example.com"],
            sources={"wiki.example.org": "wikipedia", "mirror.example.net": "wikipedia"},
        )
    )
    return folder / "out"


def test_every_kind_of_page_is_dropped_by_its_own_step(crawl: Path) -> None:
    rejected = {}
    for file in (crawl / "rejected").glob("*.jsonl.gz"):
        rejected |= {row["url"]: (row["step"], row["reason"]) for row in map(json.loads, gzip.open(file, "rt"))}
    pair = {rejected.pop(f"https://{host}/river", None) for host in ("wiki.example.org", "mirror.example.net")}
    assert pair == {None, ("minhash", "duplicate")}  # either copy may stay
    assert {url: step for url, (step, _) in rejected.items()} == {
        "https://a.example.org/x.pdf": "read",
        **{url: step for url, (_, step) in PAGES.items() if step and "/river" not in url},
    }
    assert {reason for _, reason in rejected.values()} == {
        "not_html",
        "subdomain",
        "no_text",
        "language_fr",
        "top_2_gram",
        "gopher_short_doc",
        "curly_bracket",
        "line_punct_ratio",
    }


def test_kept_pages_have_their_columns_and_stand_under_their_source(crawl: Path) -> None:
    kept = [row for row in rows(crawl) if row["source"] != "drills"]
    assert Counter(row["source"] for row in kept) == {"wikipedia": 2, "web": 1}
    assert {file.parent.name for file in crawl.glob("shards/*/*.parquet")} == {"wikipedia", "web", "drills"}
    for row in kept:
        columns = {"text", "id", "url", "date", "source", "language", "language_score", "dump", "file_path", "score"}
        assert set(row) == columns and row["file_path"].endswith(".warc.gz") and row["id"].startswith("<urn:")
        assert row["language"] == "en" and row["language_score"] > 0.65 and row["date"] == "2026-01-01T00:00:00Z"
    bread = next(row["text"] for row in kept if row["url"].endswith("bread"))
    assert bread.split() == BREAD.split()


def test_addresses_are_masked_everywhere(crawl: Path) -> None:
    clock = next(row["text"] for row in rows(crawl) if row["url"] and "clock" in row["url"])
    assert "keeper@" not in clock and "91.198.174.192" not in clock and "email@example.com" in clock
    for file in crawl.rglob("*.gz"):
        assert b"keeper@clocks-museum.org" not in gzip.decompress(file.read_bytes())


def test_the_numbers_add_up_and_are_right(crawl: Path) -> None:
    metrics = json.loads((crawl / "metrics.json").read_text())
    assert (
        metrics["documents_read"]
        == 13
        == metrics["documents_kept"] + metrics["documents_rejected"] + metrics["documents_damaged"]
    )
    assert (metrics["documents_kept"], metrics["documents_damaged"]) == (3, 1)
    assert metrics["precision"] == metrics["recall"] == 1.0 and metrics["pii_left"] == 0
    for step in ("url", "extraction", "language", "gopher_repetition", "gopher_quality", "c4", "fineweb", "minhash"):
        assert metrics[f"filter/{step}/precision"] == metrics[f"filter/{step}/recall"] == 1.0, step
    assert metrics["kept/wikipedia"] == 2 and metrics["kept/web"] == 1 and metrics["kept/drills"] == 40
    assert metrics["pages_per_second"] > 0 and metrics["peak_memory_gb"] > 0.2  # the workers', with spaCy in them
    funnel = json.loads((crawl / "funnel.json").read_text())
    steps = {step["step"]: step for step in funnel["steps"]}
    assert [steps[name]["documents"] for name in ("read", "url", "language", "pii", "minhash")] == [11, 10, 8, 4, 3]
    assert steps["language"]["reasons"] == {"language_fr": 1}
    assert metrics["bytes_kept"] == sum(len(row["text"].encode()) for row in rows(crawl) if row["source"] != "drills")


def test_drills_are_a_source_of_their_own_that_passes_no_filter(crawl: Path) -> None:
    drills = rows(crawl, "shards/drills/*.parquet")
    assert (
        len(drills) == 40
        and {row["source"] for row in drills} == {"drills"}
        and len({row["id"] for row in drills}) == 40
    )
    assert all(row["text"] and row["url"] is None for row in drills)


def test_words_of_the_shards_come_most_frequent_first(crawl: Path) -> None:
    assert (crawl / "words.txt").read_text().split()[0] == "the"


def test_nothing_half_done_stays_behind(crawl: Path) -> None:
    assert {path.name for path in crawl.iterdir()} == {
        "shards",
        "rejected",
        "funnel.json",
        "evidence.json",
        "metrics.json",
        "words.txt",
    }


def test_rows_of_a_dataset_pass_the_filters_without_extraction(tmp_path: Path) -> None:
    table = [
        {"body": text, "url": f"https://a.example.org/{i}", "id": f"row-{i}"}
        for i, text in enumerate([RIVER, BREAD, FRENCH, None, CLOCK])
    ]
    (tmp_path / "set").mkdir()
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "set" / "a.parquet")
    script.main(config(tmp_path, dataset_name=str(tmp_path / "set"), text_column="body", limit=4))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [metrics[f"documents_{name}"] for name in ("read", "kept", "rejected", "damaged")] == [4, 2, 1, 1]
    assert {row["id"] for row in rows(tmp_path / "out")} == {"row-0", "row-1"} and "precision" not in metrics


def test_a_repeated_passage_leaves_its_page_and_the_accounts_are_right(tmp_path: Path) -> None:
    def halves(text: str) -> str:
        sentences = " ".join(text.split()).split(". ")
        middle = len(sentences) // 2 + 1
        return ". ".join(sentences[:middle]) + ".\n" + ". ".join(sentences[middle:])

    (tmp_path / "set").mkdir()
    table = [{"text": halves(text), "id": f"row-{i}"} for i, text in enumerate([RIVER, BREAD, CLOCK])]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "set" / "a.parquet")
    recital = Recital("web", times=[3], passages=1, shortest=150, longest=600)
    script.main(config(tmp_path, dataset_name=str(tmp_path / "set"), recital=recital))
    out = tmp_path / "out"
    passages = [json.loads(line) for line in (out / "recital.jsonl").read_text().splitlines()]
    pages, copies = (rows(out, f"shards/{name}/*.parquet") for name in ("web", "recital"))
    assert sorted(passage["times"] for passage in passages) == [0, 3]
    assert [row["text"] for row in copies] == [p["text"] for p in passages if p["times"]] * 3
    assert not any(passage["text"] in page["text"] for passage in passages for page in pages)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["documents_read"] == metrics["documents_kept"] == metrics["kept/web"] == len(pages) == 3
    assert metrics["kept/recital"] == 3 and metrics["bytes_kept"] == sum(len(row["text"].encode()) for row in pages)


def stops(folder: Path, **knobs: object) -> str:
    """The one line that a run with these knobs ends on; nothing stands under a final name then."""
    with pytest.raises(SystemExit) as stopped:
        script.main(config(folder, **knobs))
    assert isinstance(stopped.value.code, str) and "\n" not in stopped.value.code
    assert not [path for path in (folder / "out").glob("*") if path.name != "work"]
    return stopped.value.code


def test_bad_input_ends_in_one_line_that_names_the_file(tmp_path: Path) -> None:
    good = tmp_path / "good.warc.gz"
    good.write_bytes(warc_record("https://a.example.org/1", RIVER))
    (tmp_path / "empty.warc.gz").write_bytes(b"")
    (tmp_path / "text.warc").write_bytes(b"not a crawl at all\n" * 9)
    (tmp_path / "folder").mkdir()
    (tmp_path / "cut.warc.gz").write_bytes(good.read_bytes() + good.read_bytes()[:-9])
    (tmp_path / "labels.jsonl").write_text('{"url": "a"}\n')
    assert "empty.warc.gz: holds no response records (0 bytes)" in stops(
        tmp_path, warc=str(tmp_path / "empty.warc.gz")
    )
    assert "text.warc" in stops(tmp_path, warc=str(tmp_path / "text.warc"))
    assert "no WARC files" in stops(tmp_path, warc=str(tmp_path / "folder"))
    assert "no WARC files" in stops(tmp_path, warc=str(tmp_path / "*.wrac"))
    assert f"cut.warc.gz: the gzip stream is cut at byte {good.stat().st_size:,}" in stops(
        tmp_path, warc=str(tmp_path / "cut.warc.gz")
    )
    assert "labels.jsonl:1: label lacks cluster, filter, keep, pii" in stops(
        tmp_path, warc=str(good), labels=str(tmp_path / "labels.jsonl")
    )
    assert "give one of make_web, warc, dataset_name" in stops(tmp_path, warc=str(good), dataset_name="a/b")
    assert "c5 unknown" in stops(tmp_path, warc=str(good), steps=["c5"])
    assert "without make_web" in stops(tmp_path, warc=str(good), phrasebook=5)
    assert "recital, register, harbour are taken" in stops(tmp_path, warc=str(good), sources={"a": "recital"})
    assert "cannot be a folder" in stops(tmp_path, warc=str(good), sources={"a": "../b"})


def test_what_no_recipe_asks_for_is_not_imported() -> None:
    code = "import sys; sys.path.insert(0, 'scripts'); import data; "
    code += "print({'torch', 'ray', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr


def test_no_document_left_is_an_error_that_keeps_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "a.warc.gz").write_bytes(warc_record("https://a.example.org/1", FRENCH))
    assert "no document passed the filters" in stops(tmp_path, warc=str(tmp_path / "a.warc.gz"))
    assert list((tmp_path / "out" / "work").glob("*/rejected/language-*"))


def test_a_dataset_without_the_text_column_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jsonl").write_text('{"content": "x"}\n')
    assert "a.jsonl:1: no key 'text'" in stops(tmp_path, dataset_name=str(tmp_path / "set"))


def test_of_a_launchers_processes_one_does_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    script.main(config(tmp_path, warc="nowhere.warc.gz"))
    assert not (tmp_path / "out").exists()


def test_a_missing_input_is_found_before_the_run() -> None:
    command = [
        sys.executable,
        ROOT / "scripts" / "data.py",
        "--warc",
        "nowhere.warc.gz",
        "--output_dir",
        "output/x",
        "--dry_run",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "nowhere.warc.gz" in done.stderr


def test_the_laptops_recipe_parses_and_knows_every_host_of_its_web() -> None:
    recipe = load_recipe(*script.RECIPE, args=[str(ROOT / "recipes" / "laptop" / "data.yaml")])
    assert recipe.configs[0].make_web and recipe.configs[0].drills > 0 and recipe.configs[0].phrasebook > 0
    assert recipe.configs[0].recital.times == [1, 4, 16, 64]
    assert recipe.configs[0].sources == HOSTS
