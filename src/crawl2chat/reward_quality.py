"""How good a reward model is: right on held-out pairs, sure where it should be, better than length, never fooled."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crawl2chat.reward_model import encode, question, score, score_ids

BINS = 10  # of the calibration, from even odds to certainty
SHOWN = 32  # held-out prompts that degenerate replies are made for
KEPT = ("prompt", "chosen", "rejected", "rank_distance")  # of a pair, beside its scores


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[dict],
    test: Sequence[dict],
    max_length: int,
    batch_size: int,
) -> tuple[dict[str, float], dict, list[dict], list[dict]]:
    """What held-out pairs (of `encode_pairs`) say: the numbers of metrics.json, `reliability`, `degenerate`, and the
    pairs with their two scores.
    """
    rows = [row[side] for side in ("chosen_ids", "rejected_ids") for row in test]
    scores = score_ids(model, rows, batch_size, progress=True)
    high, low = scores[: len(test)], scores[len(test) :]
    margins = [a - b for a, b in zip(high, low, strict=True)]
    accuracy, stderr = clustered(wins(margins), [question(row) for row in test])
    calibration = reliability(margins)
    by_distance = defaultdict(list)
    for row, win in zip(test, wins(margins), strict=True):
        by_distance[row["rank_distance"]].append(win)
    some = {
        question(row): row for row in sorted(test, key=lambda row: row["rank_distance"] or 0)
    }  # best against worst
    some = list(some.values())
    kinds = degenerate(model, tokenizer, some[:: -(-len(some) // SHOWN)], max_length, batch_size)
    numbers = {
        "accuracy": accuracy,
        "stderr": stderr,
        "length_baseline_accuracy": length_baseline(train, test),
        "calibration_error": calibration["expected_calibration_error"],
        **{f"accuracy_distance_{d}": fmean(by_distance[d]) for d in sorted(d for d in by_distance if d is not None)},
        **{f"score_{kind['kind']}": kind["score"] for kind in kinds},
    }
    scored = [
        {**{key: row[key] for key in KEPT}, "score_chosen": a, "score_rejected": b}
        for row, a, b in zip(test, high, low, strict=True)
    ]
    return numbers, calibration, kinds, scored


def ceiling(preferences: str) -> float | None:
    """The share of pairs on which the labeler agrees with himself without his noise, where the stage that made the
    pairs has measured it: no reward model can be expected to be right on more of them."""
    path = Path(preferences) / "metrics.json"
    flipped = json.loads(path.read_text(encoding="utf-8")).get("flipped") if path.is_file() else None
    return None if flipped is None else 1 - flipped


def shown(kinds: Sequence[dict]) -> str:
    """`degenerate`'s table, one line a kind."""
    return "\n".join(
        f"{kind['kind'].replace('_', ' '):>16} {kind['score']:+7.2f}"
        + f"  above the chosen reply at {kind['beats_chosen']:4.0%} of prompts" * (kind["kind"] != "chosen")
        for kind in kinds
    )


def wins(margins: Sequence[float]) -> list[float]:
    """1 where the chosen reply scores higher, 0 where lower; where equal, as a coin would decide, 0.5."""
    return [0.5 if margin == 0 else float(margin > 0) for margin in margins]


def clustered(values: Sequence[float], clusters: Sequence[str]) -> tuple[float, float]:
    """Mean and its standard error where values of one cluster (the pairs of a prompt) are not independent.

    sqrt(G / (G - 1) * sum over clusters of (sum of deviations)^2) / n (Miller 2024, arXiv:2411.00640, with the usual
    correction for few clusters); 0 for one cluster.
    """
    mean, sums = fmean(values), Counter()
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - mean
    groups = len(sums)
    spread = math.fsum(total**2 for total in sums.values())
    return mean, math.sqrt(spread * groups / (groups - 1)) / len(values) if groups > 1 else 0.0


