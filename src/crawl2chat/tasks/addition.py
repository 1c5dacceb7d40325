"""Two numbers added: at once, or digit by digit with carries. The same questions, so the two accuracies compare."""

import random
import zlib
from collections.abc import Iterator

from crawl2chat.tasks.apples import grade as grade

WORDINGS = {
    "train": {
        "direct": [
            "What is {a} + {b}?", "{a} + {b} = ?", "Calculate {a} + {b}.", "Tell me {a} + {b}.",
            "How much is {a} + {b}?", "{a} + {b}", "What is the sum of {a} and {b}?", "Add {a} and {b}.",
            "What do {a} + {b} give?", "Give me {a} + {b}.", "Say what {a} + {b} is.",
        ],
        "steps": [
            "What is {a} + {b}? Think step by step.", "Add {a} + {b} step by step.",
            "Calculate {a} + {b}, step by step.", "Show your steps: {a} + {b}.",
            "How much is {a} + {b}? Work step by step.", "Step by step, what is {a} + {b}?",
            "What is the sum of {a} and {b}? Step by step, please.", "Add {a} and {b}, and show each step.",
            "{a} + {b} = ? Go step by step.", "Work out {a} + {b} in steps.", "Tell me {a} + {b} step by step.",
        ],
    },
    "test": {
        "direct": ["Give me the sum {a} + {b}.", "What does {a} + {b} make?"],
        "steps": ["Give me the sum {a} + {b} step by step.", "What does {a} + {b} make? Think step by step."],
    },
}  # fmt: skip


def steps(a: int, b: int) -> str:
    """The schoolbook way, ones first: every digit sum written out with its carry."""
    lines, carry = [], 0
    width = max(len(str(a)), len(str(b)))
    for x, y in zip(str(a).zfill(width)[::-1], str(b).zfill(width)[::-1], strict=True):
        total = int(x) + int(y) + carry
        with_carry = f" + {carry}" if carry else ""
        lines.append(f"{x} + {y}{with_carry} = {total}, write {total % 10}, carry {total // 10}.")
        carry = total // 10
    return " ".join(lines) + f" The answer is {a + b}."


def split_of(a: int, b: int) -> str:
    """One pair in five is held out, whichever way round it is asked."""
    low, high = sorted((a, b))
    return "test" if zlib.crc32(f"{low}+{high}".encode()) % 5 == 0 else "train"


def examples(split: str, manner: str = "steps", digits: int = 2, count: int = 1000, seed: int = 0) -> Iterator[dict]:
    rng = random.Random(f"addition {split} {seed}")  # the same pairs for both manners
    low, high = 10 ** (digits - 1), 10**digits - 1
    done = 0
    while done < count:
        a, b = rng.randint(low, high), rng.randint(low, high)
        choice = rng.random()
        if split_of(a, b) != split:
            continue
        wordings = WORDINGS[split][manner]
        question = wordings[int(choice * len(wordings))].format(a=a, b=b)
        solution = steps(a, b) if manner == "steps" else f"{a + b}."
        yield {"prompt": [{"role": "user", "content": question}], "answer": str(a + b), "solution": solution}
        done += 1
