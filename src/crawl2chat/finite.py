"""Numbers that are no numbers: `FiniteSteps`, a mixin before a transformers Trainer, stops before they are learned."""

import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from crawl2chat.checkpoint_folder import checkpoints
from crawl2chat.stage import fail


class BeforeTheUpdate(TrainerCallback):
    def __init__(self, trainer: "FiniteSteps"):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.check_numbers()


class FiniteSteps:
    """Exits 1 before the update of a step whose loss or gradient is NaN or infinite.

    The gradient's norm stands for the gradient: the Trainer's where it computes one, else one made here. On a GPU the
    check waits for the device once a step, not once a micro-batch: an update must not be launched before the answer
    is known. DeepSpeed updates inside the backward pass and leaves out such an update by itself, so there the run
    stops right after it. fp16's loss scaling leaves it out too, and goes on by design: there only the loss is checked.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.args.logging_nan_inf_filter = False  # it hides a NaN, and asks the device for each micro-batch's loss
        self._losses: list[torch.Tensor] = []
        self._norm: torch.Tensor | float | None = None
        self.add_callback(BeforeTheUpdate(self))

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._losses.append(loss.detach())
        return loss

    def _get_grad_norm(self, *args, **kwargs) -> torch.Tensor | float | None:
        self._norm = super()._get_grad_norm(*args, **kwargs)
        return self._norm

    def check_numbers(self) -> None:
        """At the end of a step's backward passes, before its update."""
        (losses, self._losses), (norm, self._norm) = (self._losses, []), (self._norm, None)
        loss = torch.stack(losses).float().sum()
        if norm is None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        norm = torch.as_tensor(norm).to(loss)
        if self.args.fp16:
            norm = torch.zeros_like(norm)
        elif self.is_deepspeed_enabled and self.accelerator.optimizer_step_was_skipped:
            norm = torch.full_like(norm, torch.inf)
        if torch.isfinite(loss + norm):
            return
        if not self.is_world_process_zero() and not torch.isfinite(norm):
            sys.exit(1)  # all ranks share the gradient: the main one says it
        last = next((str(path) for path in checkpoints(Path(self.args.output_dir))), "none yet")
        fail(
            f"step {self.state.global_step + 1}: loss {loss.item():.4g}, gradient norm {norm.item():.4g}: stopped "
            f"before the update (last checkpoint: {last}). The same command would end here again: look at the rows of "
            "this step, or lower learning_rate or max_grad_norm and go on with --allow_drift true"
        )
