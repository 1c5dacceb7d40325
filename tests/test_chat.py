"""The terminal chat: questions on the command line, commands, tools as they run, and clear refusals."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from crawl2chat import terminal
from crawl2chat.engine import Reply
from crawl2chat.protocol import END_OF_TEXT, IM_END
from crawl2chat.recipe import parse_recipe
from crawl2chat.speaking import Part, Spoken
from crawl2chat.tools.search import build_index
from tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]


@pytest.fixture
def chat():
    spec = importlib.util.spec_from_file_location("chat_script", ROOT / "scripts" / "chat.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["chat_script"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["chat_script"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A finetuned and a base model, and an index to search in."""
    root = tmp_path_factory.mktemp("chat")
    for name, eos_token in (("sft", IM_END), ("base", END_OF_TEXT)):
        tokenizer = tiny_tokenizer(eos_token)
        tokenizer.save_pretrained(root / name)
        tiny_model(tokenizer).save_pretrained(root / name)
    (root / "pages.jsonl").write_text(
        json.dumps({"text": "The capital of Peru is Lima, by the sea.", "url": "x"}) + "\n"
    )
    build_index([root / "pages.jsonl"], root / "index")
    return root


def run(chat, *flags: str) -> None:
    chat.main(*parse_recipe(*chat.RECIPE, args=[str(flag) for flag in flags]))


