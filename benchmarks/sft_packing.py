"""SFT's speed in supervised tokens: our Trainer, TRL's as it comes, and TRL's own packing, on the laptop's mixture.

bash scripts/lifecycle.sh recipes/laptop --to interrogate  # what is read
python benchmarks/sft_packing.py
python benchmarks/sft_packing.py --threads 2 --steps 60 --rounds 4

Same base model, rows, rows a step, precision and AdamW on all sides, attention by each side's own choice. The sides
take turns (A B C C B A) in one process; each measurement trains anew on the same rows. A ratio is the median over
rounds of the ratio within a round. Then each side trains once through more rows, and its loss a supervised token is
taken on the same held-out rows. Prints a table and, last, one JSON line: {"supervised_tokens_vs_default"}.
"""

import argparse
import gc
import json
import logging
import os
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--recipe", default="recipes/laptop/sft.yaml", help="whose model, mixture and batch are taken")
parser.add_argument("--threads", type=int, default=1, help="CPU threads")
parser.add_argument("--rounds", type=int, default=4, help="measurements of each side")
parser.add_argument("--steps", type=int, default=40, help="steps in a measurement")
parser.add_argument("--loss_steps", type=int, default=120, help="steps before the losses are compared")
options = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = str(options.threads)

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from datasets import Dataset, disable_progress_bars  # noqa: E402
from transformers import TrainerCallback, set_seed  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

from crawl2chat.finetuning import FinetuningTrainer, SFTArguments  # noqa: E402
from crawl2chat.mixture import Part, in_sorted_steps, mix  # noqa: E402
from crawl2chat.model import fast_on_cpu, load_model  # noqa: E402
from crawl2chat.protocol import load_tokenizer, turn_end  # noqa: E402
from crawl2chat.recipe_tree import read_yaml  # noqa: E402

HELD_OUT = 512  # rows
CPU = not torch.cuda.is_available()


class Clock(TrainerCallback):
    """Seconds from the first step's begin to the last one's end."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.start = now()

    def on_train_end(self, args, state, control, **kwargs):
        self.seconds = now() - self.start


def now() -> float:
    if not CPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def bear_loss(rows: list[dict]) -> int:
    """Labels that are predicted: a row's first token is not."""
    return sum(label != -100 for row in rows for label in row["labels"][1:])


