"""Numbers that say how good a model is: plain functions, and each again as an `evaluate.Metric` that needs no hub."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, stdev

import datasets
import evaluate

from crawl2chat.ratings import rate


def accuracy(scores: Sequence[float | None]) -> dict[str, float]:
    """Mean score with its standard error.

    A score is 0 to 1, or None where no verdict could be had (the grader failed): None is left out of the mean and
    counted in `ungraded`, never taken for 0. The standard error is the sample standard deviation / sqrt(n), 0 for one
    score. Returns accuracy, stderr, n (graded), ungraded; raises ValueError where nothing was graded.
    """
    graded = [float(score) for score in scores if score is not None]
    if not graded:
        raise ValueError(f"none of {len(scores)} answers was graded: there is no accuracy to give")
    stderr = stdev(graded) / math.sqrt(len(graded)) if len(graded) > 1 else 0.0
    return {"accuracy": fmean(graded), "stderr": stderr, "n": len(graded), "ungraded": len(scores) - len(graded)}


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that at least one of k draws is right, estimated without bias from `right` of `samples` draws.

    1 - C(samples - right, k) / C(samples, k), as in Chen et al. 2021 (arXiv:2107.03374), equation 1.
    Raises ValueError unless 0 <= right <= samples and 1 <= k <= samples.
    """
    if not (0 <= right <= samples and 1 <= k <= samples):
        raise ValueError(f"pass@{k} needs 1 <= k <= samples and 0 <= right <= samples, got {right} right of {samples}")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def majority(answers: Sequence[str], scores: Sequence[float | None]) -> float:
    """Score of the answer that most of one question's samples give; where answers tie, the mean of theirs.

    `answers` are normal forms: equal answers are one vote each for the same thing. Samples without a score have no
    vote. Self-consistency, Wang et al. 2022 (arXiv:2203.11171). Raises ValueError where nothing was graded.
    """
    votes = [(answer, score) for answer, score in zip(answers, scores, strict=True) if score is not None]
    if not votes:
        raise ValueError(f"none of {len(scores)} answers was graded: there is no majority to grade")
    counts = Counter(answer for answer, _ in votes)
    leaders = [answer for answer, count in counts.items() if count == max(counts.values())]
    return fmean(fmean(score for answer, score in votes if answer == leader) for leader in leaders)


def sampled(scores: Sequence[Sequence[float | None]], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Several replies to every question: `scores` and `answers` (normal forms) are (questions, samples).

    Returns accuracy (pass@1: the mean of the questions' means), stderr (clustered by question: a question's samples
    are not independent; Miller 2024, arXiv:2411.00640), seeds_stderr (over the runs of one sample a question), n
    (questions graded), samples, ungraded (replies), pass_at_<k> for k = 2, 4, 8, ... and all samples (right: a score
    of 1), and majority_at_<samples>. Replies without a score are left out; a question with fewer than k scores counts
    for no pass_at_<k>. Raises ValueError where nothing was graded.
    """
    graded = [[score for score in row if score is not None] for row in scores]
    found = accuracy([fmean(row) if row else None for row in graded])
    samples = max(map(len, scores))
    runs = [[score for score in run if score is not None] for run in zip(*scores, strict=True)]
    means = [fmean(run) for run in runs if run]
    found["seeds_stderr"] = stdev(means) / math.sqrt(len(means)) if len(means) > 1 else 0.0
    found |= {"samples": samples, "ungraded": sum(map(len, scores)) - sum(map(len, graded))}
    for k in [*(2**i for i in range(1, samples.bit_length()) if 2**i < samples), samples]:
        counts = [(len(row), sum(score >= 1 for score in row)) for row in graded if len(row) >= k]
        if counts:
            found[f"pass_at_{k}"] = fmean(pass_at_k(total, right, k) for total, right in counts)
    votes = [majority(*pair) for pair, row in zip(zip(answers, scores, strict=True), graded, strict=True) if row]
    return {**found, f"majority_at_{samples}": fmean(votes)}


def bits_per_byte(nats: float, utf8_bytes: int) -> float:
    """Negative log-likelihood in nats over a text's length in UTF-8 bytes, as bits: comparable across tokenizers."""
    if utf8_bytes <= 0:
        raise ValueError(f"bits per byte needs at least one byte of text, got {utf8_bytes}")
    return nats / math.log(2) / utf8_bytes


class Metric(evaluate.Metric):
    """An `evaluate.Metric` that keeps its rows in memory; subclasses name their columns and compute."""

    columns: dict
    paper = ""

    def __init__(self, **kwargs) -> None:
        super().__init__(**{"keep_in_memory": True, **kwargs})

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation=self.paper,
            inputs_description="",
            features=datasets.Features(self.columns),
        )


class Accuracy(Metric):
    """Mean of scores between 0 and 1; `predictions` are the scores, None where the grader failed."""

    columns = {"predictions": datasets.Value("float64")}

    def _compute(self, predictions: list[float | None]) -> dict[str, float]:
        return accuracy(predictions)


class PassAtK(Metric):
    """pass@k over problems; `predictions` are each problem's sampled scores (right where 1), `k` a list of draws."""

    columns = {"predictions": datasets.Sequence(datasets.Value("float64"))}
    paper = "Chen et al. 2021, Evaluating Large Language Models Trained on Code, arXiv:2107.03374"

    def _compute(self, predictions: list[list[float]], k: Sequence[int] = (1,)) -> dict[str, float]:
        counts = [(len(scores), sum(score >= 1 for score in scores)) for scores in predictions]
        return {f"pass@{draws}": fmean(pass_at_k(n, right, draws) for n, right in counts) for draws in k}


class MajorityAtK(Metric):
    """majority@k over problems; `predictions` are each problem's k answers, `references` their scores (None: none)."""

    columns = {
        "predictions": datasets.Sequence(datasets.Value("string")),
        "references": datasets.Sequence(datasets.Value("float64")),
    }
    paper = "Wang et al. 2022, Self-Consistency Improves Chain of Thought Reasoning, arXiv:2203.11171"

    def _compute(self, predictions: list[list[str]], references: list[list[float | None]]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        return {f"majority@{max(map(len, predictions))}": fmean(majority(*pair) for pair in pairs)}


class BitsPerByte(Metric):
    """Bits per byte over documents; `predictions` are their negative log-likelihoods in nats, `references` bytes."""

    columns = {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, float]:
        return {"bits_per_byte": bits_per_byte(math.fsum(predictions), sum(references))}


class BradleyTerry(Metric):
    """Ratings of players out of battles: columns `a`, `b`, `winner` (a, b, tie, both bad) and `prompt`, by which
    battles belong together; returns rating/<player> with the ends of its interval, and win_rate/<a>/<b>."""

    columns = {name: datasets.Value("string") for name in ("a", "b", "winner", "prompt")}
    paper = "Bradley and Terry 1952, Rank Analysis of Incomplete Block Designs, Biometrika 39"

    def _compute(
        self, a: list[str], b: list[str], winner: list[str | None], prompt: list[str],
        anchor: str | None = None, draws: int = 1000, seed: int = 0,
    ) -> dict[str, float]:  # fmt: skip
        rows = [dict(zip(self.columns, values, strict=True)) for values in zip(a, b, winner, prompt, strict=True)]
        return rate(rows, anchor, draws, seed).metrics()
