"""The Trainer that reads packed rows: lean in every step, and evaluated by what it has learned.

What differs from transformers' Trainer: micro-batches are cut straight from the memory-mapped tokens, by their number,
so there is no loader to skip through on resume; the loss makes no copies of the logits (loss.py); the FLOPs of a step
are counted once, not in a walk over the modules at each; the garbage collector runs with the log, not in a step.
"""

import gc
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from crawl2chat.checkpoints import ResumeKeys, SafeCheckpoints
from crawl2chat.choices import Question, score_choices
from crawl2chat.engine import complete
from crawl2chat.evaluation import bits_per_byte
from crawl2chat.hardware import dollars, peak_flops
from crawl2chat.loss import return_the_loss_alone
from crawl2chat.model import flops_per_token
from crawl2chat.muon import MuonKeys, MuonOptimizer
from crawl2chat.stage import write_text


@dataclass
class PretrainingArguments(ResumeKeys, MuonKeys, TrainingArguments):
    """TrainingArguments with `optim: muon` and how a run goes on."""

    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "walk the graph at every step; no step leaves a parameter out"}
    )


class Rhythm(TrainerCallback):
    """Garbage is collected when a row is logged and never inside a step, which frees what it leaves by counting
    references. The last steps have their row in the log, however few they are.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        model.train()
        gc.collect()
        gc.freeze()
        gc.disable()

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= state.global_step >= state.max_steps

    def on_log(self, args, state, control, **kwargs):
        gc.collect()

    def on_train_end(self, args, state, control, **kwargs):
        gc.enable()
        gc.unfreeze()


class Progress(ProgressCallback):
    """The bar, and one line of words for each row of the log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is None or "loss" not in logs:
            return
        words = f"step {state.global_step:,}: loss {logs['loss']:.3f}"
        if "grad_norm" in logs:
            words += f", gradient {logs['grad_norm']:.2f}"
        words += f", rate {logs['learning_rate']:.1e}, {logs['tokens']:,} tokens"
        words += f", {logs['tokens_per_second']:,.0f} a second" if "tokens_per_second" in logs else ""
        words += f", MFU {logs['mfu']:.0%}" if "mfu" in logs else ""
        words += f", ${logs['dollars']:,.2f}" if "dollars" in logs else ""
        self.training_bar.write(words)


class LeanTrainer(Trainer):
    """Trainer for packed rows. Micro-batch k of rank r is rows (k * ranks + r) * batch onwards of the run: a pure
    function of the seed.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.max_length = self.train_dataset.max_length
        self.flops_per_token = flops_per_token(self.model, self.max_length)
        if not self.args.use_liger_kernel and not return_the_loss_alone(self.model):
            print(f"pretrain: {self.model.config.model_type} computes its own loss, with whole logits in memory")
        self.add_callback(Rhythm())

    @property
    def tokens_per_step(self) -> int:
        args = self.args
        return args.train_batch_size * args.gradient_accumulation_steps * args.world_size * self.max_length

    def get_train_dataloader(self) -> DataLoader:
        """For its length alone: `get_batch_samples` reads the rows."""
        return DataLoader(self.train_dataset, self.args.train_batch_size * self.args.world_size)

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """The micro-batches of the step at hand, and no count of their items (all rows are whole)."""
        size, ranks = self.args.train_batch_size, self.args.world_size
        first = self.state.global_step * self.args.gradient_accumulation_steps
        batches = []
        for k in range(first, first + num_batches):
            start = (k * ranks + self.args.process_index) * size
            ids = torch.from_numpy(self.train_dataset.batch(range(start, start + size)))
            if device.type == "cuda":
                ids = ids.pin_memory().to(device, non_blocking=True)
            batches.append({"input_ids": ids, "labels": ids})
        return batches, None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Forward and backward, without the Trainer's walk over the modules and its checks at every micro-batch."""
        if self.is_deepspeed_enabled or self.args.n_gpu > 1 or self.accelerator.scaler is not None:
            return super().training_step(model, inputs, num_items_in_batch)
        loss = self.compute_loss(model, inputs) / self.current_gradient_accumulation_steps
        loss.backward()
        return loss.detach()

    def floating_point_ops(self, inputs) -> int:
        return self.flops_per_token * inputs["input_ids"].numel()


class _Young(TrainerCallback):
    """Samples of a model that is not evaluated yet."""

    def __init__(self, trainer: "PretrainingTrainer"):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if str(state.global_step).rstrip("0") == "1" and not control.should_evaluate:
            began = time.perf_counter()
            self.trainer.write_samples(self.trainer.accelerator.unwrap_model(self.trainer.model))
            self.trainer.seconds_beside += time.perf_counter() - began


