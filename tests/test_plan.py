"""The plan that --dry_run prints: a training stage's sums are there, nothing is written, other stages stay light."""

import subprocess
import sys
from pathlib import Path

import pytest

from crawl2chat import budget
from crawl2chat.hardware import Device
from crawl2chat.recipe import parse_recipe
from tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(budget, "this_cpu", lambda bf16, memory: Device("this CPU", 1e11, 8e9, 1e10, 0.0, 0.5))


def dry_run(recipe: type, *args: str) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_recipe(*recipe, args=[*args, "--dry_run"])
    assert stop.value.code == 0


def test_a_pretraining_plan_has_every_sum_and_writes_nothing(tmp_path, capsys):
    from pretrain import RECIPE

    output = tmp_path / "gpt2" / "pretrain"
    dry_run(RECIPE, "recipes/gpt2/350m.yaml", "--output_dir", str(output), "--save_strategy", "no")
    names = [line[:8].strip() for line in capsys.readouterr().out.splitlines()]
    expected = "stage recipe reads reads reads writes launch batch length rate model tokens compute memory".split()
    assert names == expected + ["time"] * 7 + ["", "warning"]
    assert not output.parent.exists()


def test_a_key_that_a_flag_changes_changes_the_plan(tmp_path, capsys):
    from pretrain import RECIPE

    flags = ["--output_dir", str(tmp_path / "pretrain"), "--max_steps", "1000", "--model.n_layer", "2"]
    dry_run(RECIPE, "recipes/gpt2/124m.yaml", *flags)
    shown = capsys.readouterr().out
    assert "1,000 steps, at most 65,536,000 tokens" in shown and "53,597,184 parameters" in shown


def test_a_stage_that_does_not_train_is_planned_without_torch(tmp_path):
    code = "import sys\nfrom dataclasses import make_dataclass\nfrom crawl2chat.recipe import parse_recipe\n"
    code += "try: parse_recipe(make_dataclass('C', [('output_dir', str)]))\n"
    code += "except SystemExit: print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "--output_dir", "o", "--dry_run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == ["writes  o", "False"], done


def test_a_plan_of_practice_says_what_is_tried_and_paid(tmp_path, capsys):
    from grpo import RECIPE

    tiny_model(tiny_tokenizer()).save_pretrained(tmp_path / "sft")
    tiny_tokenizer().save_pretrained(tmp_path / "sft")
    flags = ["--model_name_or_path", str(tmp_path / "sft"), "--output_dir", str(tmp_path / "grpo")]
    dry_run(RECIPE, "recipes/laptop/grpo.yaml", *flags, "--stop_on", "empty")
    shown = capsys.readouterr().out
    assert "asks    1,500 of sums (150 held out)" in shown
    assert "16 problems x 8 = 128 a step, 5,120 in all, at most 80 tokens at temperature 0.9, by the engine" in shown
    assert "1 correct; loss dapo, clipped at 0.2 and 0.2; no KL" in shown and "the run ends on empty" in shown