def talk(chat, monkeypatch, capsys, folders, *lines: str) -> str:
    """What a conversation with these typed lines prints."""
    typed = iter(lines)

    def read(_):
        line = next(typed, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", read)
    run(chat, "--model_name_or_path", folders / "sft", "--max_new_tokens", "8")
    return capsys.readouterr().out


def test_questions_on_the_command_line_are_answered_and_that_is_all(chat, folders, capsys):
    run(chat, "--model_name_or_path", folders / "sft", "--max_new_tokens", 8, "--ask", "Who are you?", "hi")
    lines = capsys.readouterr().out.splitlines()
    assert "> Who are you?" in lines and "> hi" in lines
    assert lines.index("> hi") >= lines.index("> Who are you?") + 2


def saying(monkeypatch, *parts: Part, asked: list | None = None) -> None:
    """Replies are these parts; `asked` keeps what each was asked with."""

    def speak(model, tokenizer, ids, tools, read_calls, **options):
        if asked is not None:
            asked.append((tokenizer.decode(ids), tools, options))
        yield from parts
        words = "".join(part.text for part in parts if part.kind == "words")
        return Spoken(Reply(messages=[{"role": "assistant", "content": words}], ended=True), "stop")

    monkeypatch.setattr(terminal, "speak", speak)


def test_a_base_model_answers_as_a_page_would_go_on(chat, folders, capsys, monkeypatch):
    asked = []
    saying(monkeypatch, Part("words", "Paris."), asked=asked)
    run(chat, "--model_name_or_path", folders / "base", "--ask", "What is the capital of France?")
    assert asked[0][0] == f"{END_OF_TEXT}Human: What is the capital of France?\n\nAssistant:"
    assert capsys.readouterr().out.splitlines() == ["> What is the capital of France?", "Paris."]


def test_calls_and_results_are_shown_as_they_come(chat, folders, capsys, monkeypatch):
    call = Part("call", '{"query": "capital of Peru"}', (), "search")
    result = Part("result", "The capital of Peru is Lima. [x]", (), "search")
    saying(monkeypatch, Part("words", "Well."), call, result, Part("words", "Lima."))
    run(chat, "--model_name_or_path", folders / "sft", "--ask", "q")
    output = capsys.readouterr().out
    assert 'Well.\n  search {"query": "capital of Peru"}\n   -> The capital of Peru is Lima. [x]\nLima.\n' in output


def test_the_tools_of_the_recipe_are_the_models(chat, folders, monkeypatch):
    asked = []
    saying(monkeypatch, asked=asked)
    run(chat, "--model_name_or_path", folders / "sft", "--tools", "search", "python",
        "--search_index", folders / "index", "--ask", "q")  # fmt: skip
    search, python = asked[0][1]
    assert "Lima" in search("capital of Peru") and python("27 * 58") == "1566"


def test_thoughts_are_folded_and_shown_when_asked_for(chat, folders, capsys, monkeypatch):
    saying(monkeypatch, Part("thought", "hm, ", (1, 2)), Part("thought", "twelve", (3,)), Part("words", "12."))
    output = talk(chat, monkeypatch, capsys, folders, "q", "/think")
    assert "(thought for 3 tokens, /think shows it)\n12.\n" in output
    assert output.index("hm, twelve") > output.index("12.\n")


def test_the_python_that_the_model_calls_is_the_recipes(chat, folders, monkeypatch):
    opened = []
    monkeypatch.setattr(chat, "open_tools", lambda *arguments: opened.append(arguments) or [])
    saying(monkeypatch)
    for flags in ((), ("--backend", "cpython")):
        run(chat, "--model_name_or_path", folders / "sft", "--tools", "python", *flags, "--ask", "q")
    assert opened == [(["python"], None, "monty"), (["python"], None, "cpython")]
    with pytest.raises(SystemExit) as stop:
        run(chat, "--model_name_or_path", folders / "sft", "--backend", "exec")
    assert stop.value.code == 2


def test_history_is_kept_until_reset(chat, folders, capsys, monkeypatch):
    asked = []
    saying(monkeypatch, Part("words", "ok"), asked=asked)
    lines = (
        "one",
        "two",
        "/temperature 0.5",
        "/reset",
        "three",
        "/system Be kind.",
        "four",
        "/system",
        "five",
        "",
        "/quit",
        "six",
    )
    output = talk(chat, monkeypatch, capsys, folders, *lines)
    said = [
        (prompt.removesuffix("<|im_start|>assistant\n").split("<|im_start|>")[1:], options["temperature"])
        for prompt, _, options in asked
    ]
    user, ok = (lambda text: f"user\n{text}<|im_end|>\n"), "assistant\nok<|im_end|>\n"
    assert said == [
        ([user("one")], 0.0),
        ([user("one"), ok, user("two")], 0.0),
        ([user("three")], 0.5),
        (["system\nBe kind.<|im_end|>\n", user("four")], 0.5),
        ([user("five")], 0.5),
    ]
    assert output.count("(a new conversation)") == 3


def test_a_question_is_asked_again_and_taken_back(chat, folders, capsys, monkeypatch):
    asked = []
    saying(monkeypatch, Part("words", "ok"), asked=asked)
    output = talk(
        chat, monkeypatch, capsys, folders, "/again", "one", "two", "/again", "/undo", "/undo", "/undo", "three"
    )
    said = [prompt.count("<|im_start|>user") for prompt, _, _ in asked]
    assert said == [1, 2, 2, 1] and [options["seed"] for _, _, options in asked] == [0, 1, 2, 3]
    assert "two" in asked[2][0] and "two" not in asked[3][0]
    assert output.count("(nothing was asked yet)") == 2 and output.count("(taken back)") == 2


def test_a_conversation_is_saved_for_its_owner_and_loaded(chat, folders, capsys, monkeypatch, tmp_path):
    asked = []
    saying(monkeypatch, Part("words", "ok"), asked=asked)
    file = tmp_path / "talk.json"
    output = talk(chat, monkeypatch, capsys, folders, "one", f"/save {file}", "/reset", f"/load {file}", "two",
                  f"/save {file}", "/save", "/save /nowhere/x")  # fmt: skip
    assert file.stat().st_mode & 0o777 == 0o600 and len(json.loads(file.read_text())["messages"]) == 2
    assert asked[1][0].count("<|im_start|>user") == 2 and "> one\nok\n" in output
    assert "is there already" in output and "needs the name of a file" in output and "not saved" in output


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"messages": 5}', '[{"role": "king", "content": "x"}]', '[{"role": "user"}]', "\x00"]
)
def test_a_file_that_is_no_conversation_is_one_line_and_changes_nothing(
    chat, folders, capsys, monkeypatch, tmp_path, text
):
    asked = []
    saying(monkeypatch, Part("words", "ok"), asked=asked)
    (tmp_path / "talk.json").write_text(text)
    output = talk(chat, monkeypatch, capsys, folders, "one", f"/load {tmp_path / 'talk.json'}", "two")
    assert output.count("(not loaded: ") == 1 and asked[1][0].count("<|im_start|>user") == 2


