"""scripts/preferences.py whole: what it writes, how it goes on, whom it refuses."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from crawl2chat import endpoint as endpoint_module
from crawl2chat import preferences
from crawl2chat.recipe import parse_recipe
from endpoint_server import serving
from tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]
KEYS = {
    "problems": [{"name": "verse", "task": "verse", "train": 6, "test": 3}],
    "samples": 3,
    "max_new_tokens": 8,
    "batch_size": 7,
}
JUDGE = {"labeler": "judge", "judge": {"base_url": "", "model": "m", "retries": 0}}


def script():
    spec = importlib.util.spec_from_file_location("preferences_script", ROOT / "scripts/preferences.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(output: Path, **keys) -> dict:
    """The script's main() on KEYS and `keys`; its metrics."""
    module, recipe = script(), output.with_suffix(".yaml")
    recipe.write_text(json.dumps({**KEYS, **keys, "output_dir": str(output)}))
    module.main(*parse_recipe(*module.RECIPE, args=[str(recipe)]))
    return json.loads((output / "metrics.json").read_text())


def stops(output: Path, **keys) -> str:
    with pytest.raises(SystemExit) as stop:
        run(output, **keys)
    assert "\n" not in str(stop.value.code) and not (output / "metrics.json").exists()
    return str(stop.value.code)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch):
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT", 0.01)


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    folder, tokenizer = tmp_path_factory.mktemp("chat"), tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    tiny_model(tokenizer).save_pretrained(folder)
    return str(folder)


def test_orders_pairs_and_numbers_of_a_whole_run(start, tmp_path, capsys):
    output = tmp_path / "preferences"
    metrics = run(output, model_name_or_path=start)
    rankings = rows_of(output / "rankings.jsonl")
    assert metrics["prompts"] == len(rankings) == 9 and metrics["prompts_test"] == 3
    assert metrics["rollouts_per_prompt"] == 3 and metrics["rollouts"] == 27 and metrics["seconds"] >= 0
    split = {json.dumps(row["prompt"]): row["split"] for row in rankings}
    for name in ("train", "test"):
        found = rows_of(output / f"{name}.jsonl")
        assert len(found) == metrics["pairs" if name == "train" else "pairs_test"] > 0
        assert all(split[json.dumps(pair["prompt"])] == name for pair in found)
        assert all(pair["chosen"] != pair["rejected"] for pair in found)
    for row in rankings:
        assert sorted(row["order"]) == list(range(len(row["replies"]))) and row["labeler"].startswith("simulated")
    assert "gold" not in "".join((output / f"{name}.jsonl").read_text() for name in ("train", "test", "rankings"))
    assert {"agreement", "flipped", "flipped_neighbours", "gold_mean", "gold_best"} <= set(metrics)
    assert "1,000,000,000 scores" in capsys.readouterr().out


@pytest.mark.parametrize("moment", ["rank", "against_gold"])
def test_a_run_that_was_cut_off_goes_on_and_a_complete_one_says_the_same_again(start, tmp_path, monkeypatch, moment):
    whole, output = tmp_path / "whole", tmp_path / "preferences"
    run(whole, model_name_or_path=start)
    with monkeypatch.context() as patch:
        patch.setattr(preferences, moment, lambda *args: sys.exit("cut off"))
        assert stops(output, model_name_or_path=start) == "cut off"
    drawn = []
    monkeypatch.setattr(preferences, "generate", lambda *args, **kwargs: drawn.append(args))
    for _ in range(2):
        run(output, model_name_or_path=start)
        for name in ("rollouts", "rankings", "train", "test"):
            assert (output / f"{name}.jsonl").read_text() == (whole / f"{name}.jsonl").read_text()
    assert not drawn, "no reply is drawn twice"


def test_another_noise_orders_the_same_replies_and_another_temperature_draws_new_ones(start, tmp_path, capsys):
    output = tmp_path / "preferences"
    run(output, model_name_or_path=start)
    replies = (output / "rollouts.jsonl").read_text()
    run(output, model_name_or_path=start, noise=0.5)
    assert (output / "rollouts.jsonl").read_text() == replies
    assert {row["labeler"] for row in rows_of(output / "rankings.jsonl")} == {"simulated, noise 0.5, seed 0"}
    run(output, model_name_or_path=start, temperature=0.5)
    assert (output / "rollouts.jsonl").read_text() != replies == (output / "_earlier/rollouts.jsonl").read_text()
    assert "temperature: 1.0 -> 0.5" in capsys.readouterr().out


def test_a_judge_orders_and_what_it_has_said_is_not_asked_again(start, tmp_path):
    def play(number: int, request: dict) -> str:
        replies = json.loads(request["messages"][1]["content"])["replies"]
        return json.dumps(sorted(replies, key=lambda name: replies[name]))

    output = tmp_path / "preferences"
    with serving(play) as server:
        keys = {"model_name_or_path": start, **JUDGE, "judge": {**JUDGE["judge"], "base_url": server.url}}
        metrics = run(output, **keys)
        assert run(output, **keys)["pairs"] == metrics["pairs"] and len(server.requests) == metrics["prompts"] == 9
    for row in rows_of(output / "rankings.jsonl"):
        assert [row["replies"][i] for i in row["order"]] == sorted(row["replies"]) and row["labeler"] == "m"


def test_a_judge_who_never_gives_an_order_is_refused_at_the_end_with_both_numbers(start, tmp_path, capsys):
    with serving(lambda number, request: "7 of 5") as server:
        judge = {**JUDGE["judge"], "base_url": server.url}
        said = stops(tmp_path / "preferences", model_name_or_path=start, labeler="judge", judge=judge)
        asked = len(server.requests)
    assert "m put 0 of 9 prompts' replies in order" in said and asked == 18, "each once more"
    assert "9 of 9 prompts got no order" in capsys.readouterr().out


def test_prompts_of_conversations_are_ordered_by_a_judge(start, tmp_path):
    talks = tmp_path / "talks.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "."}]}
            for i in range(5)]  # fmt: skip
    talks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(lambda number, request: json.dumps(list(json.loads(request["messages"][1]["content"])["replies"]))
                 ) as server:  # fmt: skip
        judge = {**JUDGE["judge"], "base_url": server.url}
        conversations = [{"path": str(talks), "train": 3, "test": 2}]
        keys = {"problems": [], "conversations": conversations, "labeler": "judge", "judge": judge}
        metrics = run(tmp_path / "preferences", model_name_or_path=start, **keys)
    assert metrics["prompts"] == 5 and metrics["prompts_test"] == 2 and "agreement" not in metrics


def test_bad_input_is_one_line_each(start, tmp_path):
    for keys, complaint in [
        ({"labeler": "judge"}, "go together"),
        ({"judge": {"base_url": "http://localhost:1/v1", "model": "m"}}, "go together"),
        ({"labeler": "person"}, "go together"),
        ({"problems": [{"name": "sums", "task": "sums", "train": 3, "test": 3}]}, "knows verses alone, and 6 of 6"),
        ({"problems": []}, "no prompt at all"),
        ({"problems": [{"name": "verse", "task": "verse", "train": 3}]}, "no problem of the test split"),
        ({"max_new_tokens": 250}, "the model has 256 positions"),
    ]:
        assert complaint in stops(tmp_path / "preferences", **{"model_name_or_path": start, **keys})
