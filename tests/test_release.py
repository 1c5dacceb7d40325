"""A release is whole and says what the run measured; a damaged model or a secret in a file is refused."""

import json
import shutil
import sys
import time
from hashlib import sha256

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from crawl2chat import release as releases
from crawl2chat.checkpoint_folder import damage, seal
from crawl2chat.model import load_model, save_model
from crawl2chat.protocol import load_tokenizer
from hub_server import hub_server
from test_training_scripts import run, stops
from tiny import tiny_model, tiny_tokenizer

SECRET = "canary-0123456789-of-the-environment"
METRICS = {
    "pretrain": {"tokens": 4915200, "eval_bits_per_byte": 0.715, "seconds": 479.0, "peak_memory_gb": 1.27},
    "eval": {"sft/facts/accuracy": 0.78, "sft/facts/stderr": 0.034, "sft/facts/n": 150, "base/facts/accuracy": 0.1},
}


@pytest.fixture
def world(tmp_path):
    """A run's folder with a random model as its sft stage, left as training leaves it."""
    tokenizer, folder = tiny_tokenizer(), tmp_path / "run"
    save_model(tiny_model(tokenizer), tokenizer, folder / "sft")
    (folder / "sft/checkpoint-3").mkdir()
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "zero_to_fp32.py", "checkpoint-3/optimizer.pt"):
        (folder / "sft" / name).write_bytes(b"state")
    for stage, metrics in METRICS.items():
        (folder / stage).mkdir(exist_ok=True)
        (folder / stage / "metrics.json").write_text(json.dumps(metrics))
        (folder / stage / "recipe.yaml").write_text(f"output_dir: output/tiny/{stage}\n")
    history = [{"step": step, "loss": 6 - step / 20} for step in range(0, 100, 10)]
    (folder / "pretrain/log_history.json").write_text(json.dumps(history))
    return folder


def keys(world, **more) -> dict:
    """A release's recipe but for its output_dir."""
    return {
        "model_name_or_path": str(world / "sft"),
        "run_dir": str(world),
        "stages": ["data", "pretrain", "eval"],
        "name": "tiny",
        "about": "A model of the tests.",
        "license": "apache-2.0",
        "data": [{"name": "pages", "licence": "CC BY-SA 4.0"}],
        "limits": ["It knows nothing."],
        **more,
    }


def released(world, **more) -> dict:
    return run("release", world / "release", **keys(world, **more))


def refused(world, **more) -> str:
    """The line of a refusal; nothing of the release is left, and an earlier one would be."""
    line = stops("release", world / "release", **keys(world, **more))
    assert {path.name for path in (world / "release").glob("*")} <= {"recipe.yaml"}
    assert not [path for path in world.iterdir() if path.name.startswith(("_", "replaced"))]
    return line


def test_a_release_is_the_model_and_nothing_that_training_left(world):
    metrics = released(world)
    folder = world / "release"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    own = "README.md chat_template.jinja config.json generation_config.json manifest.json metrics.json recipe.yaml "
    own += "model.safetensors tokenizer.json tokenizer_config.json figures/training.png "
    own += "recipes/pretrain.yaml recipes/eval.yaml"
    assert names == set(own.split()) and metrics["files"] == len(names) - 1
    model, source = AutoModelForCausalLM.from_pretrained(folder), load_model(world / "sft")
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in model.state_dict().items())
    tokenizer, earlier = AutoTokenizer.from_pretrained(folder), load_tokenizer(world / "sft")
    assert tokenizer.get_vocab() == earlier.get_vocab() and tokenizer.chat_template == earlier.chat_template
    assert tokenizer.response_template == earlier.response_template
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert model.generation_config.eos_token_id == ends and model.generation_config.temperature == 0.7
    assert model.config.use_cache and model.config.eos_token_id == ends[0]


def test_the_manifest_has_the_sha256_of_every_file_and_finds_damage(world):
    released(world)
    folder = world / "release"
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert all(entry["sha256"] == sha256((folder / name).read_bytes()).hexdigest() for name, entry in files.items())
    assert damage(folder) is None
    (folder / "README.md").write_text("other words")
    assert "README.md" in damage(folder)


