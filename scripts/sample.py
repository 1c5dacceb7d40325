"""Look into a base model: what it thinks comes next, how it goes on, what it recites, and what a prompt makes of it.

Reads: a model folder of scripts/pretrain.py; training shards, held-out pages, repeated passages and word pairs
Writes: samples.json, distribution.png, metrics.json

accelerate launch scripts/sample.py recipes/sample.yaml
python scripts/sample.py recipes/laptop/sample.yaml
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from crawl2chat import prompting, psychology
from crawl2chat.model import check_fit, load_model
from crawl2chat.prompting import Assistant, Translation
from crawl2chat.protocol import load_tokenizer
from crawl2chat.psychology import Recall, Way
from crawl2chat.recipe import parse_recipe
from crawl2chat.stage import finish, write_text


@dataclass
class SampleConfig:
    """Whom to ask, and how often."""

    model_name_or_path: str = field(metadata={"help": "a model folder with its tokenizer, or a hub name"})
    prompts: list[str] = field(metadata={"help": "beginnings of documents"})
    ways: list[Way] = field(metadata={"help": "how the same prompt is continued many times"})
    output_dir: str = field(metadata={"help": "where samples, picture and metrics go"})
    top: int = field(default=12, metadata={"help": "likeliest next tokens shown", "ge": 1})
    draws: int = field(default=16, metadata={"help": "continuations of each prompt in each way", "ge": 2})
    max_new_tokens: int = field(default=40, metadata={"help": "tokens of a continuation", "ge": 1})
    temperatures: list[float] = field(default_factory=list, metadata={"help": "distinctness is drawn against these"})
    recall: Recall | None = field(default=None, metadata={"help": "what is recited word for word"})
    translation: Translation | None = field(default=None, metadata={"help": "translate by example"})
    assistant: Assistant | None = field(default=None, metadata={"help": "answer at the end of a transcript"})
    seed: int = field(default=0, metadata={"help": "of the drawing"})


RECIPE = (SampleConfig,)


def main(config: SampleConfig) -> None:
    torch.set_float32_matmul_precision("high" if torch.cuda.is_available() else "medium")

    # tokenizer, model
    tokenizer = load_tokenizer(config.model_name_or_path)
    model = load_model(config.model_name_or_path).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    check_fit(model, tokenizer, config.model_name_or_path)

    # the next token of every prompt
    distributions = psychology.next_tokens(model, tokenizer, config.prompts, config.top)
    for one in distributions:
        print(f"\n{one['prompt']!r} goes on with")
        for token in one["tokens"]:
            print(f"  {token['probability']:6.1%} {'█' * round(40 * token['probability']):<40} {token['text']!r}")
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    psychology.draw_bars(distributions, output / "distribution.png")
    entropy = sum(one["entropy_bits"] for one in distributions) / len(distributions)
    metrics = {"entropy_bits": entropy, "prompts": len(config.prompts), "draws": config.draws}
    samples = {"distributions": distributions, "continuations": [], "temperatures": []}

    # the same prompt many times
    often = {"draws": config.draws, "max_new_tokens": config.max_new_tokens, "seed": config.seed}
    for way in config.ways:
        numbers, rows = psychology.continue_often(model, tokenizer, config.prompts, way, **often)
        metrics |= {f"{way.name}/{key}": value for key, value in numbers.items()}
        samples["continuations"] += rows
        share, pairs = numbers.values()
        print(f"\n{way.name}: {share:.0%} of {config.draws} continuations differ, distinct-2 {pairs:.2f}")
        for row in rows:
            print(f"  {row['prompt']!r}{''.join(f'{chr(10)}    {text!r}' for text in row['texts'][:2])}")
    first = config.ways[0].name
    metrics |= {key: metrics[f"{first}/{key}"] for key in ("distinct_continuations", "distinct_2")}
    for heat in config.temperatures:
        numbers, _ = psychology.continue_often(model, tokenizer, config.prompts, Way("", heat), **often)
        metrics |= {f"temperature/{heat:g}/{key}": value for key, value in numbers.items()}
        samples["temperatures"].append({"temperature": heat, **numbers})
        share, pairs = numbers.values()
        print(f"temperature {heat:g}: {share:.0%} differ, distinct-2 {pairs:.2f}")

    # what it recites
    if config.recall:
        numbers, samples["recall"] = psychology.verbatim_recall(model, tokenizer, config.recall, config.seed)
        metrics |= numbers
        print(psychology.recall_table(samples["recall"]))

    # what a prompt makes of it
    if config.translation:
        numbers, samples["translation"] = prompting.translate(model, tokenizer, config.translation, config.seed)
        metrics |= numbers
        print(prompting.translation_table(samples["translation"]))
    if config.assistant:
        numbers, samples["assistant"] = prompting.converse(model, tokenizer, config.assistant, config.seed)
        metrics |= numbers
        print(prompting.transcript_table(numbers, samples["assistant"]))

    # save
    write_text(output / "samples.json", json.dumps(samples, ensure_ascii=False, indent=1) + "\n")
    found = [f"{metrics['distinct_continuations']:.0%} of continuations differ"]
    if config.recall:
        found.append(f"{metrics['verbatim_recall_train']:.0%} of training documents recited")
    if config.translation:
        found.append(f"{metrics['few_shot_accuracy']:.0%} of words translated by example")
    finish(
        output,
        metrics,
        read=config.model_name_or_path,
        wrote=f"{output / 'samples.json'}, distribution.png",
        headline=", ".join(found),
    )


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
