"""A run may be interrupted, its checkpoints damaged, its recipe changed, its disk filled: what it promises then."""

import errno
import json
import random
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from crawl2chat import disk
from crawl2chat.checkpoint_folder import checkpoints, damage, mark_finished, seal
from crawl2chat.checkpoints import ResumeKeys, SafeCheckpoints
from crawl2chat.drift import changes, digest_weights
from crawl2chat.muon import MuonKeys, MuonOptimizer
from tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
STEPS = 6


@dataclass
class Arguments(ResumeKeys, MuonKeys, TrainingArguments):
    pass


class SafeTrainer(SafeCheckpoints, MuonOptimizer, Trainer):
    """Uses all three random generators in every step, so that a state that is not restored shows."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        if not model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        noise = random.random() + np.random.rand() + torch.rand(()).item()
        return super().compute_loss(model, inputs, *args, **kwargs) * (1 + noise)


class Killed(BaseException):
    pass


def trainer(output: Path, at: dict | None = None, fingerprint: dict | None = None, **keys) -> SafeTrainer:
    """A tiny run of six steps that saves at every second one; `at` maps a step to a function of the trainer."""
    set_seed(0)
    rows = [{"input_ids": [(7 * i + j) % 300 for j in range(8)]} for i in range(32)]
    rows = [{**row, "labels": row["input_ids"]} for row in rows]
    fixed = {"max_steps": STEPS, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, "report_to": "none"}
    fixed |= {"per_device_train_batch_size": 2, "use_cpu": True, "disable_tqdm": True}
    arguments = Arguments(output_dir=str(output), **fixed | keys)
    model = tiny_model(TOKENIZER, layers=1)
    made = SafeTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows[:4],
        processing_class=TOKENIZER,
        fingerprint=fingerprint,
    )

    class At(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            (at or {}).get(state.global_step, lambda trainer: None)(made)

    made.add_callback(At())
    return made


def kill(made: SafeTrainer) -> None:
    raise Killed


def losses(made: SafeTrainer) -> list[str]:
    return [float(row["loss"]).hex() for row in made.state.log_history if "loss" in row]


def interrupted(output: Path, step: int, **keys) -> None:
    """A run that dies at the end of a step."""
    with pytest.raises(Killed):
        trainer(output, at={step: kill}, **keys).run()


def stopped(made: SafeTrainer) -> str:
    """The one line that a run stops with."""
    with pytest.raises(SystemExit) as stop:
        made.run()
    assert "\n" not in stop.value.code
    return stop.value.code


def names(output: Path) -> list[str]:
    return sorted(path.name for path in output.iterdir())


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run: (folder, losses, weights)."""
    folder = tmp_path_factory.mktemp("whole")
    made = trainer(folder)
    made.run()
    return folder, losses(made), digest_weights(made.model)


@pytest.mark.parametrize(
    "step, keys",
    [
        (3, {}),
        (5, {}),
        (5, {"optim": "muon", "gradient_accumulation_steps": 2}),
        (5, {"logging_steps": 5}),
        (5, {"lr_scheduler_type": "cosine", "num_train_epochs": 2, "max_steps": -1, "save_steps": 4}),
    ],
)
def test_a_run_that_died_goes_on_with_the_same_losses_to_the_last_digit(tmp_path, step, keys):
    reference = trainer(tmp_path / "a", **keys)
    reference.run()
    interrupted(tmp_path / "b", step, **keys)
    again = trainer(tmp_path / "b", **keys)
    assert again.find_start() == step // again.args.save_steps * again.args.save_steps > 0
    again.run()
    assert losses(again) == losses(reference) and len(losses(again)) >= 2
    assert digest_weights(again.model) == digest_weights(reference.model)


def test_a_run_that_died_after_its_last_checkpoint_takes_no_step_more(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "run")
    again = trainer(tmp_path / "run")
    before = json.loads((whole[0] / "checkpoint-6/run.json").read_text())["seconds"]
    again.run()
    assert again.state.global_step == STEPS == again.find_start()
    assert losses(again) == whole[1] and digest_weights(again.model) == whole[2]
    assert again.seconds >= before > 0


def test_the_seconds_of_a_run_are_those_of_all_its_starts(tmp_path):
    interrupted(tmp_path, 5)
    path = tmp_path / "checkpoint-4/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 1000.0}))
    (tmp_path / "checkpoint-4/manifest.json").unlink()
    shutil.move(tmp_path / "checkpoint-4", tmp_path / "altered")
    seal(tmp_path / "altered", tmp_path / "checkpoint-4")
    again = trainer(tmp_path)
    again.run()
    assert 1000 < again.seconds < 1100


