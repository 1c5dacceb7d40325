"""Decontamination: pages that share 13 words in a row with a benchmark's question go, counted for each benchmark.

A benchmark is a folder of test.jsonl (as our stages write), a file of rows, or a set on the hub; a row's question is
all the text in it. Words are those of crawl2chat.cleaning: capitals and punctuation do not count, digits do.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.filters.base_filter import BaseFilter

from crawl2chat.cleaning import grams, words
from crawl2chat.data.config import Decontamination
from crawl2chat.data.filters import Safe, Verdict
from crawl2chat.data.steps import Rejected
from crawl2chat.stage import fail, write_text

SUFFIXES = (".jsonl", ".parquet")
NO_QUESTION = {"id", "url", "task", "role", "name", "split", "source", "category"}  # keys whose text asks nothing


@dataclass
class Contamination:
    """A benchmark: its questions, those too short to be found, pages that went for it, questions that stood in one."""

    questions: int
    too_short: int
    pages: int = 0
    found: int = 0


class Decontaminate(Safe, BaseFilter):
    """Reject a page that holds one of the grams in `index`; note which questions were met in met/<rank>.json."""

    type, name = "🔻 - FILTER", "Decontamination"

    def __init__(self, index: Path, length: int, exclusion_writer: Rejected | None):
        super().__init__(exclusion_writer)
        self.index, self.length, self.names, self.met = index, length, None, Counter()

    def load(self) -> None:
        held = np.load(self.index / "index.npz")
        self.grams, self.questions, self.benchmarks = (held[name] for name in ("grams", "questions", "benchmarks"))
        self.names = json.loads((self.index / "names.json").read_text(encoding="utf-8"))

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        self.load()
        yield from super().run(data, rank, world_size)
        met = [[*place, count] for place, count in sorted(self.met.items())]
        write_text(self.index / "met" / f"{rank:05d}.json", json.dumps(met))

    def filter(self, doc: Document) -> Verdict:
        own = np.unique(grams(words(doc.text), self.length))
        first, last = np.searchsorted(self.grams, own), np.searchsorted(self.grams, own, side="right")
        first, last = first[last > first], last[last > first]
        if not len(first):
            return True
        rows = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
        met = set(zip(self.benchmarks[rows].tolist(), self.questions[rows].tolist(), strict=True))
        self.met.update(met)
        names = sorted({self.names[benchmark] for benchmark, _ in met})
        return False, "contaminated_" + "+".join(names)


def build_index(recipe: Decontamination, folder: Path) -> dict[str, Contamination]:
    """Write the grams of all questions to `folder`; returns what each benchmark holds. Stops where one is empty."""
    told, columns = {}, ([], [], [])
    for number, (name, where) in enumerate(recipe.benchmarks.items()):
        told[name] = Contamination(0, 0)
        for question, text in enumerate(read_questions(where, recipe.split)):
            found = np.unique(grams(words(text), recipe.n_grams))
            told[name].questions += 1
            told[name].too_short += not len(found)
            for column, values in zip(columns, (found, question, number), strict=True):
                column.append(np.broadcast_to(np.asarray(values), found.shape))
        if not told[name].questions:
            fail(f"decontamination.benchmarks.{name}: {where} holds no questions")
    if not columns[0]:
        fail("decontamination: no benchmarks; name at least one, or leave the block out")
    all_grams, questions, benchmarks = map(np.concatenate, columns)
    order = np.argsort(all_grams, kind="stable")
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {"grams": np.uint64, "questions": np.uint32, "benchmarks": np.uint16}
    values = zip(kinds.items(), (all_grams, questions, benchmarks), strict=True)
    np.savez(folder / "index.npz", **{name: column[order].astype(kind) for (name, kind), column in values})
    write_text(folder / "names.json", json.dumps(list(recipe.benchmarks)))
    return told


def read_questions(where: str, split: str) -> Iterator[str]:
    """The text of every row: of a folder, of its test.jsonl files (else of all its shards)."""
    from datasets import load_dataset

    path = Path(where)
    if path.exists():
        files = [path] if path.is_file() else sorted(path.rglob("test.jsonl"))
        files = files or sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
        if not files:
            fail(f"decontamination: {where} holds no test.jsonl and no {', '.join(SUFFIXES)} files")
        for file in files:
            yield from map(question_of, rows_of(file))
        return
    name, _, configuration = where.partition(":")
    try:
        rows = load_dataset(name, configuration or None, split=split, streaming=True)
        yield from map(question_of, rows)
    except (OSError, ValueError) as error:
        fail(f"decontamination: {where} cannot be read ({type(error).__name__}: {error}); name a file or a hub set")


def rows_of(file: Path) -> Iterable[dict]:
    if file.stat().st_size == 0:  # a task of which nothing is held out
        return []
    if file.suffix == ".parquet":
        return (row for batch in pq.ParquetFile(file).iter_batches() for row in batch.to_pylist())
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        fail(f"decontamination: {file}: not rows of JSON ({error})")


def question_of(value: object) -> str:
    """All text below a row, in its order: prompts, choices, turns of a conversation, answers."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "\n".join(filter(None, (question_of(v) for k, v in value.items() if k not in NO_QUESTION)))
    if isinstance(value, list | tuple):
        return "\n".join(filter(None, map(question_of, value)))
    return ""


def contamination(told: dict[str, Contamination], index: Path, reasons: Counter[str]) -> dict[str, dict]:
    """{benchmark: its counts}, with the pages that went (from their reasons) and the questions that stood in them."""
    names = list(told)
    met = {tuple(place[:2]) for file in (index / "met").glob("*.json") for place in json.loads(file.read_text())}
    for benchmark, _ in met:
        told[names[benchmark]].found += 1
    for reason, pages in reasons.items():
        for name in reason.removeprefix("contaminated_").split("+"):
            if name in told:
                told[name].pages += pages
    return {name: asdict(counts) for name, counts in told.items()}
