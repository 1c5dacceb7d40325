"""The laptop's web: valid WARC, the right answer for every page; good pages truly pass and dirt truly fails."""

import gzip
import importlib
import json
import pkgutil
import random
import re

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from trafilatura import extract
from warcio.archiveiterator import ArchiveIterator

from crawl2chat import tasks
from crawl2chat.data import web
from crawl2chat.data.facts import Sources, clean_elements, people_of
from crawl2chat.data.pages import HOSTS, Page, render
from crawl2chat.data.wording import reads_as_prose

SCALE = 0.03


def sentences(rng: random.Random, count: int) -> str:
    """Made-up encyclopedic sentences, no two alike."""

    def name() -> str:
        return "".join(rng.choice("bdfgklmnprstv") + rng.choice("aeiou") for _ in range(3)).capitalize()

    shapes = (
        "The old town of {} was first described by {}, who came there with {} as a young man.",
        "{} has long been compared with {}, although {} is larger and lies by the sea.",
        "A narrow river called {} flows past the hills of {} and joins the {} in the plain.",
        "After the great storm the harbour of {} was rebuilt by {}, and later {} made it deeper.",
        "Letters that {} wrote to {} show how the monks of {} lived in that time.",
        "The museum in {} keeps paintings by {} and some early drawings from {}.",
        "In the second war the railway between {} and {} was broken, but {} was spared.",
        "Many visitors come to {} because of the fair, which {} founded after a journey to {}.",
        "{} is also the name of a stone that {} and {} once used for their bridges.",
    )
    return " ".join(shape.format(name(), name(), name()) for shape in rng.sample(shapes, count))


@pytest.fixture(scope="module")
def sources() -> Sources:
    rng = random.Random(5)
    article = {"description": "Place", "topic": "Geography"}
    articles = [{**article, "title": f"Place number {i}", "extract": sentences(rng, 8)} for i in range(60)]
    names = "Ada Lovelace|Karl Example|Mina Harker|Jon Snowfield|Ruth Amberly|Olaf Tryggson|Vera Stone|Paul Ashdown"
    for i, name in enumerate(names.split("|")):
        description = f"English mathematician ({1815 + i}–{1880 + i})"
        extract_ = f"{name} was a mathematician from the north. {sentences(rng, 4)}"
        articles.append({"title": name, "description": description, "topic": "People", "extract": extract_})
    countries = [
        {"name": name, "the_name": name, "capital": capital, "continent": "Europe", "demonym": f"{name[:-1]}ish",
         "languages": ["French"], "neighbours": ["Spain"][: i % 2], "population": 10**6 * (i + 2), "area": 1000 * i,
         "calling_code": "33", "latitude": 40}
        for i, (name, capital) in enumerate([("France", "Paris"), ("Poland", "Warsaw"), ("Norway", "Oslo"),
                                             ("Latvia", "Riga"), ("Greece", "Athens"), ("Italy", "Rome")])
    ]  # fmt: skip
    elements = clean_elements({26: ("Iron", "Fe"), 27: ("Cobalt", "Co"), 28: ("Nickel", "Ni"), 29: ("Copper", "Cu")})
    french = "Cette ville ancienne se trouve au bord de la rivière et attire chaque année de nombreux visiteurs. " * 4
    rows = [{"title": f"Ville {i}", "extract": f"{i} {french}"} for i in range(30)]
    foreign = {"fr": rows, "es": rows}
    return Sources(articles, countries, elements, people_of(articles), foreign)


@pytest.fixture(scope="module")
def pages(sources) -> list[Page]:
    return web.write_pages(sources, 0, SCALE)


@pytest.fixture(scope="module")
def built(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    return folder, web.build_web(folder, sources, scale=SCALE)


def body(page: Page) -> str:
    return "\n".join(text for _, text in page.blocks)


def shingles(text: str, n: int = 5) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[i:] for i in range(n)), strict=False))


def likeness(one: Page, two: Page) -> float:
    a, b = shingles(body(one)), shingles(body(two))
    return len(a & b) / len(a | b)


def test_the_same_seed_writes_the_same_bytes(built, sources, tmp_path):
    web.build_web(tmp_path, sources, scale=SCALE)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert len(files) == web.FILES + 2
    for name in files:
        assert (tmp_path / name).read_bytes() == (built[0] / name).read_bytes(), name


def test_another_seed_writes_other_pages(pages, sources):
    assert {body(page) for page in web.write_pages(sources, 1, SCALE)} != {body(page) for page in pages}


def test_records_and_labels_are_the_same_pages(built):
    folder, counts = built
    labels = [json.loads(line) for line in (folder / "labels.jsonl").read_text("utf-8").splitlines()]
    urls = []
    for name, count in counts["files"].items():
        with open(folder / "web" / name, "rb") as handle:
            records = [record.rec_headers.get_header("WARC-Target-URI") for record in ArchiveIterator(handle)]
        assert len(records) == count
        urls += records
    assert sorted(urls) == sorted(label["url"] for label in labels)
    assert len(set(urls)) == counts["pages"] == len(urls)
    assert sum(label["keep"] for label in labels) == counts["kept"]