def test_every_flipped_bit_is_seen(whole, tmp_path):
    rng = random.Random(0)
    checkpoint = tmp_path / "checkpoint-6"
    shutil.copytree(whole[0] / "checkpoint-6", checkpoint)
    assert damage(checkpoint) is None
    for path in sorted(checkpoint.iterdir()):
        for _ in range(4):
            bit = rng.randrange(path.stat().st_size * 8)
            flip(path, bit)
            assert damage(checkpoint), f"bit {bit} of {path.name}"
            flip(path, bit)
    assert damage(checkpoint) is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "name, harm, said",
    [
        ("model.safetensors", lambda path: flip(path, 9000), "model.safetensors is not what was written"),
        ("optimizer.pt", cut, "optimizer.pt has"),
        ("rng_state.pth", Path.unlink, "rng_state.pth is missing"),
        ("manifest.json", Path.unlink, "it has no manifest.json"),
        ("manifest.json", cut, "manifest.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over_for_an_older_one(tmp_path, whole, capsys, name, harm, said):
    shutil.copytree(whole[0], tmp_path / "run")
    harm(tmp_path / "run/checkpoint-6" / name)
    again = trainer(tmp_path / "run")
    assert again.find_start() == 4
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("checkpoints: ")]
    assert said in lines[0] and "checkpoint-6" in lines[0] and "passed over" in lines[0]
    assert lines[1].endswith("going on from " + str(tmp_path / "run/checkpoint-4"))
    assert "checkpoint-6 moved to" in lines[2] and len(lines) == 3
    again.run()
    assert losses(again) == whole[1] and damage(tmp_path / "run/checkpoint-6") is None


def test_the_run_begins_anew_where_no_checkpoint_is_whole_and_says_so(tmp_path, whole, capsys):
    interrupted(tmp_path, 3)
    (tmp_path / "checkpoint-2/scheduler.pt").unlink()
    again = trainer(tmp_path)
    capsys.readouterr()
    again.run()
    assert "no whole checkpoint is left, the run begins anew" in capsys.readouterr().out
    assert losses(again) == whole[1]


def test_a_first_start_says_nothing(tmp_path, capsys):
    assert trainer(tmp_path / "new").find_start() == 0
    assert "checkpoints:" not in capsys.readouterr().out


def test_what_a_killed_save_left_is_removed_and_named(tmp_path, capsys):
    interrupted(tmp_path, 3)
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "_saving/checkpoint-4")
    assert trainer(tmp_path).find_start() == 2
    assert "checkpoint-4 was not finished; removed" in capsys.readouterr().out
    assert names(tmp_path) == ["checkpoint-2"]


def test_a_checkpoint_without_its_manifest_never_has_its_final_name(tmp_path, monkeypatch):
    """Whatever call of a save dies, what is left below a final name is whole."""
    places = ["_save_optimizer_and_scheduler", "_save_scaler", "_save_rng_state", "_save"]
    for place in places:
        shutil.rmtree(tmp_path, ignore_errors=True)
        made = trainer(tmp_path, at={4: lambda made, place=place: monkeypatch.setattr(Trainer, place, die)})

        def die(*args, **kwargs):
            raise Killed

        with pytest.raises(Killed):
            made.run()
        monkeypatch.undo()
        assert names(tmp_path) == ["checkpoint-2"] and damage(tmp_path / "checkpoint-2") is None


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    trainer(tmp_path, save_steps=1, save_total_limit=2).run()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-5"]
    assert all(damage(path) is None for path in checkpoints(tmp_path))


