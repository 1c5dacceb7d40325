"""Models from a recipe or a folder: what cannot be loaded is one line, and a token's cost is arithmetic."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from crawl2chat.model import build_model, check_fit, check_weights, count_parameters, flops_per_token, load_model
from tiny import tiny_model, tiny_tokenizer

SMALL = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def folder(tmp_path, tokenizer):
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def complaint(path, check=load_model) -> str:
    with pytest.raises(SystemExit) as stop:
        check(path)
    assert str(path) in stop.value.code and "\n" not in stop.value.code
    return stop.value.code


def test_a_saved_model_is_loaded_with_the_same_weights(folder, tokenizer):
    loaded, built = load_model(folder).state_dict(), tiny_model(tokenizer).state_dict()
    assert all(torch.equal(loaded[name], built[name]) for name in built)


@pytest.mark.parametrize("name", ["output/laptop/nowhere", "./nowhere", "nowhere", "/nowhere/at/all"])
def test_a_missing_folder_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no such folder" in complaint(name)


def test_a_folder_without_a_config_is_one_line(folder):
    (folder / "config.json").unlink()
    assert "no config.json" in complaint(folder)


def test_a_folder_without_weights_is_one_line(folder):
    (folder / "model.safetensors").unlink()
    assert "no weights" in complaint(folder)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_cut_weights_are_one_line(folder, share):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(weights.stat().st_size * share)])
    assert "damaged" in complaint(folder)


def test_a_broken_config_is_one_line(folder):
    (folder / "config.json").write_text('{"model_type": ')
    assert "cannot load the model" in complaint(folder)


def test_weights_of_another_shape_are_one_line(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    assert "cannot load the model" in complaint(folder)


def change(folder, **tensors):
    """Put tensors into a model's file, or take those that are None out."""
    weights = load_file(folder / "model.safetensors") | tensors
    save_file({k: v for k, v in weights.items() if v is not None}, folder / "model.safetensors", {"format": "pt"})


def test_a_whole_folder_passes_in_one_file_and_in_shards(folder, tmp_path, tokenizer):
    check_weights(folder)
    tiny_model(tokenizer).save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    check_weights(tmp_path / "shards")
    shard = sorted((tmp_path / "shards").glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert f"damaged ({shard.name}" in complaint(tmp_path / "shards", check_weights)
    shard.unlink()
    assert f"{shard.name} is missing" in complaint(tmp_path / "shards", check_weights)


def test_weights_that_lack_a_tensor_are_refused_by_name_and_not_made_up(folder):
    change(folder, **{"model.norm.weight": None})
    assert "1 of 21 tensors are missing, model.norm.weight first" in complaint(folder, check_weights)
    assert "lack 1 tensors, model.norm.weight first" in complaint(folder)


def test_a_tensor_that_was_saved_as_an_empty_shard_is_refused(folder):
    change(folder, **{"model.norm.weight": torch.zeros(0)})
    assert "model.norm.weight is (0,), the config asks for (32,)" in complaint(folder, check_weights)


def test_a_tied_head_may_be_written_twice_or_once(tmp_path, tokenizer):
    tied = {**SMALL, "tie_word_embeddings": True}
    build_model(tied, tokenizer).save_pretrained(tmp_path)
    check_weights(tmp_path)
    change(tmp_path, **{"lm_head.weight": load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]})
    check_weights(tmp_path)
    load_model(tmp_path)
    change(tmp_path, **{"lm_head.weight": None, "model.embed_tokens.weight": None})
    assert "model.embed_tokens.weight first" in complaint(tmp_path, check_weights)


def test_an_adapter_is_loaded_onto_its_base_model(folder, tmp_path, tokenizer):
    adapted = get_peft_model(load_model(folder), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7, 300]])
    expected = adapted.eval()(input_ids=ids).logits
    loaded = load_model(tmp_path / "adapter").eval()
    assert torch.allclose(loaded(input_ids=ids).logits, expected, atol=1e-6)
    assert not torch.allclose(tiny_model(tokenizer)(input_ids=ids).logits, expected, atol=1e-3)
    check_fit(loaded, tokenizer, tmp_path)
    shutil.rmtree(folder)
    assert "adapter" in complaint(tmp_path / "adapter")


def test_an_adapter_without_weights_is_one_line(folder, tmp_path):
    get_peft_model(load_model(folder), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    assert "no weights" in complaint(tmp_path / "a")


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused_with_both_numbers(tokenizer):
    model, larger = tiny_model(tokenizer), tiny_tokenizer()
    check_fit(model, tokenizer, "here")
    larger.add_tokens(["another word"])
    with pytest.raises(SystemExit, match=f"here: .* {len(larger)} tokens .* only {len(tokenizer)} rows"):
        check_fit(model, larger, "here")


@pytest.mark.parametrize("multiple", [1, 64, 100])
def test_the_vocabulary_is_the_tokenizers_rounded_up(tokenizer, multiple):
    model = build_model(SMALL, tokenizer, pad_vocab_to=multiple)
    rows = model.get_input_embeddings().weight.shape[0]
    assert rows % multiple == 0 and 0 <= rows - len(tokenizer) < multiple
    assert model.config.eos_token_id == tokenizer.eos_token_id and model.config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt2"])
def test_architectures_are_the_librarys(tokenizer, model_type):
    names = {"n_embd": 32, "n_layer": 1, "n_head": 2} if model_type == "gpt2" else {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "intermediate_size": 64, "head_dim": 16,
    }  # fmt: skip
    assert build_model({"model_type": model_type, **names}, tokenizer).config.model_type == model_type


def test_an_unknown_key_and_a_missing_model_type_are_refused(tokenizer):
    with pytest.raises(SystemExit, match="llama has no key 'hiden_size'; its keys are those of .* LlamaConfig"):
        build_model({**SMALL, "hiden_size": 32}, tokenizer)
    with pytest.raises(SystemExit, match="needs `model_type`"):
        build_model({"hidden_size": 32}, tokenizer)


def test_an_unknown_model_type_is_one_line(tokenizer):
    with pytest.raises(SystemExit, match="'lama'"):
        build_model({**SMALL, "model_type": "lama"}, tokenizer)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tokens_flops_by_hand(tied):
    config = LlamaConfig(
        vocab_size=100, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    # a layer: q and o 8 x 8, k and v 8 x 4, three of the MLP 8 x 16; the head 8 x 100
    layer = 2 * 64 + 2 * 32 + 3 * 128
    assert flops_per_token(model, 10) == 6 * (2 * layer + 800) + 12 * 2 * 8 * 10 == 13632
    norms = 5 * 8
    assert count_parameters(model) == 2 * layer + norms + 800 * (1 if tied else 2)
