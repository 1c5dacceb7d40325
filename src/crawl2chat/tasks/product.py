"""Products of three-digit numbers: too much for a small head, so the worked answer uses Python."""

import random
import re
import zlib
from collections.abc import Iterator

from crawl2chat.tasks.apples import HEDGES, spoken

WORDINGS = {
    "train": [
        "What is {a} times {b}?", "What is {a} * {b}?", "Multiply {a} by {b}.", "Calculate {a} times {b}.",
        "How much is {a} multiplied by {b}?", "Use Python: {a} * {b}.", "{a} x {b} = ?", "{a} * {b}",
        "Work out {a} * {b}.", "Find {a} times {b}.", "What is the product of {a} and {b}?",
        "Can you multiply {a} by {b}?", "If you multiply {a} with {b}, what is the result?",
        "I need {a} times {b}.", "Please compute {a} x {b}.",
    ],
    "test": ["Tell me the product of {a} and {b}.", "What do you get when you multiply {a} by {b}?"],
}  # fmt: skip


def split_of(a: int, b: int) -> str:
    low, high = sorted((a, b))
    return "test" if zlib.crc32(f"{low}*{high}".encode()) % 10 == 0 else "train"


def examples(split: str, digits: int = 3, count: int = 500, seed: int = 0) -> Iterator[dict]:
    rng = random.Random(f"product {split} {seed}")
    low, high = 10 ** (digits - 1), 10**digits - 1
    done = 0
    while done < count:
        a, b = rng.randint(low, high), rng.randint(low, high)
        if split_of(a, b) != split:
            continue
        question = rng.choice(WORDINGS[split]).format(a=a, b=b)
        yield {
            "prompt": [{"role": "user", "content": question}],
            "answer": str(a * b),
            "solution": f"The answer is {a * b}.",
            "calls": [{"name": "python", "arguments": {"code": f"{a} * {b}"}}],
        }
        done += 1


def grade(completion: str, answer: str) -> float:
    """1 where the reply states one result, unhedged, and it is right; digit groups may be set apart by commas."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", spoken(completion))
    stated = re.findall(r"\d+", re.split(r"answer is|=|\bis\b", text, maxsplit=1)[-1])
    hedged = set(re.findall(r"[a-z']+", text.lower())) & set(HEDGES)
    return float(len(set(stated)) == 1 and stated[0] == answer and not hedged and "?" not in text)
