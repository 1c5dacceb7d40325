"""Ratings out of battles: Bradley and Terry's model on Elo's scale, bootstrap intervals, and a control for length.

A player beats another with probability sigmoid(difference of their strengths) (Bradley and Terry 1952, Biometrika 39).
A tie, and two bad replies, are half a win for either, as in Chatbot Arena (Chiang et al. 2024, arXiv:2403.04132): what
a rating then predicts is the win rate that we report everywhere, ties being half a win. Davidson's parameter for ties
(1970, JASA 65) would tell the odds of a tie beside it; nothing here asks for them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log

import numpy as np

ELO = 400 / log(10)  # points of a unit of strength: 400 of them are odds of ten to one
AVERAGE = 1000.0  # where the mean, or the anchor, is put
# Every strength also plays one drawn battle against a strength of 0: nobody's is infinite who won or lost them all,
# and players who never met have a place. Beside a hundred battles it counts for nothing.
PRIOR = 1.0
POINTS = {"a": 1.0, "tie": 0.5, "both bad": 0.5, "b": 0.0}  # what `winner` is worth to player a


@dataclass
class Ratings:
    """What battles say of the players, best first; `low` and `high` are the ends of 95 % intervals."""

    players: list[str]
    rating: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    win_rate: dict[tuple[str, str], float]  # of the first over the second, ties being half a win
    met: dict[tuple[str, str], int]  # their battles
    battles: int
    controlled: dict[str, float] = field(default_factory=dict)  # ratings at equal lengths; empty: lengths never differ
    controlled_low: dict[str, float] = field(default_factory=dict)
    controlled_high: dict[str, float] = field(default_factory=dict)
    length_effect: tuple[float, float] | None = None  # points that a reply twice as long gains, standard error
    notes: list[str] = field(default_factory=list)  # what a reader of the ratings must know

    def metrics(self) -> dict[str, float]:
        """Flat numbers: battles, players, rating/<player>, rating_low/..., win_rate/<a>/<b>, length_controlled/..."""
        found: dict[str, float] = {"battles": self.battles, "players": len(self.players)}
        parts = {"rating": self.rating, "rating_low": self.low, "rating_high": self.high}
        parts |= {"length_controlled": self.controlled, "length_controlled_low": self.controlled_low}
        parts |= {"length_controlled_high": self.controlled_high}
        for key, values in parts.items():
            found |= {f"{key}/{name}": round(values[name], 2) for name in self.players if name in values}
        found |= {f"win_rate/{a}/{b}": round(rate, 6) for (a, b), rate in self.win_rate.items()}
        if self.length_effect is not None:
            points, error = self.length_effect
            ends = {"": 0, "_low": -1.96 * error, "_high": 1.96 * error}
            found |= {f"length_effect{end}": round(points + by, 2) for end, by in ends.items()}
        return found


def rate(battles: Sequence[dict], anchor: str | None = None, draws: int = 1000, seed: int = 0) -> Ratings:
    """Rate the players of `battles`: {"prompt", "a", "b": players, "winner": "a", "b", "tie", "both bad" or None,
    "replies"?: [a's text, b's text]}. Battles without a winner (None) count for nothing.

    The mean rating is 1000, or that of the player `anchor`. Intervals are percentiles of `draws` refits, each of as
    many prompts drawn with replacement: the battles on one prompt are not independent (Efron 1979; by clusters, Miller
    2024, arXiv:2411.00640). Where every battle has its replies, ratings at equal lengths stand beside them.
    Raises ValueError where no battle was decided, for an unknown winner or anchor, and for a player who meets itself.
    """
    if unknown := [row["winner"] for row in battles if row["winner"] not in (*POINTS, None)]:
        raise ValueError(f"a winner is one of {', '.join(POINTS)} or null, not {unknown[0]!r}")
    battles = [row for row in battles if row["winner"] is not None]
    if not battles:
        raise ValueError("no battle was decided, so there is nobody to rate")
    if same := [row["a"] for row in battles if row["a"] == row["b"]]:
        raise ValueError(f"{same[0]} meets itself; a battle takes two players")
    names = list(dict.fromkeys(name for row in battles for name in (row["a"], row["b"])))
    if anchor is not None and anchor not in names:
        raise ValueError(f"the anchor {anchor!r} has no decided battle; there are {', '.join(names)}")
    number = {name: i for i, name in enumerate(names)}
    a, b = (np.array([number[row[side]] for row in battles]) for side in ("a", "b"))
    points = np.array([POINTS[row["winner"]] for row in battles])
    order: dict[str, int] = {}
    prompt = np.array([order.setdefault(json.dumps(row["prompt"], sort_keys=True), len(order)) for row in battles])

    # one row a pair of players, whoever stood on which side: all refits are of these few
    codes, pair = np.unique(np.minimum(a, b) * len(names) + np.maximum(a, b), return_inverse=True)
    ends = np.stack(np.divmod(codes, len(names)))  # (2, pairs)
    points_of_pair = np.where(a < b, points, 1 - points)
    design = np.eye(len(names))[ends[0]] - np.eye(len(names))[ends[1]]  # (pairs, players)

    def sums(times: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Points of each pair's first player and battles of the pair, each battle counted so many times."""
        counted = points_of_pair if times is None else times * points_of_pair
        return np.bincount(pair, counted, len(codes)), np.bincount(pair, times, len(codes))

    won, met = sums()
    centre = np.eye(len(names)) - (1 / len(names) if anchor is None else np.eye(len(names))[number[anchor]])
    rating = AVERAGE + ELO * centre @ fit(design, won[None], met[None])[0]
    rng = np.random.default_rng(seed)
    drawn = [np.bincount(rng.integers(0, len(order), len(order)), minlength=len(order)) for _ in range(draws)]
    refits = fit(design, *map(np.stack, zip(*(sums(times[prompt].astype(float)) for times in drawn), strict=True)))
    low, high = np.percentile(AVERAGE + ELO * refits @ centre.T, (2.5, 97.5), axis=0)

    best = sorted(names, key=lambda name: -rating[number[name]])
    as_dict = lambda values: {name: float(values[number[name]]) for name in best}  # noqa: E731
    shares, counts = {}, {}
    for i, (one, other) in enumerate(ends.T):
        for first, second, share in ((one, other, won[i] / met[i]), (other, one, 1 - won[i] / met[i])):
            shares[names[first], names[second]] = float(share)
            counts[names[first], names[second]] = int(met[i])
    found = Ratings(best, as_dict(rating), as_dict(low), as_dict(high), shares, counts, len(battles))
    found.notes = notes(best, shares, len(order))
    lengths = np.array([[len(text) for text in row["replies"]] for row in battles if "replies" in row])
    if len(lengths) == len(battles) and (lengths[:, 0] != lengths[:, 1]).any():
        by_battle = np.eye(len(names))[a] - np.eye(len(names))[b]
        (*values, effect), (*errors, own) = at_equal_lengths(by_battle, points, lengths, prompt, centre)
        values, errors, found.length_effect = np.array(values), np.array(errors), (float(effect), float(own))
        found.controlled = as_dict(values)
        found.controlled_low, found.controlled_high = as_dict(values - 1.96 * errors), as_dict(values + 1.96 * errors)
    return found


