"""Overoptimization: what becomes of a policy that pleases its reward model ever more, and of choosing the best of n.

Gao, Schulman & Hilton 2022 (arXiv:2210.10760): with d the square root of the KL, in nats, from the policy that was
begun with, the reward gained is d (alpha - beta log d) by reinforcement learning and d (alpha - beta d) by the best of
n, that of the proxy and that of the gold reward alike; the gold's is the one that turns.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from crawl2chat.episodes import stderr
from crawl2chat.guards import Thresholds, Watch
from crawl2chat.reward_model import load_reward_model, score_ids
from crawl2chat.stage import fail

FORM = "d(alpha - beta log d) for RL, d(alpha - beta d) for best of n; d = sqrt(KL)"
FORMS = {"rl": np.log, "best_of_n": lambda d: d}  # what beta stands before
SHOWN = 4  # replies that are quoted
HOLDS = 0.8  # r2 from which on a fitted curve says where the gold turns


def onlookers(
    paths: Sequence[str], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> list[Callable[..., list[float]]]:
    """One function `onlooker` for PPOTrainer's eval_funcs, the mean score of reward models that the policy is never
    trained on, or none where there is no path. Replies are scored by the ids that were written, as in training."""
    models = [load_reward_model(path, tokenizer)[0].requires_grad_(False).to(device) for path in paths]

    def onlooker(prompts: list[list[dict]], completion_ids: list[list[int]], **kwargs) -> list[float]:
        asked = tokenizer.apply_chat_template(prompts, add_generation_prompt=True)["input_ids"]
        rows = [[*prompt, *ids] for prompt, ids in zip(asked, completion_ids, strict=True)]
        for row in rows:
            while row[-1] == tokenizer.pad_token_id:
                row.pop()
        marks = [score_ids(model, rows, 64, progress=len(rows) > 1000) for model in models]
        return [fmean(own) for own in zip(*marks, strict=True)]

    return [onlooker] if models else []


# -- the best of n


def kl_of_best(n: int) -> float:
    """Nats between the best of n replies and a single one, at most and nearly so where no two are alike (Stiennon et
    al. 2020, arXiv:2009.01325)."""
    return math.log(n) - (n - 1) / n


def best_of(proxy: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """(prompts,): the expected value of the reply with the highest proxy among n drawn without putting back from a
    prompt's N, over all ways to draw them, which is unbiased (Nakano et al. 2021, arXiv:2112.09332, appendix I). Both
    arrays are (prompts, N); replies of one proxy share their values. Raises ValueError for n above N.
    """
    total = proxy.shape[1]
    if not 1 <= n <= total:
        raise ValueError(f"the best of {n} replies out of {total}")
    chance = np.array([math.comb(place, n - 1) / math.comb(total, n) for place in range(total)])  # the best so far
    found = []
    for marks, own in zip(proxy, values, strict=True):
        _, group, count = np.unique(marks, return_inverse=True, return_counts=True)
        own = (np.bincount(group, own) / count)[group]
        found.append(own[np.argsort(marks, kind="stable")] @ chance)
    return np.array(found)


def best_of_n(proxy: np.ndarray, gold: np.ndarray, sizes: Sequence[int]) -> dict:
    """{"points": [{"n", "kl", "proxy", "proxy_stderr", "gold", "stderr" (the gold's)}], "fit"} of replies (prompts, N)
    and their two rewards; standard errors are over prompts."""
    points = []
    for n in sizes:
        by_proxy, by_gold = best_of(proxy, proxy, n), best_of(proxy, gold, n)
        points.append({"n": n, "kl": kl_of_best(n), "proxy": float(by_proxy.mean()), "gold": float(by_gold.mean()),
                       "stderr": stderr(by_gold.tolist()), "proxy_stderr": stderr(by_proxy.tolist())})  # fmt: skip
    return {"points": points, "fit": fits(points, "best_of_n")}


# -- fits and turning points


def fit(kl: Sequence[float], gain: Sequence[float], form: str) -> dict[str, float] | None:
    """{"alpha", "beta", "r2"} of d (alpha - beta f(d)) by least squares, f of `form`; None of fewer than four points
    away from the beginning, or where all gains are alike."""
    d, gain = np.sqrt(np.maximum(kl, 0)), np.asarray(gain, dtype=float)
    d, gain = d[d > 0], gain[d > 0]
    spread = ((gain - gain.mean()) ** 2).sum() if len(gain) > 3 else 0
    if not spread:
        return None
    x = np.stack([d, -d * FORMS[form](d)], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(x, gain, rcond=None)
    left = ((gain - x @ [alpha, beta]) ** 2).sum()
    return {"alpha": float(alpha), "beta": float(beta), "r2": float(1 - left / spread)}


def fits(points: Sequence[dict], form: str) -> dict | None:
    """`fit` of proxy and gold, gained since the first point; None where one has none."""
    kl = [point["kl"] for point in points]
    found = {name: fit(kl, [point[name] - points[0][name] for point in points], form) for name in ("proxy", "gold")}
    return found if all(found.values()) else None


def gained(kl: float, fitted: dict[str, float], form: str) -> float:
    """What a fitted curve says was gained at so many nats."""
    d = math.sqrt(kl)
    return float(d * (fitted["alpha"] - fitted["beta"] * FORMS[form](d))) if d else 0.0


def smoothed(values: Sequence[float]) -> list[float]:
    """Means of each value and its two neighbours; of two at the ends."""
    return [fmean(values[max(i - 1, 0) : i + 2]) for i in range(len(values))]


def turning(points: Sequence[dict], fitted: dict | None) -> dict | None:
    """{"kl", "gold", "step", "of"} where a run's gold reward was highest before it fell; None where the smoothed curve
    does not end two standard errors below its highest. `of` is "fit": the fitted curve's peak; or, where no fit holds
    (r2 below HOLDS, or its peak beyond what was measured), "smoothed": the measured points', three at a time.
    """
    gold = smoothed([point["gold"] for point in points])
    best = max(range(len(gold)), key=gold.__getitem__)
    error = math.hypot(points[best].get("gold_stderr", 0.0), points[-1].get("gold_stderr", 0.0))
    if best == len(gold) - 1 or gold[best] - gold[-1] <= 2 * error / math.sqrt(3):
        return None
    curve = (fitted or {}).get("gold")
    if curve and curve["r2"] >= HOLDS and curve["beta"] > 0:
        kl = math.exp(2 * (curve["alpha"] / curve["beta"] - 1))
        reached = [point["step"] for point in points if point["kl"] >= kl]
        if reached and reached[0] < points[-1]["step"]:
            return {"kl": kl, "gold": points[0]["gold"] + gained(kl, curve, "rl"), "step": reached[0], "of": "fit"}
    return {"kl": points[best]["kl"], "gold": gold[best], "step": points[best]["step"], "of": "smoothed"}


# -- a run, read back


def course(folder: str | Path, name: str, label: str, stop_on: Sequence[str], thresholds: Thresholds) -> dict:
    """A run of scripts/ppo.py as curves.json has it: "points" {"step", "episodes", "kl", "proxy", "gold", "onlooker",
    and their standard errors "..._stderr"}, "fit", "turning", "alarms", "stopped" and "texts". Stops with one line
    where the run has not written its curve, or where nobody knows its gold reward."""
    folder = Path(folder)
    rows, log, replies = (read(folder / part) for part in ("curve.json", "log_history.json", "held_out.jsonl"))
    looks = {row["step"]: row for row in log if "eval_reward" in row}
    points = []
    for row in rows:
        if "gold" not in row:
            fail(f"overoptimization: {folder}/curve.json: no gold reward; give ppo prompts of a task that has one")
        look = looks.get(row["step"], {})
        point = {key: row[key] for key in ("step", "episodes", "kl", "proxy", "gold")}
        keys = {"onlooker": "rewards/onlooker", "proxy_stderr": "stderr/reward"}
        keys |= {f"{one}_stderr": f"stderr/{one}" for one in ("gold", "onlooker")}
        points.append(point | {key: look[f"eval_{known}"] for key, known in keys.items() if f"eval_{known}" in look})
    if len(points) < 2:
        fail(f"overoptimization: {folder}/curve.json: {len(points)} evaluations are no curve; give ppo eval_steps")
    texts = [{"prompt": row["prompt"], **row["after"]} for row in replies]
    texts.sort(key=lambda row: -math.inf if row["proxy"] is None else -row["proxy"])
    found, raised = fits(points, "rl"), alarms(points, log, thresholds)
    return {
        "name": name,
        "label": label,
        "points": points,
        "fit": found,
        "turning": turning(points, found),
        "alarms": raised,
        "stopped": stopped(points, raised, stop_on),
        "texts": texts[:SHOWN],
    }


def alarms(points: Sequence[dict], log: Sequence[dict], thresholds: Thresholds) -> list[dict]:
    """{"name", "step", "kl", "gold", "why"} of every alarm that the log of a run gives rise to, each name once, in
    order: the evaluation at which a run that stops on it would have ended, or the last before it."""
    watch, raised = Watch(thresholds), []
    for row in log:
        raised += watch.row(row, row["step"])
        if "eval_rewards/onlooker" in row:
            numbers = row["eval_rewards/onlooker"], row["eval_stderr/onlooker"], row["step"]
            raised += watch.evaluation(*numbers, "onlooker")
    found = []
    for alarm in sorted(raised, key=lambda alarm: alarm.step):
        last = ([point for point in points if point["step"] <= alarm.step] or points[:1])[-1]
        found.append({"name": alarm.name, **{key: last[key] for key in ("step", "kl", "gold")}, "why": alarm.message})
    return found


def stopped(points: Sequence[dict], raised: Sequence[dict], stop_on: Sequence[str]) -> dict | None:
    """The first of the alarms raised whose name is in `stop_on`, where a run would have ended; None without one.
    "kept" {"step", "kl", "gold"} is the evaluation until then that the onlooker liked best."""
    first = next((alarm for alarm in raised if alarm["name"] in stop_on), None)
    until = [point for point in points if first and point["step"] <= first["step"] and "onlooker" in point]
    if not until:
        return first
    best = max(until, key=lambda point: point["onlooker"])
    return {**first, "kept": {key: best[key] for key in ("step", "kl", "gold")}}


def at_kl(points: Sequence[dict], kl: float) -> float | None:
    """The smoothed gold reward where a run first came so far from its beginning; None where it never did."""
    gold = smoothed([point["gold"] for point in points])
    for i in range(1, len(points)):
        low, high = points[i - 1]["kl"], points[i]["kl"]
        if low < kl <= high:
            return gold[i - 1] + (gold[i] - gold[i - 1]) * (kl - low) / (high - low)
    return None


def numbers(run: dict) -> dict[str, float]:
    """What metrics.json holds of a run, under its name; what it has not is left out."""
    first, last, gold = run["points"][0], run["points"][-1], smoothed([point["gold"] for point in run["points"]])
    found = {"gold_first": first["gold"], "gold_last": gold[-1], "gold_peak": max(gold), "kl_last": last["kl"]}
    found |= {"proxy_first": first["proxy"], "proxy_last": last["proxy"]}
    if run["turning"]:
        found |= {"kl_turning": run["turning"]["kl"], "gold_turning": run["turning"]["gold"]}
    if run["stopped"]:
        found |= {"kl_stopped": run["stopped"]["kl"], "gold_stopped": run["stopped"]["gold"]}
        found |= {f"{key}_kept": run["stopped"]["kept"][key] for key in ("kl", "gold") if "kept" in run["stopped"]}
    for alarm in run["alarms"]:
        found |= {f"{key}_at_{alarm['name']}": alarm[key] for key in ("kl", "gold")}
    for name, fitted in (run["fit"] or {}).items():
        found |= {f"{name}_fit_{key}": fitted[key] for key in ("alpha", "beta", "r2")}
    return {f"{run['name']}/{key}": value for key, value in found.items()}


def read(path: Path) -> list[dict]:
    """A file that ppo.py writes, JSON or lines of it; one clear line where it is missing or cut off."""
    if not path.is_file():
        fail(f"overoptimization: {path}: no such file; run the stage ppo that writes it first")
    try:
        text = path.read_text(encoding="utf-8")
        lines = [line for line in text.split("\n") if line.strip()]  # a reply may hold other separators of lines
        return [json.loads(line) for line in lines] if path.suffix == ".jsonl" else json.loads(text)
    except ValueError as error:
        fail(f"overoptimization: {path}: not JSON ({error}); run the stage ppo that writes it again")
