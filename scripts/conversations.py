"""Write the tasks' conversations for supervised finetuning, and the questions that are held out from it.

Reads: facts.jsonl and shards of scripts/data.py; with `labelling`, a model behind an endpoint and its instructions
Writes: <task>/train.jsonl ({"messages", "task"}), <task>/test.jsonl ({"prompt", "answer", ...}), metrics.json

python scripts/conversations.py recipes/laptop/conversations.yaml
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from crawl2chat.labelling import Labelling, label
from crawl2chat.problems import TaskRows, ask
from crawl2chat.recipe import parse_recipe
from crawl2chat.stage import fail, finish, write_text
from crawl2chat.tools import for_one_reply, open_tools
from crawl2chat.tools.search import build_index


@dataclass
class ConversationsConfig:
    """What is asked, how often, and the pages that search looks into."""

    tasks: list[TaskRows] = field(metadata={"help": "one entry a task"})
    output_dir: str = field(metadata={"help": "where the rows go"})
    search_pages: list[str] = field(
        default_factory=list, metadata={"help": "shards that search looks into", "reads": True}
    )
    labelling: Labelling | None = field(
        default=None, metadata={"help": "conversations that a model writes from the labelling instructions, judged"}
    )
    seed: int = field(default=0, metadata={"help": "decides questions and wordings"})


RECIPE = (ConversationsConfig,)


def converse(example: dict, tools: list[Callable[[str], str]]) -> list[dict]:
    """The whole conversation: prompt, calls with what the tools answer (in a session of its own), solution."""
    turns, tools = list(example["prompt"]), {tool.__name__: tool for tool in for_one_reply(tools)}
    for call in example.get("calls", []):
        turns.append({"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]})
        turns.append({"role": "tool", "name": call["name"], "content": tools[call["name"]](**call["arguments"])})
    return [*turns, {"role": "assistant", "content": example["solution"]}]


def main(config: ConversationsConfig) -> None:
    names = [entry.name for entry in config.tasks] + ([config.labelling.name] if config.labelling else [])
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        fail(f"conversations: {twice[0]!r} names {names.count(twice[0])} folders; give each task a name of its own")

    # tools answer for real: a conversation whose results do not hold the answer teaches invention, so it is dropped
    output = Path(config.output_dir)
    try:
        if config.search_pages:
            build_index(config.search_pages, output / "index")
        tools = open_tools(["python", "search"] if config.search_pages else ["python"], output / "index")
    except (ValueError, OSError, RuntimeError) as error:
        fail(f"conversations: {error}")

    rows, dropped, asked_in_training = Counter(), Counter(), set()
    for entry in tqdm(config.tasks, desc="conversations"):
        # train
        lines = []
        for example in ask(entry, "train", config.seed):
            if missing := {call["name"] for call in example.get("calls", [])} - {t.__name__ for t in tools}:
                fail(f"conversations: {entry.name} calls {', '.join(missing)}: give the recipe `search_pages`")
            messages = converse(example, tools)
            results = [m["content"] for m in messages if m["role"] == "tool"]
            if results and example["answer"].lower() not in results[-1].lower():
                dropped[entry.name] += 1
                continue
            asked_in_training.add(json.dumps(example["prompt"]))
            lines.append(json.dumps({"messages": messages, "task": entry.name}))
        if entry.train and not lines:
            fail(
                f"conversations: {entry.name} gave no row to train on ({dropped[entry.name]} dropped); check its knobs"
            )
        write_text(output / entry.name / "train.jsonl", "".join(f"{line}\n" for line in lines))
        rows[entry.name] = len(lines)

        # test: no question of the training rows, whatever the task promises
        lines = []
        for example in ask(entry, "test", config.seed):
            if json.dumps(example["prompt"]) in asked_in_training:
                question = example["prompt"][-1]["content"]
                fail(f"conversations: {entry.name} asks a training question in its test split: {question!r}")
            lines.append(json.dumps({**example, "task": entry.name}))
        write_text(output / entry.name / "test.jsonl", "".join(f"{line}\n" for line in lines))

    for name, count in dropped.items():
        print(f"conversations: {name}: {count} rows dropped, the tool's result did not hold the answer")

    # labelling, last: if the endpoint goes down, all of the above is there
    labelled = label(config.labelling, output, config.seed) if config.labelling else {}
    rows.update({config.labelling.name: labelled["labelling/kept"]} if config.labelling else {})
    finish(
        output,
        {
            "rows": sum(rows.values()),
            "dropped": sum(dropped.values()),
            **{f"rows/{name}": n for name, n in rows.items()},
            **labelled,
        },
        read=f"{len(config.tasks)} tasks" + "".join(f", {path}" for path in config.search_pages),
        wrote=str(output),
        headline=f"{sum(rows.values()):,} conversations, {sum(dropped.values())} dropped",
    )


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
