"""A launch that became another one without a word is refused in one line."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from crawl2chat.launch import check_launch

ROOT = Path(__file__).parents[1]
NAMES = "WORLD_SIZE MASTER_PORT ACCELERATE_MIXED_PRECISION ACCELERATE_USE_DEEPSPEED ACCELERATE_USE_CPU".split()
ALONE, APART = "each trains alone; without GPUs, add --use_cpu true", "but starts only this one"
LAUNCHES = {  # what the launch leaves in the environment, the processes that train together, the complaint
    "python": ({}, 1, None),
    "torchrun": ({"WORLD_SIZE": "2", "MASTER_PORT": "1"}, 2, None),
    "one by accelerate": ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}, 1, None),
    "each alone": ({"WORLD_SIZE": "2", "MASTER_PORT": "1", "ACCELERATE_MIXED_PRECISION": "no"}, 1, ALONE),
    "one of two": ({"MASTER_PORT": "1", "ACCELERATE_MIXED_PRECISION": "no"}, 1, APART),
    "zero on a CPU": ({"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true"}, 2, None),
    "zero off": (
        {"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_CPU": "True"},
        2,
        "ACCELERATE_USE_CPU switches DeepSpeed off",
    ),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_fewer_processes_than_asked_for_and_no_deepspeed_are_refused(monkeypatch, name):
    environment, together, complaint = LAUNCHES[name]
    for key in NAMES:
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    training_args = SimpleNamespace(world_size=together, process_index=0, deepspeed_plugin=None)
    if complaint is None:
        return check_launch(training_args)
    with pytest.raises(SystemExit) as stop:
        check_launch(training_args)
    assert complaint in stop.value.code and "\n" not in stop.value.code


def test_the_ranks_after_the_first_print_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch(SimpleNamespace(world_size=2, process_index=1, deepspeed_plugin=None))
    print("rank 1")
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here, so the processes do train together")
@pytest.mark.parametrize("config, complaint", [("ddp", ALONE), ("cpu", APART)])
def test_accelerates_own_launch_is_seen_through(tmp_path, config, complaint):
    recipe = tmp_path / "pretrain.yaml"
    recipe.write_text(f"model: {{}}\ntokenizer: {tmp_path}\ndatasets: []\noutput_dir: {tmp_path}/out\nmax_steps: 1\n")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}.yaml"]
    launch += ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    done = subprocess.run([*launch, "scripts/pretrain.py", recipe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and complaint in done.stderr, done.stderr
