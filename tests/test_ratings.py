"""Ratings recover what was planted, with intervals that hold it as often as they say; every odd set of battles too."""

import math

import numpy as np
import pytest

from crawl2chat.metrics import BradleyTerry
from crawl2chat.ratings import AVERAGE, ELO, fit, rate, table


def battle(a: str, b: str, winner: str | None, prompt="?", **more) -> dict:
    return {"a": a, "b": b, "winner": winner, "prompt": prompt, **more}


def planted(strengths: list[float], prompts: int, a_prompt: int, rng, taste: float = 0.0, ties: float = 0.0) -> list:
    """Battles of random pairs; on each prompt a player is better or worse than elsewhere by `taste` points."""
    rows = []
    for prompt in range(prompts):
        today = np.array(strengths) + taste * rng.standard_normal(len(strengths))
        for _ in range(a_prompt):
            a, b = rng.choice(len(strengths), 2, replace=False)
            won = rng.random() < 1 / (1 + 10 ** ((today[b] - today[a]) / 400))
            outcome = "tie" if rng.random() < ties else "a" if won else "b"
            rows.append(battle(f"p{a}", f"p{b}", outcome, prompt))
    return rows


def test_ten_thousand_battles_give_back_the_planted_order_and_values():
    strengths = [AVERAGE + 50 * (i - 4.5) for i in range(10)]
    found = rate(planted(strengths, 1000, 10, np.random.default_rng(1)))
    assert found.players == [f"p{i}" for i in range(9, -1, -1)] and found.battles == 10_000
    for i, strength in enumerate(strengths):
        assert abs(found.rating[f"p{i}"] - strength) < 25, f"p{i}"
        assert found.low[f"p{i}"] < found.rating[f"p{i}"] < found.high[f"p{i}"]
    assert math.isclose(np.mean(list(found.rating.values())), AVERAGE)


@pytest.mark.parametrize("taste", [0, 400])
def test_intervals_hold_the_truth_19_times_of_20_whether_or_not_prompts_have_favourites(taste):
    """Beside each world's truth, what a whole lot of battles of that kind come to: a taste draws ratings together."""
    strengths, rng = [AVERAGE + 60 * (i - 1.5) for i in range(4)], np.random.default_rng(7)
    truth = rate(planted(strengths, 12_000, 6, rng, taste), draws=2).rating
    held = []
    for _ in range(120):
        found = rate(planted(strengths, 60, 6, rng, taste), draws=200)
        held += [found.low[name] <= truth[name] <= found.high[name] for name in truth]
    assert 0.91 <= np.mean(held) <= 0.985, np.mean(held)


def test_a_prompt_that_comes_ten_times_is_no_ten_prompts():
    rows = planted([950, 1050], 60, 1, np.random.default_rng(3))
    once, often = rate(rows), rate(rows * 10)
    width, same = (found.high["p1"] - found.low["p1"] for found in (once, often))
    assert 0.8 < same / width < 1.3


def test_without_ties_the_rating_of_two_players_is_the_odds_of_their_win_rate():
    rows = [battle("x", "y", "a", n) for n in range(750)] + [battle("y", "x", "a", n) for n in range(250)]
    found = rate(rows)
    assert found.rating["x"] - found.rating["y"] == pytest.approx(400 * math.log10(3), abs=1)
    assert found.win_rate == {("x", "y"): 0.75, ("y", "x"): 0.25} and found.met["y", "x"] == 1000


def test_ties_and_two_bad_replies_are_half_a_win_for_either():
    wins = [battle("x", "y", "a", 0), battle("x", "y", "b", 1)]
    for other in ("tie", "both bad"):
        found = rate(wins + [battle("x", "y", other, n) for n in range(6)])
        assert found.rating["x"] == pytest.approx(AVERAGE) and found.win_rate["x", "y"] == 0.5
    drawn = rate([battle("x", "y", "a", n) for n in range(2)] + [battle("x", "y", "tie", n) for n in range(2)])
    assert drawn.win_rate["x", "y"] == 0.75


