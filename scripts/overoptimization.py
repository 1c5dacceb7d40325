"""Proxy against gold over the distance from the start: runs of PPO, and the best of n replies by a reward model.

Reads: runs of ppo.py (curve.json, log_history.json, held_out.jsonl), the policy they began with, the reward model
Writes: curves.json ({"runs", "best_of_n", "form"}), best_of_n.jsonl, metrics.json

python scripts/overoptimization.py recipes/reward-hacking/overoptimization.yaml
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from crawl2chat.engine import generate
from crawl2chat.guards import Guards, Thresholds
from crawl2chat.model import check_fit, load_model
from crawl2chat.overoptimization import FORM, at_kl, best_of_n, course, numbers, onlookers
from crawl2chat.practice import rows_as_lines
from crawl2chat.problems import TaskRows, read_problems
from crawl2chat.protocol import load_tokenizer
from crawl2chat.proxy_gold import gold
from crawl2chat.recipe import parse_recipe
from crawl2chat.stage import fail, finish, write_text


@dataclass
class Course:
    """A run of ppo.py."""

    path: str = field(metadata={"help": "its output_dir", "reads": True})
    name: str = field(metadata={"help": "what metrics call it"})
    label: str = field(metadata={"help": "what the figure calls it"})


@dataclass
class OveroptimizationConfig:
    """Which runs are compared, and what the best of n are chosen from and by."""

    runs: list[Course] = field(metadata={"help": "runs of ppo.py that began with model_name_or_path"})
    model_name_or_path: str = field(metadata={"help": "the policy that they began with"})
    reward_model: str = field(metadata={"help": "a folder of reward.py: it chooses the best of n", "reads": True})
    problems: list[TaskRows] = field(metadata={"help": "test: the held-out prompts of the best of n"})
    output_dir: str = field(metadata={"help": "where curves.json goes"})
    samples: int = field(default=64, metadata={"help": "replies to every prompt; n goes up to as many", "ge": 2})
    temperature: float = field(default=1.0, metadata={"help": "of the replies", "gt": 0})
    max_new_tokens: int = field(default=64, metadata={"help": "tokens a reply may take", "ge": 1})
    batch_size: int = field(default=128, metadata={"help": "replies written at once", "ge": 1})
    guards: Thresholds = field(default_factory=Thresholds, metadata={"help": "when an alarm is raised, as in ppo.py"})
    stop_on: list[str] = field(default_factory=list, metadata={"help": "alarms that would have ended a run"})
    seed: int = field(default=0, metadata={"help": "decides prompts and replies"})


RECIPE = (OveroptimizationConfig,)


def main(config: OveroptimizationConfig) -> None:
    torch.set_float32_matmul_precision("high" if torch.cuda.is_available() else "medium")
    output, device = Path(config.output_dir), "cuda" if torch.cuda.is_available() else "cpu"
    Guards(config.guards, config.stop_on)  # refuses an alarm that there is not
    if len({run.name for run in config.runs}) < len(config.runs) or not config.runs:
        fail("overoptimization: give `runs`, each with a name of its own")

    # runs of PPO, as they were measured
    runs = [course(run.path, run.name, run.label, config.stop_on, config.guards) for run in config.runs]

    # prompts, policy, reward model
    start = config.model_name_or_path
    rows = read_problems(config.problems, "test", config.seed)
    tokenizer = load_tokenizer(start)
    policy = load_model(start).to(device).eval()
    check_fit(policy, tokenizer, start)
    judge = onlookers([config.reward_model], tokenizer, torch.device(device))[0]

    # the best of n by the reward model: all of a prompt's replies are scored once
    asked = [row for row in rows for _ in range(config.samples)]
    replies = generate(
        policy, tokenizer, [row["prompt"] for row in asked], max_new_tokens=config.max_new_tokens,
        temperature=config.temperature, seed=config.seed, batch_size=config.batch_size, progress=True,
    )  # fmt: skip
    proxy = judge([row["prompt"] for row in asked], [reply.completion_ids for reply in replies])
    columns = {key: [row[key] for row in asked] for key in ("task", "answer")}
    true = gold([reply.messages for reply in replies], [row["prompt"] for row in asked], **columns)
    if None in true:
        fail(f"overoptimization: {true.count(None)} of {len(true)} replies have no gold reward; take a task that has")
    shape = (len(rows), config.samples)
    sizes = [2**power for power in range(config.samples.bit_length())]
    chosen = best_of_n(np.reshape(proxy, shape), np.reshape(true, shape), sizes)

    # save
    best = [i * config.samples + int(np.argmax(marks)) for i, marks in enumerate(np.reshape(proxy, shape))]
    texts = [{"prompt": asked[i]["prompt"][-1]["content"], "text": replies[i].text, "proxy": proxy[i],
              "gold": true[i]} for i in best]  # fmt: skip
    write_text(output / "best_of_n.jsonl", rows_as_lines(texts))
    write_text(output / "curves.json", json.dumps({"runs": runs, "best_of_n": chosen, "form": FORM}, indent=1))
    first, last = chosen["points"][0], chosen["points"][-1]
    found = {key: value for run in runs for key, value in numbers(run).items()}
    for run in runs:
        if (same := at_kl(run["points"], last["kl"])) is not None:
            found[f"{run['name']}/gold_at_kl_of_best_of_{last['n']}"] = same
    found |= {f"best_of_n/{key}_{one['n']}": one[key] for one in (first, last) for key in ("kl", "proxy", "gold")}
    for name, fitted in (chosen["fit"] or {}).items():
        found |= {f"best_of_n/{name}_fit_{key}": value for key, value in fitted.items()}
    finish(
        output,
        {**found, "prompts": len(rows), "samples": config.samples, "runs": len(runs)},
        read=f"{len(runs)} runs of ppo, {len(replies):,} replies of {start}",
        wrote=str(output),
        headline=f"best of {last['n']}: gold {first['gold']:.3f} -> {last['gold']:.3f} ± {last['stderr']:.3f}; "
        + "; ".join(f"{run['label']}: gold peaks at {max(p['gold'] for p in run['points']):.3f}, ends at "
                    f"{run['points'][-1]['gold']:.3f}" for run in runs),
    )  # fmt: skip


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
