"""Proxy against gold: what a policy was trained to please, and what that stands for, on prompts held out.

The gold reward is known to the experiment alone: the labeler's own for verses, a task's grade where it has one.
"""

from collections.abc import Sequence
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

    gold_before, gold_after, gold_gain and gold_p_value (paired over prompts) where the gold reward is known;
    proxy_..., the score that was trained on; kl in nats a reply, length in tokens, ended; ungraded replies of either
    time, whose prompts count in nothing.
    """
    found: dict[str, float] = {}
    for name, value in (("gold", lambda one: one.rewards["gold"]), ("proxy", lambda one: one.score)):
        groups = [[value(one) for one in episodes[i : i + samples]] for i in range(0, len(before), samples)
                  for episodes in (before, after)]  # fmt: skip
        pairs = list(zip(groups[::2], groups[1::2], strict=True))
        means = np.array([[fmean(group) for group in pair] for pair in pairs if None not in pair[0] + pair[1]])
        if len(means):
            found |= {f"{name}_before": float(means[:, 0].mean()), f"{name}_after": float(means[:, 1].mean())}
            found[f"{name}_gain"] = found[f"{name}_after"] - found[f"{name}_before"]
            found[f"{name}_p_value"] = p_value(means[:, 1] - means[:, 0])
    found["kl"] = fmean(one.kl for one in after)
    for when, episodes in (("before", before), ("after", after)):
        found[f"length_{when}"] = fmean(one.tokens for one in episodes)
        found[f"ended_{when}"] = fmean(one.ended for one in episodes)
    return found | {"ungraded": sum(one.score is None for one in [*before, *after])}


def headline(numbers: dict[str, float]) -> str:
    """Gold, where it is known, and proxy of `measured` in a line."""
    parts = []
    for name in ("gold", "proxy"):
        if f"{name}_gain" in numbers:
            before, after, p = (numbers[f"{name}_{key}"] for key in ("before", "after", "p_value"))
            parts.append(f"{name} {before:.3f} -> {after:.3f} (p {p:.2g})")
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