def test_which_side_a_player_stands_on_changes_nothing():
    rows = planted([900, 1000, 1100], 40, 5, np.random.default_rng(5), ties=0.2)
    rows = [row | {"replies": ["x" * (3 + n % 7), "x" * (2 + n % 5)]} for n, row in enumerate(rows)]
    turned = []
    for n, row in enumerate(rows):
        swapped = battle(row["b"], row["a"], {"a": "b", "b": "a"}.get(row["winner"], row["winner"]), row["prompt"])
        turned.append(swapped | {"replies": row["replies"][::-1]} if n % 2 else row)
    one, other = rate(rows), rate(turned)
    for key, value in one.metrics().items():
        assert other.metrics()[key] == pytest.approx(value, abs=0.02), key


def test_an_anchor_stands_at_1000_and_the_others_by_their_distance_from_it():
    rows = planted([900, 1000, 1150], 50, 8, np.random.default_rng(6))
    free, tied = rate(rows), rate(rows, anchor="p0")
    assert tied.rating["p0"] == tied.low["p0"] == tied.high["p0"] == AVERAGE
    assert tied.rating["p2"] - tied.rating["p1"] == pytest.approx(free.rating["p2"] - free.rating["p1"])


def test_what_length_alone_won_is_gone_at_equal_lengths():
    """Two equal players, one of which writes twice as much, and the judge likes that; a third is better."""
    rng, rows = np.random.default_rng(8), []
    for prompt in range(1500):
        for a, b in (("brief", "wordy"), ("good", "wordy"), ("brief", "good")):
            size = {name: int(rng.integers(30, 80) * (2 if name == "wordy" else 1)) for name in (a, b)}
            apart = (size[a] - size[b]) / (size[a] + size[b])
            edge = 2 * apart + {"good": 0.8}.get(a, 0) - {"good": 0.8}.get(b, 0)
            won = rng.random() < 1 / (1 + np.exp(-edge))
            rows.append(battle(a, b, "a" if won else "b", prompt, replies=["x" * size[a], "x" * size[b]]))
    found = rate(rows, draws=100)
    assert found.low["wordy"] > found.high["brief"], "it seems better"
    assert found.controlled["wordy"] == pytest.approx(found.controlled["brief"], abs=30)
    assert found.controlled["good"] - found.controlled["brief"] == pytest.approx(0.8 * ELO, abs=30)
    points, error = found.length_effect
    assert points == pytest.approx(2 / 3 * ELO, abs=30) and abs(points - 2 / 3 * ELO) < 3 * error < 60
    for name in found.players:
        assert found.controlled_low[name] < found.controlled[name] < found.controlled_high[name]
    assert "equal length" in table(found) and found.metrics()["length_controlled/good"] > 1050


def test_intervals_at_equal_lengths_hold_the_truth_19_times_of_20():
    rng, held = np.random.default_rng(9), []
    for _ in range(100):
        rows = []
        for prompt in range(60):
            edge = rng.standard_normal()  # what all battles on this prompt share
            for _ in range(4):
                sizes = rng.integers(10, 90, 2)
                odds = 0.7 + edge + 1.5 * (sizes[0] - sizes[1]) / sizes.sum()
                won = rng.random() < 1 / (1 + np.exp(-odds))
                rows.append(battle("x", "y", "a" if won else "b", prompt, replies=["." * n for n in sizes]))
        found = rate(rows, draws=2)
        # the mean over prompts of a logistic curve is flatter by about sqrt(1 + spread^2 pi / 8)
        truth = AVERAGE + ELO * 0.7 / math.sqrt(1 + math.pi / 8) / 2
        held.append(found.controlled_low["x"] <= truth <= found.controlled_high["x"])
    assert 0.88 <= np.mean(held) <= 0.99, np.mean(held)


