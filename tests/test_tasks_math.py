"""MATH from a folder as from the hub: boxed answers, levels, MATH-500 kept apart from training."""

import json

import pytest

from crawl2chat.tasks import math
from test_tasks import HOSTILE

TRAIN = [
    {"problem": f"Compute $\\sqrt{{{3 * n * n}}}$.", "level": f"Level {1 + n % 5}", "type": "Algebra",
     "solution": f"It is \\boxed{{{n}\\sqrt{{3}}}} since ${n}^2 \\cdot 3 = {3 * n * n}$."}
    for n in range(2, 32)
]  # fmt: skip
TEST = [
    {"problem": f"What is half of {n}?", "level": n % 5 + 1, "answer": f"\\frac{{{n}}}{{2}}", "subject": "Algebra",
     "solution": f"Half of it is $\\boxed{{\\frac{{{n}}}{{2}}}}$."}
    for n in range(1, 20, 2)
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    lost = {"problem": "What is it?", "level": "Level 1", "solution": "It has no box."}
    leaked = {**TEST[0], "level": "Level 2", "problem": TEST[0]["problem"].upper()}
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*TRAIN, lost]))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TEST))
    (tmp_path / "leaked").mkdir()
    (tmp_path / "leaked/test.jsonl").write_text((tmp_path / "test.jsonl").read_text())
    row = {key: value for key, value in leaked.items() if key not in ("answer", "subject")}
    (tmp_path / "leaked/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*TRAIN, row]))
    return tmp_path


@pytest.mark.parametrize("split, count", [("train", 30), ("test", 10)])
def test_its_worked_solution_is_right_whatever_comes_after_its_box(split, count, folder, capsys):
    rows = list(math.examples(split, path=str(folder)))
    assert len(rows) == count and all(math.grade(row["solution"], row["answer"]) == 1.0 for row in rows)
    if split == "train":
        assert "1 of 31 train problems dropped: no boxed answer" in capsys.readouterr().out


def test_a_problem_of_the_test_is_never_trained_on(folder):
    train = [row["prompt"][0]["content"] for row in math.examples("train", path=str(folder / "leaked"))]
    assert len(train) == 30 and not any("HALF" in question for question in train)


def test_levels_are_the_dial(folder):
    rows = list(math.examples("train", path=str(folder), levels=[5]))
    assert {row["answer"] for row in rows} == {f"{n}\\sqrt{{3}}" for n in range(2, 32) if 1 + n % 5 == 5}
    with pytest.raises(ValueError, match="no test problem of levels 9"):
        next(math.examples("test", path=str(folder), levels=[9]))
    with pytest.raises(ValueError, match="subjects are"):
        next(math.examples("train", path=str(folder), subjects=["alchemy"]))


def test_the_hub_is_asked_for_every_subject_and_for_math_500(monkeypatch):
    asked = []

    class Rows(list):
        to_list = list.copy

    def load(path, name, split):
        asked.append((path, name, split))
        return Rows(TEST if path == math.TEST else TRAIN)

    monkeypatch.setattr("datasets.load_dataset", load)
    assert len(list(math.examples("train", subjects=["algebra", "geometry"]))) == 30
    assert asked == [(math.TEST, None, "test"), (math.TRAIN, "algebra", "train"), (math.TRAIN, "geometry", "train")]


@pytest.mark.parametrize(
    "solution, answer",
    [("So \\boxed{4}.", "4"), ("\\boxed{\\frac{1}{2}}, not \\boxed{\\sqrt{\\frac{2}{3}}}", "\\sqrt{\\frac{2}{3}}"),
     ("$\\boxed 7$", "7"), ("\\boxed{4", ""), ("4", ""), ("", "")],
)  # fmt: skip
def test_the_last_box_holds_the_answer(solution, answer):
    assert math.boxed(solution) == answer


@pytest.mark.parametrize(
    "reply, score",
    [("\\boxed{\\sqrt{12}}", 1), ("The answer is $2\\sqrt{3}$.", 1), ("<think>?</think>\\boxed{2\\sqrt3}", 1),
     ("\\boxed{2\\sqrt{2}}", 0), ("\\boxed{2\\sqrt{3}} or \\boxed{3}", 0), ("\\boxed{2\\sqrt{3}, 3}", 0), ("", 0),
     ("It is 2\\sqrt{3}, I say.", 0), ("Perhaps \\boxed{2\\sqrt{3}}", 0), ("\\boxed{9^{9^{9^9}}}", 0), ("\\boxed{", 0),
     ("\\boxed{2\\sqrt{3}}<|im_end|> \\boxed{3}", 0), ("\\boxed{2\\sqrt{３}}", 0), ("\\boxed{" * 20_000, 0)],
)  # fmt: skip
def test_right_wrong_hedged_listed_and_hostile_replies(reply, score):
    assert math.grade(reply, "2\\sqrt{3}") == score


@pytest.mark.parametrize("reply", HOSTILE)
def test_what_answers_nothing_earns_nothing(reply):
    assert math.grade(reply, "2\\sqrt{3}") == 0.0
