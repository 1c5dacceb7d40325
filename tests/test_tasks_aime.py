"""AIME 2024: evaluated on, never trained on."""

import json

import pytest

from crawl2chat.tasks import aime
from test_tasks import HOSTILE


@pytest.fixture
def folder(tmp_path):
    rows = [{"problem": f"Find $n$ if $n-1={n - 1}$.", "solution": "Add \\boxed{1}.", "answer": f"{n:03}"}
            for n in range(30)]  # fmt: skip
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path)


def test_its_train_split_is_refused(folder):
    with pytest.raises(ValueError, match="for evaluation only"):
        next(aime.examples("train", path=folder))


def test_thirty_problems_with_whole_numbers_for_answers(folder):
    rows = list(aime.examples("test", path=folder))
    assert len(rows) == 30 and {row["answer"] for row in rows} == {str(n) for n in range(30)}
    assert rows == list(aime.examples("test", path=folder)) != list(aime.examples("test", seed=1, path=folder))
    assert all("\\boxed{}" in row["prompt"][0]["content"] for row in rows)


@pytest.mark.parametrize(
    "reply, score",
    [("\\boxed{33}", 1), ("\\boxed{033}", 1), ("The answer is 33.", 1), ("<think>32</think>33", 1), ("", 0),
     ("\\boxed{34}", 0), ("\\boxed{33} \\boxed{34}", 0), ("33 or 34", 0), ("\\boxed{30+3}", 0), ("It was 33 I say", 0),
     (" ".join(map(str, range(1000))), 0), ("\\boxed{9^{9^{9^9}}}", 0), ("\\boxed{33}<|im_end|>", 1), ("٣٣", 0)],
)  # fmt: skip
def test_right_wrong_hedged_listed_and_hostile_replies(reply, score):
    assert aime.grade(reply, "33") == score


@pytest.mark.parametrize("reply", HOSTILE)
def test_what_answers_nothing_earns_nothing(reply):
    assert aime.grade(reply, "33") == 0.0
