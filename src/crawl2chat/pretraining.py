"""The Trainer that reads packed rows: lean, and evaluated by bits per byte and by samples."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset, SequentialSampler
from tqdm import tqdm
from transformers import Trainer

from crawl2chat.engine import complete
from crawl2chat.evaluation import bits_per_byte


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows of one length to {"input_ids", "labels"}: (batch, max_length). No mask: nothing is padded."""
    ids = torch.stack([row["input_ids"] for row in rows])
    return {"input_ids": ids, "labels": ids}


class PretrainingTrainer(Trainer):
    """Trainer for packed rows: reads them in the run's order, and evaluates by bits per byte and by samples.

    Args:
        shares: bytes that each source contributes to a training token, which weigh its held-out bits per byte.
        prompts: continued greedily at every evaluation and kept in `output_dir`/samples.jsonl.
    """

    def __init__(self, *args, shares: dict[str, float], prompts: Sequence[str], **kwargs):
        super().__init__(*args, data_collator=collate, **kwargs)
        self.shares, self.prompts = shares, list(prompts)
        self.max_length = self.train_dataset.max_length
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean next-token cross-entropy (nats), on the logits in the type the model made them: at a small size their
        fp32 copies cost a fifth of a step. A wrapped model (DDP, DeepSpeed) must be called whole and takes the
        Trainer's way.
        """
        if return_outputs or model is not self.accelerator.unwrap_model(model):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self.accelerator.autocast():
            hidden = model.base_model(inputs["input_ids"], use_cache=False).last_hidden_state[:, :-1]
            logits = model.get_output_embeddings()(hidden)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"][:, 1:].flatten()).float()

    def _get_train_sampler(self, dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """{"eval_bits_per_byte", "eval_bits_per_byte_<source>"}; also writes the samples of this moment."""
        model = self.accelerator.unwrap_model(self.model).eval()
        texts = defaultdict(list)
        for row in eval_dataset or self.eval_dataset:
            texts[row["source"]].append(row["text"])
        scores = {
            name: bits_per_byte(model, self.processing_class, part, self.max_length) for name, part in texts.items()
        }
        total = sum(self.shares[name] for name in scores)
        mean = sum(self.shares[name] * score for name, score in scores.items()) / total
        metrics = {
            "eval_bits_per_byte": mean,
            **{f"eval_bits_per_byte_{name}": score for name, score in scores.items()},
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.prompts and self.is_world_process_zero():
            completions = complete(model, self.processing_class, self.prompts, max_new_tokens=32)
            with open(Path(self.args.output_dir) / "samples.jsonl", "a", encoding="utf-8") as handle:
                for prompt, completion in zip(self.prompts, completions, strict=True):
                    row = {"step": self.state.global_step, "prompt": prompt, "text": completion.text}
                    handle.write(json.dumps(row) + "\n")
                    tqdm.write(f"  step {self.state.global_step}: {prompt}|{completion.text!r}")
        model.train()
        return metrics

    def recent_loss(self, last: int = 5) -> float:
        """Mean of the last logged training losses (nats a token); of the whole run where it was too short to log
        any.
        """
        history = self.state.log_history
        losses = [row["loss"] for row in history if "loss" in row] or [
            row["train_loss"] for row in history if "train_loss" in row
        ]
        return sum(losses[-last:]) / len(losses[-last:])
