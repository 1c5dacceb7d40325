"""Word problems of one sum: so many things, some more or some fewer. Answered at once, step by step, or either.

The family to practise on. Its dial is `digits` (how long the numbers are) and `operations`. With manner "either" the
same wordings are answered sometimes at once and sometimes step by step, and nothing in the question says which: a
model that learns from those rows has both ways, and practice can find out which of them is right more often.
"""

import random
from collections.abc import Iterator, Sequence

from crawl2chat.tasks.addition import split_of
from crawl2chat.tasks.addition import steps as plus
from crawl2chat.tasks.apples import GOODS, PEOPLE, minus, plural
from crawl2chat.verifier import verdict

WORDINGS = {
    "plus": {
        "train": [
            "{who} has {a} {xs} and gets {b} more. How many {xs} does {who} have now?",
            "{who} picks {a} {xs} in the morning and {b} in the evening. How many {xs} is that?",
            "There are {a} {xs} in one box and {b} in another. How many {xs} are there in all?",
            "{who} sells {a} {xs} on Monday and {b} {xs} on Tuesday. How many {xs} are sold?",
            "{who} found {a} {xs}, then {b} {xs} more. How many {xs} were found?",
            "A shop has {a} {xs}. {b} {xs} arrive. How many {xs} has the shop?",
            "{who} counts {a} {xs} here and {b} {xs} there. What is the number of all {xs}?",
            "{who} needs {a} {xs} today and {b} tomorrow. How many {xs} does {who} need?",
        ],
        "test": [
            "{who} had {a} {xs} and bought {b} more. How many {xs} has {who} now?",
            "One shelf holds {a} {xs}, the other {b}. How many {xs} do both hold?",
        ],
    },
    "minus": {
        "train": [
            "{who} has {a} {xs} and gives {b} away. How many {xs} does {who} have left?",
            "There are {a} {xs} in a box. {who} takes {b} out. How many {xs} are left?",
            "A shop has {a} {xs} and sells {b}. How many {xs} has the shop left?",
            "Of {a} {xs} {who} loses {b}. How many {xs} remain?",
            "{who} had {a} {xs}, but {b} are gone. How many {xs} are still there?",
        ],
        "test": [
            "{who} owned {a} {xs} and sold {b} of them. How many {xs} are left?",
            "From {a} {xs} {who} throws {b} away. How many {xs} does {who} still have?",
        ],
    },
}


def shows_work(completion: str) -> bool:
    """Whether a reply computes before it says the answer."""
    return "=" in completion


def examples(
    split: str,
    manner: str = "either",
    digits: int = 2,
    operations: Sequence[str] = ("plus", "minus"),
    at_once: float = 0.7,
    errors: float = 0.0,
    count: int = 1000,
    seed: int = 0,
) -> Iterator[dict]:
    """Manner: direct, steps or either, of the same problems; of either, the share `at_once` is answered so. `errors`:
    the share of solutions with a slip, as of a teacher who errs; answers stay right.

    Raises ValueError for another manner or operation, or numbers without digits.
    """
    if manner not in ("direct", "steps", "either") or not operations or not set(operations) <= set(WORDINGS):
        raise ValueError(f"sums: manner is direct, steps or either, and operations are of {', '.join(WORDINGS)}")
    if digits < 1 or not 0 <= errors <= 1 or not 0 <= at_once <= 1:
        raise ValueError(f"sums: digits is at least 1, errors and at_once 0 to 1: {digits}, {errors} and {at_once}")
    rng, ways = random.Random(f"sums {split} {digits} {seed}"), random.Random(f"sums ways {split} {seed}")
    low, high = 10 ** (digits - 1) if digits > 1 else 2, 10**digits - 1
    done = 0
    while done < count:
        operation = rng.choice(list(operations))
        a, b = rng.randint(low, high), rng.randint(low, high)
        a, b = (max(a, b), min(a, b)) if operation == "minus" else (a, b)
        who, thing, wording = rng.choice(PEOPLE), rng.choice(GOODS), rng.choice(WORDINGS[operation][split])
        if split_of(a, b) != split or operation == "minus" and a == b:
            continue
        direct = manner == "direct" or (manner == "either" and ways.random() < at_once)
        answer = a + b if operation == "plus" else a - b
        said = slip(answer, ways) if errors and ways.random() < errors else answer
        work = plus(a, b) if operation == "plus" else f"{minus(a, b)} The answer is {answer}."
        solution = f"{said}." if direct else f"{work.removesuffix(f'{answer}.')}{said}."
        content = wording.format(who=who, a=a, b=b, xs=plural(thing))
        yield {"prompt": [{"role": "user", "content": content}], "answer": str(answer), "solution": solution}
        done += 1


def slip(answer: int, rng: random.Random) -> int:
    """A wrong answer of the kind people give: one digit off by one, or ten."""
    return max(0, answer + rng.choice([-10, -1, 1, 10])) if answer >= 10 else answer + 1


def grade(completion: str, answer: str) -> float:
    """1 where all that the reply states in an answer's place is the answer; no list, no hedge, no thought."""
    return verdict(completion, answer)