def fit(design: np.ndarray, won: np.ndarray, games: np.ndarray) -> np.ndarray:
    """(fits, columns): for each of several sets of points `won` in `games` (fits, rows), the parameters under which
    sigmoid(design @ parameters) makes them likeliest, the PRIOR among them, by Newton's method.

    `design` is (rows, columns). Each fit has one maximum and no other, for the prior makes its likelihood strictly
    concave; no step is longer than 2.
    """
    design = np.vstack([design, np.eye(design.shape[1])])
    prior = np.full((len(won), design.shape[1]), PRIOR)
    won, games = np.hstack([won, prior / 2]), np.hstack([games, prior])

    values = np.zeros((len(won), design.shape[1]))
    for _ in range(100):
        chance = np.exp(-np.logaddexp(0, -values @ design.T))
        gradient = (won - games * chance) @ design
        bend = design.T @ ((games * chance * (1 - chance))[..., None] * design)  # (fits, columns, columns)
        step = np.linalg.solve(bend, gradient[..., None])[..., 0]
        if np.abs(step).max() < 1e-8:
            return values
        # further on, a logistic curve is flat, and from there the next step would lead anywhere
        values += step / np.maximum(1, np.abs(step).max(-1, keepdims=True) / 2)
    raise ValueError(f"the ratings of {len(won)} fits did not settle in 100 steps")


