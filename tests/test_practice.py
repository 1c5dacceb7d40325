"""Several tries at a problem: graded, counted, and the same whatever batch they ran in."""

import math

import pytest

from crawl2chat.practice import Curriculum, Rollout, measure, rollouts, summary, teachable
from crawl2chat.problems import TaskRows, read_problems
from tiny import tiny_model, tiny_tokenizer

PROBLEMS = read_problems([TaskRows("sums", "sums", train=6, test=4)], "train", 0)[:4]


def tried(score: float | None, tokens: int = 3, text: str = "5.") -> Rollout:
    return Rollout([{"role": "assistant", "content": text}], text, [1], [2] * tokens, [1] * tokens, True, score)


def test_every_problem_is_tried_as_often_as_asked_and_the_batch_changes_nothing():
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    ways = {"temperature": 1.0, "max_new_tokens": 6, "seed": 3}
    groups = rollouts(model, tokenizer, PROBLEMS, 3, **ways, batch_size=64)
    assert [len(group) for group in groups] == [3] * 4
    assert len({tuple(rollout.completion_ids) for group in groups for rollout in group}) > 4
    assert groups == rollouts(model, tokenizer, PROBLEMS, 3, **ways, batch_size=2)
    assert all(rollout.score == 0 and rollout.tokens <= 6 for group in groups for rollout in group)


def test_a_summary_by_hand():
    groups = [[tried(1), tried(0)], [tried(0), tried(0)], [tried(1), tried(1)]]
    numbers = summary(PROBLEMS[:3], groups)
    assert numbers["pass_at_1"] == 0.5 and numbers["pass_at_k"] == pytest.approx(2 / 3)
    assert numbers["stderr"] == pytest.approx(0.5 / math.sqrt(3))  # of the problems' means .5, 0 and 1
    assert numbers["mean_length"] == 3 and numbers["worked"] == 0


def test_a_try_without_a_verdict_is_no_wrong_one():
    numbers = summary(PROBLEMS[:2], [[tried(1), tried(None)], [tried(None), tried(None)]])
    assert numbers["pass_at_1"] == 1 and numbers["ungraded"] == 3


def test_shown_work_is_counted():
    groups = [[tried(1, text="2 + 3 = 5. The answer is 5."), tried(1)]]
    assert summary(PROBLEMS[:1], groups)["worked"] == 0.5


def test_measuring_gives_the_greedy_share_beside_the_sampled_one():
    tokenizer = tiny_tokenizer()
    numbers = measure(tiny_model(tokenizer), tokenizer, PROBLEMS, 2, 1.0, max_new_tokens=4, seed=0)
    assert numbers["greedy"] == 0 and numbers["pass_at_1"] == 0 and numbers["stderr"] == 0


def test_a_curriculum_leaves_out_what_is_never_or_always_solved(capsys):
    groups = [[tried(0), tried(0)], [tried(1), tried(0)], [tried(1), tried(1)], [tried(None), tried(1)]]
    assert teachable(PROBLEMS, groups, Curriculum(tries=2)) == [PROBLEMS[1], PROBLEMS[3]]
    assert "of 4 problems 1 are too hard yet and 1 too easy; 2 left" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no problem is left"):
        teachable(PROBLEMS[:1], groups[:1], Curriculum(tries=2))
