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


def test_a_plan_of_ppo_says_what_is_learned_from_paid_and_kept_in_memory(tmp_path, capsys):
    from ppo import RECIPE

    for name in ("sft", "reward"):
        tiny_model(tiny_tokenizer()).save_pretrained(tmp_path / name)
    flags = ["--model_name_or_path", str(tmp_path / "sft"), "--reward_models.0", str(tmp_path / "reward")]
    dry_run(RECIPE, "recipes/smollm2-135m-rlhf/ppo.yaml", *flags, "--total_episodes", "384")
    shown = capsys.readouterr().out
    assert "16 replies x 2 accumulation x 1 process = 32 replies a step" in shown and "384 episodes" in shown
    assert "64 a batch, 2 passes x 2 minibatches = 4 steps; 6 batches = 384 replies, 24 steps; at most 48" in shown
    assert f"1 {tmp_path / 'reward'}; 1 less without an end" in shown and "0.05 (k1), fixed" in shown
    assert "look on" not in shown, "with LoRA neither a reference nor a reward model lies beside the two"
    dry_run(RECIPE, "recipes/smollm2-135m-rlhf/ppo.yaml", *flags, "--use_peft", "false", "--total_episodes", "100")
    shown = capsys.readouterr().out
    assert "models that look on" in shown and "2 batches = 128 replies, 8 steps" in shown


def test_a_plan_of_a_reward_model_counts_pairs_and_no_logits(tmp_path, capsys):
    from reward import RECIPE

    tiny_model(tiny_tokenizer()).save_pretrained(tmp_path / "sft")
    (tmp_path / "preferences").mkdir()
    flags = ["--model_name_or_path", str(tmp_path / "sft"), "--preferences", str(tmp_path / "preferences")]
    dry_run(RECIPE, "recipes/smollm2-135m-rlhf/reward.yaml", *flags, "--output_dir", str(tmp_path / "reward"))
    shown = capsys.readouterr().out
    assert "20 pairs a step, x 2 x 128 tokens = at most 5,120 tokens a step" in shown and "loss 0.00 GB" in shown
