"""PPO against the PPOTrainer that TRL had until 1.12: does ours learn the same, how fast, in how much memory.

bash scripts/lifecycle.sh recipes/laptop --to reward  # what is read
python benchmarks/ppo.py
python benchmarks/ppo.py --seeds 2 --batches 3  # a look

TRL 1.12.0's wheel is fetched once into the user's cache and stands first on the path of its side's processes; torch,
transformers, accelerate and peft are the installed ones on both sides. Same policy, reward model, prompts, number of
prompts, batch, epochs, minibatches, AdamW, precision, attention and the recipe's PPO options. Made equal by hand:
- TRL updates once in gradient_accumulation_steps micro-batches, so with any of them num_mini_batches changes nothing
  but the order of rows; it gets the whole batch as per_device_train_batch_size, and updates once a minibatch as we do;
- TRL never clips gradients, so neither side does.
What stays different, since it is what each trainer is: TRL's score falls on the padding after a reply's last token,
and the value model learns to expect it there too; the order of prompts and all random numbers; TRL's rollouts,
reference and reward model are in float32 whatever the precision of its updates; fast_on_cpu's matrix precision and
allocator are part of our side (one more run shows what TRL makes of them). With LoRA TRL's value model is trained
whole, and ours is an adapter of the same form beside the reward model.

Every run is a process of its own, and the sides take turns (A B B A). A speed is in episodes a second after the first
batch, its ratio the median over rounds of the ratio within a round. Memory is taken in runs with LoRA, a few batches
long: the peak of the whole process, and what of it came after the imports. A distance between curves (KL in nats a
reply, score, each of a batch's mean) is the mean absolute difference at equal episodes of a run of ours and a run of
TRL's, over that of two runs of one side with different seeds, each averaged over all such pairs: 1 is what two equal
trainers differ by. Prints a table and, last, one JSON line: {"episodes_vs_trl", "memory_vs_trl", "kl_curve_distance",
"reward_curve_distance"}.

With --seeds 3 --batches 8 --lora_rounds 1 on two cores of an AMD EPYC (Zen 5), 2026-11-24: ours 47.3 episodes a second
(46.7 to 47.8), TRL 21.2 (20.7 to 21.7): 2.25 times as many (2.15 to 2.28), 1.86 times where TRL too has our matrix
precision and allocator (one run); with LoRA 2,062 MB against 2,887 (0.71). Distances: KL 0.95, score 1.02. 0.75 of the
memory is reached, 3 times the speed is not.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path
from statistics import fmean, median

from crawl2chat.data.packages import fetch
from crawl2chat.recipe_tree import read_yaml
from crawl2chat.stage import fail

TRL = ("trl", "1.12.0", "9c8f117b21a941edbc85744f5a341c9453d38e81f24ae81d3c6e9b9ca3b96409")
SIDES = ("ours", "TRL")
WARM = 1  # batches left out of a speed
FEW = 2 + WARM  # batches of the shorter runs
OF_THE_MODEL = "model_name_or_path attn_implementation".split()
OWN = "problems reward_models samples along_the_way guards stop_on log_completions whiten_advantages".split()
UNKNOWN_TO_TRL = "advantage_estimator num_generations reward_aggregation conversations system rewards tools".split()
UNKNOWN_TO_TRL += "search_index kl_target reward_weights lora_r use_peft".split()
CURVES = {"kl": "objective/kl", "reward": "objective/scores"}


def run(side: str, seed: int, batches: int, lora: bool, tuned: bool, recipe: dict, threads: int) -> dict:
    """One training run in this process: its curves, episodes a second, and peak memory in bytes. All that is large is
    imported here, so that what the imports alone take is known."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback, set_seed

    from crawl2chat.model import cpu_has_bf16, fast_on_cpu
    from crawl2chat.problems import TaskRows, read_problems
    from crawl2chat.protocol import load_tokenizer

    if side == "TRL":
        from trl.experimental.ppo import PPOConfig, PPOTrainer
    else:
        from crawl2chat.ppo import PPOConfig, PPOTrainer
    imports, curves, times = peak_memory(), {name: [] for name in CURVES}, []

    class Watch(TrainerCallback):
        """A batch's numbers and the time when it was done."""

        def on_log(self, args, state, control, logs=None, **kwargs):
            if CURVES["kl"] in logs:
                times.append(time.perf_counter())
                for name, key in CURVES.items():
                    curves[name].append(logs[key])

    torch.set_num_threads(threads)
    path, attention = recipe["model_name_or_path"], {"attn_implementation": recipe.get("attn_implementation")}
    with tempfile.TemporaryDirectory() as folder:
        args = PPOConfig(**arguments(side, recipe, seed, batches) | {"output_dir": folder})
        set_seed(seed)
        if tuned:
            fast_on_cpu(args)
        if cpu_has_bf16():  # both sides; TRL's accelerator reads it from the environment
            args.bf16, args.mixed_precision = True, "bf16"
            os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
        tokenizer = load_tokenizer(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **attention)
        judges = [
            AutoModelForSequenceClassification.from_pretrained(
                recipe["reward_models"][0], num_labels=1, dtype=torch.float32, **attention
            )
            for _ in range(2 if side == "TRL" else 1)
        ]
        problems = read_problems([TaskRows(**entry) for entry in recipe["problems"]], "train", recipe["seed"])
        adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
        common = {
            "model": model, "args": args, "processing_class": tokenizer, "peft_config": adapter, "callbacks": [Watch()]
        }  # fmt: skip
        if side == "TRL":
            tokenizer.padding_side = "left"
            prompts = [row["prompt"] for row in problems]
            ids = tokenizer.apply_chat_template(prompts, add_generation_prompt=True)["input_ids"]
            trainer = PPOTrainer(
                **common, ref_model=None, reward_model=judges[0], value_model=judges[1],
                train_dataset=Dataset.from_dict({"input_ids": ids}),
            )  # fmt: skip
        else:
            trainer = PPOTrainer(**common, reward_funcs=judges, train_dataset=problems)
        trainer.train()
    speed = (batches - WARM) * batch_size(recipe) / (times[-1] - times[WARM - 1])
    return {**curves, "speed": speed, "imports": imports, "peak": peak_memory()}


