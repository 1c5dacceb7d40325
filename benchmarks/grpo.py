"""GRPO's speed in tries a second: our rollouts and loss against TRL's GRPOTrainer with transformers' `generate`.

bash scripts/lifecycle.sh recipes/laptop --to sft  # what is read
python benchmarks/grpo.py
python benchmarks/grpo.py --rounds 4 --steps 20

Same checkpoint, problems in the same order, tries a step, optimizer, precision, attention and rewards, all as the
recipe says; each side draws its own tries. The sides take turns (A B B A) in one process, each measurement trains anew
and leaves out its first two steps. A ratio is the median over rounds of the ratio within a round; `reward` is the mean
over all measured steps with its standard error. Prints a table and, last, one JSON line: {"samples_vs_stock",
"rollout_share"}.
"""

import argparse
import gc
import json
import math
import os
import tempfile
import time
import warnings
from pathlib import Path
from statistics import fmean, median, stdev

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--recipe", default="recipes/laptop/grpo.yaml", help="whose model, problems and batch are taken")
parser.add_argument("--threads", type=int, default=2, help="CPU threads")
parser.add_argument("--rounds", type=int, default=3, help="measurements of each side")
parser.add_argument("--steps", type=int, default=14, help="steps in a measurement")
options = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = str(options.threads)

import torch  # noqa: E402
from datasets import Dataset, disable_progress_bars  # noqa: E402
from transformers import TrainerCallback, set_seed  # noqa: E402
from transformers.utils import logging  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from crawl2chat.grpo import GRPOArguments, PractisingTrainer, seconds  # noqa: E402
from crawl2chat.model import fast_on_cpu, load_model  # noqa: E402
from crawl2chat.problems import TaskRows, read_problems  # noqa: E402
from crawl2chat.protocol import load_tokenizer  # noqa: E402
from crawl2chat.recipe_tree import read_yaml  # noqa: E402
from crawl2chat.rewards import Reward, load_rewards  # noqa: E402

WARM = 2  # steps left out
OWN = "problems rewards tools search_index samples along_the_way curriculum guards stop_on".split()
OF_THE_MODEL = "model_name_or_path attn_implementation".split()
SIDES = {"ours": (PractisingTrainer, GRPOArguments), "TRL": (GRPOTrainer, GRPOConfig)}


class Clock(TrainerCallback):
    """Seconds at the end of every step."""

    def __init__(self):
        self.times = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter())


def measure(side: str, recipe: dict, problems: list[dict], number: int) -> dict:
    """Tries a second after the warm steps, the steps' mean rewards, and where the seconds went."""
    trainer_class, arguments_class = SIDES[side]
    with tempfile.TemporaryDirectory() as folder:
        arguments = {key: value for key, value in recipe.items() if key not in OWN + OF_THE_MODEL}
        arguments |= {"output_dir": folder, "max_steps": options.steps, "seed": number, "logging_steps": 1}
        arguments |= {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no", "log_completions": False}
        args = arguments_class(**arguments, disable_tqdm=True)
        set_seed(number)
        fast_on_cpu(args)
        tokenizer, clock = load_tokenizer(recipe["model_name_or_path"]), Clock()
        functions, args.reward_weights = load_rewards([Reward(**entry) for entry in recipe["rewards"]], tokenizer)
        attention = recipe.get("attn_implementation")
        kwargs = {"attn_implementation": attention} if attention else {}
        model = load_model(recipe["model_name_or_path"], dtype=torch.float32, **kwargs)
        trainer = trainer_class(
            model=model, args=args, reward_funcs=functions, train_dataset=Dataset.from_list(problems),
            processing_class=tokenizer, callbacks=[clock],
        )  # fmt: skip
        trainer.train()
        log = [row for row in trainer.state.log_history if "reward" in row]
    tries = (options.steps - WARM) * trainer.get_total_train_batch_size(args)
    spent = seconds(log[WARM:])
    del trainer, model
    gc.collect()
    return {
        "speed": tries / (clock.times[-1] - clock.times[WARM - 1]),
        "rewards": [row["reward"] for row in log],
        "length": fmean(row["completions/mean_length"] for row in log),
        "rollout_share": spent["rollout"] / sum(spent.values()) if any(spent.values()) else math.nan,
    }


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    disable_progress_bars()
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    recipe = read_yaml(Path(options.recipe).read_text(encoding="utf-8"), options.recipe, []).plain()
    if not Path(recipe["model_name_or_path"]).exists():
        raise SystemExit(f"{recipe['model_name_or_path']}: not there; run the laptop's lifecycle up to sft first")
    problems = read_problems([TaskRows(**entry) for entry in recipe["problems"]], "train", 0)
    found: dict[str, list[dict]] = {side: [] for side in SIDES}
    for number in range(options.rounds):
        for side in list(SIDES)[:: 1 if number % 2 else -1]:
            found[side].append(measure(side, recipe, problems, number))
            print(f"round {number + 1}: {side:5} {found[side][-1]['speed']:.1f} tries a second", flush=True)
    print(f"{len(problems):,} problems, {options.steps} steps, {options.threads} threads, torch {torch.__version__}")
    for side, rounds in found.items():
        rewards = [reward for one in rounds for reward in one["rewards"]]
        speeds = [one["speed"] for one in rounds]
        print(
            f"  {side:5} {median(speeds):7.1f} tries a second ({min(speeds):.1f} to {max(speeds):.1f}), "
            f"reward {fmean(rewards):.3f} ± {stdev(rewards) / math.sqrt(len(rewards)):.3f}, "
            f"{fmean(one['length'] for one in rounds):.1f} tokens a reply"
        )
    ratios = [ours["speed"] / stock["speed"] for ours, stock in zip(*found.values(), strict=True)]
    share = median(one["rollout_share"] for one in found["ours"])
    print(f"  ours is {median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})")
    print(json.dumps({"samples_vs_stock": round(median(ratios), 2), "rollout_share": round(share, 3)}))


if __name__ == "__main__":
    main()
