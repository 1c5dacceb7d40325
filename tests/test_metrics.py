"""Metrics agree with sums done another way, and compute without a hub."""

import itertools
import math

import pytest

from crawl2chat.metrics import (
    Accuracy,
    BitsPerByte,
    MajorityAtK,
    PassAtK,
    accuracy,
    bits_per_byte,
    majority,
    pass_at_k,
    sampled,
)


def test_accuracy_carries_its_standard_error():
    found = accuracy([1.0, 0.0, 1.0, 1.0])
    assert found["accuracy"] == 0.75
    assert found["stderr"] == pytest.approx(math.sqrt(0.75 * 0.25 / 3))


def test_an_ungraded_answer_is_counted_and_not_taken_for_wrong():
    assert accuracy([1.0, None, 1.0, None]) == {"accuracy": 1.0, "stderr": 0.0, "n": 2, "ungraded": 2}


def test_no_verdict_at_all_gives_no_accuracy():
    with pytest.raises(ValueError, match="none of 2"):
        accuracy([None, None])


@pytest.mark.parametrize("samples,right", [(5, 0), (5, 1), (6, 3), (5, 5)])
def test_pass_at_k_equals_counting_every_draw(samples, right):
    marks = [True] * right + [False] * (samples - right)
    for k in range(1, samples + 1):
        draws = list(itertools.combinations(marks, k))
        assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_refuses_more_draws_than_samples():
    with pytest.raises(ValueError, match="pass@9"):
        pass_at_k(8, 1, 9)


@pytest.mark.parametrize(
    "answers, right, score",
    [
        (["12", "12", "7"], [1, 1, 0], 1.0),
        (["7", "12", "7"], [0, 1, 0], 0.0),
        (["12", "7"], [1, 0], 0.5),
        (["12", "7", "8", "12", "7"], [1, 0, 0, 1, 0], 0.5),
        (["12", "7", "7"], [1, None, None], 1.0),
    ],
)
def test_the_majoritys_answer_is_graded_and_a_tie_is_shared(answers, right, score):
    assert majority(answers, right) == score


def test_one_sample_a_question_gives_the_plain_accuracy():
    plain, drawn = accuracy([1.0, 0.0, None, 1.0]), sampled([[1.0], [0.0], [None], [1.0]], [["a"]] * 4)
    assert plain.items() <= drawn.items()
    assert drawn["majority_at_1"] == drawn["pass_at_1"] == drawn["accuracy"] and drawn["seeds_stderr"] == 0


def test_samples_of_one_question_do_not_shrink_the_error():
    once = sampled([[1.0], [0.0], [1.0], [1.0]], [["a"]] * 4)
    alike = sampled([[1.0] * 9, [0.0] * 9, [1.0] * 9, [1.0] * 9], [["a"] * 9] * 4)
    assert alike["stderr"] == once["stderr"] == pytest.approx(math.sqrt(0.75 * 0.25 / 3)) and alike["n"] == 4
    assert alike["seeds_stderr"] == 0 and [key for key in alike if key.startswith("pass")] == [
        "pass_at_2", "pass_at_4", "pass_at_8", "pass_at_9"]  # fmt: skip


def test_a_runs_luck_is_the_error_over_seeds():
    found = sampled([[1.0, 0.0], [1.0, 0.0]], [["a", "b"]] * 2)
    assert found["stderr"] == 0 and found["seeds_stderr"] == pytest.approx(0.5)


def test_ungraded_samples_are_left_out_and_counted():
    found = sampled([[1.0, None], [0.0, 0.0], [None, None]], [["a", "b"]] * 3)
    assert (found["accuracy"], found["n"], found["ungraded"]) == (0.5, 2, 3)
    assert found["pass_at_2"] == 0.0 and found["majority_at_2"] == 0.5  # one question alone has two scores
    with pytest.raises(ValueError, match="none of 1"):
        sampled([[None, None]], [["a", "b"]])


def test_a_uniform_model_over_bytes_costs_eight_bits_a_byte():
    assert bits_per_byte(1000 * math.log(256), 1000) == pytest.approx(8.0)


def test_metrics_compute_offline(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Accuracy().compute(predictions=[1.0, None, 0.0])["ungraded"] == 1
    assert PassAtK().compute(predictions=[[1, 0], [0, 0]], k=[1, 2]) == {"pass@1": 0.25, "pass@2": 0.5}
    votes = {"predictions": [["12", "12", "7"], ["3", "4", "5"]], "references": [[1, 1, 0], [1, 0, None]]}
    assert MajorityAtK().compute(**votes) == {"majority@3": 0.75}
    nats = [16 * math.log(2), 0.0]
    assert BitsPerByte().compute(predictions=nats, references=[4, 4])["bits_per_byte"] == pytest.approx(2.0)
    assert not list(tmp_path.iterdir())
