"""The protocol's tokens, the dressed tokenizer, the ladder, the token view and the command that shows them."""

import json
import random
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from crawl2chat import cl100k, protocol
from crawl2chat.protocol import (
    IM_END,
    MARKS,
    PROTOCOL_TOKENS,
    SPECIAL_TOKENS,
    dress,
    ladder,
    load_tokenizer,
    loss_mask,
)
from crawl2chat.web.tokens import token_page, token_view
from tiny import TEXT, tiny_tokenizer

MESSAGES = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am <b>small</b>."}]


@pytest.fixture
def folder(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Runs the command in this process: what it prints, and the line it fails with ("" where it does not)."""
    monkeypatch.setenv("CRAWL2CHAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)

    def run(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["protocol", *arguments])
        error = ""
        try:
            protocol.main()
        except SystemExit as stop:
            error = str(stop.code)
        return capsys.readouterr().out, error

    return run


def test_the_protocols_tokens_come_first_each_a_single_id():
    tokenizer = tiny_tokenizer()
    assert tokenizer.convert_tokens_to_ids(PROTOCOL_TOKENS) == list(range(len(PROTOCOL_TOKENS)))
    assert len(set(PROTOCOL_TOKENS)) == len(PROTOCOL_TOKENS) == 28
    assert tokenizer("".join(PROTOCOL_TOKENS))["input_ids"] == list(range(len(PROTOCOL_TOKENS)))


def test_marks_stay_in_text_decoded_without_special_tokens(folder):
    for tokenizer in (tiny_tokenizer(), load_tokenizer(folder)):
        ids = tokenizer("".join(PROTOCOL_TOKENS))["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "".join(MARKS)
        assert set(tokenizer.all_special_tokens) == set(SPECIAL_TOKENS)


def test_a_saved_tokenizer_comes_back_the_same(folder):
    before, after = tiny_tokenizer(), load_tokenizer(folder)
    assert after.backend_tokenizer.to_str() == before.backend_tokenizer.to_str()
    for key in ("chat_template", "response_template", "eos_token", "pad_token", "model_input_names"):
        assert getattr(after, key) == getattr(before, key)
    assert list(after(TEXT)) == ["input_ids", "attention_mask"]
    assert after.decode(after(TEXT)["input_ids"]) == TEXT


def test_a_tokenizer_without_the_protocol_is_not_dressed():
    with pytest.raises(ValueError, match="im_start"):
        dress(Tokenizer(models.BPE({"a": 0}, [])))


@pytest.mark.parametrize(
    "name, message", [("nowhere", "no such folder"), ("empty", "no tokenizer.json"), ("bad", "cannot be")]
)
def test_a_folder_without_a_tokenizer_is_one_clear_line(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer.json").write_text("{cut")
    with pytest.raises(SystemExit) as stop:
        load_tokenizer(tmp_path / name)
    assert message in str(stop.value) and str(tmp_path / name) in str(stop.value) and "\n" not in str(stop.value)


def test_the_ladder_counts_characters_bits_bytes_and_tokens(monkeypatch, tmp_path):
    monkeypatch.setenv("CRAWL2CHAT_CACHE", str(tmp_path))
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    tokenizer = tiny_tokenizer()
    rungs = ladder("né 漢 <|im_end|>", tokenizer)
    assert rungs["characters"] == 15 and rungs["bytes"] == 18 and rungs["bits"] == 144
    assert rungs["tokens"] == len(tokenizer("né 漢 <|im_end|>")["input_ids"]) and rungs["vocabulary"] == len(tokenizer)
    assert "cl100k_tokens" not in rungs
    assert ladder("") == {"characters": 0, "bits": 0, "bytes": 0}


@pytest.mark.skipif(cl100k.ranks_file() is None, reason="cl100k's ranks are not at hand")
def test_cl100k_has_the_same_ids_in_tokenizers_as_in_tiktoken():
    tokenizer = cl100k.as_tokenizer()
    rng = random.Random(0)
    texts = [TEXT, "5000 12345 worlds", "I'LL don't 'S", "<|endoftext|>", Path(__file__).read_text(encoding="utf-8")]
    texts += [
        "".join(rng.choices("aB 'slLvE019\n\r\t .,!é漢😀ſ\u00a0\u0301", k=rng.randint(1, 30))) for _ in range(2000)
    ]
    for text in texts:
        assert tokenizer.encode(text).ids == cl100k.encode(text)
    assert ladder("hello world")["cl100k_tokens"] == 2


def test_the_token_view_shows_every_token_once_and_escapes_what_it_shows():
    tokenizer = tiny_tokenizer()
    ids, mask = loss_mask(tokenizer, MESSAGES)
    html = token_view(ids, tokenizer, mask)
    assert html.count("<span") == len(ids)
    assert html.count('loss"') == sum(mask) and "&lt;b&gt;" not in html and "<b>" not in html
    assert "&lt;|im_end|&gt;" in html
    page = token_page(ids, tokenizer, mask, {"bytes": 1234})
    assert html in page and "1,234" in page and " ".join(map(str, ids)) in page
    with pytest.raises(ValueError, match="mask"):
        token_view(ids, tokenizer, mask[1:])


def test_parts_of_a_character_are_shown_as_bytes():
    tokenizer = tiny_tokenizer()
    html = token_view(tokenizer("漢")["input_ids"], tokenizer)
    assert html.count("\\x") == 3 and "\\xe6" in html and "\ufffd" not in html


def test_the_command_prints_the_ladder_and_writes_the_view(folder, tmp_path, command):
    page = tmp_path / "out" / "tokens.html"
    output, error = command("hello 世界", "--tokenizer", str(folder), "--html", str(page))
    lines = output.splitlines()
    assert not error
    assert [line.split()[:2] for line in lines[:3]] == [["characters", "8"], ["bits", "96"], ["bytes", "12"]]
    assert any(line.startswith("cl100k's tokens are left out: ") for line in lines)
    assert "<!doctype html>" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("form", ["jsonl", "json", "text"])
def test_the_command_shows_what_bears_loss(folder, tmp_path, form, command):
    row = json.dumps({"messages": MESSAGES, "task": "identity"})
    source = tmp_path / f"rows.{form}"
    source.write_text({"jsonl": f"{row}\n{row}\n", "json": f"[{row}]", "text": ""}[form])
    given = json.dumps(MESSAGES) if form == "text" else str(source)
    output, error = command("--conversation", given, "--tokenizer", str(folder), "--html", str(tmp_path / "t.html"))
    assert not error and "tokens bear loss" in output
    assert repr("I am <b>small</b>." + IM_END) in output


@pytest.mark.parametrize(
    "conversation, message",
    [
        ('[{"role": "human", "content": "x"}]', "'human' is not a role"),
        ('{"text": "x"}', "no `messages`"),
        ("{cut", "not JSON"),
        ("nowhere.jsonl", "no such file"),
    ],
)
def test_a_conversation_that_is_none_is_one_clear_line(folder, tmp_path, conversation, message, command):
    _, error = command("--conversation", conversation, "--tokenizer", str(folder), "--html", str(tmp_path / "t.html"))
    assert message in error and "\n" not in error
    assert not (tmp_path / "t.html").exists()


def test_the_module_names_no_template_text_of_its_own():
    source = Path(protocol.__file__).read_text(encoding="utf-8")
    assert "{%" not in source
