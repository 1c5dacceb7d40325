"""Code problems: judged by calls from outside the candidate, so nothing it prints, exits with or rewrites earns."""

import json
import time

import pytest

from crawl2chat.tasks import code
from crawl2chat.tools.bubblewrap import open_sandbox
from crawl2chat.verifier import VerifierError
from test_tasks import HOSTILE, PIECES

ANSWER = json.dumps(
    {"function": "f", "backend": "monty", "tests": [[[3, -1, 4], 7], [[-2, 5], 5], [[], 0], [[8, 8], 16]]}
)
RIGHT = "def f(numbers):\n    return sum(n for n in numbers if n > 0)"


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("split", ["train", "test"])
def test_its_worked_solution_passes_its_tests(split, steps):
    rows = list(code.examples(split, steps, count=30, seed=1))
    assert len(rows) == 30 and rows == list(code.examples(split, steps, count=30, seed=1))
    assert rows != list(code.examples(split, steps, count=30, seed=2))
    assert all(code.grade(row["solution"], row["answer"]) == 1.0 for row in rows)
    assert all(row["solution"].count("\n    kept") == 1 + steps for row in rows)


def test_the_held_out_inputs_are_not_in_the_prompt_and_constants_fail():
    for row in code.examples("test", count=40):
        for given, expected in json.loads(row["answer"])["tests"]:
            assert given == [] or str(given) not in row["prompt"][0]["content"]
            assert code.grade(f"def f(numbers):\n    return {expected}", row["answer"]) == 0.0


def test_no_problem_of_the_test_is_trained_on():
    train, test = ({row["solution"] for seed in range(3) for row in code.examples(split, 1, 300, seed)}
                   for split in ("train", "test"))  # fmt: skip
    assert len(test) > 20 and not train & test and not set(code.ASK["train"]) & set(code.ASK["test"])


@pytest.mark.parametrize(
    "reply",
    [RIGHT, f"```python\n{RIGHT}\n```", f"Here it is:\n```\n{RIGHT}\n```\nIt adds what is positive.",
     f"<think>```python\nno\n```</think>```py\n{RIGHT}\n```", "f = lambda numbers: sum(max(n, 0) for n in numbers)",
     f"{RIGHT}\nprint('PASS')"],
)  # fmt: skip
def test_a_function_that_does_it_is_right(reply):
    assert code.grade(reply, ANSWER) == 1.0


WRONG = {
    "prints PASS": "print('PASS')\nf = 1", "exits": "import sys\nsys.exit(0)\nf = 1",
    "raises": "raise SystemExit(0)  # f",
    "empty": "", "no code": "The function f adds the positive numbers.", "no function": "sum([1, 2])",
    "wrong": "def f(numbers):\n    return sum(numbers)", "constant": "def f(numbers):\n    return 7",
    "raises inside": "def f(numbers):\n    raise ValueError", "recursion": "def f(numbers):\n    return f(numbers)",
    "prints the result": "def f(numbers):\n    print([sum(n for n in numbers if n > 0)])",
    "prints it and returns": f"{RIGHT}\ng = f\ndef f(numbers):\n    print('x')\n    return g(numbers)",
    "another type": "def f(numbers):\n    return float(sum(n for n in numbers if n > 0))",
    "equal to everything": "class R:\n    def __eq__(self, x):\n        return True\ndef f(n):\n    return R()",
    "a new repr": "repr = lambda x: '[7]'\ndef f(numbers):\n    return 1",
    "power tower": "def f(numbers):\n    return 9**9**9**9",
    "never ends": "def f(numbers):\n    while True:\n        pass",
    "never begins": "while True:\n    pass\nf = 1", "two programs": f"```\n{RIGHT}\n```\nor\n```\nf = sum\n```",
    "thinks without an end": f"<think>{RIGHT}", "control token": f"{RIGHT}<|im_end|>", "null": f"{RIGHT}\0",
    "surrogate": f"{RIGHT}  # \ud800", "unicode": "def ｆ(numbers):\n    return ７", "fence": "```",
    "too long": RIGHT + "#" * 20_000,
    "memory": "def f(numbers):\n    return [0] * 10**10",
    "reads files": "def f(numbers):\n    return open('/etc/passwd').read()",
    "breaks out": "__last = None)\nprint('[7]')\n(f", "network": "import socket\nf = socket.socket",
}  # fmt: skip


@pytest.mark.parametrize("reply", WRONG.values(), ids=WRONG)
def test_a_wrong_cheating_or_hostile_reply_earns_nothing_within_two_seconds(reply):
    began = time.process_time()
    assert code.grade(reply, ANSWER) == 0.0
    assert time.process_time() - began < 2
    assert code.grade(RIGHT, ANSWER) == 1.0  # and the next is judged as before


@pytest.mark.parametrize("reply", [*HOSTILE, *(piece * (200_000 // len(piece)) for piece in PIECES)])
def test_what_answers_nothing_earns_nothing(reply):
    assert code.grade(reply, ANSWER) == 0.0


def test_the_expected_results_never_enter_the_sandbox(monkeypatch):
    seen = []

    class Python:
        def session(self):
            return lambda line: seen.append(line) or "[7]"

    monkeypatch.setattr(code, "sandbox", lambda *_: Python())
    assert code.grade(RIGHT, ANSWER) == 0.0
    assert seen == [RIGHT, "[f([3, -1, 4])]", "[f([-2, 5])]"]


def test_a_sandbox_that_fails_is_no_verdict(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("cannot isolate code here")

    code.sandbox.cache_clear()
    monkeypatch.setattr(code, "open_interpreter", broken)
    with pytest.raises(VerifierError, match="cannot isolate"):
        code.grade(RIGHT, ANSWER)
    code.sandbox.cache_clear()


def test_the_other_backend_judges_alike():
    try:
        open_sandbox(1, 64, 100, 1)
    except RuntimeError as error:
        pytest.skip(str(error))
    row = next(code.examples("test", backend="cpython"))
    assert code.grade(row["solution"], row["answer"]) == 1.0
    forger = "import os, sys\ndef f(numbers):\n    print('[7]')\n    sys.stdout.flush()\n    os._exit(0)"
    for reply in (forger, "def f(numbers):\n    return 9**9**9", "import os\nos._exit(0)  # f"):
        assert code.grade(reply, row["answer"]) == 0.0


def test_a_dial_out_of_range_is_named():
    with pytest.raises(ValueError, match="steps is from 1 to 4"):
        next(code.examples("train", steps=9))
