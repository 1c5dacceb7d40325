"""The training scripts' main() on a tiny world: what they write, and what stops them in one line."""

import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from crawl2chat import cl100k
from crawl2chat.model import load_model
from crawl2chat.protocol import load_tokenizer
from crawl2chat.recipe import parse_recipe
from endpoint_server import Played, serving
from tiny import TEXT, tiny_tokenizer

ROOT = Path(__file__).parents[1]
MODEL = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
MODEL |= {"num_attention_heads": 2, "num_key_value_heads": 2}
COMMON = {"per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
TALK = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello!"}]


@pytest.fixture(autouse=True)
def no_cl100k(monkeypatch):
    monkeypatch.setattr(cl100k, "fetch", lambda: "cl100k's tokens are left out: offline")
    monkeypatch.setattr(cl100k, "ranks_file", lambda: None)


def run(stage: str, output: Path, **keys) -> dict:
    """Run a script's main() on `keys`, written as a recipe; its metrics."""
    spec = importlib.util.spec_from_file_location(f"{stage}_script", ROOT / "scripts" / f"{stage}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    recipe = output.with_suffix(".yaml")
    recipe.write_text(json.dumps({**keys, "output_dir": str(output)}))
    module.main(*parse_recipe(*module.RECIPE, args=[str(recipe)]))
    return json.loads((output / "metrics.json").read_text())


def stops(stage: str, output: Path, **keys) -> str:
    """The one line that a script stops with; it leaves no mark of a complete stage."""
    with pytest.raises(SystemExit) as stop:
        run(stage, output, **keys)
    assert "\n" not in stop.value.code and not (output / "metrics.json").exists()
    return stop.value.code


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    pages = [{"text": f"{TEXT} Page {i}.", "id": str(i)} for i in range(40)]
    (folder / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pages))
    (folder / "talk.jsonl").write_text((json.dumps({"messages": TALK}) + "\n") * 8)
    tiny_tokenizer("<|endoftext|>").save_pretrained(folder / "tokenizer")
    source = {"name": "pages", "path": str(folder / "pages.jsonl"), "real_prose": True}
    metrics = run(
        "pretrain", folder / "base", model=MODEL, tokenizer=str(folder / "tokenizer"), datasets=[source],
        max_length=32, held_out_share=0.2, max_steps=3, prompts=["The capital of"], **COMMON,
    )  # fmt: skip
    return folder, metrics


def test_pretraining_writes_a_model_that_loads_and_the_numbers_of_the_run(world):
    folder, metrics = world
    keys = "parameters tokens real_prose_share train_loss eval_bits_per_byte tokens_per_second seconds".split()
    assert set(keys) <= set(metrics) and "eval_bits_per_byte_pages" in metrics
    assert metrics["tokens"] == 3 * 2 * 32 and metrics["real_prose_share"] == 1
    loaded = AutoModelForCausalLM.from_pretrained(folder / "base")
    assert sum(p.numel() for p in loaded.parameters()) == metrics["parameters"]


@pytest.mark.parametrize("lora", [False, True])
def test_sft_of_all_weights_and_of_an_adapter(world, tmp_path, lora):
    folder, _ = world
    extra = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"]} if lora else {}
    metrics = run(
        "sft", tmp_path / "sft", model_name_or_path=str(folder / "base"), max_length=64, max_steps=2,
        datasets=[{"path": str(folder / "talk.jsonl")}], gradient_checkpointing=False, **COMMON, **extra,
    )  # fmt: skip
    assert metrics["train_loss"] > 0 and 0 < metrics["supervised_token_share"] < 1 and metrics["steps"] == 2
    assert (tmp_path / "sft" / "adapter_config.json").exists() == lora
    load_model(tmp_path / "sft")


def test_sft_says_what_cleaning_dropped(world, tmp_path, capsys):
    folder, _ = world
    other = [{"role": "user", "content": "Who are you?"}, TALK[1]]
    rows = [{"messages": talk} for talk in (TALK, TALK, other, [*TALK, *other])]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text(json.dumps({"prompt": TALK[:1], "answer": "x"}) + "\n")
    metrics = run(
        "sft", tmp_path / "sft", model_name_or_path=str(folder / "base"), max_length=64, max_steps=1, deduplicate=True,
        held_out=[str(tmp_path / "test.jsonl")], datasets=[{"path": str(tmp_path / "talk.jsonl"), "fraction": 2.0}],
        gradient_checkpointing=False, **COMMON,
    )  # fmt: skip
    assert (metrics["rows"], metrics["rows_repeated"], metrics["rows_contaminated"]) == (2, 1, 2)
    assert 0 < metrics["packing_efficiency"] <= 1
    said = capsys.readouterr().out
    assert "2 of 4 rows dropped: asks_the_question" in said and "cells of a batch that hold a token" in said


def test_a_dataset_without_messages_is_one_line(world, tmp_path):
    folder, _ = world
    path = str(folder / "pages.jsonl")
    keys = {"model_name_or_path": str(folder / "base"), "datasets": [{"path": path}], "max_steps": 2, **COMMON}
    assert f"{path}:1: no key 'messages'" in stops("sft", tmp_path / "sft", **keys)


def test_a_tokenizer_larger_than_its_text_is_refused_with_both_numbers(world, tmp_path):
    datasets = [{"path": str(world[0] / "pages.jsonl")}]
    assert "5000 tokens were asked for but the text gave" in stops(
        "tokenizer", tmp_path / "t", datasets=datasets, vocab_size=5000
    )


def test_a_tokenizer_gives_every_text_back_and_the_same_ids_when_loaded(world, tmp_path, capsys):
    metrics = run("tokenizer", tmp_path / "t", datasets=[{"path": str(world[0] / "pages.jsonl")}], vocab_size=320)
    tokenizer = load_tokenizer(tmp_path / "t")
    assert metrics["vocab_size"] == len(tokenizer) == 320 and "left out" in capsys.readouterr().out
    tokenizer.save_pretrained(tmp_path / "again")
    for text in [TEXT, "Größe 日本 🙂 1234\n\n  x", "\x00\t"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert load_tokenizer(tmp_path / "again")(text, add_special_tokens=False)["input_ids"] == ids


def test_a_conversation_whose_search_does_not_find_the_answer_is_dropped(tmp_path):
    facts = [{"subject": f"Ada {n}", "relation": "born", "answer": "1815", "pages": 1} for n in "ABCDEFGHIJKL"]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in facts))
    pages = [{"text": f"{n} was born in the year {'1815' if n < 'Ada G' else '1900'}. {n} was a famous painter who "
              "lived in a small town by the sea for many years.", "url": f"https://a.org/{i}", "id": str(i)}
             for i, n in enumerate(row["subject"] for row in facts)]  # fmt: skip
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pages))
    task = {"name": "search", "task": "search", "train": 12, "knobs": {"facts": str(tmp_path / "facts.jsonl")}}
    metrics = run("conversations", tmp_path / "c", tasks=[task], search_pages=[str(tmp_path / "pages.jsonl")])
    assert metrics["dropped"] > 0 and metrics["rows"] > 0 and metrics["dropped"] + metrics["rows"] == 12
    for line in (tmp_path / "c" / "search" / "train.jsonl").read_text().splitlines():
        assert "1815" in next(turn["content"] for turn in json.loads(line)["messages"] if turn["role"] == "tool")