def test_rotation_deletes_nothing_before_the_new_checkpoint_is_whole(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    made = trainer(tmp_path, save_total_limit=1, at={4: lambda _: monkeypatch.setattr(Trainer, "_save_scaler", full)})
    stopped(made)
    assert names(tmp_path) == ["checkpoint-2"] and damage(tmp_path / "checkpoint-2") is None


def test_the_best_checkpoint_is_known_by_its_final_name(tmp_path):
    made = trainer(tmp_path, save_total_limit=1, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True)
    made.run()
    best = Path(made.state.best_model_checkpoint)
    assert best.parent == tmp_path and damage(best) is None
    states = [json.loads((path / "trainer_state.json").read_text()) for path in checkpoints(tmp_path)]
    assert {state["best_model_checkpoint"] for state in states} == {str(best)}


def test_a_run_that_had_ended_begins_anew_and_keeps_its_checkpoints_aside(tmp_path, whole, capsys):
    shutil.copytree(whole[0], tmp_path / "run")
    mark_finished(tmp_path / "run")
    again = trainer(tmp_path / "run")
    assert again.find_start() == 0
    assert "checkpoint-6, checkpoint-4, checkpoint-2 moved to" in capsys.readouterr().out
    assert names(tmp_path / "run") == ["_earlier"]
    again.run()
    assert losses(again) == whole[1]


def test_false_begins_anew_and_a_folder_is_where_the_run_goes_on(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "run")
    chosen = str(tmp_path / "run/checkpoint-2")
    again = trainer(tmp_path / "run", resume_from_checkpoint=chosen, at={5: kill})
    assert again.find_start() == 2
    with pytest.raises(Killed):
        again.run()
    assert names(tmp_path / "run") == ["_earlier", "checkpoint-2", "checkpoint-4"]
    again = trainer(tmp_path / "run", resume_from_checkpoint=chosen)
    assert again.find_start() == 4, "the same command goes on with what it began"
    assert trainer(tmp_path / "run", resume_from_checkpoint=False).find_start() == 0
    complaint = stopped(trainer(tmp_path / "run", resume_from_checkpoint=str(tmp_path / "nowhere")))
    assert complaint.startswith("error: resume_from_checkpoint:") and "there is no such folder" in complaint


def test_a_folder_chosen_by_another_spelling_of_its_path_is_not_moved_away(tmp_path, whole, monkeypatch):
    shutil.copytree(whole[0], tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    again = trainer(tmp_path / "run", resume_from_checkpoint="run/../run/checkpoint-4")
    again.run()
    assert losses(again) == whole[1] and again.find_start() == 4
    shutil.move(tmp_path / "run/checkpoint-2", tmp_path / "run/_earlier/checkpoint-2")
    assert "move it out of _earlier" in stopped(trainer("run", resume_from_checkpoint="run/_earlier/checkpoint-2"))


@pytest.mark.parametrize(
    "keys, named",
    [
        ({"learning_rate": 2e-2}, "learning_rate: 0.01 -> 0.02"),
        ({"seed": 1}, "seed: 42 -> 1"),
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size: 2 -> 4"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps: 1 -> 2"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type: linear -> cosine"),
        ({"max_steps": 8}, "max_steps: 6 -> 8"),
        ({"optim": "muon"}, "optim: adamw_torch -> muon"),
        ({"fingerprint": {"data": "b"}}, "data: a -> b"),
    ],
)
def test_a_changed_recipe_is_named_and_refused(tmp_path, whole, keys, named):
    interrupted(tmp_path, 3, fingerprint={"data": "a"})
    complaint = stopped(trainer(tmp_path, **{"fingerprint": {"data": "a"}, **keys}))
    assert named in complaint and "--allow_drift true" in complaint and "checkpoint-2" in complaint


def test_a_changed_model_tokenizer_and_number_of_ranks_are_named(tmp_path):
    made = trainer(tmp_path)
    made.find_start()
    other = json.loads(json.dumps(made.facts))
    other["model"]["rope_parameters"]["rope_theta"] = 5.0
    other["tokenizer"]["tokenizer"], other["ranks"]["processes"] = "0", 8
    found = " ".join(changes(made.facts, other))
    assert "model.rope_parameters.rope_theta: 10000.0 -> 5.0" in found
    assert "tokenizer: " in found and "ranks.processes: 1 -> 8" in found


def test_what_cannot_change_the_losses_may_change(tmp_path, whole):
    interrupted(tmp_path, 3)
    free = {"save_steps": 3, "save_total_limit": 2, "run_name": "other", "eval_steps": 3, "hub_model_id": "a/b"}
    shutil.move(tmp_path / "checkpoint-2", tmp_path / "moved/checkpoint-2")
    again = trainer(tmp_path / "moved", **free, dataloader_num_workers=1)
    again.run()
    assert losses(again) == whole[1]


def test_an_allowed_drift_takes_the_new_rate_from_its_next_step(tmp_path, capsys):
    interrupted(tmp_path, 3)
    again = trainer(tmp_path, learning_rate=4e-2, max_steps=8, allow_drift=True)
    again.run()
    assert "by another recipe (allow_drift): learning_rate: 0.01 -> 0.04; max_steps: 6 -> 8" in capsys.readouterr().out
    rates = {row["step"]: row["learning_rate"] for row in again.state.log_history if "learning_rate" in row}
    assert [rates[step] for step in (3, 4, 8)] == pytest.approx([4e-2 * 6 / 8, 4e-2 * 5 / 8, 4e-2 * 1 / 8])


class Broken(SafeTrainer):
    """Its loss, or its gradient alone, is not finite in the fourth step."""

    harm = "loss"

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.state.global_step == 3:
            zero = next(model.parameters()).sum() * 0
            loss = loss * float(self.harm) if self.harm != "gradient" else loss + zero.abs().sqrt()  # slope 0/0
        return loss


@pytest.mark.parametrize("harm", ["nan", "inf", "gradient"])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_numbers_that_are_not_finite_stop_the_run_before_the_update(tmp_path, harm, max_grad_norm):
    made, seen = trainer(tmp_path, max_grad_norm=max_grad_norm), []
    made.__class__, made.harm = Broken, harm
    made.add_callback(type("See", (TrainerCallback,), {"on_step_begin": lambda *_, **__: seen.append(0)}))
    keep = type("Keep", (TrainerCallback,), {"on_step_end": lambda *_, **__: seen.append(digest_weights(made.model))})
    made.add_callback(keep)
    complaint = stopped(made)
    assert "step 4: loss" in complaint and "gradient norm nan" in complaint.replace("inf", "nan")
    assert "before the update" in complaint and str(tmp_path / "checkpoint-2") in complaint
    assert digest_weights(made.model) == seen[-2], "the weights are those of step 3"
    assert (harm != "gradient") != ("loss nan" not in complaint and "loss inf" not in complaint)


def test_a_disk_too_small_is_refused_before_the_first_step(tmp_path, monkeypatch, whole):
    made = trainer(tmp_path, save_total_limit=1)
    usage = type(shutil.disk_usage(tmp_path))
    weights = sum(p.numel() * 4 for p in made.model.parameters())
    written = sum(path.stat().st_size for path in (whole[0] / "checkpoint-6").rglob("*.[sp]*[st]*"))
    assert 3 * weights < written * 1.2, "the estimate is near what a checkpoint takes"
    for free, enough in ((7 * weights - 1, False), (7 * weights, True)):  # two of 3 x weights, and the model
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda path, free=free: usage(10**12, 0, free))
        if enough:
            trainer(tmp_path, save_total_limit=1).run()
        else:
            complaint = stopped(made)
            assert "2 checkpoints of" in complaint and "save_total_limit (1)" in complaint
            assert made.state.global_step == 0 and names(tmp_path) == []


def test_a_disk_that_fills_up_during_a_save_is_one_line_and_the_last_checkpoint_loads(tmp_path, whole):
    """The system refuses files beyond a size, as it refuses them on a full disk."""
    largest = (whole[0] / "checkpoint-6/optimizer.pt").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    made = trainer(tmp_path, at={4: lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, hard))})
    try:
        complaint = stopped(made)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert complaint.startswith("error: checkpoint-4 could not be written to") and "are free" in complaint
    assert f"it goes on from {tmp_path / 'checkpoint-2'}" in complaint
    assert names(tmp_path) == ["checkpoint-2"]
    again = trainer(tmp_path)
    again.run()
    assert losses(again) == whole[1]


def test_a_model_that_cannot_be_written_leaves_the_older_one_whole(tmp_path):
    made = trainer(tmp_path, save_strategy="no")
    made.save_model()
    before = (tmp_path / "model.safetensors").read_bytes()
    made.run()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(SystemExit) as stop:
            made.save_model()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "the model could not be written" in stop.value.code
    assert (tmp_path / "model.safetensors").read_bytes() == before and "_saving" not in names(tmp_path)
    made.save_model()
    assert (tmp_path / "model.safetensors").read_bytes() != before


def test_no_checkpoint_holds_a_token(tmp_path, monkeypatch):
    secrets = ["hf_" + "fromthearguments", "hf_" + "fromtheenvironment"]
    monkeypatch.setenv("HF_TOKEN", secrets[1])
    made = trainer(tmp_path, hub_token=secrets[0])
    made.run()
    made.save_model()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files)
    for path in files:
        assert not any(secret.encode() in path.read_bytes() for secret in secrets), path
    assert f"{made.args.hub_token}" == secrets[0] and secrets[0] not in repr(made.args)
