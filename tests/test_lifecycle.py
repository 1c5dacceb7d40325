"""lifecycle.sh: which stages run, which are skipped, what it says when one fails. The stages here are fakes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from test_tracking import SECRETS

ROOT = Path(__file__).parents[1]
STAGES = ["data", "tokenizer", "pretrain"]
READS = {"data": "", "tokenizer": "reads: run/data\n", "pretrain": "reads: run/data\n"}
SCRIPT = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from crawl2chat.recipe import parse_recipe
from crawl2chat.stage import finish

@dataclass
class Config:
    output_dir: str
    reads: str = ""
    fails: bool = False
    sleeps: float = 0.0

(config,) = parse_recipe(Config)
with open("ran.txt", "a") as ran:
    ran.write(Path(sys.argv[0]).stem + "\\n")
time.sleep(config.sleeps)
if config.fails:
    sys.exit("error: no shards")
finish(config.output_dir, {"number": 1}, "nothing", "nothing", "done")
"""


@pytest.fixture
def house(tmp_path):
    """A checkout with three stages, whose interpreter logs how it was called."""
    for folder in ("scripts", "recipes", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "src").symlink_to(ROOT / "src")
    shutil.copy(ROOT / "scripts/lifecycle.sh", tmp_path / "scripts")
    for stage in STAGES:
        (tmp_path / f"scripts/{stage}.py").write_text(SCRIPT)
        write_recipe(tmp_path, stage)
    python = tmp_path / ".venv/bin/python"
    log_then_drop_the_launcher = """#!/bin/bash
[ "$1" = -c ] || echo "$*" >>calls.txt
while [ "${1#scripts/}" = "$1" ] && [ "$1" != -c ]; do shift; done
"""
    python.write_text(f'{log_then_drop_the_launcher}exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return tmp_path


def write_recipe(house: Path, stage: str, extra: str = "", launch: str = "python") -> None:
    head = f"# {stage}\n# {launch} scripts/{stage}.py recipes/{stage}.yaml\noutput_dir: run/{stage}\n"
    (house / f"recipes/{stage}.yaml").write_text(head + READS[stage] + extra)


def lifecycle(house: Path, *args: str) -> tuple[list[str], subprocess.CompletedProcess]:
    """Run it; the stages that ran, and the process."""
    (house / "ran.txt").unlink(missing_ok=True)
    command = ["bash", "scripts/lifecycle.sh", *(args or ("recipes",))]
    done = subprocess.run(command, cwd=house, capture_output=True, text=True, timeout=120)
    ran = house / "ran.txt"
    return ran.read_text().split() if ran.exists() else [], done


def test_a_second_run_skips_every_complete_stage(house):
    ran, done = lifecycle(house)
    assert (ran, done.returncode) == (STAGES, 0), done.stderr
    ran, done = lifecycle(house)
    assert (ran, done.returncode) == ([], 0)
    assert done.stdout.count("complete, skipped") == 3


def test_a_failed_stage_ends_the_run_and_the_printed_command_goes_on_from_it(house):
    write_recipe(house, "tokenizer", "fails: true\n")
    ran, done = lifecycle(house)
    assert (ran, done.returncode) == (["data", "tokenizer"], 1)
    assert "tokenizer failed" in done.stderr and "bash scripts/lifecycle.sh recipes" in done.stderr
    write_recipe(house, "tokenizer")
    ran, _ = lifecycle(house)
    assert ran == ["tokenizer", "pretrain"]


def test_a_changed_recipe_reruns_its_stage_and_those_that_read_it(house):
    lifecycle(house)
    write_recipe(house, "data", "sleeps: 0.01\n")
    assert lifecycle(house)[0] == STAGES
    write_recipe(house, "tokenizer", "sleeps: 0.01\n")
    assert lifecycle(house)[0] == ["tokenizer"]  # pretrain reads the data alone here


def test_a_stage_stopped_after_its_input_was_made_anew_is_not_taken_for_complete(house):
    lifecycle(house)
    assert lifecycle(house, "recipes", "--from", "data", "--to", "data")[0] == ["data"]
    assert lifecycle(house)[0] == ["tokenizer", "pretrain"]


def test_a_stages_further_recipes_follow_it_and_go_to_their_own_folders(house):
    text = (house / "recipes/tokenizer.yaml").read_text()
    (house / "recipes/tokenizer-large.yaml").write_text(text.replace("run/tokenizer", "run/tokenizer-large"))
    assert lifecycle(house)[0] == ["data", "tokenizer", "tokenizer", "pretrain"]
    assert (house / "run/tokenizer-large/metrics.json").exists()
    assert lifecycle(house)[0] == []
    (house / "recipes/tokenizer.yaml").unlink()
    assert lifecycle(house, "recipes", "--from", "tokenizer", "--to", "tokenizer")[0] == ["tokenizer"]


def test_a_comment_in_a_recipe_reruns_nothing(house):
    lifecycle(house)
    write_recipe(house, "data", "# a remark\n")
    assert lifecycle(house)[0] == []


def test_a_run_with_flags_by_hand_is_not_the_recipes_run(house):
    lifecycle(house)
    by_hand = ["scripts/tokenizer.py", "recipes/tokenizer.yaml", "--sleeps", "0.01"]
    subprocess.run([sys.executable, *by_hand], cwd=house, check=True, capture_output=True)
    assert lifecycle(house)[0] == ["tokenizer"]


def test_from_runs_again_and_to_ends_after(house):
    lifecycle(house)
    assert lifecycle(house, "recipes", "--from", "tokenizer")[0] == ["tokenizer", "pretrain"]
    assert lifecycle(house, "recipes", "--from", "tokenizer", "--to", "tokenizer")[0] == ["tokenizer"]


@pytest.mark.parametrize(
    "args, says",
    [
        (["recipes", "--from", "tokeniser"], "did you mean tokenizer?"),
        (["recipes", "--to"], "--to takes a stage"),
        (["recipes", "--from", "sft"], "recipes/sft.yaml: this folder has no recipe for sft"),
        (["recipes", "--from", "pretrain", "--to", "data"], "--to data comes before --from pretrain"),
        (["nowhere"], "no recipes there"),
        (["recipes", "--fast"], "--fast: unknown"),
        ([""], "usage"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(house, args, says):
    ran, done = lifecycle(house, *args)
    assert (ran, done.returncode) == ([], 2)
    assert says in done.stderr and done.stderr.count("\n") == 1


def test_an_interrupt_names_the_stage_and_the_command(house):
    write_recipe(house, "tokenizer", "sleeps: 60\n")
    command = ["bash", "scripts/lifecycle.sh", "recipes"]
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests in the background inherit it ignored
    process = subprocess.Popen(
        command, cwd=house, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=default
    )
    ran, deadline = house / "ran.txt", time.time() + 60
    while not (ran.exists() and "tokenizer" in ran.read_text()):
        assert time.time() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "stopped in tokenizer; to go on: bash scripts/lifecycle.sh recipes" in errors
    write_recipe(house, "tokenizer")
    assert lifecycle(house)[0] == ["tokenizer", "pretrain"]


def test_line_two_of_the_recipe_decides_between_python_and_accelerate(house):
    write_recipe(house, "tokenizer", launch="accelerate launch --config_file accelerate_configs/cpu.yaml")
    write_recipe(house, "pretrain", launch="accelerate launch --config_file accelerate_configs/ddp.yaml")
    lifecycle(house)
    data, tokenizer, pretrain = (house / "calls.txt").read_text().splitlines()
    assert data == "scripts/data.py recipes/data.yaml"
    assert tokenizer == "scripts/tokenizer.py recipes/tokenizer.yaml"  # one process on the CPU needs no launcher
    launcher = "-m accelerate.commands.launch --config_file accelerate_configs/ddp.yaml"
    assert pretrain == f"{launcher} scripts/pretrain.py recipes/pretrain.yaml"


def test_it_can_be_called_from_another_folder(house):
    command = ["bash", "../scripts/lifecycle.sh", "../recipes", "--to", "data"]
    done = subprocess.run(command, cwd=house / "scripts", capture_output=True)
    assert done.returncode == 0 and (house / "run/data/metrics.json").exists()


# the real stages, smaller

SMALLER = {
    "data": {"web_scale": 0.15, "drills": 2000},
    "tokenizer": {"vocab_size": 2048},
    "pretrain": {
        "max_steps": 40,
        "logging_steps": 10,
        "eval_steps": 20,
        "warmup_steps": 4,
        "lr_scheduler_kwargs": {"num_decay_steps": 16},
        "held_out_documents": 8,
    },
    "sample": {"draws": 4, "max_new_tokens": 16},
    "sft": {"max_steps": 10, "logging_steps": 5, "warmup_steps": 2},
    "grpo": {"max_steps": 2, "per_device_train_batch_size": 16, "samples": 2, "along_the_way": 4, "eval_steps": 1},
    "reward": {"max_steps": 4, "logging_steps": 2},
    "ppo": {"total_episodes": 128, "along_the_way": 4, "samples": 2},
    "eval": {"max_new_tokens": 32, "max_length": 128},
}
LESS = {"train": 60, "test": 10, "n": 10, "rows": 40}  # of every task


def shrink(value: object) -> None:
    """Fewer rows of every task below `value`."""
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        shrink(child)
    if isinstance(value, dict):
        value.update({key: min(value[key], most) for key, most in LESS.items() if isinstance(value.get(key), int)})


@pytest.mark.slow
def test_the_laptops_lifecycle_runs_from_raw_pages_to_a_report(tmp_path):
    yaml = YAML()
    yaml.width = 4096  # lifecycle.sh reads output_dir from its own line
    (tmp_path / "recipes").mkdir()
    for path in sorted((ROOT / "recipes/laptop").glob("*.yaml")):
        if path.stem == "rejection":  # of a model that gets nothing right there is nothing to keep, and it says so
            continue
        recipe = yaml.load(path.read_text(encoding="utf-8").replace("output/laptop", str(tmp_path / "run")))
        shrink(recipe)
        if path.stem == "arena":
            recipe["checkpoints"] = [one for one in recipe["checkpoints"] if one["name"] != "rejection"]
        recipe.update(SMALLER.get(path.stem.partition("-")[0], {}))
        if path.stem != "chat":
            recipe["report_to"] = "wandb"
        with open(tmp_path / "recipes" / path.name, "w", encoding="utf-8") as handle:
            yaml.dump(recipe, handle)
    command = ["bash", "scripts/lifecycle.sh", str(tmp_path / "recipes")]
    tracked = {f"WANDB_{place}": str(tmp_path / "wandb") for place in ("DIR", "CACHE_DIR", "DATA_DIR", "CONFIG_DIR")}
    env = os.environ | tracked | {"WANDB_MODE": "offline"} | SECRETS
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    said = "\n".join(line for line in done.stderr.splitlines() if "%|" not in line and line.strip())
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{said[-2000:]}"
    numbers = json.loads((tmp_path / "run/report/report.json").read_text())
    for key in ("data/documents_kept", "tokenizer/vocab_size", "pretrain/tokens", "sft/train_loss", "total_seconds"):
        assert numbers[key] > 0, key
    assert numbers["data/documents_kept"] + numbers["data/documents_rejected"] == numbers["data/documents_read"]
    assert {"eval/sft/identity/accuracy", "eval/sft/ended/share", "peak_memory_gb"} <= set(numbers)
    assert {"preferences/pairs", "reward/accuracy", "ppo/gold_gain", "ppo/gold_p_value", "ppo/kl"} <= set(numbers)
    assert {"arena/rating/grpo", "arena/win_rate/grpo/base", "arena-verse/battles", "release/files"} <= set(numbers)
    assert "report: " in done.stdout and "chat: " in done.stdout and "Who are you?" in done.stdout
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len([file for file in files if file.suffix == ".wandb"]) == 17
    assert {"README.md", "report.json", "battles.jsonl", "training_args.bin"} <= {file.name for file in files}
    held = [(file, name) for file in files for name, secret in SECRETS.items() if secret.encode() in file.read_bytes()]
    assert held == [] and not any(secret in done.stdout + done.stderr for secret in SECRETS.values())
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert again.stdout.count("complete, skipped") == 17
