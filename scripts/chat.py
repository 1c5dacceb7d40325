"""Talk to a model in the terminal, its tools at work before your eyes; ask it questions and leave; or serve it.

Reads: a model folder, the search index of scripts/conversations.py
Writes: nothing but what /save is told to

python scripts/chat.py recipes/laptop/chat.yaml
python scripts/chat.py recipes/laptop/chat.yaml --ask "Who are you?" "What is 27 + 58?"
python scripts/chat.py recipes/laptop/chat.yaml --serve
"""

from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from crawl2chat.answering import Desk, Served
from crawl2chat.model import check_fit, load_model
from crawl2chat.protocol import load_tokenizer
from crawl2chat.recipe import parse_recipe
from crawl2chat.serving import ServeConfig, serve
from crawl2chat.stage import fail
from crawl2chat.terminal import ChatConfig, Talk, show
from crawl2chat.tools import open_tools

RECIPE = (ChatConfig, ServeConfig)


def served(config: ChatConfig, serving: ServeConfig) -> list[Served]:
    """The checkpoints to serve: the recipe's that are there, and the model to talk to, under its folder's name."""
    found = {}
    for entry in serving.checkpoints:
        if Path(entry.model).is_dir() or not entry.model.startswith(("output/", "/", ".", "~")):
            found[entry.name] = entry
        else:
            print(f"chat: {entry.name} is not served: there is no folder {entry.model}")
    if config.model_name_or_path not in [entry.model for entry in found.values()]:
        name = Path(config.model_name_or_path).name
        found[name] = Served(name, config.model_name_or_path)
    return list(found.values())


def main(config: ChatConfig, serving: ServeConfig) -> None:
    torch.set_float32_matmul_precision("high" if torch.cuda.is_available() else "medium")
    disable_progress_bar()  # of the loading of weights: it would be a line in the conversation

    # tools
    try:
        tools = open_tools(config.tools, config.search_index, config.backend)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        fail(f"chat: {error}")

    # clients of the OpenAI API, and the page
    if serving.serve:
        defaults = {key: getattr(config, key) for key in ("temperature", "top_k", "top_p", "system")}
        defaults["max_tokens"] = config.max_new_tokens
        options = {key: getattr(serving, key) for key in ("at_once", "queue", "time_limit")}
        desk = Desk(served(config, serving), tools, defaults, config.describe_tools, **options)
        return serve(desk, serving)

    # tokenizer, model
    tokenizer = load_tokenizer(config.model_name_or_path)
    model = load_model(config.model_name_or_path).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    check_fit(model, tokenizer, config.model_name_or_path)
    talk = Talk(config, model, tokenizer, tools)

    # questions from the command line, each on its own
    for question in config.ask:
        show(f"> {question}\n", "1")
        talk.reply([*talk.start, {"role": "user", "content": question}])
    if not config.ask:
        talk.loop()


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
