"""Ask a model what it knows, several times each, and write refusals for exactly what it does not know.

Reads: a model folder; facts.jsonl of scripts/data.py
Writes: refusals/train.jsonl and known/train.jsonl ({"messages", "task"}); known, unknown and invented/test.jsonl
({"prompt", "answer", "task"}); facts.jsonl with verdicts; replies.jsonl; metrics.json

python scripts/interrogate.py recipes/laptop/interrogate.yaml
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from crawl2chat import interrogation
from crawl2chat.endpoint import Endpoint
from crawl2chat.evaluation import PROMPTS
from crawl2chat.model import check_fit, load_model
from crawl2chat.protocol import CHAT_TEMPLATES, load_tokenizer
from crawl2chat.recipe import parse_recipe
from crawl2chat.stage import fail, finish, write_text
from crawl2chat.tasks import invented


@dataclass
class InterrogateConfig:
    """Who is asked, about what, and what counts as known."""

    model_name_or_path: str = field(metadata={"help": "a model folder with its tokenizer, or a hub name"})
    facts: list[str] = field(metadata={"help": "files of rows: subject, relation, answer", "reads": True})
    output_dir: str = field(metadata={"help": "where rows, verdicts and metrics go"})
    prompt: str = field(default="chat", metadata={"help": PROMPTS, "choices": ["chat", "transcript"]})
    relations: list[str] = field(
        default_factory=lambda: ["capital", "continent", "symbol", "atomic_number", "known_as"],
        metadata={"help": f"what is asked: {', '.join(interrogation.RELATIONS)}"},
    )
    facts_per_relation: int = field(default=200, metadata={"help": "facts of each relation at most", "ge": 1})
    draws: int = field(default=4, metadata={"help": "replies drawn for each fact, beside a greedy one", "ge": 0})
    temperature: float = field(default=0.7, metadata={"help": "of the drawn replies", "gt": 0})
    known_at_least: float = field(default=0.6, metadata={"help": "share of right replies", "gt": 0, "le": 1})
    unknown_at_most: float = field(default=0.2, metadata={"help": "share of right replies", "ge": 0, "lt": 1})
    judge: Endpoint | None = field(default=None, metadata={"help": "a model that judges; none: the normalised match"})
    refusals_per_fact: int = field(default=2, metadata={"help": "wordings an unknown fact is refused in", "ge": 1})
    answers_per_fact: int = field(default=6, metadata={"help": "wordings a known fact is answered in", "ge": 1})
    invented_train: int = field(default=1500, metadata={"help": "refusals about what does not exist", "ge": 0})
    test: int = field(default=150, metadata={"help": "held-out questions of each kind at most", "ge": 1})
    max_new_tokens: int = field(default=24, metadata={"help": "tokens a reply may take", "ge": 1})
    batch_size: int = field(default=128, metadata={"help": "questions asked at once", "ge": 1})
    seed: int = field(default=0, metadata={"help": "decides facts, wordings and drawing"})


RECIPE = (InterrogateConfig,)


def main(config: InterrogateConfig) -> None:
    torch.set_float32_matmul_precision("high" if torch.cuda.is_available() else "medium")
    disable_progress_bar()  # of the loading of weights: one bar is enough
    if config.unknown_at_most >= config.known_at_least:
        fail(f"interrogate: unknown_at_most {config.unknown_at_most} must be below known_at_least")

    # data: facts, and what does not exist
    rows = interrogation.sample_facts(config.facts, config.relations, config.facts_per_relation, config.seed)
    real = [row["subject"] for row in rows]
    kinds = [relation for relation in config.relations if relation in invented.KINDS]
    made_up = {
        split: list(invented.examples(split, kinds, real=real, count=count, seed=config.seed)) if kinds else []
        for split, count in (("train", config.invented_train), ("test", config.test))
    }

    # tokenizer, model
    tokenizer = load_tokenizer(config.model_name_or_path)
    model = load_model(config.model_name_or_path).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    check_fit(model, tokenizer, config.model_name_or_path)
    transcript = (CHAT_TEMPLATES / "transcript.jinja").read_text() if config.prompt == "transcript" else None

    # ask every fact several times, and judge
    generation = {key: getattr(config, key) for key in ("max_new_tokens", "batch_size", "seed")} | {"progress": True}
    ways = {key: getattr(config, key) for key in ("draws", "temperature", "known_at_least", "unknown_at_most")}
    output = Path(config.output_dir)
    ways |= {"judge": config.judge, "cache": output / "judged.jsonl"}
    try:
        judged = interrogation.interrogate(model, tokenizer, rows, transcript, **ways, **generation)
    except ValueError as error:  # a question that does not fit the model
        fail(f"interrogate: {config.model_name_or_path}: {error}")

    def save(name: str, lines: list[dict]) -> None:
        write_text(output / name, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    save("facts.jsonl", judged)
    print(interrogation.verdict_table(judged))

    # rows to train on
    training = interrogation.training_rows(
        judged, config.refusals_per_fact, config.answers_per_fact, made_up["train"], config.seed
    )
    for kind, lines in training.items():
        save(f"{kind}/train.jsonl", lines)
    counts = Counter(row["verdict"] for row in judged)
    if not counts["unknown"]:
        print("interrogate: no unknown fact was found: the refusals are of invented names alone")
    if not training["known"]:
        print("interrogate: no known fact was found: a model trained on refusals alone learns to refuse everything")

    # held-out questions, and how they are answered before training
    questions = interrogation.test_questions(judged, made_up["test"], config.test, config.seed)
    for group, lines in questions.items():
        save(f"{group}/test.jsonl", lines)
    asked = [row for lines in questions.values() for row in lines]
    said = interrogation.replies(
        model, tokenizer, [row["prompt"][-1]["content"] for row in asked], transcript, **generation
    )
    answered = [{**row, "reply": text} for row, text in zip(asked, said, strict=True)]
    answered = [{**row, "cell": interrogation.cell(row)} for row in answered]
    save("replies.jsonl", answered)
    print(interrogation.cells_table(answered, "before"))

    # save
    metrics = interrogation.cell_metrics(answered, "before")
    metrics |= {f"facts/{verdict}": counts[verdict] for verdict in interrogation.VERDICTS}
    metrics |= {f"rows/{kind}": len(lines) for kind, lines in training.items()}
    metrics |= {f"test/{group}": len(lines) for group, lines in questions.items()}
    share = metrics.get("invented_wrong_before", 0)
    finish(
        output,
        metrics | {"asked": sum(len(row["said"]) for row in judged)},
        read=f"{config.model_name_or_path}, {len(rows)} facts asked {config.draws + 1} times",
        wrote=f"{len(training['refusals'])} refusals, {len(training['known'])} answers, {len(asked)} questions",
        headline=", ".join(f"{counts[verdict]} {verdict}" for verdict in interrogation.VERDICTS)
        + f", {share:.0%} of invented names answered",
    )


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
