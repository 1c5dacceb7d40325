"""A conversation in the terminal: the reply as it is written, thoughts folded, tools at work, and commands.

Arrow keys bring back what was typed, where Python has readline; it is not kept when the chat ends, for it is private.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crawl2chat.decoding import Sampling
from crawl2chat.engine import context_length, forget
from crawl2chat.mixture import check_messages
from crawl2chat.speaking import Spoken, prompt_ids, speak
from crawl2chat.token_probabilities import token_rows

HELP = """/system TEXT      start over with this system message (without TEXT: with none)
/temperature T    0: always the likeliest word; 1: as the model has it
/again            another reply to the last question
/undo             take back the last question and its reply
/think            show what the model thought before its last reply
/tokens           the last reply's tokens and their probabilities; how full the context is
/save FILE        write the conversation, readable by you alone
/load FILE        go on with a conversation that was saved
/reset            forget the conversation
/help             these lines
/quit             leave (so do Ctrl-D and, at the prompt, Ctrl-C; during a reply Ctrl-C stops the reply)"""
COLOURS = sys.stdout.isatty() and "NO_COLOR" not in os.environ


@dataclass
class ChatConfig:
    """Who answers, and how."""

    model_name_or_path: str = field(
        metadata={"help": "a model folder with its tokenizer, base or finetuned, or a hub name"}
    )
    tools: list[str] = field(default_factory=list, metadata={"help": "what the model may call: search, python"})
    search_index: str | None = field(default=None, metadata={"help": "the index search looks into", "reads": True})
    backend: Literal["monty", "cpython"] = field(default="monty", metadata={"help": "the Python that the model calls"})
    describe_tools: bool = field(default=False, metadata={"help": "tell the model of its tools in the system message"})
    system: str = field(default="", metadata={"help": "the system message; empty: none"})
    temperature: float = field(default=0.0, metadata={"help": "0 is greedy", "ge": 0})
    top_k: int = field(default=0, metadata={"help": "draw from the k likeliest tokens; 0: from all", "ge": 0})
    top_p: float = field(default=1.0, metadata={"help": "draw from the likeliest tokens that hold this share"})
    max_new_tokens: int = field(default=256, metadata={"help": "tokens a reply may take", "ge": 1})
    seed: int = field(default=0, metadata={"help": "of the drawing"})
    ask: list[str] = field(default_factory=list, metadata={"help": "questions, each on its own; then leave"})


def show(text: str, colour: str = "") -> None:
    """Print a piece of text without a newline; what a terminal would take as a command is left out of it."""
    text = "".join(c for c in text if c in "\n\t" or (c.isprintable() or c == "\u200d"))
    print(f"\033[{colour}m{text}\033[0m" if colour and COLOURS else text, end="", flush=True)


def note(text: str) -> None:
    show(f"({text})\n", "2")


class Talk:
    """One conversation: what was said, and how the next reply is made."""

    def __init__(
        self,
        config: ChatConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tools: Sequence[Callable] = (),
    ):
        self.config, self.model, self.tokenizer, self.tools = config, model, tokenizer, list(tools)
        self.start = [{"role": "system", "content": config.system}] if config.system else []
        self.messages, self.thoughts = list(self.start), ""

    def prompt(self, messages: list[dict]) -> list[int]:
        return prompt_ids(self.tokenizer, messages, self.tools if self.config.describe_tools else ())

    def reply(self, messages: list[dict]) -> list[dict]:
        """Print the model's reply as it is made. Returns its turns; none where the question does not fit."""
        names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
        options = {name: getattr(self.config, name) for name in names}
        ids = self.prompt(messages)
        if len(ids) >= context_length(self.model):
            note(f"the question is {len(ids)} tokens long and the model has {context_length(self.model)} positions")
            return []
        parts = speak(self.model, self.tokenizer, ids, self.tools, bool(self.tools), **options)
        thinking, self.thoughts, fresh = 0, "", True
        while True:
            try:
                part = next(parts)
            except StopIteration as finished:
                spoken: Spoken = finished.value
                break
            if part.kind == "thought":
                self.thoughts += part.text
                thinking += len(part.ids)
                continue
            if thinking:
                note(f"thought for {thinking} tokens, /think shows it")
                thinking = 0
            if part.kind == "words":
                show(part.text)
            else:
                show(f"{'' if fresh else chr(10)}  {part.name if part.kind == 'call' else ' ->'} {part.text}\n", "2")
            fresh = part.kind != "words" or part.text.endswith("\n")
        if thinking:
            note(f"thought for {thinking} tokens, /think shows it")
        show("\n" if spoken.reason == "stop" else " ...\n")
        return spoken.reply.messages

    def ask(self, question: str) -> None:
        """Say something and keep it with the reply; a reply that is stopped is taken back with its question."""
        asked = [*self.messages, {"role": "user", "content": question}]
        asked, dropped = forget(self.model, self.tokenizer, asked, self.config.max_new_tokens, self.prompt)
        if dropped:
            note(f"the {dropped} oldest turns are forgotten: the model's context is full")
        try:
            turns = self.reply(asked)
        except KeyboardInterrupt:
            turns = []
            show("\n")
            note("stopped")
        self.messages = asked + turns if turns else asked[:-1]
        self.config.seed += 1

    def undo(self) -> str | None:
        """Take the last question back. Returns it, or None where nothing was asked."""
        asked = [at for at, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            return None
        question = self.messages[asked[-1]]["content"]
        self.messages = self.messages[: asked[-1]]
        return question

    def tokens(self) -> None:
        """Print the last reply's tokens with their probabilities, and how much of the context is taken."""
        try:
            rows = token_rows(self.model, self.tokenizer, self.messages) if self.messages else []
        except ValueError as error:  # with its last end token the conversation may be longer than the context
            note(str(error))
            return
        last = max((at for at, row in enumerate(rows) if row["role"] == "user"), default=-1)
        for row in rows[last + 1 :]:
            if row["written"]:
                show(row["text"].replace("\n", "⏎"))
                show(f" {row['probability']:.0%} ", "2")
        show("\n")
        note(f"{len(rows)} of the context's {context_length(self.model)} tokens are taken")

    def save(self, name: str) -> None:
        path = Path(name).expanduser()
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                json.dump({"messages": self.messages}, file, ensure_ascii=False, indent=1)
            note(f"{len(self.messages)} turns in {path}")
        except FileExistsError:
            note(f"{path} is there already; name another file")
        except (OSError, ValueError) as error:
            note(f"not saved: {error}")

    def load(self, name: str) -> None:
        path = Path(name).expanduser()
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            messages = saved.get("messages") if isinstance(saved, dict) else saved
            check_messages(messages, str(path))
            self.prompt(messages)
        except (SystemExit, Exception) as error:  # a file may hold anything, and a template refuse it in any way
            note(f"not loaded: {str(error).removeprefix('error: ')[:200]}")
            return
        self.messages = messages
        for message in messages:
            show(f"{'> ' if message['role'] == 'user' else ''}{message.get('content') or ''}\n", "2")

    def command(self, name: str, rest: str) -> None:
        """Do what a line that begins with / says."""
        if name == "/help":
            show(HELP + "\n", "2")
        elif name in ("/reset", "/system"):
            if name == "/system":
                self.start = [{"role": "system", "content": rest}] if rest else []
            self.messages, self.thoughts = list(self.start), ""
            note("a new conversation")
        elif name == "/temperature":
            try:
                self.config.temperature = Sampling(float(rest)).temperature
            except ValueError:
                note("a temperature is a number from 0 on, such as 0.7")
        elif name in ("/again", "/undo"):
            question = self.undo()
            if question is None:
                note("nothing was asked yet")
            elif name == "/undo":
                note("taken back")
            else:
                self.ask(question)
        elif name == "/think":
            show((self.thoughts.strip() or "(it thought nothing)") + "\n", "2")
        elif name == "/tokens":
            self.tokens()
        elif name in ("/save", "/load") and rest:
            self.save(rest) if name == "/save" else self.load(rest)
        elif name in ("/save", "/load"):
            note(f"{name} needs the name of a file")
        else:
            note(f"no command {name}; /help lists them")

    def loop(self) -> None:
        """Read lines until the end."""
        with suppress(ImportError):  # Windows has none
            import readline

            readline.set_auto_history(True)
        note(f"{self.config.model_name_or_path}. /help lists what you can do besides talking")
        while True:
            try:
                line = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                show("\n")
                return
            name, _, rest = line.partition(" ")
            if name == "/quit":
                return
            if line.startswith("/"):
                self.command(name, rest.strip())
            elif line:
                self.ask(line)
