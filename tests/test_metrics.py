"""Metrics agree with sums done another way, and compute without a hub."""

import itertools
import math

import pytest

from crawl2chat.metrics import Accuracy, BitsPerByte, PassAtK, accuracy, bits_per_byte, pass_at_k


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


def test_a_uniform_model_over_bytes_costs_eight_bits_a_byte():
    assert bits_per_byte(1000 * math.log(256), 1000) == pytest.approx(8.0)


def test_metrics_compute_offline(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Accuracy().compute(predictions=[1.0, None, 0.0])["ungraded"] == 1
    assert PassAtK().compute(predictions=[[1, 0], [0, 0]], k=[1, 2]) == {"pass@1": 0.25, "pass@2": 0.5}
    nats = [16 * math.log(2), 0.0]
    assert BitsPerByte().compute(predictions=nats, references=[4, 4])["bits_per_byte"] == pytest.approx(2.0)
    assert not list(tmp_path.iterdir())
