"""Problems read from the tasks: held out from what is tested, each once, clear lines for wrong entries."""

import pytest

from crawl2chat import problems
from crawl2chat.problems import TaskRows, read_problems
from crawl2chat.tasks import sums


def entry(**changes) -> TaskRows:
    return TaskRows(**{"name": "sums", "task": "sums", "train": 300, "test": 40, **changes})


def asked(rows: list[dict]) -> set[str]:
    return {row["prompt"][-1]["content"] for row in rows}


def test_no_problem_that_is_practised_is_tested():
    train, test = read_problems([entry()], "train", 0), read_problems([entry()], "test", 0)
    assert len(test) <= 40 and len(train) <= 300
    assert not asked(train) & asked(test)


def test_a_problem_is_there_once_though_two_entries_ask_it():
    once = read_problems([entry()], "train", 0)
    assert read_problems([entry(), entry(name="again")], "train", 0) == once
    assert len(asked(once)) == len(once)


def test_a_row_carries_what_grading_needs():
    row = read_problems([TaskRows("exact", "product", train=3, test=3)], "train", 0)[0]
    assert set(row) == {"prompt", "answer", "calls", "task", "name"} and row["task"] == "product"


def test_a_task_that_tests_what_it_trains_on_is_refused(monkeypatch, capsys):
    same = lambda split, count, seed: ({**row, "prompt": [{"role": "user", "content": "1+1?"}]}  # noqa: E731
                                       for row in sums.examples("train", count=count))  # fmt: skip
    monkeypatch.setattr(problems, "task_of", lambda entry: type("Task", (), {"examples": staticmethod(same)}))
    with pytest.raises(SystemExit, match="test split would be practised: '1\\+1"):
        read_problems([entry(knobs={})], "train", 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "summs"}, "no task 'summs'"),
        ({"knobs": {"digit": 3}}, "no knob 'digit'"),
        ({"knobs": {"digits": 0}}, "digits is at least 1"),
        ({"train": 0}, "train: N"),
    ],
)
def test_a_wrong_entry_is_one_line(changes, said):
    with pytest.raises(SystemExit, match=said):
        read_problems([entry(**changes)], "train", 0)


def test_a_system_message_stands_before_every_problem():
    plain, told = (read_problems([entry()], "test", 0, system) for system in (None, "Think first."))
    assert [row["prompt"][1:] for row in told] == [row["prompt"] for row in plain]
    assert all(row["prompt"][0] == {"role": "system", "content": "Think first."} for row in told)
