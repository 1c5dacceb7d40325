"""Proxy against gold: what a policy was trained to please, and what that stands for, on prompts held out.

The gold reward is known to the experiment alone: the labeler's own for verses, a task's grade where it has one.
"""

from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from crawl2chat.episodes import Episode
from crawl2chat.labeler import gold as gold_of_verse
from crawl2chat.rewards import Completion, correct, said


def gold(
    completions: list[Completion], prompts: list[list[dict]], task: list[str], answer: list[str], **kwargs
) -> list[float | None]:
    """The gold reward of each reply, in the form of a reward function; None for a row of no task, whose gold nobody
    knows, and where the grader itself failed."""
    values = []
    for completion, prompt, name, wanted in zip(completions, prompts, task, answer, strict=True):
        if name == "verse":
            values.append(gold_of_verse(prompt, said(completion)))
        else:
            values.append(correct([completion], [name], [wanted])[0] if name else None)
    return values


def measured(before: Sequence[Episode], after: Sequence[Episode], samples: int) -> dict[str, float]:
    """What training did on held-out prompts, of `samples` replies to each before and after, a prompt's in a row.

    gold_before, gold_after, gold_gain and gold_p_value (paired over prompts) where the gold reward is known, and
    win_rate, how often the gold labeler prefers a reply after training to one before it (`wins`); _low and _high are
    the ends of 95 % `interval`s. proxy_..., the score that was trained on; kl in nats a reply, length in tokens,
    ended; ungraded replies of either time, whose prompts count in nothing.
    """
    found: dict[str, float] = {}
    for name, value in (("gold", lambda one: one.rewards["gold"]), ("proxy", lambda one: one.score)):
        pairs = groups(before, after, samples, value)
        if not len(pairs):
            continue
        means = pairs.mean(axis=2)
        found |= {f"{name}_before": float(means[:, 0].mean()), f"{name}_after": float(means[:, 1].mean())}
        found[f"{name}_gain"] = found[f"{name}_after"] - found[f"{name}_before"]
        found[f"{name}_p_value"] = p_value(means[:, 1] - means[:, 0])
        if name == "gold":
            found["gold_gain_low"], found["gold_gain_high"] = interval(means[:, 1] - means[:, 0])
            won = wins(pairs)
            found["win_rate"] = float(won.mean())
            found["win_rate_low"], found["win_rate_high"] = interval(won)
    found["kl"] = fmean(one.kl for one in after)
    for when, episodes in (("before", before), ("after", after)):
        found[f"length_{when}"] = fmean(one.tokens for one in episodes)
        found[f"ended_{when}"] = fmean(one.ended for one in episodes)
    return found | {"ungraded": sum(one.score is None for one in [*before, *after])}


def groups(
    before: Sequence[Episode], after: Sequence[Episode], samples: int, value: Callable[[Episode], float | None]
) -> np.ndarray:
    """(prompts, 2, samples): the values of each prompt's replies before and after; without the prompts of which a
    value is None."""
    found = [[[value(one) for one in episodes[i : i + samples]] for episodes in (before, after)]
             for i in range(0, len(before), samples)]  # fmt: skip
    return np.array([pair for pair in found if None not in pair[0] + pair[1]], dtype=float)


def wins(pairs: np.ndarray) -> np.ndarray:
    """(prompts,): of `groups`, the share of comparisons that a reply after training wins over one before it, a tie
    being half a win. Every reply after is compared with every one before, samples x samples of them: over the same
    replies that varies no more than reply i against reply i, whose mean over all ways to pair them up it is.
    """
    apart = pairs[:, 1, :, None] - pairs[:, 0, None, :]  # (prompts, after, before)
    return (1 + np.sign(apart.round(9))).mean(axis=(1, 2)) / 2


def interval(values: np.ndarray, draws: int = 9_999, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean of `values`, one a prompt: the percentiles 2.5 and 97.5 of the means of as many
    prompts drawn with replacement (Efron 1979)."""
    rng, means = np.random.default_rng(seed), []
    while len(means) < draws:
        times = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), min(draws - len(means), 1024))
        means += (times @ values / len(values)).tolist()
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def headline(numbers: dict[str, float]) -> str:
    """Gold, where it is known, and proxy of `measured` in a line."""
    parts = []
    for name in ("gold", "proxy"):
        if f"{name}_gain" in numbers:
            before, after, p = (numbers[f"{name}_{key}"] for key in ("before", "after", "p_value"))
            parts.append(f"{name} {before:.3f} -> {after:.3f} (p {p:.2g})")
        if name == "gold" and "win_rate" in numbers:
            won, low, high = (numbers[f"win_rate{end}"] for end in ("", "_low", "_high"))
            parts.append(f"wins {won:.1%} [{low:.1%}, {high:.1%}]")
    return ", ".join(parts)


def looks(before: Sequence[Episode], after: Sequence[Episode], samples: int) -> list[dict]:
    """The first reply to each prompt before and after: {"prompt", "before": {"text", "proxy", "gold"}, "after"}."""
    rows = []
    for pair in zip(before[::samples], after[::samples], strict=True):
        told = [{"text": one.text, "proxy": one.score, "gold": one.rewards["gold"]} for one in pair]
        rows.append({"prompt": pair[0].prompt[-1]["content"], "before": told[0], "after": told[1]})
    return rows


def p_value(differences: np.ndarray, draws: int = 99_999, seed: int = 0) -> float:
    """Two-sided p of paired differences by random signs: were before and after alike, each difference could as well
    have the other sign (Fisher 1935). At least 1 / (draws + 1)."""
    rng, observed, extreme, left = np.random.default_rng(seed), abs(differences.sum()), 0, draws
    while left:
        signs = rng.integers(0, 2, size=(min(left, 4096), len(differences)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ differences) >= observed - 1e-12).sum())
        left -= len(signs)
    return (extreme + 1) / (draws + 1)


def curve(log_history: Sequence[dict], steps_a_batch: int, episodes_a_batch: int) -> list[dict[str, float]]:
    """A run's evaluations: step, episodes, seconds (of training), kl (nats a reply), proxy, gold if known, length."""
    keys = {"seconds": "so_far_seconds", "kl": "kl", "proxy": "reward", "gold": "rewards/gold", "length": "length"}
    rows = {row["step"]: row for row in log_history if "eval_reward" in row}.values()
    found = []
    for row in rows:
        numbers = {name: row[f"eval_{key}"] for name, key in keys.items() if f"eval_{key}" in row}
        episodes = row["step"] // steps_a_batch * episodes_a_batch
        found.append({"step": row["step"], "episodes": episodes, **numbers})
    return found
