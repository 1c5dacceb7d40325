"""The lean loss is the model's own loss with the model's own gradients, under every wrapper."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from crawl2chat import loss
from crawl2chat.loss import PLAIN_HEADS, next_token_loss, return_the_loss_alone

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def model_of(model_type: str, tied: bool = True) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = GPT2 if model_type == "gpt2" else {**SIZES, "intermediate_size": 64}
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    config = AutoConfig.for_model(model_type, vocab_size=320, tie_word_embeddings=tied, **sizes, **ids)
    return AutoModelForCausalLM.from_config(config)


def gradients(model: torch.nn.Module, value: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    value.backward()
    return [p.grad for p in model.parameters()]


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 320, (3, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", sorted(PLAIN_HEADS))
def test_loss_and_gradients_are_those_of_the_architecture(model_type, tied, ids, monkeypatch):
    monkeypatch.setitem(loss.CHUNK, "cpu", 1)  # the smallest chunks: 64 tokens, the last one not full
    model = model_of(model_type, tied)
    own = model(input_ids=ids, labels=ids).loss
    expected = gradients(model, own)
    lean = next_token_loss(model, ids, ids)
    torch.testing.assert_close(lean, own)
    for found, wanted in zip(gradients(model, lean), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_in_bf16_the_loss_is_as_near_as_bf16s_own(ids):
    model = model_of("llama")
    exact = model(input_ids=ids, labels=ids).loss
    with torch.autocast("cpu", torch.bfloat16):
        lean, own = next_token_loss(model, ids, ids), model(input_ids=ids, labels=ids).loss
    assert abs(lean - exact) <= 2 * abs(own - exact) + 2e-3
    assert lean.dtype == torch.float32


def test_with_labels_there_are_no_logits_and_without_them_the_forward_is_as_before(ids):
    model = model_of("qwen3")
    before = model(input_ids=ids).logits
    assert return_the_loss_alone(model)
    out = model(input_ids=ids, labels=ids)
    assert out.logits is None and out.loss.ndim == 0
    torch.testing.assert_close(model(input_ids=ids).logits, before)


def test_a_left_out_label_is_refused_and_other_labels_are_learned(ids):
    model = model_of("llama")
    return_the_loss_alone(model)
    other = torch.where(torch.arange(40) < 20, ids, 7)
    torch.testing.assert_close(model(input_ids=ids, labels=other).loss, model_of("llama")(ids, labels=other).loss)
    masked = ids.clone()
    masked[:, :5] = -100
    for grad in (torch.enable_grad, torch.no_grad):
        with grad(), pytest.raises((RuntimeError, IndexError), match="-100|out of bounds"):
            model(input_ids=ids, labels=masked)


def test_the_compiled_loss_is_the_eager_one(ids):
    model = model_of("llama")
    return_the_loss_alone(model)
    eager = model(input_ids=ids, labels=ids).loss
    expected = gradients(model, eager)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(compiled, eager)
    for found, wanted in zip(gradients(model, compiled), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_an_architecture_that_changes_its_logits_keeps_its_own_loss():
    config = AutoConfig.for_model("gemma2", vocab_size=320, **SIZES, intermediate_size=64, head_dim=16)
    model = AutoModelForCausalLM.from_config(config)
    forward = model.forward
    assert not return_the_loss_alone(model) and model.forward == forward


@pytest.mark.parametrize("chunk", [1, 2**22])
def test_with_a_count_the_labels_left_out_bear_no_loss(ids, chunk, monkeypatch):
    monkeypatch.setitem(loss.CHUNK, "cpu", chunk)
    model, labels = model_of("qwen3"), ids.clone()
    labels[0, :30] = labels[1] = -100
    own = model(input_ids=ids, labels=labels, num_items_in_batch=99).loss
    expected = gradients(model, own)
    lean = next_token_loss(model, ids, labels, num_items_in_batch=torch.tensor(99))
    torch.testing.assert_close(lean, own)
    for found, wanted in zip(gradients(model, lean), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_a_batch_whose_labels_are_all_left_out_moves_nothing(ids):
    model = model_of("llama")
    value = next_token_loss(model, ids, torch.full_like(ids, -100), num_items_in_batch=7)
    assert value == 0 and all(not grad.any() for grad in gradients(model, value))