def test_equal_lengths_everywhere_and_empty_replies_leave_no_control():
    for texts in (["abc", "xyz"], ["", ""]):
        found = rate([battle("x", "y", "a", n, replies=texts) for n in range(3)])
        assert not found.controlled and found.length_effect is None
        assert not [key for key in found.metrics() if "length" in key]


def test_who_won_or_lost_them_all_has_a_finite_rating_and_a_note():
    rows = [battle("x", "y", "a", n, replies=["long" * 9, ""]) for n in range(500)]
    found = rate(rows)
    assert all(map(math.isfinite, found.metrics().values()))
    assert 1000 < found.rating["x"] - found.rating["y"] < 3000 and found.win_rate["x", "y"] == 1
    assert "x won every battle" in table(found) and "y lost every battle" in table(found)


def test_groups_that_never_met_are_named_and_rated_within_themselves():
    rows = [battle("x", "y", ("a", "a", "b")[n % 3], n) for n in range(30)]
    rows += [battle("v", "w", ("a", "b", "b")[n % 3], n) for n in range(30)]
    found = rate(rows)
    assert found.rating["x"] > found.rating["y"] and found.rating["w"] > found.rating["v"]
    assert "no battle joins these groups" in found.notes[0] and all(name in found.notes[0] for name in "vwxy")
    joined = rate([*rows, battle("x", "v", "tie", 99)])
    assert not joined.notes


def test_battles_without_a_winner_count_for_nothing():
    rows = [battle("x", "y", "a", 1), battle("x", "y", "b", 2)]
    found = rate([*rows, battle("x", "y", None, 3), battle("x", "z", None, 4)])
    assert found.metrics() == rate(rows).metrics() and found.players == ["x", "y"]


@pytest.mark.parametrize(
    "rows, anchor, why",
    [([], None, "no battle was decided"), ([battle("x", "y", None)], None, "no battle was decided"),
     ([battle("x", "y", "x")], None, "not 'x'"), ([battle("x", "x", "a")], None, "x meets itself"),
     ([battle("x", "y", "a")], "z", "anchor 'z' has no decided battle; there are x, y")],
)  # fmt: skip
def test_what_cannot_be_rated_is_named(rows, anchor, why):
    with pytest.raises(ValueError, match=why):
        rate(rows, anchor)


def test_one_prompt_alone_gives_no_intervals_and_says_so():
    found = rate([battle("x", "y", "a"), battle("x", "y", "b"), battle("x", "y", "a")])
    assert found.low == found.rating == found.high and "no intervals" in found.notes[0]


def test_lopsided_battles_settle_where_the_likelihood_is_flat():
    """Odd worlds of up to a million battles a pair: in several of them Newton's bare steps leave the range of
    numbers."""
    rng = np.random.default_rng(0)
    for world in range(1000):
        count = int(rng.integers(2, 9))
        pairs = [(i, j) for i in range(count) for j in range(i)]
        design = np.array([np.eye(count)[i] - np.eye(count)[j] for i, j in pairs])
        games = np.floor(10.0 ** rng.integers(0, 7, len(pairs)) * rng.choice([0, 1], len(pairs)))
        won = games * rng.choice([0, 1, 0.5, 0.01, 0.999], len(pairs))
        values = fit(design, won[None], games[None])[0]
        slope = design.T @ (won - games / (1 + np.exp(-design @ values))) + 0.5 - 1 / (1 + np.exp(-values))
        assert np.abs(slope).max() < 1e-3, f"world {world}: at the top it is flat"


def test_it_is_a_metric_of_evaluate():
    metric = BradleyTerry()
    found = metric.compute(a=["x"] * 4, b=["y"] * 4, winner=["a", "a", "tie", "b"], prompt=list("pqrs"), draws=50)
    assert found["battles"] == 4 and found["players"] == 2 and found["win_rate/x/y"] == 0.625
    assert found["rating_low/x"] <= found["rating/x"] <= found["rating_high/x"]
