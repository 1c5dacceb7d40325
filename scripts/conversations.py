"""Write the tasks' conversations for supervised finetuning, and the questions that are held out from it.

Reads: facts.jsonl and shards of scripts/data.py; with `labelling`, a model behind an endpoint and its instructions
Writes: <task>/train.jsonl ({"messages", "task"}), <task>/test.jsonl ({"prompt", "answer", ...}), metrics.json

python scripts/conversations.py recipes/laptop/conversations.yaml
"""

import importlib
import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from tqdm import tqdm

from crawl2chat.labelling import Labelling, label
from crawl2chat.recipe import parse_recipe
from crawl2chat.stage import fail, finish, write_text
from crawl2chat.tools import for_one_reply, open_tools
from crawl2chat.tools.search import build_index


@dataclass
class TaskRows:
    """How many conversations of one task, and the task's own knobs."""

    name: str = field(metadata={"help": "the folder they are written to, and what metrics call them"})
    task: str = field(metadata={"help": "a module of src/crawl2chat/tasks"})
    train: int = field(default=0, metadata={"help": "conversations to train on", "ge": 0})
    test: int = field(default=0, metadata={"help": "questions held out", "ge": 0})
    knobs: dict = field(default_factory=dict, metadata={"help": "arguments of the task's examples()"})


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


def ask(task: ModuleType, entry: TaskRows, split: str, seed: int) -> Iterator[dict]:
    """The task's examples; a knob that is missing or wrong is one clear line."""
    try:
        if count := getattr(entry, split):
            yield from task.examples(split, count=count, seed=seed, **entry.knobs)
    except (TypeError, ValueError, LookupError, OSError) as error:
        fail(f"conversations: {entry.name}: {error}; check the knobs of task {entry.task}")


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
        try:
            task = importlib.import_module(f"crawl2chat.tasks.{entry.task}")
        except ModuleNotFoundError:
            known = sorted(p.stem for p in Path(__file__).parents[1].glob("src/crawl2chat/tasks/[a-z]*.py"))
            fail(f"conversations: no task {entry.task!r} in src/crawl2chat/tasks; there are {', '.join(known)}")
        unknown = set(entry.knobs) - set(inspect.signature(task.examples).parameters)
        if unknown:
            fail(f"conversations: task {entry.task} has no knob {sorted(unknown)[0]!r}; see its examples()")

        # train
        lines = []
        for example in ask(task, entry, "train", config.seed):
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
        for example in ask(task, entry, "test", config.seed):
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
