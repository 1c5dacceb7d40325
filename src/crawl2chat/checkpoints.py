"""A run that may be killed at any moment: `SafeCheckpoints` before any transformers Trainer, and `trainer.run()`.

What it promises, beyond the Trainer's own checkpoints:
- a checkpoint is whole or not there (checkpoint_folder.py), and one that was altered is named and passed over;
- the same command goes on from the newest whole one, and every later loss is that of an uninterrupted run;
- a recipe that changed in between is named and refused (drift.py), unless `allow_drift: true`;
- a loss or gradient that is not finite stops the run before the update (finite.py);
- a disk that is too small is refused before the first step (disk.py), and one that fills up harms no checkpoint;
- `push_to_hub: true` goes through a local outbox, behind training (pushing.py).

On several machines `output_dir` must be a folder that all of them share.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from transformers.trainer_utils import TrainOutput

from crawl2chat.checkpoint_folder import (
    EARLIER,
    FINISHED,
    SAVING,
    checkpoints,
    damage,
    publish,
    rotate,
    seal,
    set_aside,
)
from crawl2chat.disk import check_disk, is_full, size
from crawl2chat.drift import changes, facts
from crawl2chat.finite import FiniteSteps
from crawl2chat.pushing import HubPushes
from crawl2chat.stage import fail, write_text

RUN = "run.json"  # in every checkpoint: the run's facts, its seconds so far, and what it was told to start from


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


class Token(str):
    """A secret that works as text, and is pickled and shown as nothing: training_args.bin holds the arguments."""

    def __reduce__(self):
        return type(None), ()

    def __deepcopy__(self, memo) -> "Token":
        return self

    def __repr__(self) -> str:
        return "'***'"


class Watch(TrainerCallback):
    """The Trainer's events that SafeCheckpoints needs."""

    def __init__(self, trainer: "SafeCheckpoints"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.began = time.time()
        if state.is_world_process_zero:
            check_disk(self.trainer)

    def on_step_end(self, args, state, control, **kwargs):
        # the mean loss since the last row of the log is no part of a checkpoint: a save begins a new row
        control.should_log |= control.should_save

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.trainer.started and state.global_step == self.trainer.started[1]:  # it was all done before
            control.should_save = control.should_evaluate = False
        control.should_log |= control.should_save


class SafeCheckpoints(HubPushes, FiniteSteps):
    """Mixin before a transformers Trainer. Scripts call `run()` instead of `train()`.

    Args:
        fingerprint: what the run depends on beyond its arguments, model and tokenizer ({"data": ..., ...}, JSON
            values): kept in every checkpoint, and compared when the run goes on.

    Attributes:
        seconds: after `run`, the training time of the whole run over all its starts, each step counted once.
    """

    def __init__(self, *args, fingerprint: dict | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.save_on_each_node:
            fail("save_on_each_node: a checkpoint is one folder; share output_dir between the machines, and leave it")
        if self.args.hub_token:
            self.args.hub_token = Token(self.args.hub_token)
        self.fingerprint = fingerprint or {}
        self.seconds = self.began = 0.0
        self.started: tuple[Path | None, int] | None = None  # the checkpoint gone on from and its step, once known
        self.facts: dict | None = None
        self._redirect: str | None = None
        self.add_callback(Watch(self))

    # -- where the run begins

    def find_start(self) -> int:
        """The steps that are done already: those of the checkpoint that `run` goes on from, 0 where it begins anew.

        Every rank must call it. Exits 1 on a checkpoint that was asked for and cannot be used, and on drift.
        """
        if self.started is None:
            answer, stop = (None, 0), None
            self.facts = facts(self, self.fingerprint)
            if self.is_world_process_zero():
                try:
                    answer = self._look()
                except SystemExit as error:
                    stop = error.code
            answer, stop = broadcast_object_list([answer, stop])
            if stop is not None:
                sys.exit(stop if self.is_world_process_zero() else 1)
            self.started = answer
            self.seconds = _run_of(answer[0]).get("seconds", 0.0) if answer[0] else 0.0
        return self.started[1]

    def _look(self) -> tuple[Path | None, int]:
        """(checkpoint, its step): on the main rank, with a line for everything that is passed over or moved."""
        output, wanted = Path(self.args.output_dir), self.args.resume_from_checkpoint
        choice = str(wanted).lower()
        if (output / SAVING).exists():
            unfinished = sorted(path.name for path in (output / SAVING).iterdir())
            if unfinished:
                say(f"{output / SAVING}: {', '.join(unfinished)} was not finished; removed")
            shutil.rmtree(output / SAVING)
        found = checkpoints(output)
        finished = any((path / FINISHED).exists() for path in found) or (output / "metrics.json").exists()
        if choice not in ("none", "true", "false", ""):
            # begun from there before, and killed: the newest of what came of it
            candidates = [path for path in found if _run_of(path).get("from") == wanted] + [Path(wanted)]
        else:
            candidates = [] if choice == "false" or finished else found
        start = None
        for path in candidates:
            problem = damage(path)
            if not problem and not any(path.glob("rng_state*.pth")):
                problem = "holds the weights alone (save_only_model)"
            if not problem:
                start = next((own for own in found if own.samefile(path)), path)
                break
            if path == Path(str(wanted)):
                fail(f"resume_from_checkpoint: {path}: {problem}; name another checkpoint, or leave the key out")
            say(f"{path}: {problem}; passed over")
        if start and start.parent.name == EARLIER:
            fail(f"resume_from_checkpoint: {start}: move it out of {EARLIER} first; this run may put others there")
        if start:
            self._refuse_drift(start)
            say(f"going on from {start}")
        elif candidates:
            say("no whole checkpoint is left, the run begins anew")
        moved = set_aside(output, found[: found.index(start)] if start in found else found)
        if moved:
            say(moved)
        return start, json.loads((start / "trainer_state.json").read_text())["global_step"] if start else 0

    def _refuse_drift(self, start: Path) -> None:
        run = _run_of(start)
        drift = changes(run["facts"], self.facts)
        listed = "; ".join(drift[:12]) + f"; and {len(drift) - 12} more" * (len(drift) > 12)
        if drift and not getattr(self.args, "allow_drift", False):
            fail(
                f"{start} was trained by another recipe: {listed}. Put it back; or go on anyway with --allow_drift "
                "true; or begin anew with --resume_from_checkpoint false"
            )
        if drift:
            say(f"going on by another recipe (allow_drift): {listed}")
        if run["torch"] != torch.__version__:
            say(f"torch {run['torch']} -> {torch.__version__}: losses may differ in their last digits")

    def run(self) -> TrainOutput:
        """Train to the end: from the newest whole checkpoint of `output_dir`, or from the start."""
        self.find_start()
        start, before = self.started[0], self.seconds
        result = self.train(resume_from_checkpoint=str(start) if start else None)
        self.seconds = before + time.time() - self.began
        if self.args.enable_jit_checkpoint and self.state.global_step < self.state.max_steps:
            # the library returns as from a whole run, and the stage would be marked complete
            sys.exit(
                f"checkpoints: a signal ended the run after step {self.state.global_step}; the same command goes on"
            )
        return result

    def get_batch_samples(self, *args, **kwargs):
        """No more batches once every step is done: a run that was killed after its last checkpoint takes none."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """After an allowed drift the rates are the recipe's from here on, not those the checkpoint remembers."""
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        scheduler = self.lr_scheduler
        bases = getattr(scheduler, "base_lrs", None)
        super()._load_optimizer_and_scheduler(checkpoint)
        allowed = getattr(self.args, "allow_drift", False)
        if allowed and isinstance(scheduler, LambdaLR) and not self.is_deepspeed_enabled:
            factors = [shape(scheduler.last_epoch) for shape in scheduler.lr_lambdas]
            rates = [base * factor for base, factor in zip(bases, factors, strict=True)]
            scheduler.load_state_dict({**scheduler.state_dict(), "base_lrs": bases, "_last_lr": rates})
            for group, own, base, rate in zip(self.optimizer.param_groups, groups, bases, rates, strict=True):
                group |= {**own, "initial_lr": base, "lr": rate}

    # -- writing

    def _get_output_dir(self, trial) -> str:
        return self._redirect or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial) -> None:
        output, name = Path(super()._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        saving = output / SAVING / name
        with self._room(output, name):
            self._redirect = str(output / SAVING)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._redirect = None
            best = self.state.best_model_checkpoint
            if best and Path(best).parent == output / SAVING:
                self.state.best_model_checkpoint = str(output / name)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                self.state.save_to_json(str(saving / "trainer_state.json"))
                seconds, origin = self.seconds + time.time() - self.began, self.args.resume_from_checkpoint
                self.facts = self.facts or facts(self, self.fingerprint)
                run = {"facts": self.facts, "seconds": seconds, "from": origin, "torch": torch.__version__}
                write_text(saving / RUN, json.dumps(run, indent=1))
                self._check_ranks(saving)
                seal(saving, output / name)
        if self.is_world_process_zero():
            rotate(output, self.args.save_total_limit, self.state.best_model_checkpoint)
            shutil.rmtree(output / SAVING, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_checkpoint(output / name)

    def _check_ranks(self, saving: Path) -> None:
        ranks = len(list(saving.glob("rng_state_*.pth")))
        if self.args.world_size > 1 and not self.args.save_only_model and ranks != self.args.world_size:
            fail(
                f"{saving}: {ranks} of {self.args.world_size} ranks wrote here; "
                "output_dir must be a folder that all machines share"
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The finished model: written aside and synced, then each file takes the place of its predecessor."""
        if _internal_call:
            return super().save_model(output_dir, _internal_call=True)
        output = Path(output_dir or self.args.output_dir)
        with self._room(output, "the model"):
            super().save_model(str(output / SAVING / "model"), _internal_call=True)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                publish(output / SAVING / "model", output)
                shutil.rmtree(output / SAVING)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_model()

    @contextmanager
    def _room(self, output: Path, what: str) -> Iterator[None]:
        """Remove what was half written when anything goes wrong, and say it in one line where the disk is full."""
        try:
            yield
        except BaseException as error:
            shutil.rmtree(output / SAVING, ignore_errors=True)
            if not isinstance(error, OSError | RuntimeError | SafetensorError) or not is_full(error):
                raise
            last = next((f"goes on from {path}" for path in checkpoints(output) if not damage(path)), "begins anew")
            fail(
                f"{what} could not be written to {output}, {size(shutil.disk_usage(output).free)} are free "
                f"({str(error).splitlines()[0]}); make room and start the same command again: it {last}"
            )


def say(line: str) -> None:
    print(f"checkpoints: {line}", flush=True)


def _run_of(checkpoint: Path) -> dict:
    """What run.json says; nothing where the checkpoint is damaged, which is found out elsewhere."""
    try:
        return json.loads((checkpoint / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
