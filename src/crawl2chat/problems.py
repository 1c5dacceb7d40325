"""Questions out of the tasks: what a recipe asks for, and the rows that practice and conversations are made of."""

import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType

import crawl2chat.tasks
from crawl2chat.stage import fail


@dataclass
class TaskRows:
    """How many questions of one task, and the task's own knobs."""

    name: str = field(metadata={"help": "the folder they are written to, and what metrics call them"})
    task: str = field(metadata={"help": "a module of src/crawl2chat/tasks"})
    train: int = field(default=0, metadata={"help": "questions to train on", "ge": 0})
    test: int = field(default=0, metadata={"help": "questions held out", "ge": 0})
    knobs: dict = field(default_factory=dict, metadata={"help": "arguments of the task's examples()"})


def task_of(entry: TaskRows) -> ModuleType:
    """The entry's task; an unknown one, or a knob that it has not, is one clear line."""
    known = sorted(module.name for module in pkgutil.iter_modules(crawl2chat.tasks.__path__))
    if entry.task not in known:
        fail(f"{entry.name}: no task {entry.task!r} in src/crawl2chat/tasks; there are {', '.join(known)}")
    task = importlib.import_module(f"crawl2chat.tasks.{entry.task}")
    if unknown := set(entry.knobs) - set(inspect.signature(task.examples).parameters):
        fail(f"{entry.name}: task {entry.task} has no knob {sorted(unknown)[0]!r}; see its examples()")
    return task


def ask(entry: TaskRows, split: str, seed: int) -> Iterator[dict]:
    """The task's examples ({"prompt", "answer", "solution", "calls"?}); a knob that is wrong is one clear line."""
    task = task_of(entry)
    try:
        if count := getattr(entry, split):
            yield from task.examples(split, count=count, seed=seed, **entry.knobs)
    except (TypeError, ValueError, LookupError, OSError) as error:
        fail(f"{entry.name}: {error}; check the knobs of task {entry.task}")


def read_problems(entries: Sequence[TaskRows], split: str, seed: int, system: str | None = None) -> list[dict]:
    """The entries' questions of a split ("train" or "test"), each once and after the message `system` where one is
    given: {"prompt", "answer", "task", "name", "calls"?}. A training question that a test asks too stops with
    one line, whatever the task promises.
    """
    found: dict[str, dict] = {}
    for entry in entries:
        for example in ask(entry, split, seed):
            row = {key: example[key] for key in ("prompt", "answer", "calls") if key in example}
            found.setdefault(json.dumps(example["prompt"]), {**row, "task": entry.task, "name": entry.name})
    if split == "train":
        for entry in entries:
            for example in ask(entry, "test", seed):
                if json.dumps(example["prompt"]) in found:
                    question = example["prompt"][-1]["content"]
                    fail(f"{entry.name}: a question of its test split would be practised: {question!r}")
    if not found:
        fail(f"no problem of the {split} split: give an entry of the recipe `{split}: N`")
    before = [{"role": "system", "content": system}] if system else []
    return [{**row, "prompt": before + row["prompt"]} for row in found.values()]
