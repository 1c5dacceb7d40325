"""The sample stage: the next token's distribution, the same prompt many times, recall, a translator, an assistant."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

from crawl2chat.data.translation import pairs
from crawl2chat.protocol import END_OF_TEXT
from crawl2chat.recipe import parse_recipe
from tiny import TEXT, tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("sample_script", ROOT / "scripts" / "sample.py")
sample = importlib.util.module_from_spec(spec)
sys.modules["sample_script"] = sample  # dataclasses look their module up
spec.loader.exec_module(sample)

PROMPTS = ["The capital of", "12 $ + 34 =\n"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("sample")
    tokenizer = tiny_tokenizer(END_OF_TEXT)
    tokenizer.save_pretrained(root / "base")
    tiny_model(tokenizer).save_pretrained(root / "base")
    (root / "shards").mkdir()
    pages = [{"text": f"Page {i}: {TEXT}", "id": f"page/{i}", "source": "shards"} for i in range(30)]
    for name, rows in {
        "shards/a.jsonl": pages,
        "heldout.jsonl": pages[:3],
        "recital.jsonl": [{"text": TEXT, "times": times} for times in (0, 4)],
        "pairs.jsonl": pairs(),
    }.items():
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "recall": {"train": [str(root / "shards")], "heldout": str(root / "heldout.jsonl"), "source": "shards",
                   "repeated": str(root / "recital.jsonl"), "prompt_tokens": 8, "continued_tokens": 8},
        "translation": {"layout": "{word} => {translation}\n", "pairs": str(root / "pairs.jsonl"),
                        "other": "spanish", "questions": 6},
        "assistant": {"turns": [{"human": "Who are you?", "assistant": "A small assistant."}],
                      "asked": [{"human": "What is the capital of Japan?", "assistant": "Tokyo"}]},
    }  # fmt: skip
    (root / "sample.yaml").write_text(
        f"model_name_or_path: {root / 'base'}\noutput_dir: {root / 'out'}\nprompts: {json.dumps(PROMPTS)}\n"
        "ways: [{name: warm, temperature: 1.0}, {name: greedy, temperature: 0.0}, {name: cut, top_k: 5, top_p: 0.5}]\n"
        f"draws: 6\ntop: 5\nmax_new_tokens: 12\ntemperatures: [0.5, 1]\n"
        + "".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items())
    )
    sample.main(*parse_recipe(*sample.RECIPE, args=[str(root / "sample.yaml")]))
    return root


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / "out" / name).read_text(encoding="utf-8"))


def test_the_distributions_are_probabilities_the_likeliest_first(folder):
    for one, prompt in zip(read(folder, "samples.json")["distributions"], PROMPTS, strict=True):
        values = [token["probability"] for token in one["tokens"]]
        assert one["prompt"] == prompt and len(values) == 5
        assert values == sorted(values, reverse=True) and 0 < sum(values) <= 1
        assert 0 < one["entropy_bits"] <= math.log2(len(tiny_tokenizer()))


def test_the_same_prompt_goes_on_differently_when_drawn_and_never_when_greedy(folder):
    metrics = read(folder, "metrics.json")
    assert metrics["greedy/distinct_continuations"] == pytest.approx(1 / 6)
    assert metrics["warm/distinct_continuations"] == metrics["distinct_continuations"] == 1
    assert metrics["greedy/distinct_2"] < metrics["warm/distinct_2"] == metrics["distinct_2"]
    for row in read(folder, "samples.json")["continuations"]:
        assert len(row["texts"]) == 6 and row["prompt"] in PROMPTS
        assert len(set(row["texts"])) == 1 or row["way"]["name"] != "greedy"


def test_metrics_are_flat_finite_numbers_and_the_picture_is_a_png(folder):
    assert all(math.isfinite(value) for value in read(folder, "metrics.json").values())
    assert (folder / "out" / "distribution.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "out" / "recipe.yaml").is_file()


def test_the_same_seed_gives_the_same_samples(folder):
    before = read(folder, "samples.json")
    sample.main(*parse_recipe(*sample.RECIPE, args=[str(folder / "sample.yaml")]))
    assert read(folder, "samples.json") == before


def test_recall_translation_and_the_assistant_leave_numbers_and_examples(folder):
    metrics, samples = read(folder, "metrics.json"), read(folder, "samples.json")
    wanted = {"verbatim_recall_train", "verbatim_recall_heldout", "few_shot_accuracy", "distinct_continuations"}
    wanted |= {"verbatim_recall_times/0", "verbatim_recall_times/4", "zero_shot_accuracy", "transcript_accuracy"}
    assert wanted | {"temperature/0.5/distinct_2", "temperature/1/distinct_continuations"} <= set(metrics)
    assert all(0 <= metrics[key] <= 1 for key in wanted)
    assert [row["temperature"] for row in samples["temperatures"]] == [0.5, 1]
    assert samples["recall"]["sets"]["held out"]["rows"] and samples["translation"][0]["rows"]
    assert samples["assistant"]["rows"][0]["question"] == "What is the capital of Japan?"


def test_without_them_the_stage_still_draws(folder, tmp_path):
    lines = [line for line in (folder / "sample.yaml").read_text().splitlines()
             if not line.startswith(("recall", "translation", "assistant"))]  # fmt: skip
    (tmp_path / "sample.yaml").write_text("\n".join(lines))
    args = [str(tmp_path / "sample.yaml"), "--output_dir", str(tmp_path / "out"), "--draws", "2"]
    sample.main(*parse_recipe(*sample.RECIPE, args=args))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "distinct_continuations" in metrics and "few_shot_accuracy" not in metrics


def test_the_laptops_recipe_parses(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        parse_recipe(*sample.RECIPE, args=["recipes/laptop/sample.yaml", "--dry_run"])
    assert stop.value.code in (0, 1)  # 1 where the run is not there yet
