"""A run that may be killed at any moment: `SafeCheckpoints` before any transformers Trainer, and `trainer.run()`.

What it promises, beyond the Trainer's own checkpoints:
- a checkpoint is whole or not there (checkpoint_folder.py), and one that was altered is named and passed over;
- the same command goes on from the newest whole one, and every later loss is that of an uninterrupted run;
- a recipe that changed in between is named and refused, unless `allow_drift: true`;
- a loss or gradient that is not finite stops the run before the update;
- a disk that is too small is refused before the first step, and one that fills up leaves the last checkpoint whole.

On several machines `output_dir` must be a folder that all of them share.
"""

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback
from transformers.trainer_utils import TrainOutput

from crawl2chat.checkpoint_folder import SAVING, checkpoints, damage, rotate, seal, set_aside, step_of
from crawl2chat.stage import fail


@dataclass
class ResumeKeys:
    """How a run goes on: a base of our arguments classes, before the library's."""

    resume_from_checkpoint: str | bool | None = field(
        default=None,
        metadata={"help": "a checkpoint's folder; default: the newest whole one of output_dir; false: begin anew"},
    )
    allow_drift: bool = field(
        default=False, metadata={"help": "go on from a checkpoint although the recipe has changed since"}
    )


class Watch(TrainerCallback):
    """The Trainer's events that SafeCheckpoints needs."""

    def __init__(self, trainer: "SafeCheckpoints"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.began = time.time()

    def on_step_end(self, args, state, control, **kwargs):
        # the mean loss since the last row of the log is no part of a checkpoint: a save begins a new row
        control.should_log |= control.should_save

    on_epoch_end = on_step_end


class SafeCheckpoints:
    """Mixin before a transformers Trainer. Scripts call `run()` instead of `train()`.

    Args:
        fingerprint: what the run depends on beyond its arguments, model and tokenizer ({"data": ..., ...}, JSON
            values): kept in every checkpoint, and compared when the run goes on.
    """

    def __init__(self, *args, fingerprint: dict | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.fingerprint = fingerprint or {}
        self.seconds, self.began = 0.0, time.time()
        self._start: Path | None | bool = False  # False: not looked for yet
        self._redirect: str | None = None
        self.args.logging_nan_inf_filter = False  # it hides a NaN, and asks the device for each micro-batch's loss
        self.add_callback(Watch(self))

    def find_start(self) -> int:
        """The steps that are done already: those of the checkpoint that `run` goes on from, 0 where it begins anew.

        Every rank must call it. Exits 1 on a checkpoint that was asked for and cannot be used.
        """
        if self._start is False:
            found = [self._look() if self.is_world_process_zero() else None]
            self._start = broadcast_object_list(found)[0]
        return step_of(self._start) if self._start else 0

    def _look(self) -> Path | None:
        output, wanted = Path(self.args.output_dir), self.args.resume_from_checkpoint
        if (output / SAVING).exists():
            unfinished = ", ".join(sorted(path.name for path in (output / SAVING).iterdir())) or "nothing"
            print(f"checkpoints: {unfinished} was not finished; removed", flush=True)
            shutil.rmtree(output / SAVING)
        anew = str(wanted).lower() == "false" or (output / "metrics.json").exists()
        if not anew and str(wanted).lower() not in ("none", "true", ""):
            problem = damage(Path(wanted))
            if problem:
                fail(f"resume_from_checkpoint: {wanted}: {problem}; give another one, or leave the key out")
            return Path(wanted)
        start, found = None, checkpoints(output)
        for path in [] if anew else found:
            problem = damage(path)
            if not problem:
                start = path
                break
            print(f"checkpoints: {path}: {problem}; passed over", flush=True)
        line = set_aside(output, found[: found.index(start)] if start else found)
        if line:
            print(line, flush=True)
        if start:
            print(f"checkpoints: going on from {start}", flush=True)
        elif found:
            print("checkpoints: the run begins anew", flush=True)
        return start

    def run(self) -> TrainOutput:
        """Train from the newest whole checkpoint, or from the start, to the end.

        Afterwards `seconds` is the training time of the whole run, over all its starts, each step counted once.
        """
        self.find_start()
        return self.train(resume_from_checkpoint=str(self._start) if self._start else None)

    def _get_output_dir(self, trial) -> str:
        return self._redirect or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial) -> None:
        output = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        self._redirect = str(output / SAVING)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._redirect = None
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            seal(output / SAVING / name, output / name)
            rotate(output, self.args.save_total_limit, self.state.best_model_checkpoint)
            shutil.rmtree(output / SAVING, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(output / name))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing yet: `_save_checkpoint` pushes when the folder has its final name."""

    def get_batch_samples(self, *args, **kwargs):
        """No more batches once every step is done: a run that was killed after its last checkpoint takes none."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(*args, **kwargs)