def test_ctrl_c_stops_a_reply_and_not_the_chat(chat, folders, capsys, monkeypatch):
    asked = []

    def speak(model, tokenizer, ids, *arguments, **options):
        asked.append(tokenizer.decode(ids))
        yield Part("words", "Well, ")
        if len(asked) == 1:
            raise KeyboardInterrupt
        return Spoken(Reply(messages=[{"role": "assistant", "content": "ok"}], ended=True), "stop")

    monkeypatch.setattr(terminal, "speak", speak)
    output = talk(chat, monkeypatch, capsys, folders, "one", "two")
    assert "Well, \n(stopped)\n" in output and "one" not in asked[1]


def test_the_last_replys_tokens_are_shown_with_their_probabilities(chat, folders, capsys, monkeypatch):
    output = talk(chat, monkeypatch, capsys, folders, "/tokens", "hi", "/tokens")
    assert "(0 of the context's 256 tokens are taken)" in output
    assert output.count("%") >= 5 and "<|im_end|>" not in output.partition("> ")[0]


def test_the_server_gets_the_checkpoints_that_are_there_and_the_model_to_talk_to(chat, folders, capsys, monkeypatch):
    served = []
    monkeypatch.setattr(chat, "serve", lambda desk, serving: served.append((desk, serving)))
    entries = [{"name": "tuned", "model": str(folders / "sft")}, {"name": "gone", "model": "output/gone"}]
    run(chat, "--model_name_or_path", folders / "base", "--checkpoints", json.dumps(entries), "--serve", "--port", 1,
        "--temperature", 0.5, "--tools", "python")  # fmt: skip
    ((desk, serving),) = served
    assert {name: checkpoint.path for name, checkpoint in desk.checkpoints.items()} == {
        "tuned": str(folders / "sft"),
        "base": str(folders / "base"),
    }
    assert "gone is not served: there is no folder output/gone" in capsys.readouterr().out
    assert desk.defaults["temperature"] == 0.5 and desk.defaults["max_tokens"] == 256 and serving.port == 1
    assert all(checkpoint.loaded is None for checkpoint in desk.checkpoints.values())


def test_commands_that_are_none_and_bad_values_are_told(chat, folders, capsys, monkeypatch):
    output = talk(
        chat,
        monkeypatch,
        capsys,
        folders,
        "/help",
        "/bogus",
        "/temperature hot",
        "/temperature -1",
        "/temperature nan",
    )
    assert "/system TEXT" in output and "no command /bogus" in output
    assert output.count("a temperature is a number") == 3


def test_a_conversation_longer_than_the_context_goes_on(chat, folders, capsys, monkeypatch):
    output = talk(chat, monkeypatch, capsys, folders, *["hello " * 30] * 5, "hello " * 200, "hi")
    assert "oldest turns are forgotten" in output
    assert "256 positions" in output and "Traceback" not in output


def test_what_a_terminal_would_obey_is_not_printed(capsys):
    terminal.show("a\x1b[2Jb\x07\r\n\tc é漢😀\x9b1m")
    assert capsys.readouterr().out == "a[2Jb\n\tc é漢😀1m"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--tools", "serch"], "no tool 'serch'"),
        (["--tools", "search"], "needs `search_index`"),
        (["--tools", "search", "--search_index", "{root}/sft"], "no search index"),
        (["--model_name_or_path", "{root}/index"], "no tokenizer.json"),
        (["--model_name_or_path", "{root}/bare"], "no weights"),
        (["--model_name_or_path", "{root}/small"], "embedding"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(chat, folders, flags, message):
    if not (folders / "bare").exists():
        tokenizer = tiny_tokenizer()
        for name in ("bare", "small"):
            tokenizer.save_pretrained(folders / name)
        model = tiny_model(tokenizer)
        model.config.save_pretrained(folders / "bare")
        model.resize_token_embeddings(len(tokenizer) - 5)
        model.save_pretrained(folders / "small")
    flags = [flag.format(root=folders) for flag in flags]
    if "--model_name_or_path" not in flags:
        flags = ["--model_name_or_path", str(folders / "sft"), *flags]
    with pytest.raises(SystemExit) as stop:
        run(chat, *flags)
    assert message in str(stop.value) and "\n" not in str(stop.value)


def test_the_laptops_recipe_parses(chat, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        parse_recipe(*chat.RECIPE, args=["recipes/laptop/chat.yaml", "--dry_run"])
    assert stop.value.code in (0, 1)  # 1 where the run is not there yet
