"""Talk to a model in the terminal, its tools at work before your eyes; or ask it questions and leave.

Reads: a model folder, the search index of scripts/conversations.py
Writes: nothing

python scripts/chat.py recipes/laptop/chat.yaml
python scripts/chat.py recipes/laptop/chat.yaml --ask "Who are you?" "What is 27 + 58?"
"""

import os
import sys
from dataclasses import dataclass, field
from typing import Literal

import torch

from crawl2chat.decoding import Sampling
from crawl2chat.engine import complete, forget, stream
from crawl2chat.model import check_fit, load_model
from crawl2chat.protocol import CHAT_TEMPLATES, END_OF_TEXT, load_tokenizer
from crawl2chat.recipe import parse_recipe
from crawl2chat.stage import fail
from crawl2chat.tools import open_tools

HELP = """/system TEXT      start over with this system message (without TEXT: with none)
/temperature T    0: always the likeliest word; 1: as the model has it
/reset            forget the conversation
/help             these lines
/quit             leave (so do Ctrl-D and, at the prompt, Ctrl-C)"""


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


RECIPE = (ChatConfig,)
COLOURS = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def show(text: str, colour: str = "") -> None:
    """Print a piece of text without a newline; what a terminal would take as a command is left out of it."""
    text = "".join(c for c in text if c in "\n\t" or (c.isprintable() or c == "\u200d"))
    print(f"\033[{colour}m{text}\033[0m" if colour and COLOURS else text, end="", flush=True)


def reply(config: ChatConfig, model, tokenizer, tools: list, messages: list[dict]) -> list[dict]:
    """Print the model's reply as it is made. Returns its turns; none where the question does not fit."""
    options = {key: getattr(config, key) for key in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")}
    try:
        if (
            tokenizer.chat_template is None or tokenizer.eos_token == END_OF_TEXT
        ):  # a base model: it continues a document
            template = (CHAT_TEMPLATES / "transcript.jinja").read_text(encoding="utf-8")
            document = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
            text = complete(model, tokenizer, [(tokenizer.eos_token or "") + document], **options)[0].text
            text = text.partition("\nHuman:")[0].strip()
            show(text + "\n")
            return [{"role": "assistant", "content": text}]
        pieces = stream(model, tokenizer, messages, tools, describe_tools=config.describe_tools, **options)
        while True:
            piece = next(pieces)
            show(f"\n  {piece.text}\n" if piece.role == "tool" else piece.text, "2" if piece.role == "tool" else "")
    except StopIteration as finished:
        show("\n" if finished.value.ended else " ...\n")
        return finished.value.messages
    except ValueError as error:
        show(f"({error})\n", "2")
        return []


def main(config: ChatConfig) -> None:
    torch.set_float32_matmul_precision("high" if torch.cuda.is_available() else "medium")

    # tokenizer, model, tools
    tokenizer = load_tokenizer(config.model_name_or_path)
    model = load_model(config.model_name_or_path).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    check_fit(model, tokenizer, config.model_name_or_path)
    try:
        tools = open_tools(config.tools, config.search_index, config.backend)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        fail(f"chat: {error}")

    # questions from the command line
    start = [{"role": "system", "content": config.system}] if config.system else []
    for question in config.ask:
        show(f"> {question}\n", "1")
        reply(config, model, tokenizer, tools, [*start, {"role": "user", "content": question}])
    if config.ask:
        return

    # a conversation
    show(f"{config.model_name_or_path}. /help lists what you can do besides talking.\n", "2")
    messages = list(start)
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            show("\n")
            return
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return
        if command == "/help":
            show(HELP + "\n", "2")
        elif command in ("/reset", "/system"):
            if command == "/system":
                start = [{"role": "system", "content": rest.strip()}] if rest.strip() else []
            messages = list(start)
            show("(a new conversation)\n", "2")
        elif command == "/temperature":
            try:
                config.temperature = Sampling(float(rest)).temperature
            except ValueError:
                show("(a temperature is a number from 0 on, such as 0.7)\n", "2")
        elif line.startswith("/"):
            show(f"(no command {command}; /help lists them)\n", "2")
        elif line:
            messages.append({"role": "user", "content": line})
            messages, dropped = forget(model, tokenizer, messages, config.max_new_tokens)
            if dropped:
                show(f"(the {dropped} oldest turns are forgotten: the model's context is full)\n", "2")
            try:
                turns = reply(config, model, tokenizer, tools, messages)
            except KeyboardInterrupt:
                turns = []
                show("\n(stopped)\n", "2")
            messages = messages + turns if turns else messages[:-1]
            config.seed += 1


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