class Race:
    """The recipe's model and rows, and one training run of a side."""

    def __init__(self, recipe: dict, folder: str):
        self.recipe, self.folder, self.micro_batch = recipe, folder, recipe["per_device_train_batch_size"]
        self.batch = self.micro_batch * recipe.get("gradient_accumulation_steps", 1)  # rows a step
        self.tokenizer = load_tokenizer(recipe["model_name_or_path"])
        self.tokenizer.eos_token = turn_end(self.tokenizer)
        parts = [Part(**part) for part in recipe["datasets"]]
        dataset, counts = mix(parts, self.tokenizer, recipe["max_length"], self.batch, 0)
        rows = list(dataset)
        random.Random(0).shuffle(rows)
        self.rows, self.held_out = rows[HELD_OUT:], rows[:HELD_OUT]
        print(f"{counts.rows:,} rows, {counts.tokens:,} tokens, {counts.supervised / counts.tokens:.0%} bear loss")

    def arguments(self, kind: type, **own) -> SFTConfig:
        args = kind(
            output_dir=self.folder, per_device_train_batch_size=own.pop("batch", self.batch), num_train_epochs=1,
            learning_rate=5e-4, optim="adamw_torch", lr_scheduler_type="linear", save_strategy="no", report_to="none",
            logging_strategy="no", disable_tqdm=True, seed=0, use_cpu=CPU, max_length=self.recipe["max_length"],
            gradient_checkpointing=False, **own,
        )  # fmt: skip
        fast_on_cpu(args)  # bf16, and memory that is kept: for all sides
        return args

    def model(self, attention: str | None):
        set_seed(0)
        chosen = {"attn_implementation": attention} if attention else {}
        return load_model(self.recipe["model_name_or_path"], dtype=torch.float32, **chosen)

    def ours(self, rows: list[dict]):
        """scripts/sft.py's Trainer with the recipe's attention, on micro-batches of like length of the same steps."""
        rows = in_sorted_steps(rows, self.batch, random.Random(0))
        own = {"train_sampling_strategy": "sequential", "pad_to_multiple_of": self.recipe.get("pad_to_multiple_of")}
        own |= {"batch": self.micro_batch, "gradient_accumulation_steps": self.batch // self.micro_batch}
        args = self.arguments(SFTArguments, **own)
        model = self.model(self.recipe.get("attn_implementation"))
        return FinetuningTrainer(
            model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=self.tokenizer
        )

    def default(self, rows: list[dict], **own):
        """TRL's Trainer as it comes: rows at random, padded to the longest, attention as the model's class has it."""
        args, data = self.arguments(SFTConfig, **own), Dataset.from_list(rows)
        return SFTTrainer(model=self.model(None), args=args, train_dataset=data, processing_class=self.tokenizer)

    def packed(self, rows: list[dict]):
        """TRL's packing, a step being as many full rows as hold the tokens of the others' steps."""
        tokens, length = sum(len(row["input_ids"]) for row in rows), self.recipe["max_length"]
        return self.default(rows, packing=True, batch=max(round(self.batch * tokens / len(rows) / length), 1))

    def run(self, side: str, rows: list[dict]) -> tuple[float, torch.nn.Module]:
        """(seconds, the trained model) of one pass through `rows`."""
        trainer, clock = getattr(self, side)(rows), Clock()
        trainer.add_callback(clock)
        gc.collect()
        trainer.train()
        return clock.seconds, trainer.model

    @torch.no_grad()
    def loss(self, model: torch.nn.Module) -> float:
        """Nats a supervised token of the held-out rows."""
        total, model = 0.0, model.eval()
        rows = sorted(self.held_out, key=lambda row: len(row["input_ids"]))
        for start in range(0, len(rows), 32):
            part = rows[start : start + 32]
            length = max(len(row["input_ids"]) for row in part)
            ids, labels = (
                torch.tensor([row[key] + [fill] * (length - len(row[key])) for row in part], device=model.device)
                for key, fill in (("input_ids", self.tokenizer.pad_token_id), ("labels", -100))
            )
            logits = model(ids).logits[:, :-1].float().flatten(0, 1)  # padding stands to the right, unseen
            total += F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum").item()
        return total / bear_loss(self.held_out)


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bars()
    torch.set_num_threads(options.threads)
    device = f"CPU, {options.threads} thread(s)" if CPU else torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}")
    recipe = read_yaml(Path(options.recipe).read_text(encoding="utf-8"), options.recipe, []).plain()
    paths = [recipe["model_name_or_path"], *(part["path"] for part in recipe["datasets"])]
    if missing := [path for path in paths if not Path(path).exists()]:
        folder = Path(options.recipe).parent
        sys.exit(f"{missing[0]} is missing; run: bash scripts/lifecycle.sh {folder} --to interrogate")
    sides = {"ours": "ours", "default": "TRL, as it comes", "packed": "TRL, packing"}
    with tempfile.TemporaryDirectory() as folder:
        race = Race(recipe, folder)
        rows = race.rows[: options.steps * race.batch]
        tokens, seconds = bear_loss(rows), {side: [] for side in sides}
        for side in sides:  # libraries load, memory is taken
            race.run(side, rows[: 4 * race.batch])
        for turn in range(options.rounds):
            for side in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                seconds[side].append(race.run(side, rows)[0])
        rows = race.rows[: options.loss_steps * race.batch]
        losses = {side: race.loss(race.run(side, rows)[1]) for side in sides}
    print(f"{len(rows):,} rows a measurement of the loss, {options.steps} steps of {race.batch} rows of the speed")
    print(f"{'':18}{'supervised tokens/s':>20}{'lowest to highest':>22}{'of ours':>9}{'loss held out':>15}")
    ratios = {}
    for side, name in sides.items():
        speeds = sorted(tokens / s for s in seconds[side])
        ratios[side] = median(other / own for other, own in zip(seconds[side], seconds["ours"], strict=True))
        print(
            f"{name:18}{median(speeds):>20,.0f}{f'{speeds[0]:,.0f} to {speeds[-1]:,.0f}':>22}"
            f"{1 / ratios[side]:>9.2f}{losses[side]:>15.4f}"
        )
    difference = losses["ours"] / losses["default"] - 1
    apart = "within 1 %" if abs(difference) <= 0.01 else "MORE than 1 % apart"
    print(f"the loss of ours is {difference:+.2%} from the default's: {apart}")
    print(json.dumps({
        "supervised_tokens_vs_default": round(ratios["default"], 3),
        "supervised_tokens_vs_packing": round(ratios["packed"], 3),
        "loss_vs_default": round(losses["ours"] / losses["default"], 4),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
