"""reasoning-gym's families as tasks: no question in both splits, and graders that take no list, hedge or echo."""

import pytest

from crawl2chat.tasks import gym

reasoning_gym = pytest.importorskip("reasoning_gym")
FAMILIES = ["letter_counting", "spell_backward", "chain_sum", "count_bits", "gcd", "leg_counting", "gsm_symbolic"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_worked_answer_is_right_and_the_splits_share_no_question(family):
    train = list(gym.examples("train", family, count=60, seed=1))
    test = list(gym.examples("test", family, count=20, seed=2))
    assert len(train) == 60 and len(test) == 20
    assert not {str(row["prompt"]) for row in train} & {str(row["prompt"]) for row in test}
    assert all(gym.grade(row["solution"], row["answer"]) == 1 for row in train + test)
    assert list(gym.examples("train", family, count=60, seed=1)) == train


def test_the_familys_own_scorer_agrees_on_right_and_wrong_answers():
    data = reasoning_gym.create_dataset("letter_counting", size=30, seed=3)
    for entry in data:
        answer = entry["answer"]
        assert gym.grade(f"The answer is {answer}.", answer) == data.score_answer(answer, entry) == 1
        assert gym.grade("The answer is 77.", answer) == 0


def test_difficulty_is_the_familys_own_config():
    rows = list(gym.examples("test", "chain_sum", {"min_terms": 6, "max_terms": 6}, count=10))
    assert all(sum(row["prompt"][0]["content"].count(f" {sign} ") for sign in "+-") == 5 for row in rows)


@pytest.mark.parametrize(
    "reply",
    ["", "7", "The answer is 7.", "I think 5 or 6.", "It is 5, or maybe 6.", "5 6", "1, 2, 3, 4, 5", "not 5", "5?",
     "The answer is 5 or 7.", "The answer is not 5.", "5" * 9000, "The answer is", "answer is answer is"],
)  # fmt: skip
def test_a_wrong_hedged_empty_or_hostile_reply_earns_nothing(reply):
    assert gym.grade(reply, "5") == 0


@pytest.mark.parametrize("reply", ["5", "5.", "The answer is 5.", "2+3=5. The answer is: 5", "**5**"])
def test_the_answer_in_its_place_is_right(reply):
    assert gym.grade(reply, "5") == 1


def test_an_unknown_family_names_the_nearest_and_long_answers_are_refused():
    with pytest.raises(ValueError, match="letter_counting"):
        next(gym.examples("train", "leter_counting"))
    with pytest.raises(ValueError, match="no short line"):
        list(gym.examples("train", "rotate_matrix", count=20))
