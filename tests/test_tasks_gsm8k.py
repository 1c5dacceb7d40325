"""GSM8K from a folder as from the hub: worked answers, no question in both splits, a dial."""

import json
import time

import pytest

from crawl2chat.tasks import gsm8k
from test_tasks import HOSTILE, PIECES


def rows(first: int, count: int) -> list[dict]:
    return [
        {"question": f"Ann has {n} eggs and sells 2 for $3 each. What are they worth?",
         "answer": f"She has {n}-2=<<{n}-2={n - 2}>>{n - 2} eggs.\n" * (1 + n % 3) + f"#### {1000 + n:,}"}
        for n in range(first, first + count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gsm8k")
    for split, held in {"train": rows(0, 60), "test": rows(55, 20)}.items():  # five questions are in both
        (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    return str(path)


def test_its_worked_solution_is_right_and_free_of_the_marks_of_the_calculator(folder):
    for split in ("train", "test"):
        for row in gsm8k.examples(split, path=folder):
            assert gsm8k.grade(row["solution"], row["answer"]) == 1.0 and row["answer"].isdigit()
            assert "<<" not in row["solution"] and "####" not in row["solution"]


def test_a_question_of_the_test_is_never_trained_on(folder):
    train, test = ({row["prompt"][0]["content"] for row in gsm8k.examples(split, path=folder)}
                   for split in ("train", "test"))  # fmt: skip
    assert len(train) == 55 and len(test) == 20 and not train & test


def test_the_seed_draws_and_the_dial_is_the_number_of_steps(folder):
    first, same, other = (list(gsm8k.examples("train", 20, seed, folder)) for seed in (1, 1, 2))
    assert first == same != other and len(first) == 20
    assert {row["solution"].count("eggs") for row in gsm8k.examples("train", path=folder, steps=(2, 2))} == {2}
    with pytest.raises(ValueError, match="no train problem of 9 to 12 steps"):
        next(gsm8k.examples("train", path=folder, steps=(9, 12)))


@pytest.mark.parametrize(
    "reply, score",
    [("The answer is 18.", 1), ("So she makes 9 * 2 = 18.\nThe answer is $18.", 1), ("\\boxed{18}", 1), ("18", 1),
     ("The answer is 18 dollars per day.", 1), ("The answer is 18.00", 1), ("<think>17?</think>18", 1),
     ("The answer is 81.", 0), ("The answer is 18 or 19.", 0), ("The answer is 17, 18, 19.", 0), ("", 0),
     ("She makes 18 dollars.", 0), ("The answer is 9*2.", 0), ("Maybe the answer is 18.", 0), ("17 18 19", 0),
     ("The answer is 18. The answer is 19.", 0), ("9**9**9**9", 0), ("The answer is 18<|im_end|>", 0), ("١٨", 0)],
)  # fmt: skip
def test_right_wrong_hedged_listed_and_hostile_replies(reply, score):
    assert gsm8k.grade(reply, "18") == score


@pytest.mark.parametrize("reply", [*HOSTILE, *(piece * (200_000 // len(piece)) for piece in PIECES)])
def test_what_answers_nothing_earns_nothing_at_once(reply):
    began = time.process_time()
    assert gsm8k.grade(reply, "18") == 0.0
    assert time.process_time() - began < 2


def test_a_set_that_cannot_be_read_is_one_line(tmp_path, folder):
    with pytest.raises(ValueError, match="no test.jsonl and no test.parquet"):
        next(gsm8k.examples("train", path=str(tmp_path)))
    (tmp_path / "test.jsonl").write_text('{"question": "x"')
    with pytest.raises(ValueError, match="cannot be read") as caught:
        next(gsm8k.examples("train", path=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_without_the_hub_the_message_says_what_to_do(monkeypatch):
    def unreachable(**arguments):
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub\n(OfflineModeIsEnabled)")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(ValueError, match="openai/gsm8k: cannot be read .*give `path` a folder"):
        next(gsm8k.examples("test"))


def test_the_hub_is_asked_for_the_set_the_paper_made(monkeypatch):
    asked = []

    class Rows(list):
        to_list = list.copy

    monkeypatch.setattr("datasets.load_dataset", lambda **arguments: asked.append(arguments) or Rows(rows(0, 5)))
    assert len(list(gsm8k.examples("test"))) == 5
    assert asked == [{"path": "openai/gsm8k", "name": "main", "split": "test"}]
