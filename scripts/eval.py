"""Grade every checkpoint on every task: accuracy with its standard error, replies that end, bits per byte, benchmarks.

Reads: model folders, held-out questions (<task>/test.jsonl), held-out pages (heldout.jsonl), the search index
Writes: metrics.json (<checkpoint>/<task>/accuracy, <checkpoint>/bits_per_byte, ...), replies.jsonl

accelerate launch scripts/eval.py recipes/eval.yaml
python scripts/eval.py recipes/laptop/eval.yaml
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from crawl2chat import evaluation
from crawl2chat.evaluation import evaluate_benchmarks, evaluate_pages, evaluate_task
from crawl2chat.model import check_fit, load_model
from crawl2chat.protocol import CHAT_TEMPLATES, load_tokenizer
from crawl2chat.recipe import parse_recipe
from crawl2chat.stage import fail, finish, write_text
from crawl2chat.tools.interpreter import open_interpreter
from crawl2chat.tools.search import open_index

PROMPTS = "chat: its own template; transcript: a base model goes on with a page that reads like a conversation"


@dataclass
class Checkpoint:
    """A model to grade."""

    name: str = field(metadata={"help": "what metrics call it"})
    path: str = field(metadata={"help": "a model folder with its tokenizer", "reads": True})
    prompt: str = field(default="chat", metadata={"help": PROMPTS, "choices": ["chat", "transcript"]})
    max_new_tokens: int | None = field(default=None, metadata={"help": "tokens its replies may take", "ge": 1})


@dataclass
class Questions:
    """A task and how it is asked."""

    name: str = field(metadata={"help": "the folder under `conversations` whose test.jsonl is asked"})
    task: str | None = field(default=None, metadata={"help": "the module of src/crawl2chat/tasks; none: the name"})
    n: int = field(default=100, metadata={"help": "questions at most", "ge": 1})
    tools: list[str] = field(default_factory=list, metadata={"help": "what the model may call: search, python"})
    system: str | None = field(default=None, metadata={"help": "a system message before every question"})


@dataclass
class EvalConfig:
    """Who is asked what, and how replies are drawn."""

    checkpoints: list[Checkpoint] = field(metadata={"help": "one entry a model"})
    output_dir: str = field(metadata={"help": "where metrics and replies go"})
    tasks: list[Questions] = field(default_factory=list, metadata={"help": "one entry a task"})
    conversations: str | None = field(default=None, metadata={"help": "folder of <task>/test.jsonl", "reads": True})
    search_index: str | None = field(default=None, metadata={"help": "the index search looks into", "reads": True})
    heldout: str | None = field(default=None, metadata={"help": "rows of held-out pages: text, source", "reads": True})
    max_length: int = field(default=512, metadata={"help": "tokens of a held-out page read at once", "ge": 2})
    max_new_tokens: int = field(default=128, metadata={"help": "tokens a reply may take", "ge": 1})
    batch_size: int = field(default=64, metadata={"help": "conversations answered at once", "ge": 1})
    temperature: float = field(default=0.0, metadata={"help": "0 is greedy", "ge": 0})
    seed: int = field(default=0, metadata={"help": "picks the questions where there are more than n"})
    lm_eval: dict = field(
        default_factory=dict,
        metadata={"help": "public benchmarks: tasks, num_fewshot, limit, include_path, apply_chat_template"},
    )


RECIPE = (EvalConfig,)


def open_tools(config: EvalConfig) -> dict[str, Callable]:
    """The tools that the tasks name, by name."""
    names = {name for entry in config.tasks for name in entry.tools}
    if names - {"search", "python"}:
        fail(f"eval: no tool {min(names - {'search', 'python'})!r}; there are search and python")
    if "search" in names and config.search_index is None:
        fail("eval: a task names the search tool; give `search_index`, the folder that conversations.py wrote")
    tools = {"python": open_interpreter()} if "python" in names else {}
    try:
        return tools | ({"search": open_index(config.search_index)} if "search" in names else {})
    except FileNotFoundError as error:
        fail(f"eval: {error}")


def ask(entry: Questions, config: EvalConfig) -> list[dict]:
    """At most n held-out questions of a task, with its system message."""
    rows = evaluation.read_rows(Path(config.conversations or ".") / entry.name / "test.jsonl", ("prompt", "answer"))
    rows = random.Random(config.seed).sample(rows, min(entry.n, len(rows)))
    system = [{"role": "system", "content": entry.system}] if entry.system else []
    return [{**row, "prompt": system + row["prompt"]} for row in rows]


def main(config: EvalConfig) -> None:
    torch.set_float32_matmul_precision("high" if torch.cuda.is_available() else "medium")

    # data: questions and pages that no stage has trained on
    graders = {entry.name: evaluation.load_task(entry.task or entry.name) for entry in config.tasks}
    questions = {entry.name: ask(entry, config) for entry in config.tasks}
    pages = evaluation.read_rows(config.heldout, ("text", "source")) if config.heldout else []
    tools = open_tools(config)

    generation = {key: getattr(config, key) for key in ("temperature", "seed", "batch_size")}
    metrics: dict[str, float] = {}
    replies: list[dict] = []
    asked = sum(map(len, questions.values()))
    bar = tqdm(total=len(config.checkpoints) * (asked + len(pages)), unit=" questions")
    for checkpoint in config.checkpoints:
        # tokenizer, model
        name = checkpoint.name
        tokenizer = load_tokenizer(checkpoint.path)
        model = load_model(checkpoint.path).eval()
        check_fit(model, tokenizer, checkpoint.path)
        transcript = (CHAT_TEMPLATES / "transcript.jinja").read_text() if checkpoint.prompt == "transcript" else None

        # tasks: answer, grade
        generation["max_new_tokens"] = checkpoint.max_new_tokens or config.max_new_tokens
        ended = []
        for entry in config.tasks:
            bar.set_description(f"{name} {entry.name}")
            given = [tools[tool] for tool in entry.tools]
            try:
                found = evaluate_task(
                    model, tokenizer, graders[entry.name], questions[entry.name], given, transcript, **generation
                )
            except ValueError as error:  # a question that does not fit the model, a grader that fails on every answer
                fail(f"eval: {name} on {entry.name}: {error}")
            rows, ungraded = found["rows"], found["ungraded"]
            metrics |= {f"{name}/{entry.name}/{key}": found[key] for key in ("accuracy", "stderr", "n", "mean_tokens")}
            if ungraded:
                metrics[f"{name}/{entry.name}/ungraded"] = ungraded
                bar.write(f"eval: {name}: {ungraded} of {len(rows)} answers of {entry.name} could not be graded")
            replies += [{"checkpoint": name, "task": entry.name, **row} for row in rows]
            ended += [row["ended"] for row in rows]
            bar.update(len(rows))
        if ended:
            metrics[f"{name}/ended/share"] = sum(ended) / len(ended)

        # held-out pages
        bar.set_description(f"{name} held-out pages")
        scores = evaluate_pages(model, tokenizer, pages, config.max_length)
        metrics |= {f"{name}/{key}": value for key, value in scores.items()}
        bar.update(len(pages))

        # public benchmarks
        benchmarks = evaluate_benchmarks(model, tokenizer, **config.lm_eval) if config.lm_eval else {}
        metrics |= {f"{name}/{key}": value for key, value in benchmarks.items()}
    bar.close()

    # save
    names = [checkpoint.name for checkpoint in config.checkpoints]
    print(evaluation.capability_table(metrics, names, list(questions)))
    replies_file = Path(config.output_dir) / "replies.jsonl"
    write_text(replies_file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in replies))
    mean = sum(metrics[f"{names[-1]}/{task}/accuracy"] for task in questions) / max(len(questions), 1)
    finish(
        config.output_dir,
        metrics,
        read=f"{', '.join(c.path for c in config.checkpoints)}, {asked} questions, {len(pages)} pages",
        wrote=str(replies_file),
        headline=f"{names[-1]}: {mean:.1%} right, the mean of {len(questions)} tasks",
    )


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
