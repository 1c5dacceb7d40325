"""Passages that stand in the corpus a known number of times, so that recall can be held against repetition.

A passage is a paragraph that is taken out of its page before the shards are counted, and written a number of times to
a source of its own: MinHash would drop the copies, so they come after it, as the drills do. Passages of level 0 are
written nowhere: text of the same kind that no model has read.
"""

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ahocorasick
import pyarrow as pa
import pyarrow.parquet as pq

from crawl2chat.stage import fail, write_text

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
CANDIDATES = 4  # paragraphs looked at for each one that is wanted


@dataclass
class Recital:
    """Which passages are repeated, and how often."""

    source: str = field(metadata={"help": "the source whose pages give the passages"})
    times: list[int] = field(
        default_factory=lambda: [1, 4, 16, 64], metadata={"help": "how often a passage stands in the corpus"}
    )
    passages: int = field(default=8, metadata={"help": "passages for each of `times`, and for none", "ge": 1})
    shortest: int = field(default=250, metadata={"help": "characters of a passage at least", "ge": 1})
    longest: int = field(default=500, metadata={"help": "characters of a passage at most", "ge": 1})


def reserve(shards: Path, recital: Recital) -> list[dict]:
    """Take passages out of the first shard of `shards`/<source>, and return them: {"id", "text", "times"}.

    The pages stay, each without its passage. A paragraph of which a sentence stands anywhere else in the shards is
    passed over, so that the counts are exact. Stops with one line where too few are left.
    """
    files = sorted((shards / recital.source).glob("*.parquet"))
    if not files:
        fail(f"recital: no page belongs to the source {recital.source!r}; name one of `sources`")
    table = pq.read_table(files[0])
    texts = table["text"].to_pylist()
    levels = [0, *recital.times]
    wanted = recital.passages * len(levels)
    candidates = list(paragraphs(table["id"].to_pylist(), texts, recital, CANDIDATES * wanted))
    twice = repeated_sentences(shards, [s for _, text in candidates for s in sentences(text)]) if candidates else set()
    alone = [(row, text) for row, text in candidates if not twice.intersection(sentences(text))]
    if len(alone) < wanted:
        fail(
            f"recital: {len(alone)} paragraphs of {recital.source} have {recital.shortest} to {recital.longest} "
            f"characters and stand nowhere else, {wanted} are wanted; ask for fewer, or for other lengths"
        )
    passages = []
    for number, (row, text) in enumerate(alone[:wanted]):
        texts[row] = "\n".join(line for line in texts[row].split("\n") if line != text)
        passages.append({"id": table["id"][row].as_py(), "text": text, "times": levels[number % len(levels)]})
    column = table.column_names.index("text")
    temporary = files[0].with_name(f".{files[0].name}.tmp")
    pq.write_table(table.set_column(column, "text", pa.array(texts, pa.string())), temporary)
    temporary.replace(files[0])
    print(
        f"recital: {wanted} passages taken out of pages of {recital.source}; "
        f"{len(candidates) - len(alone)} of {len(candidates)} paragraphs stand elsewhere too and were passed over"
    )
    return passages


def paragraphs(ids: list[str], texts: list[str], recital: Recital, most: int) -> Iterator[tuple[int, str]]:
    """(row, paragraph) of at most `most` pages in the order of their ids' hashes: the first that is made of sentences,
    is of the right length, is no more than half of its page and is not the title.
    """
    found = 0
    for row in sorted(range(len(ids)), key=lambda row: zlib.crc32(ids[row].encode())):
        for text in texts[row].split("\n")[1:]:
            length = len(text)
            if recital.shortest <= length <= recital.longest and 2 * length <= len(texts[row]) and text[-1] in ".!?":
                yield row, text
                found += 1
                break
        if found == most:
            return


def sentences(text: str) -> list[str]:
    return SENTENCE_END.split(text)


def repeated_sentences(shards: Path, wanted: list[str]) -> set[str]:
    """Those of the sentences that stand more than once in all shards together; one pass, in the memory of a batch."""
    automaton = ahocorasick.Automaton()
    for sentence in wanted:
        automaton.add_word(sentence, sentence)
    automaton.make_automaton()
    seen, twice = set(), set()
    for file in sorted(shards.glob("*/*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024, columns=["text"]):
            for _, sentence in automaton.iter("\n".join(batch["text"].to_pylist())):
                (twice if sentence in seen else seen).add(sentence)
    return twice


def copies(passages: list[dict]) -> Iterator[dict]:
    """A row {"text", "id", "source"} for every time that a passage stands in the corpus.

    A copy's id is the page's with a number. Pretraining holds documents out by the lower part of their ids' CRC-32, so
    only numbers with an upper one are used: no copy is ever held out.
    """
    for passage in passages:
        number = 0
        for _ in range(passage["times"]):
            while zlib.crc32(f"{passage['id']}/{number}".encode()) < 2**31:
                number += 1
            yield {"text": passage["text"], "id": f"{passage['id']}/{number}", "source": "recital"}
            number += 1


def write_passages(path: Path, passages: list[dict]) -> None:
    """recital.jsonl: a row {"id", "text", "times"} for every passage, those of level 0 too."""
    write_text(path, "".join(json.dumps(passage, ensure_ascii=False) + "\n" for passage in passages))