def test_the_card_has_the_runs_own_numbers_figures_data_licences_and_limits(world):
    released(world, base_model="owner/base", temperature=0.0)
    card = ModelCard.load(world / "release/README.md")
    assert card.data.license == "apache-2.0" and card.data.base_model == "owner/base"
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_value) == ("facts", 0.78)
    for words in ("4,915,200", "0.715", "0.780 ± 0.034 of 150", "CC BY-SA 4.0", "It knows nothing.", "479", "torch 2"):
        assert words in card.text, words
    assert "figures/training.png" in card.text and "llama.cpp" not in card.text and "base/facts" not in card.text
    assert (world / "release/figures/training.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((world / "release/generation_config.json").read_text())["do_sample"] is False


def test_an_adapter_is_merged_first(world, tmp_path):
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(load_model(world / "sft"), lora).save_pretrained(tmp_path / "adapter")
    load_tokenizer(world / "sft").save_pretrained(tmp_path / "adapter")
    released(world, model_name_or_path=str(tmp_path / "adapter"))
    wanted = load_model(tmp_path / "adapter").state_dict()
    found = load_file(world / "release/model.safetensors")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    assert not (world / "release/adapter_config.json").exists()


def test_a_second_release_takes_the_place_of_the_first_and_keeps_what_waits_for_the_hub(world):
    released(world, name="first")
    (world / "release/outbox/1-1").mkdir(parents=True)
    (world / "release/outbox/1-1/push.json").write_text("{}")
    released(world, name="second")
    assert "# second" in (world / "release/README.md").read_text()
    assert (world / "release/outbox/1-1/push.json").is_file() and damage(world / "release") is None


def test_a_folder_with_anything_else_in_it_is_not_written_over(world):
    (world / "release").mkdir()
    (world / "release/thesis.tex").write_text("years of work")
    line = stops("release", world / "release", **keys(world))
    assert "thesis.tex, which no release wrote" in line and (world / "release/thesis.tex").is_file()
    assert "an output_dir of its own" in stops("release", world / "sft", **keys(world))
    assert (world / "sft/model.safetensors").is_file()


def change(world, edit) -> None:
    """Edit the tensors of the model on disk."""
    file = world / "sft/model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused_by_its_tensors_name(world, number):
    change(world, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][3].__setitem__(5, number))
    assert "model.layers.1.mlp.up_proj.weight holds 1 numbers that are NaN or infinite" in refused(world)


def test_missing_and_misshapen_weights_are_refused(world):
    def narrow(tensors):
        tensors["model.norm.weight"] = torch.ones(16)

    change(world, narrow)
    assert "model.norm.weight is (16,), the config asks for (32,)" in refused(world)
    change(world, lambda tensors: tensors.pop("model.norm.weight"))
    assert "model.norm.weight first" in refused(world)


def test_a_cut_file_and_a_missing_shard_are_refused(world):
    file = world / "sft/model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "the weights are damaged (model.safetensors" in refused(world)
    file.write_bytes(whole)
    load_model(world / "sft").save_pretrained(world / "sft", max_shard_size="40KB")
    file.unlink(missing_ok=True)
    sorted((world / "sft").glob("model-*.safetensors"))[1].unlink()
    assert "is missing" in refused(world)


def test_a_tokenizer_larger_than_the_embedding_is_refused(world):
    tokenizer = load_tokenizer(world / "sft")
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(world / "sft")
    assert "but the model's embedding only" in refused(world)


def test_a_checkpoint_is_released_without_its_states_unless_it_is_damaged(world):
    tokenizer, saving = load_tokenizer(world / "sft"), world / "sft/_saving"
    save_model(load_model(world / "sft"), tokenizer, saving)
    (saving / "optimizer.pt").write_bytes(b"state")
    checkpoint = world / "sft/checkpoint-7"
    seal(saving, checkpoint)
    released(world, model_name_or_path=str(checkpoint))
    assert not (world / "release/optimizer.pt").exists()
    shutil.rmtree(world / "release")
    weights = bytearray((checkpoint / "model.safetensors").read_bytes())
    weights[-7] ^= 1
    (checkpoint / "model.safetensors").write_bytes(weights)
    line = refused(world, model_name_or_path=str(checkpoint))
    assert "a damaged checkpoint is not released: model.safetensors is not what was written" in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("generation_config.json", SECRET),
        ("training_args.bin", SECRET),
        ("training_args.bin", "hf_" + "aB3" * 11),
        ("README.md", "sk-" + "proj-aB3" * 6),
    ],
)
def test_a_secret_in_a_file_of_the_source_is_refused_and_never_said(world, monkeypatch, name, value, capfd):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    words = {"_note": value} if name.endswith("json") else value
    (world / "sft" / name).write_text(json.dumps(words))
    line = refused(world)
    assert name in line and value not in line + "".join(capfd.readouterr())


