"""What a funnel leaves beside its counts: some rejected pages of every reason, how long pages are, in which languages.

Each rank gathers its own part while it reads back what it wrote, and the parts are added up. The pages shown for a
reason are those whose ids hash lowest: a fair sample, and the same one whatever the number of ranks.
"""

import gzip
import json
import math
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import pyarrow.parquet as pq

SAMPLES = 20  # pages of a reason
HTML = ("read", "url", "extraction")  # what these reject is no text yet, so its length is that of its HTML
BINS = 4  # of lengths, between one power of two and the next
CUT = 300  # characters of a URL that are shown


class Evidence:
    """Gathered from rows of rejected pages and from kept texts.

    rejected: {(step, reason): [(hash, row)], the SAMPLES lowest}. before, kept: {bin: pages} of UTF-8 lengths (see
    `bin_of`), before: of every page that got as far as text. languages: {language: pages kept}.
    """

    def __init__(self):
        self.rejected: dict[tuple[str, str], list[tuple[str, dict]]] = defaultdict(list)
        self.before: Counter[int] = Counter()
        self.kept: Counter[int] = Counter()
        self.languages: Counter[str] = Counter()

    def reject(self, row: dict) -> None:
        """Take in a row of rejected/*.jsonl.gz."""
        name = str(row.get("id") or row.get("url") or "")
        shown = {"url": str(row.get("url") or "")[:CUT], "bytes": row.get("bytes"), "start": row.get("start", "")}
        self.show(
            row["step"], row["reason"], blake2b(name.encode("utf-8", "replace"), digest_size=8).hexdigest(), shown
        )
        if row["step"] not in HTML and row.get("bytes"):
            self.before[bin_of(row["bytes"])] += 1

    def show(self, step: str, reason: str, place: str, shown: dict) -> None:
        """Show this page, unless SAMPLES others of its reason stand before it."""
        chosen = self.rejected[step, reason]
        if len(chosen) < SAMPLES or place < chosen[-1][0]:
            insort(chosen, (place, shown), key=lambda entry: entry[0])
            del chosen[SAMPLES:]

    def keep(self, size: int, language: str | None) -> None:
        """Take in a kept page of `size` bytes."""
        self.before[bin_of(size)] += 1
        self.kept[bin_of(size)] += 1
        self.languages[language or "unknown"] += 1

    def add(self, part: dict) -> None:
        """Add what another Evidence gave as `to_json`."""
        for step, reasons in part["rejected"].items():
            for reason, pages in reasons.items():
                for page in pages:
                    self.show(step, reason, page["place"], {key: page[key] for key in ("url", "bytes", "start")})
        for name in ("before", "kept"):
            getattr(self, name).update({int(number): pages for number, pages in part["lengths"][name].items()})
        self.languages.update(part["languages"])

    def to_json(self) -> dict:
        rejected: dict[str, dict[str, list]] = defaultdict(dict)
        for (step, reason), pages in sorted(self.rejected.items()):
            rejected[step][reason] = [{"place": place, **shown} for place, shown in pages]
        lengths = {name: dict(sorted(getattr(self, name).items())) for name in ("before", "kept")}
        return {"rejected": rejected, "lengths": lengths, "languages": dict(self.languages.most_common())}


def bin_of(size: int) -> int:
    """The number of the bin of a length; `start_of` gives its lower end."""
    return int(BINS * math.log2(max(size, 1)))


def start_of(number: int) -> float:
    return 2 ** (number / BINS)


def gather(rejected: Iterable[Path], shards: Iterable[Path]) -> Evidence:
    """Read back files of rejected pages and shards."""
    evidence = Evidence()
    for file in rejected:
        with gzip.open(file, "rt", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                evidence.reject(json.loads(line))
    for file in shards:
        for batch in pq.ParquetFile(file).iter_batches(1024, columns=["text", "language"]):
            texts, languages = batch["text"].to_pylist(), batch["language"].to_pylist()
            for text, language in zip(texts, languages, strict=True):
                evidence.keep(len(text.encode("utf-8", "replace")), language)
    return evidence


def collect(work: Path) -> dict:
    """The ranks' parts below `work`/recount, added up, for evidence.json."""
    evidence = Evidence()
    for file in sorted((work / "recount").glob("*.json")):
        evidence.add(json.loads(file.read_text(encoding="utf-8"))["evidence"])
    return evidence.to_json()
