"""The protocol's tokens, the dressed tokenizer, the ladder, the token view and the command that shows them."""

import json
import random
import sys
from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
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
        ("some/nowhere.parquet", "no such file"),
        ('{"messages": []}', "row 1: `messages` must be a list of turns"),
        ('{"messages": "Hello!"}', "row 1: `messages` is no JSON"),
        ('{"messages": ["Hello!"]}', "row 1: 'Hello!' is not a role"),
        ('[{"role": "user", "content": "x"}]', "no turn of the assistant, so nothing would bear loss"),
        ('[{"role": "user"}, {"role": "assistant", "content": "x"}]', "content of a turn must be a string"),
        ('{"messages": [{"role": "assistant", "content": "x"}], "tools": "{cut"}', "row 1: `tools` is no JSON"),
        (
            '{"messages": [{"role": "assistant", "content": "x"}], "tools": 3}',
            "row 1: `tools` must be a list of tools",
        ),
        ("[1, 2]", "row 1: no `messages`"),
        ("[]", "row 1: `messages` must be a list of turns"),
    ],
)
def test_a_conversation_that_is_none_is_one_clear_line(folder, tmp_path, conversation, message, command):
    _, error = command("--conversation", conversation, "--tokenizer", str(folder), "--html", str(tmp_path / "t.html"))
    assert message in error and "\n" not in error
    assert not (tmp_path / "t.html").exists()


ROWS = [[{"role": "user", "content": "Who?"}, {"role": "assistant", "content": f"Number {i}."}] for i in range(1, 6)]
TOOLS = [
    {"type": "function", "function": {"name": name, "description": what, "parameters": {"properties": arguments}}}
    for name, what, arguments in (
        ("search", "Search.", {"query": {"type": "string"}}),
        ("python", "Run.", {"code": {"type": "string"}}),
    )
]


@pytest.fixture
def sources(tmp_path) -> dict[str, Path]:
    """The same five rows as they come: files of one kind and another, and a folder as the hub's datasets are."""
    objects = [{"task": "t", "messages": row} for row in ROWS]
    lines = [json.dumps(row) + "\n" for row in objects]
    found = {
        name: tmp_path / name for name in ("rows.jsonl", "rows.json", "lines.json", "rows.parquet", "text.parquet")
    }
    found["rows.jsonl"].write_text("".join(lines))
    found["rows.json"].write_text(json.dumps(objects, indent=1))
    found["lines.json"].write_text("".join(lines))
    pq.write_table(pa.Table.from_pylist([{**row, "tools": TOOLS} for row in objects]), found["rows.parquet"])
    as_text = [{"messages": json.dumps(row), "tools": json.dumps(TOOLS)} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(as_text), found["text.parquet"])
    found["hub"] = tmp_path / "hub"
    (found["hub"] / "data").mkdir(parents=True)
    (found["hub"] / "README.md").write_text("---\nlicense: mit\n---\n")
    for shard, rows in enumerate((objects[:2], objects[2:])):
        pq.write_table(pa.Table.from_pylist(rows), found["hub"] / "data" / f"train-0000{shard}-of-00002.parquet")
    return found


@pytest.mark.parametrize("kind", ["rows.jsonl", "rows.json", "lines.json", "rows.parquet", "text.parquet", "hub"])
def test_the_command_shows_any_row_of_a_dataset(folder, sources, tmp_path, kind, command):
    page, source = tmp_path / "out" / "row.html", str(sources[kind])
    options = ("--tokenizer", str(folder), "--html", str(page))
    output, error = command("--conversation", source, "--row", "4", *options)
    assert not error and f"{source}: row 4: user, assistant" in output
    assert repr("Number 4." + IM_END) in output and "Number 3" not in output
    assert 'loss"' in page.read_text(encoding="utf-8")
    # tools of a table are described, each with its own arguments
    assert ("2 tools described" in output) == kind.endswith(".parquet")
    page.unlink()
    _, error = command("--conversation", source, "--row", "6", *options)
    assert error == f"error: {source}: row 6 was asked for and there are 5 rows"
    assert "counted from 1" in command("--conversation", source, "--row", "0", *options)[1]
    assert not page.exists()


def test_the_command_shows_what_training_would_see(folder, sources, tmp_path, command):
    page = tmp_path / "row.html"
    command("--conversation", str(sources["rows.parquet"]), "--tokenizer", str(folder), "--html", str(page))
    ids, mask = loss_mask(load_tokenizer(folder), ROWS[0], TOOLS)
    shown = page.read_text(encoding="utf-8")
    assert " ".join(map(str, ids)) in shown and f"the {sum(mask)} underlined ones bear loss" in shown


def test_a_table_without_conversations_is_one_clear_line(folder, tmp_path, command):
    (tmp_path / "pages").mkdir()
    pq.write_table(pa.table({"text": ["a page"]}), tmp_path / "pages" / "0.parquet")
    options = ("--tokenizer", str(folder), "--html", str(tmp_path / "t.html"))
    _, error = command("--conversation", str(tmp_path / "pages"), *options)
    assert "0.parquet: no column 'messages' (it has text)" in error and "\n" not in error
    (tmp_path / "none").mkdir()
    assert "no shards" in command("--conversation", str(tmp_path / "none"), *options)[1]
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    assert "not a whole parquet file" in command("--conversation", str(tmp_path / "torn.parquet"), *options)[1]


def test_a_dataset_that_the_hub_does_not_give_is_one_clear_line(folder, tmp_path, command, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no network\nhere")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    _, error = command("--conversation", "owner/set:part", "--tokenizer", str(folder), "--html", str(tmp_path / "t"))
    assert error == "error: owner/set:part: cannot be read (ConnectionError: no network here)"


def test_rows_of_the_hub_are_streamed_no_further_than_asked(folder, tmp_path, command, monkeypatch):
    given = []

    class Stream:
        column_names = ["messages", "source"]

        def select_columns(self, columns):
            given.append(columns)
            return ({"messages": row} for row in [*ROWS[:2], None])

    monkeypatch.setattr("datasets.load_dataset", lambda *asked, **_: given.append(asked) or Stream())
    options = ("--tokenizer", str(folder), "--html", str(tmp_path / "t.html"))
    output, error = command("--conversation", "owner/set:part", "--row", "2", *options)
    assert not error and "Number 2." in output and given == [("owner/set", "part"), ["messages"]]


def test_the_recipe_of_the_tokenizer_chooses_the_family(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(protocol.__file__).parents[2] / "scripts"))
    monkeypatch.setenv("CRAWL2CHAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    script = import_module("tokenizer")
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps({"text": TEXT * 3}) + "\n" for _ in range(3)))
    source = script.TextSource(path=str(tmp_path / "pages.jsonl"))
    for family in protocol.FAMILIES:
        output = tmp_path / family
        script.main(script.TokenizerConfig([source], output_dir=str(output), vocab_size=300, chat_template=family))
        tokenizer = load_tokenizer(output)
        assert tokenizer.chat_template == (protocol.CHAT_TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")
        assert tokenizer.convert_tokens_to_ids(protocol.turn_end(tokenizer)) == 3
        assert tokenizer.eos_token == protocol.END_OF_TEXT and len(tokenizer) == 300
    assert script.TokenizerConfig([source], output_dir="").chat_template == "chatml"


def test_the_module_names_no_template_text_of_its_own():
    source = Path(protocol.__file__).read_text(encoding="utf-8")
    assert "{%" not in source
