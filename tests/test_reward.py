"""scripts/reward.py on a tiny world: what it writes, what it prints, and what stops it in one line."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from crawl2chat.recipe import parse_recipe
from crawl2chat.reward_model import load_reward_model, score
from test_reward_model import TOKENIZER, pair, verses
from tiny import tiny_model

ROOT = Path(__file__).parents[1]
COMMON = {"per_device_train_batch_size": 8, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
COMMON |= {"gradient_checkpointing": False, "max_length": 64, "learning_rate": 3.0e-3, "logging_steps": 5}
LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["all-linear"]}


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    TOKENIZER.save_pretrained(folder / "sft")
    tiny_model(TOKENIZER).save_pretrained(folder / "sft")
    spoiled = [pair(900, "same", "same"), pair(901, "long " * 60, "short"), *verses(1, first=200)]
    write(folder / "preferences/train.jsonl", verses(80) + spoiled)
    write(folder / "preferences/test.jsonl", verses(40, first=200))
    (folder / "preferences/metrics.json").write_text(json.dumps({"pairs": 83, "flipped": 0.0625}))
    return folder


def run(world: Path, output: Path, **keys) -> dict:
    spec = importlib.util.spec_from_file_location("reward_script", ROOT / "scripts/reward.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    recipe = output.with_suffix(".yaml")
    own = {"model_name_or_path": str(world / "sft"), "preferences": str(world / "preferences"), **COMMON, **keys}
    recipe.write_text(json.dumps({**own, "output_dir": str(output)}))
    module.main(*parse_recipe(*module.RECIPE, args=[str(recipe)]))
    return json.loads((output / "metrics.json").read_text())


@pytest.mark.parametrize("lora", [False, True])
def test_a_reward_model_of_all_weights_and_of_an_adapter(world, tmp_path, capsys, lora):
    metrics = run(world, tmp_path / "reward", max_steps=30, **(LORA if lora else {}))
    assert metrics["accuracy"] >= (0.5 if lora else 0.8) and 0 <= metrics["stderr"] < 0.1
    keys = "accuracy stderr length_baseline_accuracy calibration_error pairs pairs_test seconds".split()
    keys += [f"accuracy_distance_{distance}" for distance in (1, 2, 3, 4)]
    assert set(keys) <= metrics.keys() and metrics["accuracy_ceiling"] == 0.9375
    assert [metrics[f"pairs_{reason}"] for reason in ("identical", "too_long", "held_out")] == [1, 1, 1]
    assert (metrics["pairs"], metrics["pairs_test"], metrics["steps"]) == (80, 40, 30)
    said = capsys.readouterr().out
    assert "train: 80 pairs, 1 held out dropped, 1 identical dropped, 1 too long dropped" in said
    assert "repeated word" in said and "the labeler's noise allows 93.8%" in said
    model, tokenizer = load_reward_model(tmp_path / "reward", TOKENIZER)
    row = json.loads((tmp_path / "reward/scores.jsonl").read_text().splitlines()[0])
    found = score(model, tokenizer, [[*row["prompt"], *row["chosen"]]], 1)
    assert found == [pytest.approx(row["score_chosen"], abs=1e-4)]
    assert json.loads((tmp_path / "reward/calibration.json").read_text())["bins"]
    assert (tmp_path / "reward/adapter_config.json").exists() == lora
    kinds = [kind["kind"] for kind in json.loads((tmp_path / "reward/degenerate.json").read_text())]
    assert kinds == ["chosen", "rejected", "empty", "repeated_word", "very_long", "another_prompts"]


def test_held_out_pairs_are_looked_at_along_the_way(world, tmp_path):
    run(world, tmp_path / "reward", max_steps=10, eval_strategy="steps", eval_steps=5)
    rows = json.loads((tmp_path / "reward/log_history.json").read_text())
    assert [row["step"] for row in rows if "eval_accuracy" in row] == [5, 10]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"max_length": 512}, "max_length is 512, the model's context 256"),
        ({"max_length": 4}, "none of 83 pairs is left to learn from"),
        ({"eos_token": "x"}, "eos_token does nothing here"),
    ],
)
def test_what_cannot_be_learned_from_is_one_line(world, tmp_path, keys, said):
    with pytest.raises(SystemExit, match=said) as stop:
        run(world, tmp_path / "reward", **keys)
    assert "\n" not in str(stop.value.code) and not (tmp_path / "reward/metrics.json").exists()
