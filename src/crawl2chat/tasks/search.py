"""Things that only the pages say: look them up with search, then answer from the result.

People of the biographies, split by name: the people asked about in the test are in no training conversation.
"""

import random
import re
import zlib
from collections.abc import Iterator, Sequence

from crawl2chat.tasks.facts import grade as grade_fact
from crawl2chat.tasks.facts import read_facts

WORDINGS = {
    "born": {
        "train": [
            "When was {s} born?", "In what year was {s} born?", "What year was {s} born in?",
            "Tell me when {s} was born.", "{s}: born when?", "In which year was {s} born?",
            "What is the year of birth of {s}?", "Do you know the birth year of {s}?",
            "Give me the birth year of {s}.", "I want to know when {s} was born.", "Which year is {s} from?",
            "Find out when {s} was born.", "Can you tell me when {s} was born?", "{s} was born in which year?",
            "When did the life of {s} start?", "Look up when {s} was born.",
        ],
        "test": [
            "Do you know when {s} was born?", "In which year did {s} come into the world?",
            "Please find the year in which {s} was born.",
        ],
    },
    "known_as": {
        "train": [
            "Who was {s}?", "Tell me about {s}.", "What was {s} known as?", "Who is {s}?", "Do you know {s}?",
        ],
        "test": ["What can you tell me about {s}?", "I would like to know who {s} was."],
    },
}  # fmt: skip
QUERIES = {"born": "{s} born", "known_as": "{s}"}


def split_of(subject: str) -> str:
    return "test" if zlib.crc32(subject.encode()) % 6 == 0 else "train"


def examples(
    split: str, facts: str, relations: Sequence[str] = ("born",), count: int = 500, seed: int = 0
) -> Iterator[dict]:
    rng = random.Random(f"search {split} {seed}")
    rows = [row for row in read_facts(facts, relations, min_pages=1) if split_of(row["subject"]) == split]
    rng.shuffle(rows)
    for i in range(count):
        if split == "test" and i >= len(rows):
            return
        row = rows[i % len(rows)]
        question = rng.choice(WORDINGS[row["relation"]][split]).format(s=row["subject"])
        yield {
            "prompt": [{"role": "user", "content": question}],
            "answer": row["answer"],
            "solution": f"{row['answer']}.",
            "calls": [{"name": "search", "arguments": {"query": QUERIES[row["relation"]].format(s=row["subject"])}}],
        }


def grade(completion: str, answer: str) -> float:
    """A year: 1 where it is the only year named. Anything else: as a fact is graded."""
    if re.fullmatch(r"\d{3,4}", answer):
        return float(set(re.findall(r"\d{3,}", completion)) == {answer})
    return grade_fact(completion, answer)
