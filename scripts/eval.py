"""Grade every checkpoint on every task: accuracy with its standard error, replies that end, bits per byte, benchmarks.

Reads: model folders, held-out questions (<task>/test.jsonl), held-out pages (heldout.jsonl), the search index
Writes: metrics.json (<checkpoint>/<task>/accuracy, pass_at_<k>, <checkpoint>/bits_per_byte, ...), replies.jsonl,
settings.json (the prompts' digest, the sampling and the versions: what runs that compare must share)

accelerate launch scripts/eval.py recipes/eval.yaml
python scripts/eval.py recipes/laptop/eval.yaml
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from crawl2chat import evaluation, interrogation
from crawl2chat.benchmarks import Benchmarks, evaluate_benchmarks
from crawl2chat.evaluation import Checkpoint, Questions
from crawl2chat.model import check_fit, load_model
from crawl2chat.protocol import CHAT_TEMPLATES, load_tokenizer
from crawl2chat.recipe import parse_recipe
from crawl2chat.runs import versions
from crawl2chat.stage import fail, finish, write_text
from crawl2chat.tools import open_tools


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
    backend: Literal["monty", "cpython"] = field(default="monty", metadata={"help": "the Python that a reply calls"})
    temperature: float = field(default=0.0, metadata={"help": "0 is greedy", "ge": 0})
    top_k: int = field(default=0, metadata={"help": "draw from so many likeliest tokens; 0: all", "ge": 0})
    top_p: float = field(default=1.0, metadata={"help": "draw from the likeliest that hold it", "gt": 0, "le": 1})
    seed: int = field(default=0, metadata={"help": "draws, and picks the questions where there are more than n"})
    lm_eval: Benchmarks | None = field(default=None, metadata={"help": "public benchmarks to run as well"})


RECIPE = (EvalConfig,)


def main(config: EvalConfig) -> None:
    torch.set_float32_matmul_precision("high" if torch.cuda.is_available() else "medium")
    disable_progress_bar()  # of the loading of weights: one bar is enough

    # data: questions and pages that no stage has trained on
    graders = {entry.name: evaluation.load_task(entry.task or entry.name) for entry in config.tasks}
    questions = {entry.name: evaluation.held_out(entry, config.conversations, config.seed) for entry in config.tasks}
    for name in [name for name, rows in questions.items() if not rows]:
        print(f"eval: {name}: its test.jsonl is empty, left out")
        del questions[name]
    asking = [entry for entry in config.tasks if entry.name in questions]
    pages = evaluation.read_rows(config.heldout, ("text", "source")) if config.heldout else []
    names = list(dict.fromkeys(tool for entry in config.tasks for tool in entry.tools))
    try:
        tools = dict(zip(names, open_tools(names, config.search_index, config.backend), strict=True))
    except (ValueError, OSError, RuntimeError) as error:
        fail(f"eval: {error}")

    generation = {key: getattr(config, key) for key in ("temperature", "top_k", "top_p", "seed")}
    drawn = {entry.name: evaluation.settings(entry, questions[entry.name], **generation) for entry in asking}
    metrics: dict[str, float] = {}
    replies: list[dict] = []
    asked = sum(len(questions[entry.name]) * entry.samples for entry in asking)
    bar = tqdm(total=len(config.checkpoints) * (asked + len(pages)), unit=" questions")
    for checkpoint in config.checkpoints:
        # tokenizer, model
        name = checkpoint.name
        tokenizer = load_tokenizer(checkpoint.path)
        model = load_model(checkpoint.path).to("cuda" if torch.cuda.is_available() else "cpu").eval()
        check_fit(model, tokenizer, checkpoint.path)
        transcript = (CHAT_TEMPLATES / "transcript.jinja").read_text() if checkpoint.prompt == "transcript" else None

        # tasks: answer, grade
        room = {"max_new_tokens": checkpoint.max_new_tokens or config.max_new_tokens, "batch_size": config.batch_size}
        ended = []
        for entry in asking:
            bar.set_description(f"{name} {entry.name}")
            given = [tools[tool] for tool in entry.tools]
            how = {key: drawn[entry.name][key] for key in (*generation, "samples")} | room
            how["progress"] = entry.samples > 1
            try:
                found = evaluation.evaluate_task(
                    model, tokenizer, graders[entry.name], questions[entry.name], given, transcript, **how
                )
            except ValueError as error:  # a question that does not fit the model, a grader that fails on every answer
                fail(f"eval: {name} on {entry.name}: {error}")
            rows, ungraded = found.pop("rows"), found.pop("ungraded")
            metrics |= {f"{name}/{entry.name}/{key}": value for key, value in found.items() if key != "ended"}
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
        scores = evaluation.evaluate_pages(model, tokenizer, pages, config.max_length)
        bar.update(len(pages))

        # public benchmarks
        if config.lm_eval:
            scores |= evaluate_benchmarks(model, tokenizer, config.lm_eval)
        metrics |= {f"{name}/{key}": value for key, value in scores.items()}
    bar.close()

    # save
    names = [checkpoint.name for checkpoint in config.checkpoints]
    print(evaluation.capability_table(metrics, names, list(questions)))
    asked_after = [r for r in replies if r["checkpoint"] == names[-1] and r["task"] in interrogation.GROUPS]
    found = interrogation.cell_metrics(asked_after, "after")
    metrics |= {f"interrogate/{key}": value for key, value in found.items()}
    if found:
        print(interrogation.cells_table(asked_after, f"{names[-1]}"))
    replies_file = Path(config.output_dir) / "replies.jsonl"
    write_text(replies_file, "".join(json.dumps(row) + "\n" for row in replies))
    who = [asdict(checkpoint) for checkpoint in config.checkpoints]
    kept = {"tasks": drawn, "checkpoints": who, "max_new_tokens": config.max_new_tokens, "versions": versions()}
    write_text(Path(config.output_dir) / "settings.json", json.dumps(kept, indent=1) + "\n")
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
