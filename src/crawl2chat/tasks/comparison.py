"""Which number is larger: 9.11 or 9.9, in all orders and sizes."""

import random
import re
import zlib
from collections.abc import Iterator

WORDINGS = {
    "train": [
        "Which is larger, {a} or {b}?", "Which is bigger: {a} or {b}?",
        "What is the larger number, {a} or {b}?", "Is {a} or {b} larger?",
        "Which number is greater, {a} or {b}?", "{a} or {b}: which is larger?",
        "Which of {a} and {b} is bigger?", "Compare {a} and {b}.", "Tell me which is greater: {a} or {b}.",
        "Find the larger of {a} and {b}.",
    ],
    "test": ["Is {a} or {b} the greater number?", "Of {a} and {b}, which is larger?"],
}  # fmt: skip


def compare(a: str, b: str) -> str:
    """Pad to the same number of decimals, then compare: the step that 9.11 against 9.9 needs."""
    larger = a if float(a) > float(b) else b
    width = max(len(x.partition(".")[2]) for x in (a, b))
    padded = [f"{float(x):.{width}f}" for x in (a, b)]
    return f"{a} is {padded[0]} and {b} is {padded[1]}. The larger is {larger}."


def examples(split: str, count: int = 500, seed: int = 0) -> Iterator[dict]:
    rng = random.Random(f"comparison {split} {seed}")
    done = 0
    if split == "test":
        for a, b in (("9.11", "9.9"), ("9.9", "9.11"))[:count]:
            question = rng.choice(WORDINGS[split]).format(a=a, b=b)
            yield {"prompt": [{"role": "user", "content": question}], "answer": "9.9", "solution": compare(a, b)}
            done += 1
    while done < count:
        whole = rng.randint(1, 99)
        other = whole if rng.random() < 0.7 else rng.randint(1, 99)
        a, b = (f"{n}.{rng.randint(1, 10 ** rng.randint(1, 2) - 1)}" for n in (whole, other))
        held_out = zlib.crc32(" ".join(sorted((a, b))).encode()) % 5 == 0 or {a, b} == {"9.11", "9.9"}
        if float(a) == float(b) or held_out != (split == "test"):
            continue
        question = rng.choice(WORDINGS[split]).format(a=a, b=b)
        answer = a if float(a) > float(b) else b
        yield {"prompt": [{"role": "user", "content": question}], "answer": answer, "solution": compare(a, b)}
        done += 1


def grade(completion: str, answer: str) -> float:
    """1 where the only number after "larger is" (or the only number named) is the answer."""
    stated = re.split(r"(?:larger|greater|bigger)(?: number)? is", completion, maxsplit=1)[-1]
    numbers = re.findall(r"\d+(?:\.\d+)?", stated)
    return float(len(set(numbers)) == 1 and numbers[0] == answer)
