"""Win rate and intervals of a policy before and after training are right by hand, and cover what they should."""

import numpy as np
import pytest

from crawl2chat.episodes import Episode
from crawl2chat.proxy_gold import groups, headline, interval, measured, wins


def episode(gold: float | None, prompt: int = 0, score: float = 0.0) -> Episode:
    asked = [{"role": "user", "content": f"Write two lines about a pelican, {prompt}."}]
    return Episode(asked, [], "A line.", 3, True, {"gold": gold}, score)


def episodes(rows: list[list[float | None]]) -> list[Episode]:
    return [episode(value, i) for i, row in enumerate(rows) for value in row]


def test_every_reply_after_meets_every_reply_before_and_a_tie_is_half():
    before, after = episodes([[0.2, 0.4], [0.5, 0.5]]), episodes([[0.3, 0.4], [0.1, 0.5]])
    pairs = groups(before, after, 2, lambda one: one.rewards["gold"])
    # .3 > .2, .3 < .4, .4 > .2, .4 = .4; .1 < .5 twice, .5 = .5 twice
    assert pairs.shape == (2, 2, 2) and wins(pairs) == pytest.approx([2.5 / 4, 1 / 4])
    assert measured(before, after, 2)["win_rate"] == pytest.approx((2.5 / 4 + 1 / 4) / 2)


def test_win_rate_before_over_after_is_the_rest():
    pairs = np.random.default_rng(0).random((7, 2, 3)).round(1)
    assert wins(pairs) == pytest.approx(1 - wins(pairs[:, ::-1]))


def test_all_comparisons_vary_less_than_paired_replies():
    rng, every, paired = np.random.default_rng(0), [], []
    for _ in range(300):
        pairs = rng.normal([[[0.0], [0.8]]], 1, (30, 2, 4))
        every.append(wins(pairs).mean())
        paired.append((pairs[:, 1] > pairs[:, 0]).mean())
    assert np.mean(every) == pytest.approx(np.mean(paired), abs=0.01) and np.std(every) < np.std(paired)


def test_a_prompt_that_could_not_be_graded_counts_in_nothing():
    before, after = episodes([[0.2, None], [0.5, 0.5]]), episodes([[0.9, 0.9], [0.6, 0.4]])
    numbers = measured(before, after, 2)
    assert numbers["win_rate"] == 0.5 and numbers["gold_before"] == 0.5


def test_where_nobody_knows_the_gold_reward_there_is_no_win_rate():
    numbers = measured(episodes([[None], [None]]), episodes([[None], [None]]), 1)
    assert not any(key.startswith(("gold", "win_rate")) for key in numbers) and "proxy_gain" in numbers
    assert "wins" not in headline(numbers)


def test_the_intervals_hold_the_truth_in_19_of_20_worlds():
    rng, held = np.random.default_rng(0), 0
    for world in range(200):
        low, high = interval(rng.normal(0.3, 1, 50), draws=999, seed=world)
        held += low <= 0.3 <= high
    assert 0.9 <= held / 200 <= 0.98


def test_numbers_and_their_intervals_are_the_same_every_time_and_in_the_headline():
    rows = np.random.default_rng(1).random((40, 2, 4))
    before, after = episodes(rows[:, 0].tolist()), episodes((rows[:, 1] + 0.2).tolist())
    numbers = measured(before, after, 4)
    assert numbers == measured(before, after, 4)
    for name in ("gold_gain", "win_rate"):
        assert numbers[f"{name}_low"] < numbers[name] < numbers[f"{name}_high"]
    assert 0 <= numbers["win_rate_low"] and numbers["win_rate_high"] <= 1
    line = headline(numbers)
    assert "\n" not in line and f"wins {numbers['win_rate']:.1%} [{numbers['win_rate_low']:.1%}, " in line
