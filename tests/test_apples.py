"""Apples: every small step is right, the same held-out problems in three manners, and Python computes the answer."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crawl2chat.tasks import apples
from crawl2chat.tools.interpreter import open_interpreter

TALK = {
    "Emily buys 3 apples and 2 oranges. Each orange costs $2. The total is $13. What is the cost of one apple?": "3",
    "23 apples, 177 oranges at $4 each, total $869. What is the cost of one apple?": "7",
}
both_sizes = pytest.mark.parametrize("size", apples.SIZES)


def story(example: dict) -> str:
    """The question without its manner."""
    return re.split(r"(?<=\?) ", example["prompt"][0]["content"])[0]


@both_sizes
@pytest.mark.parametrize("manner", apples.MANNERS)
def test_the_two_problems_of_the_introduction_are_asked_in_every_manner(manner, size):
    test = list(apples.examples("test", manner, size, count=2))
    assert {story(example): example["answer"] for example in test} == TALK


@both_sizes
def test_the_three_manners_ask_the_same_problems(size):
    asked = [[(story(e), e["answer"]) for e in apples.examples("test", m, size, 80)] for m in apples.MANNERS]
    assert asked[0] == asked[1] == asked[2]


@both_sizes
def test_the_numbers_of_a_held_out_problem_are_in_no_training_row(size):
    def numbers(split: str) -> set[frozenset]:
        return {
            frozenset(re.findall("[0-9]+", story(example)))
            for manner in apples.MANNERS
            for seed in range(3)
            for example in apples.examples(split, manner, size, 600, seed)
        }

    train, test = numbers("train"), numbers("test")
    talk = {frozenset(re.findall("[0-9]+", question)) for question in TALK}
    assert talk <= test and len(test) > 300 and not test & train


@given(st.integers(2, 39), st.integers(2, 199), st.integers(2, 9), st.integers(2, 9))
@settings(max_examples=200, deadline=None)
def test_every_small_step_is_right_and_within_one_digit_or_two(n, m, p, price):
    worked = apples.steps(n, m, p, n * price + m * p)
    for left, right in re.findall(r"([0-9*/+-]+)=([0-9]+)", worked):
        value = left.split("/")
        assert (eval(left) if len(value) == 1 else int(value[0]) / int(value[1])) == int(right), left  # noqa: S307
    assert worked.endswith(f"The answer is {price}.") and apples.grade(worked, str(price)) == 1.0


@given(st.integers(0, 9999), st.integers(0, 9999))
@settings(max_examples=200, deadline=None)
def test_columns_borrow_and_carry_rightly(a, b):
    a, b = max(a, b), min(a, b)
    columns = re.findall(r"(\d+)-(\d+)=(\d), borrow ([01])\.", apples.minus(a, b))
    assert int("".join(digit for _, _, digit, _ in columns)[::-1]) == a - b and columns[-1][3] == "0"
    assert all(int(top) - int(owed) == int(digit) for top, owed, digit, _ in columns)


@both_sizes
def test_python_computes_the_answer_that_the_solution_states(size):
    python = open_interpreter()
    for example in apples.examples("train", "python", size, 25):
        assert python(**example["calls"][0]["arguments"]) == example["answer"]


@pytest.mark.parametrize("knobs", [{"manner": "slowly"}, {"size": "huge"}])
def test_an_unknown_manner_or_size_is_named(knobs):
    with pytest.raises(ValueError, match="apples: manner is one of"):
        next(apples.examples("train", **knobs))


RIGHT = ["3", "3.", "$3", "$3.00", "**3**", "\\boxed{3}", "The answer is 3.", "the answer is: $3 an apple!"]
RIGHT += ["2*2=4. 13-4=9. 9/3=3. The answer is 3.", "One apple costs $3."]
WRONG = ["4", "-3", "13", "3.5", "1/3", "3%", "x3", "3,000", "three", "The answer is 4.", "0.3", "٣"]
HEDGED = ["3 or 4", "$3 and $4", "3, 4", "maybe 3", "The answer is 3 or 4.", "The answer is 3. The answer is 4.", "3?"]
HEDGED += ["Perhaps the answer is 3.", "The answer is not 3.", "The answer is 3, probably.", "1 2 3 4 5", "about 3"]


@pytest.mark.parametrize("reply, score", [*((r, 1) for r in RIGHT), *((r, 0) for r in WRONG + HEDGED)])
def test_right_wrong_and_hedged_replies(reply, score):
    assert apples.grade(reply, "3") == score


@given(st.text(max_size=300), st.integers(0, 999))
@settings(max_examples=300, deadline=None)
def test_any_text_gets_a_verdict_and_only_one_that_states_the_number_is_right(text, answer):
    score = apples.grade(text, str(answer))
    assert score in (0.0, 1.0) and (score == 0.0 or str(answer) in re.sub("[^0-9]", "", text))
