"""Countdown: reach a target from given numbers with + - * /, each number used once. The dial: how many, how large.

Many expressions are right, so `answer` is the problem, "24 from 3 5 9", and an answer is worked out, never compared.
"""

import ast
import random
import re
import zlib
from collections.abc import Iterator
from fractions import Fraction

from crawl2chat.verifier import plain, stated

WORDINGS = {
    "train": [
        "Use {numbers} to make {target}. Use each number once.", "Make {target} from {numbers}, each used once.",
        "Reach {target} with {numbers}: every number once, with + - * /.",
        "How can you get {target} from the numbers {numbers}?", "Combine {numbers} to get {target}.",
        "Countdown: numbers {numbers}, target {target}.",
    ],
    "test": ["Find a way from {numbers} to {target}, each number once.", "With {numbers}, how do you reach {target}?"],
}  # fmt: skip
LONGEST = 200  # characters of an expression
LARGEST_TARGET = 1000


def split_of(target: int, numbers: list[int]) -> str:
    """One problem in five is held out, in every wording and order."""
    key = f"{target} from {' '.join(map(str, sorted(numbers)))}"
    return "test" if zlib.crc32(key.encode()) % 5 == 0 else "train"


def problem(count: int, largest: int, rng: random.Random) -> tuple[list[int], str, list[str]]:
    """Numbers, an expression of them whose steps are all whole and not negative, and the steps in order."""
    while True:
        numbers = [rng.randint(1, largest) for _ in range(count)]
        parts, steps = [(n, str(n)) for n in numbers], []
        while len(parts) > 1:
            rng.shuffle(parts)
            (a, left), (b, right) = parts.pop(), parts.pop()
            sign = rng.choice("+-*/")
            if sign == "-" and a < b or sign == "/" and (b == 0 or a % b):
                sign = "+"
            value = {"+": a + b, "-": a - b, "*": a * b, "/": a // max(b, 1)}[sign]
            steps.append(f"{a}{sign}{b}={value}.")
            parts.append((value, f"({left}{sign}{right})"))
        if 0 < parts[0][0] <= LARGEST_TARGET and parts[0][0] not in numbers:
            return numbers, parts[0][1][1:-1], steps


def examples(split: str, numbers: int = 3, largest: int = 9, count: int = 500, seed: int = 0) -> Iterator[dict]:
    """Problems of `numbers` (2 to 6) numbers from 1 to `largest`. Raises ValueError for others."""
    if not 2 <= numbers <= 6 or not 9 <= largest <= 100:
        raise ValueError(f"countdown: numbers is from 2 to 6 and largest from 9 to 100, not {numbers} and {largest}")
    rng, done = random.Random(f"countdown {split} {seed}"), 0
    while done < count:
        given, expression, steps = problem(numbers, largest, rng)
        target = int(value(expression)[0])
        if split_of(target, given) != split:
            continue
        wording = rng.choice(WORDINGS[split])
        content = wording.format(numbers=", ".join(map(str, given)), target=target)
        yield {
            "prompt": [{"role": "user", "content": content}],
            "answer": f"{target} from {' '.join(map(str, sorted(given)))}",
            "solution": f"{' '.join(steps)} The answer is {expression}.",
        }
        done += 1


def value(expression: str) -> tuple[Fraction, list[int]] | None:
    """What an expression of whole numbers, + - * / and parentheses comes to, and its numbers; None for all else."""
    if (
        len(expression) > LONGEST
        or not re.fullmatch(r"[0-9+\-*/() ]+", expression)
        or re.search(r"\*\*|//", expression)
    ):
        return None
    used: list[int] = []

    def work(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            used.append(node.value)
            return Fraction(node.value)
        if not isinstance(node, ast.BinOp):
            raise ValueError
        a, b = work(node.left), work(node.right)
        if isinstance(node.op, ast.Add):
            return a + b
        if isinstance(node.op, ast.Sub):
            return a - b
        return a * b if isinstance(node.op, ast.Mult) else a / b

    try:
        return work(ast.parse(expression.strip(), mode="eval").body), used
    except (ValueError, SyntaxError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def grade(completion: str, answer: str) -> float:
    """1 where the expression in the answer's place uses every number once and comes to the target ("= 24" may follow);
    every expression that stands in such a place must.
    """
    target, _, given = answer.partition(" from ")
    said = stated(completion)
    return float(bool(said) and all(_reaches(text, int(target), sorted(map(int, given.split()))) for text in said))


def _reaches(text: str, target: int, given: list[int]) -> bool:
    text = plain(text).replace("\\times", "*").replace("\\cdot", "*").replace("\\div", "/").replace("\u00d7", "*")
    expression, equals, result = text.replace("\u00f7", "/").partition("=")
    found = value(expression)
    return (
        found is not None
        and (found[0], sorted(found[1])) == (target, given)
        and (not equals or result.strip() == str(target))
    )
