"""Merging an adapter: the whole model says what the adapter said, stands alone, and nothing else gets its name."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl import ModelConfig, SFTConfig

from crawl2chat import model as models
from crawl2chat.model import load_adapter, load_model, quantization, save_model
from crawl2chat.protocol import load_tokenizer
from test_training_scripts import run, stops
from tiny import tiny_model, tiny_tokenizer

LORA = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"}


@pytest.fixture
def adapter(tmp_path):
    """The folder of an adapter with random weights, its tokenizer beside it, and its base model."""
    tokenizer = tiny_tokenizer()
    save_model(tiny_model(tokenizer), tokenizer, tmp_path / "base")
    torch.manual_seed(1)
    get_peft_model(load_model(tmp_path / "base"), LoraConfig(**LORA)).save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=torch.arange(40)[None]).logits


def test_the_whole_model_says_what_the_adapter_said_and_needs_no_base(adapter, tmp_path, capsys):
    beside, base = logits(load_adapter(adapter, merge=False)), logits(load_model(tmp_path / "base"))
    metrics = run("merge", tmp_path / "whole", model_name_or_path=str(adapter))
    (tmp_path / "base").rename(tmp_path / "gone")
    merged = logits(load_model(tmp_path / "whole"))
    assert torch.allclose(merged, beside, atol=1e-4) and not torch.allclose(base, beside, atol=0.1)
    assert metrics["largest_difference"] < 1e-3 and metrics["same_likeliest_share"] == 1
    assert metrics["adapter_parameters"] > 0 and not (tmp_path / "whole" / "adapter_config.json").exists()
    assert load_tokenizer(tmp_path / "whole").get_vocab() == load_tokenizer(adapter).get_vocab()
    assert capsys.readouterr().out.count(": read ") == 1


def test_a_merged_model_that_says_something_else_is_no_finished_stage(adapter, tmp_path, monkeypatch):
    forgets = "peft.tuners.lora.LoraModel.merge_and_unload"
    monkeypatch.setattr(forgets, lambda self: self.unload())
    assert "differs from the adapter's" in stops("merge", tmp_path / "whole", model_name_or_path=str(adapter))


def test_a_folder_without_an_adapter_is_one_line(adapter, tmp_path):
    assert "no adapter_config.json" in stops("merge", tmp_path / "w", model_name_or_path=str(tmp_path / "base"))


def test_the_adapters_own_folder_is_not_written_over(adapter):
    before = sorted(path.name for path in adapter.iterdir())
    assert "an output_dir of its own" in stops("merge", adapter, model_name_or_path=str(adapter))
    assert set(before) - {"adapter_config.json"} <= {path.name for path in adapter.iterdir()}
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 2


def test_a_full_disk_leaves_no_half_a_model(tmp_path, monkeypatch):
    tokenizer, folder = tiny_tokenizer(), tmp_path / "model"
    save_model(tiny_model(tokenizer, seed=1), tokenizer, folder)
    before = (folder / "model.safetensors").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models, "publish", full)
    with pytest.raises(SystemExit, match="make room"):
        save_model(tiny_model(tokenizer, seed=2), tokenizer, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert not any(path.name.startswith("_") for path in folder.iterdir())


def test_qlora_is_refused_in_one_line_on_a_cpu_and_without_an_adapter(tmp_path):
    arguments = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert quantization(ModelConfig(use_peft=True), arguments) == {}
    with pytest.raises(SystemExit, match="load_in_4bit: QLoRA needs a CUDA GPU, this run is on cpu"):
        quantization(ModelConfig(use_peft=True, load_in_4bit=True), arguments)
    with pytest.raises(SystemExit, match="load_in_8bit: .* add use_peft: true"):
        quantization(ModelConfig(load_in_8bit=True), arguments)
