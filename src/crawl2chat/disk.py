"""Room on the disk: what a run will write, counted before its first step, and a write that failed for want of room."""

import errno
import math
import shutil
from pathlib import Path

from transformers import Trainer
from transformers.trainer_utils import SaveStrategy

from crawl2chat.checkpoint_folder import checkpoints
from crawl2chat.stage import fail

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# torch's and safetensors' own errors carry no number
IN_WORDS = ("inline_container", "iostream", "No space left", "Disk quota", "File too large", "os error 28")


def is_full(error: BaseException) -> bool:
    """Whether a write failed for want of room (or of quota)."""
    return getattr(error, "errno", None) in FULL or any(words in str(error) for words in IN_WORDS)


def bytes_of(trainer: Trainer) -> tuple[int, int]:
    """(weights, optimizer states) that `trainer` will save. States: AdamW keeps two numbers a trained parameter, Muon
    one, DeepSpeed three in fp32; any other optimizer is counted as none.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    counts = [(getattr(p, "ds_numel", p.numel()), p) for p in model.parameters()]  # ZeRO-3 leaves p.numel() 0
    weights = sum(n * p.element_size() for n, p in counts)
    if trainer.is_deepspeed_enabled:
        return weights, sum(12 * n for n, p in counts if p.requires_grad)
    states = 0
    for group in trainer.optimizer.param_groups:
        each = 1 if group.get("muon") else 2 if "betas" in group or "muon" in group else 0
        states += each * sum(p.numel() * p.element_size() for p in group["params"])
    return weights, states


def check_disk(trainer: Trainer) -> None:
    """Exit 1 where the disk cannot hold the checkpoints that are to come and the model."""
    args, state, output = trainer.args, trainer.state, Path(trainer.args.output_dir)
    weights, states = bytes_of(trainer)
    one = weights + states * (not args.save_only_model)
    steps = state.max_steps - state.global_step
    left = {
        SaveStrategy.STEPS: math.ceil(steps / max(state.save_steps, 1)),
        SaveStrategy.EPOCH: min(steps, math.ceil(state.num_train_epochs - (state.epoch or 0))),
        SaveStrategy.BEST: min(steps, 1),
    }.get(args.save_strategy, 0)
    if args.save_total_limit and left:  # one more than the limit while the newest is being written
        left = min(left, max(1, args.save_total_limit + 1 - len(checkpoints(output))))
    needed, free = left * one + weights, shutil.disk_usage(output).free
    if needed > free:
        fail(
            f"{output}: {left} checkpoints of {size(one)} and a model of {size(weights)} are to be written, and "
            f"{size(free)} are free; make room, lower save_total_limit ({args.save_total_limit}) or raise save_steps "
            f"({args.save_steps})"
        )


def size(count: float) -> str:
    """Bytes in words: 1.5 GB, 20 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