def reliability(margins: Sequence[float]) -> dict:
    """How often the model is right where it is so sure: sigmoid(|margin|) in ten bins from 0.5 to 1.

    expected_calibration_error is the mean over pairs of |share right - confidence| of their bin (Guo et al. 2017,
    arXiv:1706.04599); `by_chance` is what a perfectly calibrated model would show on so few pairs. `bins` are
    {"from", "to", "pairs", "confidence", "accuracy"}, of bins that hold a pair.
    """
    sure = [1 / (1 + math.exp(-min(abs(margin), 700))) for margin in margins]
    right, bins, error, chance = wins(margins), [], 0.0, 0.0
    for i in range(BINS):
        inside = [k for k, p in enumerate(sure) if min(int((p - 0.5) * 2 * BINS), BINS - 1) == i]
        if not inside:
            continue
        confidence, accuracy = fmean(sure[k] for k in inside), fmean(right[k] for k in inside)
        low, high = (0.5 + edge / (2 * BINS) for edge in (i, i + 1))
        bins.append({"from": low, "to": high, "pairs": len(inside), "confidence": confidence, "accuracy": accuracy})
        error += len(inside) / len(margins) * abs(accuracy - confidence)
        chance += math.sqrt(len(inside) * 2 / math.pi * confidence * (1 - confidence)) / len(margins)
    return {"expected_calibration_error": error, "by_chance": chance, "bins": bins}


def length_baseline(train: Sequence[dict], test: Sequence[dict]) -> float:
    """Accuracy on `test` of a reward that sees a reply's length alone: Bradley and Terry's model over characters and
    their square, fitted to `train` by Newton's method. It may learn that longer, shorter or middling replies win.
    """

    def features(rows: Sequence[dict]) -> np.ndarray:  # (pairs, 2)
        lengths = [[sum(len(turn["content"] or "") for turn in row[side]) for side in ("chosen", "rejected")]
                   for row in rows]  # fmt: skip
        scaled = np.array(lengths, dtype=float) / scale
        return np.stack([scaled[:, 0] - scaled[:, 1], scaled[:, 0] ** 2 - scaled[:, 1] ** 2], axis=1)

    scale = max(1.0, fmean(len(turn["content"] or "") for row in train for turn in row["chosen"]))
    x, weights = features(train), np.zeros(2)
    for _ in range(50):
        wrong = 1 / (1 + np.exp(np.clip(x @ weights, -30, 30)))
        slope = x.T @ wrong / len(x) - 1e-3 * weights
        curve = (x * (wrong * (1 - wrong))[:, None]).T @ x / len(x) + 1e-3 * np.eye(2)
        weights = weights + np.linalg.solve(curve, slope)
    return fmean(wins((features(test) @ weights).round(12).tolist()))


def degenerate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    max_length: int,
    batch_size: int,
) -> list[dict[str, str | float]]:
    """Scores of replies that no one wants, beside those of the pairs' own.

    To every row's prompt: nothing at all, "the" as often as the chosen reply has words, the chosen reply again and
    again up to `max_length` tokens, and the chosen reply to the next row's prompt. Returns {"kind", "score" (mean),
    "beats_chosen" (share of rows), "text" (an example)}, one a kind, chosen and rejected first.
    """
    texts = [words(row["chosen"]) for row in rows]
    made = {"chosen": texts, "rejected": [words(row["rejected"]) for row in rows], "empty": [""] * len(rows)}
    made["repeated_word"] = [" ".join(["the"] * max(1, len(text.split()))) for text in texts]
    made["very_long"] = []
    for row, text in zip(rows, texts, strict=True):
        empty = encode(tokenizer, [*row["prompt"], {"role": "assistant", "content": ""}])
        times = (max_length - len(empty)) // max(1, len(tokenizer(f"{text}\n", add_special_tokens=False)["input_ids"]))
        made["very_long"].append("\n".join([text] * max(1, times)))
    made["another_prompts"] = [*texts[1:], *texts[:1]]
    talks = [
        [*row["prompt"], {"role": "assistant", "content": text}]
        for own in made.values()
        for row, text in zip(rows, own, strict=True)
    ]
    found = iter(score(model, tokenizer, talks, batch_size))
    scores = {kind: [next(found) for _ in rows] for kind in made}
    return [
        {
            "kind": kind,
            "score": fmean(own),
            "beats_chosen": fmean(wins([a - b for a, b in zip(own, scores["chosen"], strict=True)])),
            "text": made[kind][0],
        }
        for kind, own in scores.items()
    ]


def words(reply: Sequence[dict]) -> str:
    """The last turn's text."""
    return (reply[-1]["content"] or "").strip()
