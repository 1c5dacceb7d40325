"""How good a reward model is: numbers worked by hand, and replies that no one wants."""

import json
import math
import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from crawl2chat.reward_model import encode_pairs
from crawl2chat.reward_quality import (
    ceiling,
    clustered,
    degenerate,
    length_baseline,
    measure,
    reliability,
    shown,
    wins,
)
from tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def pair(number: int, chosen: str, rejected: str, distance: int | None = 1) -> dict:
    replies = {
        side: [{"role": "assistant", "content": text}] for side, text in (("chosen", chosen), ("rejected", rejected))
    }
    return {"prompt": [{"role": "user", "content": f"About {number}."}], **replies, "rank_distance": distance}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, pad_token_id=TOKENIZER.pad_token_id, max_position_embeddings=128,
    )  # fmt: skip
    return LlamaForSequenceClassification(config).eval()


def test_equal_scores_are_half_a_win():
    assert wins([2.0, -1.0, 0.0]) == [1.0, 0.0, 0.5]


def test_pairs_of_one_prompt_count_as_one_piece_of_evidence():
    values, alone = [1.0, 1.0, 0.0, 0.0], "abcd"
    mean, error = clustered(values, alone)
    assert mean == 0.5 and error == pytest.approx(math.sqrt(4 / 3 * 4 * 0.25) / 4)
    assert clustered(values, "aabb") == (0.5, pytest.approx(math.sqrt(2 / 1 * (1 + 1)) / 4))
    assert clustered(values, "aaaa") == (0.5, 0.0)


def test_the_clustered_error_is_the_spread_of_repeated_experiments():
    rng, means, errors = random.Random(0), [], []
    for _ in range(300):
        values, clusters = [], []
        for prompt in range(40):
            easy = rng.random()
            values += [float(rng.random() < easy) for _ in range(10)]
            clusters += [prompt] * 10
        mean, error = clustered(values, clusters)
        means.append(mean)
        errors.append(error)
    middle = sum(means) / 300
    spread = math.sqrt(sum((mean - middle) ** 2 for mean in means) / 299)
    assert sum(errors) / 300 == pytest.approx(spread, rel=0.15)


def test_calibration_by_hand():
    even, sure = 0.0, math.log(0.9 / 0.1)
    found = reliability([even, even, sure, sure, sure, -sure])
    low, high = found["bins"]
    assert (low["pairs"], low["accuracy"], low["confidence"]) == (2, 0.5, 0.5)
    assert (high["pairs"], high["accuracy"]) == (4, 0.75) and high["confidence"] == pytest.approx(0.9)
    assert found["expected_calibration_error"] == pytest.approx(4 / 6 * 0.15)
    assert reliability([5000.0, -5000.0])["expected_calibration_error"] == pytest.approx(0.5)


def test_a_calibrated_model_shows_no_more_error_than_chance():
    rng = random.Random(1)
    errors, chance = [], []
    for _ in range(200):
        margins = [rng.gauss(0, 2) for _ in range(300)]
        margins = [abs(m) if rng.random() < 1 / (1 + math.exp(-abs(m))) else -abs(m) for m in margins]
        found = reliability(margins)
        errors.append(found["expected_calibration_error"])
        chance.append(found["by_chance"])
    assert sum(errors) / 200 == pytest.approx(sum(chance) / 200, rel=0.15)


@pytest.mark.parametrize(
    ("good", "bad", "at_least"),
    [((10, 14), (1, 6), 0.95), ((1, 6), (10, 14), 0.95), ((6, 9), (1, 14), 0.6)],  # longer, shorter, middling
)
def test_length_alone_is_as_good_as_length_can_be(good, bad, at_least):
    rng = random.Random(0)
    rows = [pair(i, "word " * rng.randint(*good), "word " * rng.randint(*bad)) for i in range(400)]
    assert length_baseline(rows[:300], rows[300:]) >= at_least


def test_length_alone_is_a_coin_where_lengths_are_equal():
    rows = [pair(i, "abc", "xyz") for i in range(20)]
    assert length_baseline(rows, rows) == 0.5


def test_degenerate_replies_are_scored_beside_the_pairs_own(model):
    rows = [pair(i, f"good {i} words here", "bad") for i in range(4)]
    kinds = {kind["kind"]: kind for kind in degenerate(model, TOKENIZER, rows, 100, 4)}
    assert list(kinds) == ["chosen", "rejected", "empty", "repeated_word", "very_long", "another_prompts"]
    assert kinds["empty"]["text"] == "" and kinds["repeated_word"]["text"] == "the the the the"
    assert kinds["very_long"]["text"].count("good 0 words here") >= 3
    assert kinds["another_prompts"]["text"] == "good 1 words here" and kinds["chosen"]["beats_chosen"] == 0.5
    assert "repeated word" in shown(list(kinds.values())) and len(shown(list(kinds.values())).splitlines()) == 6


def test_the_numbers_of_held_out_pairs(model):
    rows, _ = encode_pairs(
        [pair(i // 2, f"one {i}", f"two {i} more", 1 + i % 2 * 3) for i in range(12)], TOKENIZER, 64
    )
    numbers, calibration, kinds, scored = measure(model, TOKENIZER, rows, rows, 64, 4)
    right = [row["score_chosen"] > row["score_rejected"] for row in scored]
    assert numbers["accuracy"] == sum(right) / 12 and 0 <= numbers["stderr"] < 0.5
    assert numbers["accuracy_distance_4"] == sum(right[1::2]) / 6 and "accuracy_distance_2" not in numbers
    assert numbers["length_baseline_accuracy"] > 0.9
    assert numbers["calibration_error"] == calibration["expected_calibration_error"]
    assert numbers["score_empty"] == kinds[2]["score"] and json.dumps([calibration, kinds, scored])
    assert scored[0].keys() == {"prompt", "chosen", "rejected", "rank_distance", "score_chosen", "score_rejected"}


def test_the_ceiling_is_what_the_labeler_agrees_with_himself(tmp_path):
    assert ceiling(str(tmp_path)) is None
    (tmp_path / "metrics.json").write_text('{"pairs": 3, "flipped": 0.25}')
    assert ceiling(str(tmp_path)) == 0.75