class PretrainingTrainer(SafeCheckpoints, MuonOptimizer, LeanTrainer):
    """The lean Trainer, safe to kill, by Muon where asked, and evaluated by bits per byte, choices and samples.

    Args:
        shares: bytes that each source contributes to a training token, which weigh its held-out bits per byte.
        questions: scored at every evaluation as lm-eval scores HellaSwag, by name.
        prompts: continued greedily at every evaluation and at the steps 1, 10, 100 and so on, for a model changes most
            when it is young; kept in `output_dir`/samples.jsonl.
    """

    def __init__(
        self,
        *args,
        shares: dict[str, float],
        questions: dict[str, list[Question]] | None = None,
        prompts: Sequence[str] = (),
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.shares, self.questions, self.prompts = shares, questions or {}, list(prompts)
        self.seconds_beside = 0.0  # evaluations of this process
        self.evaluated: tuple[int, dict[str, float]] = -1, {}  # the last evaluation's step and metrics
        self.last_row = 0, time.perf_counter(), 0.0  # step, time and seconds_beside of the last row of the log
        self.add_callback(_Young(self))
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(Progress())

    def run(self):
        """Train from the newest whole checkpoint, or from the start; samples of steps that come again are dropped."""
        done, samples = self.find_start(), Path(self.args.output_dir) / "samples.jsonl"
        if self.is_world_process_zero() and samples.exists():
            lines = samples.read_text(encoding="utf-8").splitlines(keepends=True)
            write_text(samples, "".join(line for line in lines if done and json.loads(line)["step"] <= done))
        self.last_row = done, time.perf_counter(), self.seconds_beside
        return super().run()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With what the run has taken so far (tokens, FLOPs, dollars), and the speed since the last row."""
        step, now = self.state.global_step, time.perf_counter()
        tokens = step * self.tokens_per_step
        logs = {**logs, "tokens": tokens, "flops": float(tokens * self.flops_per_token)}
        device = torch.cuda.get_device_name(self.args.device) if self.args.device.type == "cuda" else None
        cost = dollars(device, self.seconds + time.time() - self.began, self.args.world_size)
        logs |= {"dollars": cost} if cost is not None else {}
        if "loss" in logs:
            if step > self.last_row[0]:
                seconds = now - self.last_row[1] - (self.seconds_beside - self.last_row[2])
                logs["tokens_per_second"] = (step - self.last_row[0]) * self.tokens_per_step / seconds
                if peak := peak_flops(self.args.device):
                    used = logs["tokens_per_second"] * self.flops_per_token
                    logs["mfu"] = used / (peak * self.args.world_size)
            self.last_row = step, now, self.seconds_beside
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """{"eval_bits_per_byte", "eval_bits_per_byte_<source>", "eval_<questions>_acc_norm", ...}; also writes the
        samples of this moment.
        """
        if eval_dataset is None and self.evaluated[0] == self.state.global_step > 0:
            return self.evaluated[1]  # the run's last step was evaluated already
        began = time.perf_counter()
        model = self.accelerator.unwrap_model(self.model).eval()
        texts = defaultdict(list)
        for row in eval_dataset or self.eval_dataset:
            texts[row["source"]].append(row["text"])
        tokenizer = self.processing_class
        with self.accelerator.autocast():
            scores = {s: bits_per_byte(model, tokenizer, part, self.max_length) for s, part in texts.items()}
            answers = {name: score_choices(model, tokenizer, asked) for name, asked in self.questions.items()}
        total = sum(self.shares[name] for name in scores)
        mean = sum(self.shares[name] * score for name, score in scores.items()) / total
        metrics = {"eval_bits_per_byte": mean, **{f"eval_bits_per_byte_{s}": score for s, score in scores.items()}}
        words = f"step {self.state.global_step:,}: {mean:.3f} bits per byte held out"
        for name, found in answers.items():
            metrics |= {f"eval_{name}_{key}": found[key] for key in ("acc", "acc_norm", "acc_norm_stderr")}
            words += f", {name} {found['acc_norm']:.1%} ± {found['acc_norm_stderr']:.1%}"
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.is_world_process_zero():
            tqdm.write(words)
        self.write_samples(model)
        model.train()
        self.evaluated = self.state.global_step, metrics
        self.seconds_beside += time.perf_counter() - began
        return metrics

    def write_samples(self, model) -> None:
        if not self.prompts:
            return
        completions = complete(model, self.processing_class, self.prompts, max_new_tokens=32)
        if not self.is_world_process_zero():  # which has read along, for under ZeRO-3 the weights are everyone's
            return
        with open(Path(self.args.output_dir) / "samples.jsonl", "a", encoding="utf-8") as handle:
            for prompt, completion in zip(self.prompts, completions, strict=True):
                row = {"step": self.state.global_step, "prompt": prompt, "text": completion.text}
                handle.write(json.dumps(row) + "\n")
                tqdm.write(f"  {prompt}|{completion.text!r}")

    def logged(self, key: str) -> list[float]:
        """All logged values of a key, such as "loss" (nats a token) or "tokens_per_second"."""
        return [row[key] for row in self.state.log_history if key in row]
