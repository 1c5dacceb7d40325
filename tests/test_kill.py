"""The training scripts under kill -9: whenever it comes, the same command ends with the losses of a run left alone."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from crawl2chat.policy_and_value import begin_value_model
from tiny import TEXT, tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]
MODEL = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
MODEL |= {"num_attention_heads": 2, "num_key_value_heads": 2, "attention_dropout": 0.1}
COMMON = {"per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none", "save_steps": 2, "logging_steps": 1}
COMMON |= {"save_total_limit": 2, "learning_rate": 3.0e-3, "disable_tqdm": True}
LORA = {"use_peft": True, "lora_r": 2, "lora_dropout": 0.1, "lora_target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    pages = [{"text": f"{TEXT} Page {i}.", "id": str(i)} for i in range(40)]
    turns = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am a small assistant."}]
    talk = [{"messages": turns[:1] + [{**turns[1], "content": turns[1]["content"] * (1 + i % 3)}]} for i in range(40)]
    pairs = [{"prompt": [{**turns[0], "content": f"Who is {i}?"}], "chosen": turns[1:]} for i in range(50)]
    pairs = [{**pair, "rejected": [{**turns[1], "content": "Who? Who?"}]} for pair in pairs]
    for name, rows in (("pages", pages), ("talk", talk), ("train", pairs[:40]), ("test", pairs[40:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_tokenizer("<|endoftext|>")
    model = tiny_model(tokenizer, layers=1)
    judge = begin_value_model(model, [])
    torch.nn.init.normal_(judge.score.weight, generator=torch.Generator().manual_seed(0))
    for name, own in (("tokenizer", None), ("base", model), ("judge", judge)):
        tokenizer.save_pretrained(folder / name)
        own and own.save_pretrained(folder / name)
    return folder


def keys_of(stage: str, world: Path) -> dict:
    """A recipe for a run of a second or two: 12 steps of pretraining, 20 of finetuning or practice."""
    if stage == "sft":
        return {"model_name_or_path": str(world / "base"), "max_length": 64, "gradient_checkpointing": False,
                "datasets": [{"path": str(world / "talk.jsonl")}], "num_train_epochs": 1, **COMMON}  # fmt: skip
    if stage == "reward":
        return {"model_name_or_path": str(world / "base"), "preferences": str(world), "max_length": 64,
                "gradient_checkpointing": False, "num_train_epochs": 1, **COMMON}  # fmt: skip
    if stage in ("grpo", "ppo"):
        problems = [{"name": "sums", "task": "sums", "train": 12, "test": 2}]
        keys = {"model_name_or_path": str(world / "base"), "problems": problems, "rewards": [{"name": "language"}]}
        keys |= {"samples": 2, "along_the_way": 2, "temperature": 4.0, "max_steps": 20, **COMMON}
        keys |= {"eval_strategy": "steps", "eval_steps": 5, "eval_on_start": True, "log_completions": True}
        if stage == "grpo":
            keys |= {"per_device_train_batch_size": 8, "num_generations": 4, "num_completions_to_print": 0}
            return keys | {"max_completion_length": 8}
        keys |= {"reward_models": [str(world / "judge")], "num_ppo_epochs": 2, "num_mini_batches": 2, "save_steps": 4}
        return keys | {"response_length": 8, "kl_target": 0.1, "kl_gain": 1.0}
    source = {"name": "pages", "path": str(world / "pages.jsonl")}
    keys = {"model": MODEL, "tokenizer": str(world / "tokenizer"), "datasets": [source], "max_length": 32}
    keys |= {"held_out_share": 0.2, "held_out_documents": 2, "max_steps": 12, "gradient_accumulation_steps": 2}
    return {**keys, "eval_strategy": "steps", "eval_steps": 5, "prompts": ["The capital of"], **COMMON}


def start(stage: str, recipe: Path) -> None:
    """A process of its own: the script with its command line. What it prints goes to a file."""
    sys.argv = [f"scripts/{stage}.py", str(recipe)]
    with open(recipe.with_suffix(".log"), "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    script = sys.modules[stage] if stage in sys.modules else __import__(stage)
    script.main(*script.parse_recipe(*script.RECIPE))


class Launcher:
    """Starts scripts quickly: a server imports them once, and every start is a fork of it."""

    def __init__(self):
        os.environ["PYTHONPATH"] = os.pathsep.join(str(ROOT / part) for part in ("src", "scripts", "tests"))
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["pretrain", "sft", "reward", "grpo", "ppo", "test_kill"])

    def __call__(self, stage: str, recipe: Path) -> multiprocessing.Process:
        process = self.context.Process(target=start, args=(stage, recipe))
        process.start()
        return process


@pytest.fixture(scope="module")
def launch():
    return Launcher()


def command(stage: str, recipe: Path) -> subprocess.Popen:
    """The command as a user gives it."""
    log = open(recipe.with_suffix(".log"), "a")
    return subprocess.Popen([sys.executable, ROOT / f"scripts/{stage}.py", recipe], stdout=log, stderr=log)


def result(output: Path) -> tuple[list, str]:
    """(every logged loss by its step, to the last bit, with PPO's KL coefficient; the hash of the weights) of a run
    that has ended."""
    assert (output / "metrics.json").exists()
    rows = json.loads((output / "log_history.json").read_text())
    keys = ("step", "loss", "grad_norm", "objective/kl_coef")
    losses = [tuple(float(row.get(key, 0)).hex() for key in keys) for row in rows if "loss" in row]
    assert len({norm for _, _, norm, _ in losses}) >= 5, "nothing was learned: equality would say nothing"
    assert not any("objective/kl_coef" in row for row in rows) or len({leash for *_, leash in losses}) >= 5
    weights = [*output.glob("*model.safetensors"), *output.glob("value_model/*model.safetensors")]
    return losses, hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()


def wait_for(condition, process, seconds: float = 120) -> bool:
    """Wait for a moment of the process's life; False where it ended first."""
    until = time.time() + seconds
    while time.time() < until:
        if condition():
            return True
        if not alive(process):
            return False
        time.sleep(0.0005)
    raise TimeoutError


def saving_since(output: Path, began: float) -> bool:
    """Whether a checkpoint is being written, other than what an earlier kill left."""
    try:
        return any(path.stat().st_mtime > began for path in (output / "_saving").glob("checkpoint-*"))
    except FileNotFoundError:  # just renamed
        return False


def alive(process) -> bool:
    return process.is_alive() if hasattr(process, "is_alive") else process.poll() is None


def ended(process) -> int:
    """The exit code of a process that is let run to its end."""
    if hasattr(process, "join"):
        process.join(300)
        return process.exitcode
    return process.wait(300)


def kill_until_done(stage: str, recipe: Path, output: Path, launch, kills: int, rng: random.Random) -> int:
    """Kill the run `kills` times, most of them while it writes a checkpoint; then let it end. The saves it broke."""
    broken = 0
    for number in range(kills):
        before, began = {path.name for path in output.glob("checkpoint-*")}, time.time()
        process = launch(stage, recipe)
        if number % 4 == 0:  # somewhere between two saves
            there = wait_for(lambda before=before: {p.name for p in output.glob("checkpoint-*")} - before, process)
            time.sleep(rng.uniform(0, 0.1))
        else:
            there = wait_for(lambda began=began: saving_since(output, began), process)
            time.sleep(rng.uniform(0, 0.02))
        assert there or ended(process) == 0, recipe.with_suffix(".log").read_text()[-2000:]
        os.kill(process.pid, signal.SIGKILL) if alive(process) else None
        ended(process)
        broken += (output / "_saving").exists()
        if (output / "metrics.json").exists():
            return broken
    assert ended(launch(stage, recipe)) == 0, recipe.with_suffix(".log").read_text()[-2000:]
    return broken


def reference(stage: str, keys: dict, folder: Path, launch) -> tuple[list, str]:
    """The same run, left alone."""
    recipe = folder / "whole.yaml"
    recipe.write_text(json.dumps({**keys, "output_dir": str(folder / "whole")}))
    assert ended(launch(stage, recipe)) == 0, recipe.with_suffix(".log").read_text()[-2000:]
    return result(folder / "whole")


@pytest.mark.parametrize(
    "stage, extra, kills",
    [("pretrain", {}, 3), ("pretrain", {"optim": "muon"}, 3), ("sft", {}, 2), ("sft", LORA, 1), ("grpo", {}, 2),
     ("reward", {}, 2), ("ppo", {}, 2), pytest.param("ppo", LORA, 2, marks=pytest.mark.slow)],
    ids=["pretrain-adamw", "pretrain-muon", "sft", "sft-lora", "grpo", "reward", "ppo", "ppo-lora"],
)  # fmt: skip
def test_a_killed_run_ends_with_the_losses_and_weights_of_one_left_alone(world, tmp_path, launch, stage, extra, kills):
    keys = keys_of(stage, world) | extra
    losses, weights = reference(stage, keys, tmp_path, launch)
    assert len(losses) == (12 if stage == "pretrain" else 20)
    recipe, output = tmp_path / "killed.yaml", tmp_path / "killed"
    recipe.write_text(json.dumps({**keys, "output_dir": str(output)}))
    kill_until_done(stage, recipe, output, launch, kills, random.Random(f"{stage} {extra}"))
    assert result(output) == (losses, weights)
    assert "going on from" in recipe.with_suffix(".log").read_text()
    assert not (output / "_saving").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, extra", [("pretrain", {}), ("pretrain", {"optim": "muon"}), ("sft", {}), ("reward", {}), ("ppo", {})]
)
def test_twenty_kills_change_no_loss(world, tmp_path, launch, stage, extra):
    saving = {"save_steps": 4, "max_steps": 80} if stage == "ppo" else {"save_steps": 1}  # after a batch, every time
    keys = keys_of(stage, world) | extra | saving
    if stage == "pretrain":
        keys |= {"max_steps": 40}
    losses, weights = reference(stage, keys, tmp_path, launch)
    recipe, output = tmp_path / "killed.yaml", tmp_path / "killed"
    recipe.write_text(json.dumps({**keys, "output_dir": str(output)}))
    broken = kill_until_done(stage, recipe, output, launch, 20, random.Random(1))
    assert result(output) == (losses, weights) and broken >= 5


@pytest.mark.slow
def test_the_command_itself_may_be_killed_and_started_again(world, tmp_path):
    keys = keys_of("pretrain", world)
    expected = reference("pretrain", keys, tmp_path, command)
    recipe, output = tmp_path / "killed.yaml", tmp_path / "killed"
    recipe.write_text(json.dumps({**keys, "output_dir": str(output)}))
    kill_until_done("pretrain", recipe, output, command, 3, random.Random(2))
    assert result(output) == expected