def test_every_record_is_its_own_gzip_member_with_http_headers(built):
    folder, counts = built
    data = (folder / "web" / "00000.warc.gz").read_bytes()
    starts = [match.start() for match in re.finditer(rb"\x1f\x8b\x08", data)]
    first = gzip.decompress(data[: starts[1]])
    assert first.startswith(b"WARC/1.0\r\n") and b"HTTP/1.1 200 OK" in first and b"<!DOCTYPE html>" in first
    assert gzip.decompress(data).count(b"WARC-Type: response") == counts["files"]["00000.warc.gz"]


def test_the_article_comes_out_and_the_furniture_stays_behind(pages):
    rng = random.Random(0)
    exact, good = 0, [page for page in pages if page.keep]
    for page in good:
        related = [(other.url, other.title) for other in rng.sample(good, 4)]
        html = render(page, rng, related).decode()
        text = " ".join((extract(html, favor_precision=True, include_comments=False) or "").split())
        wanted = " ".join(body(page).split())
        exact += text in (wanted, f"{page.title} {wanted}")
        assert "cookie" not in text and "Related pages" not in text, page.url
    assert exact >= 0.98 * len(good)


def test_good_pages_pass_the_published_filters_and_dirt_fails_at_its_own(pages):
    steps = {
        "gopher_repetition": GopherRepetitionFilter(),
        "gopher_quality": GopherQualityFilter(),
        "c4": C4QualityFilter(filter_no_terminal_punct=False),
        "fineweb": FineWebQualityFilter(),
    }
    wrong, judged = [], 0
    for page in pages:
        if not (page.keep or page.filter in steps) or page.kind == "encyclopedia":
            continue  # here the encyclopedia's words are this file's own, not Wikipedia's
        document = Document(text=f"{page.title}\n{body(page)}", id=page.url)
        dropped = next((name for name, step in steps.items() if step.filter(document) is not True), None)
        judged += 1
        if dropped != page.filter:
            wrong.append((page.kind, dropped, page.url))
    assert len(wrong) <= 0.03 * judged, wrong


def test_every_kind_of_dirt_is_there(pages):
    wanted = {"url", "language", "gopher_repetition", "gopher_quality", "c4", "fineweb", "minhash"}
    assert {page.filter for page in pages if not page.keep} == wanted
    assert all(page.filter is None for page in pages if page.keep)


def test_copies_share_a_cluster_and_nine_tenths_with_their_original(pages):
    copies = [page for page in pages if page.filter == "minhash"]
    assert {page.kind for page in copies} == {"copy", "near_copy"}
    for copy in copies:
        (original,) = [page for page in pages if page.keep and page.cluster == copy.cluster]
        assert copy.url != original.url and HOSTS[copy.url.split("/")[2]] == HOSTS[original.url.split("/")[2]]
        assert likeness(copy, original) >= (1.0 if copy.kind == "copy" else 0.85), copy.url


def test_no_two_good_pages_are_near_copies(pages):
    good = [(page, shingles(body(page))) for page in pages if page.keep]
    for i, (page, one) in enumerate(good):
        for other, two in good[:i]:
            assert len(one & two) < 0.6 * len(one | two), (page.url, other.url)


def test_planted_addresses_stand_in_the_page_and_are_all_masked(pages):
    planted = [page for page in pages if page.pii]
    assert planted and all(page.keep for page in planted)
    mask = PIIFormatter()
    for page in planted:
        assert all(string in body(page) for string in page.pii)
        masked = mask.format(body(page))
        assert not any(string in masked for string in page.pii), page.pii


def test_facts_count_the_pages_that_state_them(built, pages):
    facts = [json.loads(line) for line in (built[0] / "facts.jsonl").read_text("utf-8").splitlines()]
    for fact in facts:
        stating = [page for page in pages if page.keep and (fact["subject"], fact["relation"]) in page.facts]
        assert fact["pages"] == len(stating)
        assert fact["pages"] >= (5 if fact["relation"] not in ("born", "known_as") else 1), fact
        for page in stating:
            text = body(page).lower()
            assert fact["subject"].lower() in text and fact["answer"].lower() in text, (page.url, fact)


def test_no_page_asks_in_words_kept_for_the_evaluation(pages):
    text = "\n".join(body(page) for page in pages)
    kept_back = []
    for module in pkgutil.iter_modules(tasks.__path__):
        wordings = getattr(importlib.import_module(f"crawl2chat.tasks.{module.name}"), "WORDINGS", {})
        groups = [wordings] if "test" in wordings else wordings.values()
        kept_back += [w for group in groups if isinstance(group, dict) for w in group.get("test", ())]
    kept_back = [wording for wording in kept_back if re.search(r"\{s\}|\{w\}", wording)]
    assert len(kept_back) >= 9
    for wording in kept_back:
        pattern = re.sub(r"\\\{\w+\\\}", r"[^.?!\\n]{1,60}", re.escape(wording))
        assert not re.search(pattern, text, re.IGNORECASE), wording


def test_text_that_repeats_itself_does_not_read_as_prose():
    assert not reads_as_prose("The shop is open today. " * 30)
    assert not reads_as_prose("Too short.")
    assert not reads_as_prose(" ".join(f"In {i} there were {i}, {i}." for i in range(100, 130)))


def test_a_page_is_shown_as_text_and_not_as_markup():
    page = Page("https://almanac.example.org/x", "A <b> & more", [("p", "if a < b & c > d then <script>")], "almanac")
    html = render(page, random.Random(0)).decode()
    assert "if a &lt; b &amp; c &gt; d then &lt;script&gt;" in html and "A &lt;b&gt; &amp; more" in html
