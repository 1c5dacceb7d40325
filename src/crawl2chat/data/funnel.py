"""The funnel as evidence: what each step kept, why it dropped, and how right that was where the answer is known."""

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import PipelineStats

from crawl2chat.data.dedup import Duplicates
from crawl2chat.data.evidence import Evidence
from crawl2chat.stage import fail, write_text

LABEL_KEYS = {"url", "keep", "filter", "pii", "cluster"}


@dataclass
class Step:
    """One step: documents in and out, UTF-8 bytes out, share of all documents read, seconds over all workers, reasons.

    precision: of the labelled pages it dropped, those that should be dropped somewhere. recall: of the pages that
    reached it and are labelled for it, those it dropped. None where there is nothing to count.
    """

    step: str
    documents_in: int
    documents: int
    bytes: int
    share: float
    seconds: float
    reasons: dict[str, int] = field(default_factory=dict)
    precision: float | None = None
    recall: float | None = None


@dataclass
class Funnel:
    """The whole funnel: documents read = kept + rejected + damaged.

    emails, ips: addresses masked. duplicates: None without MinHash. contamination: {benchmark: its counts}.
    languages: {language: pages that the language filter took it for}.
    """

    read: int
    kept: int
    rejected: int
    damaged: int
    bytes_kept: int
    sources: dict[str, int]
    steps: list[Step]
    precision: float | None = None
    recall: float | None = None
    pii_left: int | None = None
    emails: int = 0
    ips: int = 0
    duplicates: Duplicates | None = None
    contamination: dict[str, dict] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Flat numbers for metrics.json; what could not be measured is left out."""
        numbers = {
            "documents_read": self.read,
            "documents_kept": self.kept,
            "documents_rejected": self.rejected,
            "documents_damaged": self.damaged,
            "bytes_kept": self.bytes_kept,
            "precision": self.precision,
            "recall": self.recall,
            "pii_left": self.pii_left,
        }
        numbers |= {"emails_masked": self.emails, "ips_masked": self.ips}
        if self.duplicates:
            found = vars(self.duplicates)
            names = ("clusters", "largest", "removed", "missed_by_exact", "memory_gb")
            numbers |= {f"duplicates/{name}": found[name] for name in names}
        for name, counts in self.contamination.items():
            numbers |= {f"contamination/{name}/{key}": count for key, count in counts.items()}
        numbers |= {f"kept/{source}": count for source, count in self.sources.items()}
        for step in self.steps:
            numbers |= {f"filter/{step.step}/precision": step.precision, f"filter/{step.step}/recall": step.recall}
        return {name: round(number, 6) for name, number in numbers.items() if number is not None}

    def table(self) -> str:
        """The funnel as lines of text."""
        lines = [f"{'step':<18}{'documents':>10}{'kept':>8}{'MB':>8}{'seconds':>9}{'precision':>11}{'recall':>8}  why"]
        for step in self.steps:
            start = (
                f"{step.step:<18}{step.documents:>10,}{step.share:>8.1%}{step.bytes / 1e6:>8.1f}{step.seconds:>9.1f}"
            )
            why = ", ".join(f"{reason} {count:,}" for reason, count in Counter(step.reasons).most_common(3))
            right = [f"{number:.3f}" if number is not None else "-" for number in (step.precision, step.recall)]
            lines.append(f"{start}{right[0]:>11}{right[1]:>8}  {why}")
        lines.append(
            f"read {self.read:,} = kept {self.kept:,} + rejected {self.rejected:,} + damaged {self.damaged:,}"
        )
        if self.duplicates:
            lines.append(self.duplicates.line())
        for name, found in self.contamination.items():
            lines.append(
                f"decontamination: {name}: {found['pages']:,} pages held {found['found']:,} of {found['questions']:,} "
                f"questions ({found['too_short']:,} are too short to tell)"
            )
        if "pii" in [step.step for step in self.steps]:
            lines.append(f"pii: {self.emails:,} e-mail addresses and {self.ips:,} IP addresses masked")
        return "\n".join(lines)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


class Recount(PipelineStep):
    """Count what a rank wrote by reading it back: kept pages and bytes of each source, rejected ones of each reason.

    Writes `work`/recount/<rank>.json: {"kept": {source: [pages, bytes]}, "rejected": {step: {reason: pages}},
    "evidence": see evidence.Evidence}.
    """

    type, name = "recount", "Outputs, read back"

    def __init__(self, work: Path):
        super().__init__()
        self.work = work

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        reasons: dict[str, Counter] = defaultdict(Counter)
        evidence = Evidence()
        for file in sorted((self.work / "rejected").glob(f"*-{rank:05d}.jsonl.gz")):
            for row in read_rejected(file):
                reasons[row["step"]][row["reason"]] += 1
                evidence.reject(row)
        kept = {}
        for file in sorted((self.work / "shards").glob(f"*/{rank:05d}.parquet")):
            shard, total = pq.ParquetFile(file), 0
            for batch in shard.iter_batches(1024, columns=["text", "language"]):
                for text, language in zip(batch["text"].to_pylist(), batch["language"].to_pylist(), strict=True):
                    length = len(text.encode())
                    total += length
                    evidence.keep(length, language)
            kept[file.parent.name] = [shard.metadata.num_rows, total]
        found = {"kept": kept, "rejected": reasons, "evidence": evidence.to_json()}
        write_text(self.work / "recount" / f"{rank:05d}.json", json.dumps(found))


def read_rejected(file: Path) -> Iterator[dict]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def make_funnel(stats: PipelineStats, work: Path, records: int | None, cut: int, labels: list[dict]) -> Funnel:
    """Hold what a run wrote under `work`, as Recount read it back, against what was read.

    records: response records in the files (or rows), counted without the reader; None where the reader's own count
    must do. cut: those of them that are damaged and no reader saw. Stops with one line if a single document is
    unaccounted for.
    """
    sources, reasons, size = Counter(), defaultdict(Counter), 0
    for file in sorted((work / "recount").glob("*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        for source, (pages, length) in found["kept"].items():
            sources[source] += pages
            size += length
        for step, counts in found["rejected"].items():
            reasons[step].update(counts)
    kept, rejected = sum(sources.values()), sum(sum(counts.values()) for counts in reasons.values())
    seen, damaged = (int(stat_total(stats, name)) for name in ("records", "damaged"))
    counted = int(stat_total(stats, "counted"))  # by the tasks of a crawl, of each file that they fetched
    cut += int(stat_total(stats, "cut"))
    records = records if records is not None else counted or seen + cut
    damaged += cut
    if kept + rejected + damaged != records:
        fail(
            f"{work}: {kept:,} kept + {rejected:,} rejected + {damaged:,} damaged is not {records:,} records read; "
            "nothing was written; please report the file"
        )
    funnel = Funnel(
        records, kept, rejected, damaged, size, dict(sorted(sources.items())), steps_of(stats, reasons, records)
    )
    funnel.languages = languages_of(stats)
    funnel.emails, funnel.ips = (int(stat_total(stats, name)) for name in ("emails", "ips"))
    if labels:
        judge_outputs(funnel, work, labels)
    return funnel


def judge_outputs(funnel: Funnel, work: Path, labels: list[dict]) -> None:
    """Find each labelled page's fate, and planted addresses that are still there; then judge."""
    fates: dict[str, list[str]] = defaultdict(list)
    for file in sorted((work / "rejected").glob("*.jsonl.gz")):
        for row in read_rejected(file):
            fates[row["url"]].append(row["step"])
    planted, funnel.pii_left = [string for label in labels for string in label["pii"]], 0
    for file in sorted((work / "shards").glob("*/*.parquet")):
        table = pq.read_table(file, columns=["text", "url"]).to_pydict()
        everything = "\n".join(table["text"])
        funnel.pii_left += sum(string in everything for string in planted)
        for url in table["url"]:
            fates[url].append("kept")
    judge(funnel, labels, fates)


