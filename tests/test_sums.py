"""Word problems to practise on: two ways of answering, a teacher who errs, a dial."""

from statistics import fmean

import pytest

from crawl2chat.tasks import sums


def rows(split: str = "train", count: int = 400, **knobs) -> list[dict]:
    return list(sums.examples(split, count=count, **knobs))


@pytest.mark.parametrize("split", ["train", "test"])
def test_either_answers_at_once_in_the_stated_share_and_nothing_in_the_question_says_which(split):
    either, direct = rows(split, at_once=0.4), rows(split, manner="direct")
    assert [row["prompt"] for row in either] == [row["prompt"] for row in direct]
    assert 1 - fmean(sums.shows_work(row["solution"]) for row in either) == pytest.approx(0.4, abs=0.08)


def test_the_dial_makes_numbers_longer():
    for digits in (1, 2, 3, 5):
        for row in rows(digits=digits, operations=["plus"], count=30):
            assert len(row["answer"]) in (digits, digits + 1)


def test_a_teacher_who_errs_is_wrong_in_the_stated_share_and_the_answer_stays_right():
    erring, exact = rows(errors=0.3, manner="steps"), rows(manner="steps")
    marks = [sums.grade(row["solution"], row["answer"]) for row in erring]
    assert 1 - fmean(marks) == pytest.approx(0.3, abs=0.07)
    assert [row["answer"] for row in erring] == [row["answer"] for row in exact]
    assert all(sums.shows_work(row["solution"]) for row in erring)


def test_nothing_becomes_fewer_than_none():
    assert all(int(row["answer"]) >= 0 for row in rows(operations=["minus"], digits=1))


@pytest.mark.parametrize("knobs", [{"manner": "quickly"}, {"operations": ["times"]}, {"operations": []}, {"digits": 0},
                                   {"errors": 2}, {"at_once": -1}])  # fmt: skip
def test_a_wrong_knob_is_named(knobs):
    with pytest.raises(ValueError, match="sums"):
        rows(**knobs)