def batch_size(recipe: dict) -> int:
    """Replies in a batch of rollouts."""
    rows = recipe["per_device_train_batch_size"] * recipe.get("gradient_accumulation_steps", 1)
    return rows * recipe.get("num_mini_batches", 1)


def arguments(side: str, recipe: dict, seed: int, batches: int) -> dict:
    """The recipe's training arguments for a side; see above for what is made equal."""
    found = {key: value for key, value in recipe.items() if key not in OWN + OF_THE_MODEL}
    found |= {"seed": seed, "total_episodes": batches * batch_size(recipe), "max_grad_norm": 0.0}
    found |= {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no", "report_to": "none"}
    found |= {"disable_tqdm": True, "log_level": "error"}
    if side == "ours":
        return found | {"logging_steps": recipe.get("num_mini_batches", 1) * recipe["num_ppo_epochs"]}
    found |= {"per_device_train_batch_size": batch_size(recipe), "gradient_accumulation_steps": 1}
    return found | {"logging_steps": 1, "stop_token": "eos", "num_sample_generations": 0}


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def distance(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """How far the curves of two sides are apart, in units of how far the curves of one side are; a curve a seed, all
    of one length, and two or more of each side."""

    def apart(pairs) -> float:
        return fmean(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))

    return apart(product(ours, theirs)) / apart([*combinations(ours, 2), *combinations(theirs, 2)])


def measure(
    options: argparse.Namespace, trl: Path, side: str, seed: int, batches: int, lora=False, tuned=None
) -> dict:
    """`run` in a process of its own; ours has our process settings, and TRL where `tuned` says so."""
    tuned = side == "ours" if tuned is None else tuned
    job = {"side": side, "seed": seed, "batches": batches, "lora": lora, "tuned": tuned}
    command = [sys.executable, __file__, "--recipe", options.recipe, "--threads", str(options.threads)]
    paths = [str(trl)] if side == "TRL" else []
    environment = os.environ | {
        "OMP_NUM_THREADS": str(options.threads), "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }  # fmt: skip
    done = subprocess.run([*command, "--run", json.dumps(job)], env=environment, capture_output=True, text=True)
    if done.returncode:
        fail(f"benchmarks/ppo.py: the run {job} failed: {(done.stderr.strip() or 'no word').splitlines()[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{side:5}{' LoRA' if lora else ''} seed {seed}: {found['speed']:.1f} episodes a second, "
        f"{found['peak'] / 1e6:.0f} MB, KL {found['kl'][-1]:.2f}, score {found['reward'][-1]:.2f}", flush=True,
    )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipe", default="recipes/laptop/ppo.yaml", help="whose models, prompts and batch are taken"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each side, two or more")
    parser.add_argument("--batches", type=int, default=8, help="batches of rollouts in a run")
    parser.add_argument("--lora_rounds", type=int, default=2, help="short runs of each side with LoRA")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # a child's: side, seed, batches and lora as JSON
    options = parser.parse_args()
    recipe = read_yaml(Path(options.recipe).read_text(encoding="utf-8"), options.recipe, []).plain()
    if options.run:
        print(json.dumps(run(**json.loads(options.run), recipe=recipe, threads=options.threads)))
        return
    if unlike := [key for key in UNKNOWN_TO_TRL if recipe.get(key)]:
        fail(f"{options.recipe}: {unlike[0]}: TRL 1.12's PPOTrainer has nothing like it; leave it out to compare")
    if not recipe.get("whiten_advantages", True):
        fail(f"{options.recipe}: whiten_advantages: TRL 1.12's PPOTrainer always whitens; leave it out")
    if options.seeds < 2 or options.batches <= WARM:
        fail(f"benchmarks/ppo.py: {options.seeds} seeds, {options.batches} batches; 2 of each are the least")
    for path in (recipe["model_name_or_path"], *recipe["reward_models"]):
        if not Path(path).exists():
            fail(f"{path}: not there; run the lifecycle of {Path(options.recipe).parent} up to reward first")
    trl = fetch(*TRL)

    def take_turns(rounds: int, batches: int, lora: bool) -> dict[str, list[dict]]:
        found: dict[str, list[dict]] = {side: [] for side in SIDES}
        for seed in range(rounds):
            for side in SIDES[:: -1 if seed % 2 else 1]:
                found[side].append(measure(options, trl, side, seed, batches, lora))
        return found

    found, lora = take_turns(options.seeds, options.batches, False), take_turns(options.lora_rounds, FEW, True)
    tuned = measure(options, trl, "TRL", 0, FEW, tuned=True)
    print(f"{options.recipe}, {options.batches} batches of {batch_size(recipe)}, {options.threads} threads")
    peaks = {side: median(one["peak"] for one in lora[side]) / 1e6 for side in SIDES}
    above = {side: median(one["peak"] - one["imports"] for one in lora[side]) / 1e6 for side in SIDES}
    for side in SIDES:
        speeds = [one["speed"] for one in found[side]]
        print(
            f"  {side:5} {median(speeds):6.1f} episodes a second ({min(speeds):.1f} to {max(speeds):.1f}); "
            f"with LoRA {peaks[side]:,.0f} MB, {above[side]:,.0f} of them above the imports"
        )
        for name in CURVES:
            means = [fmean(values) for values in zip(*(one[name] for one in found[side]), strict=True)]
            print(f"        {name:7}" + " ".join(f"{mean:5.2f}" for mean in means))
    ratios = [ours["speed"] / theirs["speed"] for ours, theirs in zip(*found.values(), strict=True)]
    print(
        f"  ours is {median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}) and takes "
        f"{peaks['ours'] / peaks['TRL']:.2f} of its memory, {above['ours'] / above['TRL']:.2f} above the imports"
    )
    print(
        f"  TRL with our matrix precision and allocator, once: {tuned['speed']:.1f} episodes a second, without LoRA "
        f"{tuned['peak'] / 1e6:,.0f} MB; ours is {median(one['speed'] for one in found['ours']) / tuned['speed']:.2f} "
        "times as fast"
    )
    numbers = {"episodes_vs_trl": median(ratios), "memory_vs_trl": peaks["ours"] / peaks["TRL"]}
    for name in CURVES:
        numbers[f"{name}_curve_distance"] = distance(*([one[name] for one in found[side]] for side in SIDES))
    print(json.dumps({name: round(value, 3) for name, value in numbers.items()}))


if __name__ == "__main__":
    main()