def at_equal_lengths(
    design: np.ndarray, points: np.ndarray, lengths: np.ndarray, prompt: np.ndarray, centre: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(values, standard errors) with the length as one more column: ratings, and points that a reply twice as long
    gains by that.

    Chatbot Arena's style control (Li, Angelopoulos and Chiang 2024, "Does style matter?"): the difference of the two
    lengths over their sum, in its own spread, stands in the regression beside the players. Lengths are in characters,
    for two checkpoints may have two tokenizers. Errors are the sandwich's with prompts as clusters (Liang and Zeger
    1986, Biometrika 73), for here a refit takes every battle. `design` is (battles, players), `lengths` (battles, 2).
    """
    apart = (lengths[:, 0] - lengths[:, 1]) / np.maximum(lengths.sum(1), 1)
    spread = np.sqrt((apart**2).mean())
    design = np.column_stack([design, apart / spread])
    values = fit(design, points[None], np.ones((1, len(points))))[0]
    chance = 1 / (1 + np.exp(-design @ values))
    own = 1 / (1 + np.exp(-values))
    bend = design.T @ ((chance * (1 - chance))[:, None] * design) + PRIOR * np.diag(own * (1 - own))
    scores = np.zeros((prompt.max() + 1, design.shape[1]))
    np.add.at(scores, prompt, (points - chance)[:, None] * design)
    inverse = np.linalg.inv(bend)
    contrast = np.zeros((len(centre) + 1, len(centre) + 1))
    contrast[:-1, :-1] = centre
    contrast[-1, -1] = (2 - 1) / (2 + 1) / spread  # of two replies, one twice as long as the other
    clusters = len(scores)
    meat = scores.T @ scores * clusters / max(clusters - 1, 1)
    spreads = contrast @ inverse @ meat @ inverse @ contrast.T
    found = ELO * contrast @ values
    found[:-1] += AVERAGE
    return found, ELO * np.sqrt(np.diag(spreads))


def notes(players: Sequence[str], win_rate: dict[tuple[str, str], float], prompts: int) -> list[str]:
    """What ratings alone do not tell: groups that never met, who won or lost every battle, a single prompt."""
    found = []
    groups: list[set[str]] = []
    for name in players:
        met = {name} | {other for one, other in win_rate if one == name}
        met.update(*(group for group in groups if group & met))
        groups = [group for group in groups if not group & met] + [met]
    if len(groups) > 1:
        listed = "; ".join(", ".join(name for name in players if name in group) for group in groups)
        found.append(f"no battle joins these groups ({listed}): ratings compare players within a group alone")
    for name in players:
        rates = {rate for (one, _), rate in win_rate.items() if one == name}
        if rates in ({0.0}, {1.0}):
            done = "won" if rates == {1.0} else "lost"
            found.append(f"{name} {done} every battle: how far it stands apart is what one drawn battle more allows")
    if prompts == 1:
        found.append("all battles are on one prompt: there are no intervals to give")
    return found


def table(found: Ratings) -> str:
    """The ratings as lines of text, with their intervals, at equal lengths too, and the share that each won of the
    battles with every other."""
    head = f"{'':20}{'rating':>8}{'95 % interval':>18}" + (f"{'equal length':>14}" if found.controlled else "")
    lines = [head + "".join(f"{name[:11]:>12}" for name in found.players)]
    for one in found.players:
        line = f"{one[:19]:20}{found.rating[one]:8.0f}{f'{found.low[one]:.0f} to {found.high[one]:.0f}':>18}"
        line += f"{found.controlled[one]:14.0f}" if found.controlled else ""
        rates = [found.win_rate.get((one, other)) for other in found.players]
        lines.append(line + "".join(f"{'' if rate is None else f'{rate:.1%}':>12}" for rate in rates))
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])