def test_a_secret_in_a_recipe_is_refused_and_its_copy_is_gone(world, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    line = refused(world, about=f"call the hub with {SECRET}")
    assert "HF_TOKEN" in line and SECRET not in line and not (world / "release/recipe.yaml").exists()
    (world / "pretrain/recipe.yaml").write_text(f"# {SECRET}\n")
    assert "recipes/pretrain.yaml" in refused(world)


def test_a_secret_is_found_across_the_pieces_that_a_file_is_read_in(tmp_path, monkeypatch):
    monkeypatch.setattr(releases, "CHUNK", 600)
    (tmp_path / "file").write_bytes(b"." * 590 + SECRET.encode() + b"." * 590)
    assert releases.secret_in(tmp_path / "file", {SECRET.encode(): "X"}) == "the value of X"
    (tmp_path / "file").write_bytes(b"task-specific-and-quite-long-names risk-averse-and-quite-long-names")
    assert not releases.secret_in(tmp_path / "file", {})


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine; nobody waits between tries."""
    with hub_server() as made:
        made.known_to(monkeypatch)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        monkeypatch.setattr(sys, "argv", ["scripts/release.py", "recipes/tiny.yaml"])
        yield made


def content(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def retried(world) -> int:
    """The exit code of `--retry`."""
    with pytest.raises(SystemExit) as stop:
        run("release", world / "release", **keys(world, retry=True))
    return stop.value.code


def test_a_pushed_release_is_on_the_hub_byte_for_byte(world, hub, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    released(world, push="me/tiny", private=True)
    repo = hub.repos["model", "me/tiny"]
    files = {name: data for name, data in repo.files().items() if name != ".gitattributes"}
    assert files == content(world / "release") and repo.private and not hub.leaked([SECRET, hub.token])
    assert "me/tiny" in ModelCard.load(world / "release/README.md").text


def test_what_the_hub_did_not_take_waits_and_retry_finishes_it_without_touching_the_release(world, hub, capsys):
    hub.play = lambda number, request: 503 if request.kind == "commit" else None
    metrics = released(world, push="me/tiny")
    assert (
        metrics["files"]
        and "finish with: python scripts/release.py recipes/tiny.yaml --retry" in capsys.readouterr().out
    )
    before = content(world / "release")
    assert retried(world) == 1 and "0 of 1 waiting pushes" in capsys.readouterr().out
    hub.play = lambda number, request: None
    assert retried(world) == 0 and "1 of 1 waiting pushes reached the hub" in capsys.readouterr().out
    files = hub.repos["model", "me/tiny"].files()
    assert before == content(world / "release") == {name: files[name] for name in before}
    assert retried(world) == 0 and "0 of 0 waiting pushes" in capsys.readouterr().out


def test_a_push_that_the_hub_refuses_leaves_the_release_whole(world, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "nobodyknowsme")
    with pytest.raises(SystemExit, match="401"):
        released(world, push="me/tiny")
    assert (world / "release/metrics.json").is_file() and damage(world / "release") is None


def test_a_name_that_is_no_file_or_no_repository_is_refused_at_once(world):
    for wrong in ({"name": "../x"}, {"push": "a/b/c"}, {"gguf": ["q2"]}):
        with pytest.raises(SystemExit) as stop:
            released(world, **wrong)
        assert stop.value.code == 2
    assert not (world / "release").exists()
