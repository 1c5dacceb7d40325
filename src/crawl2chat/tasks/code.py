"""Write a Python function: a family of generated problems, judged by tests that the candidate never sees.

A test is a call made from outside: the reply's code runs in the sandbox of tools/interpreter.py, the function is
called there with one held-out input at a time, and what comes back is compared here. The expected results never enter
the sandbox, so printing PASS, exiting, or rewriting the tests earns nothing. The dial is `steps`, what the function
must do one after the other.
"""

import functools
import json
import os
import random
import re
import zlib
from collections.abc import Callable, Iterator

from crawl2chat.tools.interpreter import MAX_CODE, open_interpreter
from crawl2chat.verifier import VerifierError

ASK = {
    "train": ["Write a Python function f(numbers) that {does}.", "I need a Python function f(numbers) that {does}.",
              "Define f(numbers) in Python: it {does}.", "In Python, write f(numbers), which {does}."],
    "test": ["Please program a Python function f(numbers) that {does}.", "Give me f(numbers) in Python; it {does}."],
}  # fmt: skip
KEEP = [  # which of the numbers
    ("even ones", "n % 2 == 0"), ("odd ones", "n % 2 == 1"), ("positive ones", "n > 0"), ("negative ones", "n < 0"),
    ("ones divisible by {k}", "n % {k} == 0"), ("ones greater than {k}", "n > {k}"), ("ones below {k}", "n < {k}"),
]  # fmt: skip
CHANGE = [  # what becomes of each
    ("squares each", "n * n"), ("doubles each", "n * 2"), ("adds {k} to each", "n + {k}"),
    ("takes {k} from each", "n - {k}"), ("multiplies each by {k}", "n * {k}"), ("changes the sign of each", "-n"),
    ("takes the size of each", "abs(n)"),
]  # fmt: skip
GIVE = [  # what is returned
    ("returns their sum", "sum(kept)"), ("returns how many they are", "len(kept)"),
    ("returns the largest, or 0 if there is none", "max(kept, default=0)"),
    ("returns the smallest, or 0 if there is none", "min(kept, default=0)"),
    ("returns them sorted", "sorted(kept)"), ("returns them in reverse order", "kept[::-1]"),
    ("returns them without repeats, sorted", "sorted(set(kept))"), ("returns the first {k} of them", "kept[:{k}]"),
]  # fmt: skip
TESTS = 8
SECONDS = 0.25  # of a call
TOO_SLOW = f"TimeoutError: stopped after {SECONDS:g} s"
Call = Callable[[str], str]


def split_of(does: str) -> str:
    """One problem in five is held out, in every wording."""
    return "test" if zlib.crc32(does.encode()) % 5 == 0 else "train"


def problem(steps: int, rng: random.Random) -> tuple[str, str]:
    """What a function does, in words and in Python: `steps` of keeping and changing, then what it returns."""
    words, lines = [], ["    kept = list(numbers)"]
    for step in range(steps):
        k = rng.randint(3, 9)
        if step % 2 == 0:
            which, condition = rng.choice(KEEP)
            words.append(f"keeps the {which}".format(k=k))
            lines.append(f"    kept = [n for n in kept if {condition}]".format(k=k))
        else:
            change, formula = rng.choice(CHANGE)
            words.append(change.format(k=k))
            lines.append(f"    kept = [{formula} for n in kept]".format(k=k))
    give, formula = rng.choice(GIVE)
    k = rng.randint(2, 4)
    words.append(give.format(k=k))
    lines.append(f"    return {formula}".format(k=k))
    return ", ".join(words[:-1]) + f", and {words[-1]}", "\n".join(["def f(numbers):", *lines])


def inputs(rng: random.Random) -> list[list[int]]:
    """Lists of whole numbers to call a function with: an empty one, and one with repeats."""
    drawn = [[rng.randint(-30, 30) for _ in range(rng.randint(3, 12))] for _ in range(TESTS - 2)]
    return [*drawn, drawn[0] + drawn[0][:2], []]


def examples(
    split: str, steps: int = 1, count: int = 500, seed: int = 0, backend: str = "monty", examples_shown: int = 1
) -> Iterator[dict]:
    """Problems of `steps` (1 to 4) steps before the result, with `examples_shown` calls that are not among the tests.

    `backend`: where the replies run, monty or cpython (see tools/interpreter.py). Raises ValueError for other values.
    """
    if not 1 <= steps <= 4 or backend not in ("monty", "cpython"):
        raise ValueError(f"code: steps is from 1 to 4 and backend monty or cpython, not {steps} and {backend}")
    rng, done = random.Random(f"code {split} {seed}"), 0
    while done < count:
        does, source = problem(steps, rng)
        tests, shown = inputs(rng), inputs(rng)[:examples_shown]
        names: dict = {}
        exec(source, names)  # the reference, of this file
        expected = [names["f"](list(numbers)) for numbers in tests]
        if split_of(does) != split or len(set(map(repr, expected))) < TESTS // 2:
            continue
        content = rng.choice(ASK[split]).format(does=does)
        content += "".join(f" For example, f({numbers}) is {names['f'](list(numbers))}." for numbers in shown)
        answer = {"function": "f", "backend": backend, "tests": list(zip(tests, expected, strict=True))}
        yield {
            "prompt": [{"role": "user", "content": content}],
            "answer": json.dumps(answer),
            "solution": f"```python\n{source}\n```",
        }
        done += 1


def program(completion: str) -> str | None:
    """The code of a reply: its only fenced block, or all of it where there is no fence; None where there is none."""
    if "</think>" in completion:
        completion = completion.rpartition("</think>")[2]
    elif "<think>" in completion:
        return None
    pieces = completion.split("```")
    if len(pieces) == 1:
        code = completion
    elif len(pieces) == 3:
        code = re.sub(r"^(?:python|py)?[ \t]*\n", "", pieces[1])
    else:
        return None  # several programs are a list of answers
    return code if code.strip() and len(code) <= MAX_CODE and not re.search("[\ud800-\udfff]", code) else None


@functools.cache
def sandbox(backend: str, process: int) -> Call:
    """The interpreter, opened once in a process. Raises VerifierError where code cannot be isolated."""
    try:
        return open_interpreter(seconds=SECONDS, backend=backend)
    except RuntimeError as error:
        raise VerifierError(str(error)) from error


def grade(completion: str, answer: str) -> float:
    """1 where the reply's function returns what is expected for every held-out input, else 0; the first wrong, failing
    or too slow call decides. Raises VerifierError where the sandbox itself fails.
    """
    wanted, code = json.loads(answer), program(completion)
    if code is None or not re.search(rf"\b{wanted['function']}\b", code):
        return 0.0
    session = sandbox(wanted["backend"], os.getpid()).session()

    def run(line: str) -> str:
        result = session(line)
        # twice, since a busy machine may have stopped it once
        return session(line) if result.endswith(TOO_SLOW) else result

    try:
        if run(code).endswith(TOO_SLOW):
            return 0.0
        for given, expected in wanted["tests"]:
            # in a list, so that what the function prints is not taken for what it returns
            if run(f"[{wanted['function']}({given!r})]") != repr([expected]):
                return 0.0
    except Exception as error:  # what the reply's code raises is a result; this is the sandbox's own
        raise VerifierError(f"the sandbox failed ({type(error).__name__}: {error})") from error
    return 1.0