def stat_total(stats: PipelineStats, name: str) -> float:
    return sum(step.stats[name].total for step in stats.stats if name in step.stats)


def languages_of(stats: PipelineStats) -> dict[str, int]:
    """What the language filter took pages for, the most frequent first."""
    found: Counter[str] = Counter()
    for step in stats.stats:
        names = [name for name in step.stats if name.startswith("language_")]
        found.update({name.removeprefix("language_"): int(step.stats[name].total) for name in names})
    return dict(found.most_common())


def steps_of(stats: PipelineStats, reasons: dict[str, Counter], records: int) -> list[Step]:
    """The tallies of the passes as rows; the step that a tally counts stands before it."""
    rows, before = [], records
    for previous, tally in zip([None, *stats.stats], stats.stats, strict=False):
        if not tally.name.startswith("tally: "):
            continue
        name = tally.name.removeprefix("tally: ")
        passed = int(tally.stats["documents"].total)
        rows.append(
            Step(
                name,
                before,
                passed,
                int(tally.stats["bytes"].total),
                passed / max(records, 1),
                round(previous.time_stats.total, 2),
                dict(reasons.get(name, {})),
            )
        )
        before = passed
    return rows


def read_labels(path: Path) -> list[dict]:
    """labels.jsonl: {"url", "keep", "filter" (the step to drop it), "pii" (planted strings), "cluster"} a page."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        fail(f"{path}: labels cannot be read ({error}); build the web again, or leave `labels` out of the recipe")
    for number, row in enumerate(rows, 1):
        if not LABEL_KEYS <= row.keys():
            fail(f"{path}:{number}: label lacks {', '.join(sorted(LABEL_KEYS - row.keys()))}")
    return rows


def judge(funnel: Funnel, labels: list[dict], fates: dict[str, list[str]]) -> None:
    """Fill in precision and recall of the funnel and of each step from labelled pages.

    Of a cluster of copies one page is to be kept, whichever it is: the first kept is right, every further one wrong.
    """
    order = {step.step: position for position, step in enumerate(funnel.steps)}
    known = [(label, fates[label["url"]].pop(0)) for label in labels if fates.get(label["url"])]
    clusters: dict[str, list[str]] = defaultdict(list)
    for label, fate in known:
        if label["cluster"] is not None:
            clusters[label["cluster"]].append(fate)
    single = [(label, fate) for label, fate in known if label["cluster"] is None]

    kept = sum(fate == "kept" for _, fate in known)
    wanted = sum(label["keep"] for label, _ in single) + len(clusters)
    right = sum(label["keep"] and fate == "kept" for label, fate in single) + sum(
        "kept" in copies for copies in clusters.values()
    )
    funnel.precision, funnel.recall = share(right, kept), share(right, wanted)

    for step in funnel.steps:
        dropped = [label for label, fate in known if fate == step.step]
        if step.step == "minhash":
            arrived = {name: sum(fate in ("kept", "minhash") for fate in copies) for name, copies in clusters.items()}
            caught = sum(
                min(copies.count("minhash"), arrived[name] - 1) for name, copies in clusters.items() if arrived[name]
            )
            step.precision = share(caught, len(dropped))
            step.recall = share(caught, sum(max(count - 1, 0) for count in arrived.values()))
            continue
        step.precision = share(sum(not label["keep"] for label in dropped), len(dropped))
        arrived = {"kept", *(later.step for later in funnel.steps[order[step.step] :])}
        reached = [fate for label, fate in known if label["filter"] == step.step and fate in arrived]
        step.recall = share(reached.count(step.step), len(reached))


def share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
