"""The funnel as evidence: what each step kept, why it dropped, and how right that was where the answer is known."""

import gzip
import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
from datatrove.utils.stats import PipelineStats

from crawl2chat.stage import fail

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
    """The whole funnel: documents read = kept + rejected + damaged."""

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
        return "\n".join(lines)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def make_funnel(stats: PipelineStats, work: Path, records: int | None, cut: int, labels: list[dict]) -> Funnel:
    """Count a run's outputs under `work` (shards/, rejected/) and hold them against what was read.

    records: response records in the files, counted without the reader, or None for rows of a dataset. cut: those of
    them that are damaged and no reader saw. Stops with one line if a single document is unaccounted for.
    """
    fates, reasons = defaultdict(list), defaultdict(Counter)
    for file in sorted((work / "rejected").glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                reasons[row["step"]][row["reason"]] += 1
                if labels:
                    fates[row["url"]].append(row["step"])
    planted = [string for label in labels for string in label["pii"]]
    sources, size, pii_left = Counter(), 0, 0
    for file in sorted((work / "shards").glob("*/*.parquet")):
        table = pq.read_table(file, columns=["text", "url"]).to_pydict()
        sources[file.parent.name] += len(table["text"])
        everything = "\n".join(table["text"])
        size += len(everything.encode()) - len(table["text"]) + 1
        pii_left += sum(string in everything for string in planted)
        if labels:
            for url in table["url"]:
                fates[url].append("kept")
    kept, rejected = sum(sources.values()), sum(sum(counts.values()) for counts in reasons.values())
    seen, damaged = (int(stat_total(stats, name)) for name in ("records", "damaged"))
    records = seen + cut if records is None else records
    damaged += cut
    if kept + rejected + damaged != records:
        fail(
            f"{work}: {kept:,} kept + {rejected:,} rejected + {damaged:,} damaged is not {records:,} records read; "
            "nothing was written; please report the file"
        )
    funnel = Funnel(
        records, kept, rejected, damaged, size, dict(sorted(sources.items())), steps_of(stats, reasons, records)
    )
    if labels:
        funnel.pii_left = pii_left
        judge(funnel, labels, fates)
    return funnel


def stat_total(stats: PipelineStats, name: str) -> float:
    return sum(step.stats[name].total for step in stats.stats if name in step.stats)


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
