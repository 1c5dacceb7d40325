"""Countdown: any right expression earns, a wrong, listed, hedged or hostile one does not."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crawl2chat.tasks import countdown
from crawl2chat.tasks.countdown import grade
from test_tasks import HOSTILE, PIECES, wordings

DIALS = [(2, 9), (3, 9), (4, 20), (6, 100)]


@pytest.mark.parametrize("numbers, largest", DIALS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_its_worked_solution_is_right_and_the_dial_sets_how_many_and_how_large(split, numbers, largest):
    rows = list(countdown.examples(split, numbers, largest, count=100, seed=1))
    assert len(rows) == 100 and rows == list(countdown.examples(split, numbers, largest, count=100, seed=1))
    assert rows != list(countdown.examples(split, numbers, largest, count=100, seed=2))
    for row in rows:
        target, given = row["answer"].split(" from ")
        assert grade(row["solution"], row["answer"]) == 1.0, row
        assert len(given.split()) == numbers and all(1 <= int(n) <= largest for n in given.split())
        assert 0 < int(target) <= countdown.LARGEST_TARGET
        assert all(re.search(rf"\b{n}\b", row["prompt"][0]["content"]) for n in [target, *given.split()])


@pytest.mark.parametrize("numbers, largest", DIALS)
def test_no_problem_of_the_test_is_trained_on_in_any_order(numbers, largest):
    train, test = (
        {row["answer"] for seed in range(4) for row in countdown.examples(split, numbers, largest, 300, seed)}
        for split in ("train", "test")
    )
    assert test and not train & test
    assert not set(wordings(countdown.WORDINGS["train"])) & set(wordings(countdown.WORDINGS["test"]))


@pytest.mark.parametrize(
    "reply",
    ["The answer is 3*5+9.", "\\boxed{9+5*3}", "(3*5)+9", "The answer is 3*5+9 = 24.", "<think>9*5</think>9+5*3",
     "\\boxed{3 \\times 5 + 9}", "5*3=15. 15+9=24. The answer is $9 + (5*3)$.", "3×5+9"],
)  # fmt: skip
def test_any_expression_that_reaches_the_target_is_right(reply):
    assert grade(reply, "24 from 3 5 9") == 1.0


@pytest.mark.parametrize(
    "reply",
    ["The answer is 24.", "24", "The answer is 9+5+3.", "The answer is 3*5+9 = 25.", "The answer is 9+9+3*5-9.",
     "The answer is 3*5+9+0.", "\\boxed{3*5+9}\\boxed{3*9-5}", "The answer is 3*5+9 or 9*5-3.", "Maybe \\boxed{3*5+9}",
     "3*5+9, 3*5-9", "3*5+9\n9-5*3", "I use 3*5 and then +9", "The answer is 3*5+9?", "\\boxed{3*5+9}. No, 9*3-5.",
     "The answer is 3**5+9", "9**9**9**9", "(" * 190 + "3*5+9" + ")" * 190, "3*5+9" + "+0" * 9999, "39-15", "9//3*5",
     "The answer is 24 = 3*5+9.", "3*5+9<|im_end|>", "３*5+9", "3/0+5*9", "-3*5+9", "3*5+09", "3*5+9 if 1 else 2"],
)  # fmt: skip
def test_a_wrong_listed_hedged_or_hostile_reply_earns_nothing(reply):
    assert grade(reply, "24 from 3 5 9") == 0.0


def test_fractions_on_the_way_are_exact():
    assert grade("The answer is 8/(3-8/3).", "24 from 3 3 8 8") == 1.0


@pytest.mark.parametrize("reply", HOSTILE)
def test_what_answers_nothing_earns_nothing(reply):
    assert grade(reply, "24 from 3 5 9") == 0.0


@pytest.mark.parametrize("piece", [*PIECES, "(", "1+", "\\boxed{1+"])
def test_a_huge_reply_is_graded_at_once(piece):
    began = time.process_time()
    assert grade(piece * (200_000 // len(piece)), "24 from 3 5 9") == 0.0
    assert time.process_time() - began < 2


@given(st.text(alphabet="0123456789+-*/() =abc\\{}.,", max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_text_gets_full_marks_or_none(reply):
    assert grade(reply, "24 from 3 5 9") in (0.0, 1.0)


def test_a_dial_out_of_range_is_named():
    with pytest.raises(ValueError, match="numbers is from 2 to 6"):
        next(countdown.examples("train", numbers=1))