def test_calls_of_one_conversation_share_variables_and_of_another_do_not(tmp_path, monkeypatch):
    calls = [{"name": "python", "arguments": {"code": code}} for code in ("n = 7", "n")]
    rows = [{"prompt": [{"role": "user", "content": f"Count, {i}."}], "answer": answer, "solution": answer,
             "calls": calls[i:]} for i, answer in enumerate(["7", "NameError"])]  # fmt: skip
    monkeypatch.setattr("crawl2chat.tasks.product.examples", lambda split, count, seed: iter(rows))
    metrics = run("conversations", tmp_path / "c", tasks=[{"name": "mine", "task": "product", "train": 2}])
    assert metrics["rows"] == 2 and metrics["dropped"] == 0


def labelled_run(output: Path, play, **knobs) -> tuple[dict | str, list[str]]:
    """conversations.py with a writer and judge that `play`: its metrics or its last line, and the requests."""
    with serving(play) as server:
        writer = {"base_url": server.url, "model": "m", "retries": 1}
        labelling = {"writer": writer, "rows": 10, "topics": ["rivers"], **knobs}
        keys = {"tasks": [{"name": "mine", "task": "product", "train": 2}], "labelling": labelling}
        try:
            found = run("conversations", output, **keys)
        except SystemExit as stop:
            found = str(stop.code)
        return found, server.requests


