"""scripts/ppo.py on a tiny world: what it writes, that a killed run goes on, and what stops it in one line."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

from crawl2chat.model import load_model
from crawl2chat.recipe import parse_recipe
from test_ppo import reward_model
from tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]
COMMON = {"per_device_train_batch_size": 4, "num_mini_batches": 2, "num_ppo_epochs": 1, "max_steps": 4}
COMMON |= {"use_cpu": True, "report_to": "none", "save_steps": 2, "logging_steps": 2, "learning_rate": 1.0e-3}
COMMON |= {"response_length": 12, "temperature": 1.0, "samples": 2, "along_the_way": 3, "log_completions": True}
COMMON |= {"eval_strategy": "steps", "eval_on_start": True, "eval_steps": 2}
LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["all-linear"]}
VERSES = [{"name": "verse", "task": "verse", "train": 12, "test": 5}]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("world"), tiny_tokenizer()
    for name, model in (("sft", tiny_model(tokenizer)), ("reward", reward_model())):
        model.config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def run(world: Path, output: Path, **keys) -> dict:
    spec = importlib.util.spec_from_file_location("ppo_script", ROOT / "scripts/ppo.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    own = {"model_name_or_path": str(world / "sft"), "reward_models": [str(world / "reward")], "problems": VERSES}
    recipe = output.with_suffix(".yaml")
    recipe.write_text(json.dumps({**own, **COMMON, **keys, "output_dir": str(output)}))
    module.main(*parse_recipe(*module.RECIPE, args=[str(recipe)]))
    return json.loads((output / "metrics.json").read_text())


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("lora", [False, True])
def test_gold_and_proxy_before_and_after_are_written_with_the_curve(world, tmp_path, lora):
    metrics = run(world, tmp_path / "ppo", **(LORA if lora else {}))
    wanted = "gold_before gold_after gold_gain gold_p_value proxy_gain kl episodes seconds".split()
    assert set(wanted) <= metrics.keys() and metrics["episodes"] == 16
    assert 0 <= metrics["gold_before"] <= 1 and 0 < metrics["gold_p_value"] <= 1
    curve = json.loads((tmp_path / "ppo/curve.json").read_text())
    assert [row["step"] for row in curve] == [0, 2, 4]
    assert set(curve[0]) == {"step", "seconds", "episodes", "kl", "proxy", "gold", "length"}
    looks = rows(tmp_path / "ppo/held_out.jsonl")
    assert len(looks) == 5 and set(looks[0]) == {"prompt", "before", "after"} and "text" in looks[0]["after"]
    assert {row["step"] for row in rows(tmp_path / "ppo/completions.jsonl")} == {2, 4}
    assert "gold" not in rows(tmp_path / "ppo/completions.jsonl")[0]["rewards"]
    assert (tmp_path / "ppo/adapter_config.json").exists() == lora
    load_model(tmp_path / "ppo")


def test_a_run_that_was_cut_off_ends_in_the_same_numbers(world, tmp_path):
    whole = run(world, tmp_path / "whole")
    run(world, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/checkpoint-4")
    for name in ("metrics.json", "checkpoint-2/finished"):
        (tmp_path / "parts" / name).unlink()
    again = run(world, tmp_path / "parts")
    same = [key for key in whole if "seconds" not in key and "second" not in key and "memory" not in key]
    assert {key: whole[key] for key in same} == {key: again[key] for key in same}


def test_rewards_without_a_model_are_weighted_functions(world, tmp_path):
    rewards = [{"name": "unrepeated"}, {"name": "language", "weight": 0.5}]
    metrics = run(world, tmp_path / "ppo", reward_models=[], rewards=rewards)
    assert 0 <= metrics["proxy_before"] <= 1.5


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"problems": []}, "no prompts; give the recipe"),
        ({"response_length": 250}, r"with response_length 250 that is more than the models' context of 256"),
        ({"reward_models": []}, "0 rewards"),
        ({"save_steps": 3}, "save_steps 3 must be a multiple"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(world, tmp_path, keys, said):
    with pytest.raises(SystemExit, match=said):
        run(world, tmp_path / "ppo", **keys)


def test_a_reward_model_with_two_labels_is_refused(world, tmp_path):
    reward_model(labels=2).save_pretrained(tmp_path / "two")
    tiny_tokenizer().save_pretrained(tmp_path / "two")
    with pytest.raises(SystemExit, match="has 2 labels; a reward model has 1"):
        run(world, tmp_path / "ppo", reward_models=[str(tmp_path / "two")])


def test_a_conversations_prompt_that_does_not_fit_is_dropped_and_counted(world, tmp_path, capsys):
    talks = tmp_path / "talks.jsonl"
    said = ["Hello", "Who are you?", "What is 2 + 3?", "the sea " * 600, "Tell me a story"]
    answer = {"role": "assistant", "content": "yes"}
    talks.write_text("".join(json.dumps({"messages": [{"role": "user", "content": q}, answer]}) + "\n" for q in said))
    keys = {"problems": [], "conversations": [{"path": str(talks), "train": 3, "test": 2}]}
    metrics = run(world, tmp_path / "ppo", **keys)
    assert "1 of 5 prompts dropped" in capsys.readouterr().out and metrics["prompts"] in (2, 3)
