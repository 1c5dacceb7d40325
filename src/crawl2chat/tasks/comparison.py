"""Which number is larger: 9.11 or 9.9, in all orders and sizes."""

import random
import re
import zlib
from collections.abc import Iterator
from decimal import Decimal

from crawl2chat.tasks.apples import HEDGES, spoken

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
MANNERS = {
    "steps": {"train": [""], "test": [""]},
    "direct": {
        "train": [" Answer at once.", " Only the number.", " Say the number at once."],
        "test": [" Answer with the number at once."],
    },
    "python": {
        "train": [" Use Python.", " Use code.", " Compare with Python."],
        "test": [" Work it out with Python."],
    },
}  # fmt: skip
TALK = [("9.11", "9.9"), ("9.9", "9.11")]  # the test begins with them


def compare(a: str, b: str) -> str:
    """Pad to the same number of decimals, then compare: the step that 9.11 against 9.9 needs."""
    larger = max(a, b, key=Decimal)
    width = max(len(x.partition(".")[2]) for x in (a, b))
    padded = [f"{Decimal(x):.{width}f}" for x in (a, b)]
    return f"{a} is {padded[0]} and {b} is {padded[1]}. The larger is {larger}."


def split_of(a: str, b: str) -> str:
    """One pair in five is held out, whichever way round and with whatever signs."""
    sizes = sorted(x.lstrip("-") for x in (a, b))
    return "test" if tuple(sizes) in TALK or zlib.crc32(" ".join(sizes).encode()) % 5 == 0 else "train"


def pair(rng: random.Random) -> tuple[str, str]:
    """Two numbers, most with the same whole part: no, one, two or three decimals, now and then a minus."""

    def decimals() -> str:
        return f".{rng.randint(0, 99):02}"[: rng.randint(1, 3)] + str(rng.randint(1, 9))

    whole = rng.randint(1, 99)
    kind = rng.random()
    other = whole if kind < 0.65 else rng.randint(1, 99 if kind < 0.85 else 9999)
    a, b = (f"{n}{decimals() if kind < 0.85 and rng.random() < 0.9 else ''}" for n in (whole, other))
    minus = rng.random()
    return ("-" + a if minus < 0.1 else a), ("-" + b if minus < 0.05 or 0.95 < minus else b)


def examples(split: str, count: int = 500, seed: int = 0, manner: str = "steps") -> Iterator[dict]:
    """Manner: direct, steps or python, of the same pairs."""
    if manner not in MANNERS:
        raise ValueError(f"comparison: manner is one of {', '.join(MANNERS)}, not {manner}")
    rng, ending = random.Random(f"comparison {split} {seed}"), random.Random(f"comparison {manner} {seed}")
    talk = list(TALK) if split == "test" else []
    done = 0
    while done < count:
        a, b = talk.pop(0) if talk else pair(rng)
        if Decimal(a) == Decimal(b) or split_of(a, b) != split:
            continue
        question = rng.choice(WORDINGS[split]).format(a=a, b=b) + ending.choice(MANNERS[manner][split])
        answer = max(a, b, key=Decimal)
        solution = {"direct": f"{answer}.", "steps": compare(a, b), "python": f"The larger is {answer}."}[manner]
        example = {"prompt": [{"role": "user", "content": question}], "answer": answer, "solution": solution}
        if manner == "python":
            example["calls"] = [{"name": "python", "arguments": {"code": f"max({a}, {b})"}}]
        yield example
        done += 1


def grade(completion: str, answer: str) -> float:
    """1 where the only number after "larger is" (or the only number named) is the answer, and nothing is hedged."""
    stated = re.split(r"(?:larger|greater|bigger)(?: number| one)? is", spoken(completion), maxsplit=1)[-1]
    stated = re.sub(r"(is (?:larger|greater|bigger)) than -?[0-9.]+", r"\1", stated, count=1)
    words = [word.strip(".,;:!\"'`*()[]") for word in re.split(r"[\s:={}\\]+", stated)]
    numbers = {word for word in words if re.search("[0-9]", word)}
    hedged = set(re.findall(r"[a-z']+", stated.lower())) & set(HEDGES)
    return float(numbers == {answer} and not hedged and "?" not in completion)