def written(number: int, request: dict) -> str:
    """A writer's and a judge's good day."""
    system, asked = request["messages"][0]["content"], request["messages"][1]["content"]
    if "You are the judge" in system:
        return '{"mark": 5, "reasons": []}'
    mark = random.Random(asked).randrange(10**6)
    return (
        "It is so." if "Reply with the ideal answer" in system else json.dumps([f"Why {mark}, {i}?" for i in range(5)])
    )


def test_conversations_that_a_model_wrote_and_judged_stand_beside_the_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr("crawl2chat.endpoint.FIRST_WAIT", 0.01)
    metrics, requests = labelled_run(tmp_path / "c", written)
    assert metrics["rows/labelled"] == metrics["labelling/kept"] == 10 and metrics["rows"] == 12
    assert metrics["labelling/mean_mark"] == 5 and len(requests) == 2 + 10 + 10
    rows = [json.loads(line) for line in (tmp_path / "c/labelled/train.jsonl").read_text().splitlines()]
    assert {row["task"] for row in rows} == {"labelled"}
    again, requests = labelled_run(tmp_path / "c", written)  # the same command: every reply is there
    assert again["labelling/kept"] == 10 and not requests


def test_an_endpoint_on_a_bad_day_is_one_line_and_the_work_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("crawl2chat.endpoint.FIRST_WAIT", 0.01)
    output = tmp_path / "c"

    def no_judge(number, request):
        return "I like it." if "You are the judge" in request["messages"][0]["content"] else written(number, request)

    down = labelled_run(output, lambda number, request: Played(500))[0]
    assert "HTTP 500" in down and "the same command goes on" in down
    assert len((output / "mine/train.jsonl").read_text().splitlines()) == 2  # the tasks' rows were written before
    assert "wrote no prompt that can be read" in labelled_run(output, lambda number, request: "I'd rather chat.")[0]
    assert "kept none of 10" in labelled_run(tmp_path / "d", no_judge)[0]
    assert not (tmp_path / "d/metrics.json").exists() and (tmp_path / "d/labelled/dropped.jsonl").exists()
    metrics, requests = labelled_run(
        tmp_path / "d", written, judge={"base_url": "http://127.0.0.1:9/v1", "model": "n"}
    )
    assert "127.0.0.1:9" in metrics and not requests  # the writer is not asked again


def test_two_tasks_of_one_name_are_one_line(tmp_path):
    twice = [{"name": "mine", "task": "product", "train": 2}] * 2
    assert "'mine' names 2 folders" in stops("conversations", tmp_path / "c", tasks=twice)


@pytest.mark.parametrize(
    "task, complaint",
    [
        ({"task": "spelling"}, "missing 1 required positional argument: 'words'; check the knobs of task spelling"),
        ({"task": "spelling", "knobs": {"words": ["house"]}, "train": 0, "test": 5}, "no word of the test split"),
        ({"task": "addition", "knobs": {"manner": "slow"}}, "check the knobs of task addition"),
        ({"task": "product"}, ""),
    ],
)
def test_a_wrong_knob_is_one_line(tmp_path, task, complaint):
    keys = {"tasks": [{"name": "mine", "train": 5, **task}]}
    if complaint:
        assert complaint in stops("conversations", tmp_path / "c", **keys)
    else:
        assert run("conversations", tmp_path / "c", **keys)["rows"] == 5
