"""The laptop's little web: real content as HTML pages in WARC files, and the right answer for every page.

Writes, under output_dir: web/NNNNN.warc.gz (Common Crawl's format: one gzip member a record, HTTP headers inside),
labels.jsonl (one row a page, see pages.Page.label) and facts.jsonl (facts, with the number of kept pages that state
them). The same seed writes the same bytes.
"""

import json
import random
import uuid
from collections import Counter
from io import BytesIO
from pathlib import Path

from tqdm import tqdm
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from crawl2chat.data import countries, dirt, elements, lessons, prose, schoolbook, stories
from crawl2chat.data.facts import Sources, facts_of, load_sources
from crawl2chat.data.pages import Page, render
from crawl2chat.stage import write_text

FILES = 4
# how many pages of each kind at full scale; a share of the people gets a reading page besides the biography
STORIES, READINGS, LETTERS, LISTS, EVERYDAY, SPELLING, COUNTING = 600, 420, 140, 140, 170, 110, 160
PEOPLE_SHARE = 0.27


def build_web(output_dir: str | Path, sources: Sources | None = None, seed: int = 0, scale: float = 1.0) -> dict:
    """Write the web under `output_dir` and return its counts: pages, kept, facts, and pages by kind and by file.

    sources: what the pages are written from; None fetches the full set. scale: the share of it that is used.
    """
    output_dir = Path(output_dir)
    sources = thin(sources or load_sources(), scale)
    pages = write_pages(sources, seed, scale)
    per_file = write_warcs(pages, output_dir / "web", seed)
    write_text(output_dir / "labels.jsonl", "".join(json.dumps(page.label()) + "\n" for page in pages))
    stated = Counter(fact for page in pages if page.keep for fact in set(page.facts))
    facts = [{**fact, "pages": stated[fact["subject"], fact["relation"]]} for fact in facts_of(sources)]
    write_text(output_dir / "facts.jsonl", "".join(json.dumps(fact, ensure_ascii=False) + "\n" for fact in facts))
    kinds = Counter(page.kind for page in pages)
    return {"pages": len(pages), "kept": sum(page.keep for page in pages), "facts": len(facts),
            "kinds": dict(kinds), "files": per_file}  # fmt: skip


def thin(sources: Sources, scale: float) -> Sources:
    """An evenly spaced share of every kind of source."""

    def some(rows: list) -> list:
        count = min(len(rows), max(8, round(len(rows) * scale)))
        return [rows[i * len(rows) // count] for i in range(count)]

    kinds = (sources.articles, sources.countries, sources.elements, sources.people)
    return Sources(*map(some, kinds), {language: some(rows) for language, rows in sources.foreign.items()})


def write_pages(sources: Sources, seed: int, scale: float) -> list[Page]:
    """All pages of the web in crawl order: kept ones, copies, and dirt."""
    rng = random.Random(seed)
    kept = [*prose.encyclopedia(sources.articles), *prose.biographies(sources.people, rng)]
    kept += [*countries.pages(sources.countries, rng), *elements.pages(sources.elements, rng)]
    kept += [
        *stories.pages(round(STORIES * scale), rng),
        *schoolbook.readings(round(READINGS * scale), rng),
        *schoolbook.people_readings(rng.sample(sources.people, round(len(sources.people) * PEOPLE_SHARE)), rng),
        *schoolbook.letters(round(LETTERS * scale), rng),
        *schoolbook.lists(round(LISTS * scale), rng),
        *lessons.everyday(round(EVERYDAY * scale), rng),
        *lessons.spelling(round(SPELLING * scale), rng),
        *lessons.counting(round(COUNTING * scale), rng),
    ]
    pages = kept + dirt.pages(kept, sources, rng, scale)
    rng.shuffle(pages)
    urls = Counter(page.url for page in pages)
    assert len(urls) == len(pages), f"two pages share a URL: {urls.most_common(1)}"
    return pages


def write_warcs(pages: list[Page], folder: Path, seed: int) -> dict[str, int]:
    """Write FILES WARC files of response records; returns the number of pages in each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed + 1)
    counts = {}
    progress = tqdm(total=len(pages), desc="web", unit="page", leave=False)
    for index in range(FILES):
        part = pages[index::FILES]
        final = folder / f"{index:05d}.warc.gz"
        temporary = final.with_name(f".{final.name}.tmp")
        with open(temporary, "wb") as handle:
            writer = WARCWriter(handle, gzip=True)
            for number, page in enumerate(part):
                related = [(other.url, other.title) for other in rng.sample(part, min(4, len(part)))]
                second = f"{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}"
                headers = {
                    "WARC-Date": f"2026-01-{index + 1:02d}T{second}Z",
                    "WARC-Record-ID": f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, page.url)}>",
                    "WARC-Identified-Payload-Type": "text/html",
                }
                http = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1")
                body = BytesIO(render(page, rng, related))
                record = writer.create_warc_record(
                    page.url, "response", payload=body, http_headers=http, warc_headers_dict=headers
                )
                writer.write_record(record)
                progress.update()
        temporary.replace(final)
        counts[final.name] = len(part)
    progress.close()
    return counts
