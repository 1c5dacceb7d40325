"""Look into a base model: what it thinks comes next, and how differently it goes on from the same words.

Reads: a model folder of scripts/pretrain.py
Writes: samples.json, distribution.png, metrics.json

accelerate launch scripts/sample.py recipes/sample.yaml
python scripts/sample.py recipes/laptop/sample.yaml
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import matplotlib
import torch

from crawl2chat.engine import complete, next_token_probabilities
from crawl2chat.model import check_fit, load_model
from crawl2chat.protocol import END_OF_TEXT, load_tokenizer
from crawl2chat.recipe import parse_recipe
from crawl2chat.stage import finish, write_text

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402


@dataclass
class Way:
    """A way of drawing the next token."""

    name: str = field(metadata={"help": "what the report calls it"})
    temperature: float = field(default=1.0, metadata={"help": "0 is greedy", "ge": 0})
    top_k: int = field(default=0, metadata={"help": "draw from the k likeliest tokens; 0: from all", "ge": 0})
    top_p: float = field(default=1.0, metadata={"help": "draw from the likeliest tokens that hold this share"})


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
    seed: int = field(default=0, metadata={"help": "of the drawing"})


RECIPE = (SampleConfig,)


def distinct_2(texts: list[str]) -> float:
    """Share of different ones among all pairs of neighbouring words of the texts (Li et al. 2016, distinct-2)."""
    pairs = [pair for text in texts for pair in zip(text.split(), text.split()[1:], strict=False)]
    return len(set(pairs)) / max(len(pairs), 1)


def draw_bars(distributions: list[dict], path: Path) -> None:
    """A bar picture of the next token's distribution, a panel for each prompt."""
    columns = min(len(distributions), 2)
    rows = -(-len(distributions) // columns)
    size = (6.2 * columns, 0.7 + rows * (0.9 + 0.22 * len(distributions[0]["tokens"])))
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat[len(distributions) :]:
        axis.axis("off")
    for axis, one in zip(axes.flat, distributions, strict=False):
        tokens = one["tokens"][::-1]
        labels = [repr(token["text"]).replace("$", r"\$") for token in tokens]
        axis.barh(range(len(tokens)), [token["probability"] for token in tokens], color="#3b6ea5")
        axis.set_yticks(range(len(tokens)), labels, fontsize=8, family="monospace")
        axis.set_title(one["prompt"].replace("\n", " ").replace("$", r"\$"), fontsize=10, loc="left")
        axis.set_xlim(0, 1)
        axis.set_xlabel(f"probability (entropy {one['entropy_bits']:.2f} bits)", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)
    os.replace(temporary, path)


def main(config: SampleConfig) -> None:
    torch.set_float32_matmul_precision("high" if torch.cuda.is_available() else "medium")

    # tokenizer, model
    tokenizer = load_tokenizer(config.model_name_or_path)
    model = load_model(config.model_name_or_path).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    check_fit(model, tokenizer, config.model_name_or_path)
    start = END_OF_TEXT if END_OF_TEXT in tokenizer.get_vocab() else ""

    # the next token of every prompt
    probabilities = next_token_probabilities(model, tokenizer, [start + prompt for prompt in config.prompts])
    entropies = (torch.special.entr(probabilities.double()).sum(-1) / torch.log(torch.tensor(2.0))).tolist()
    distributions = []
    for prompt, row, entropy in zip(config.prompts, probabilities, entropies, strict=True):
        found = zip(*(values.tolist() for values in row.topk(min(config.top, len(row)))), strict=True)
        tokens = [{"text": tokenizer.decode([i]), "probability": round(p, 6)} for p, i in found]
        distributions.append({"prompt": prompt, "entropy_bits": round(entropy, 4), "tokens": tokens})
        print(f"\n{prompt!r} goes on with")
        for token in tokens:
            print(f"  {token['probability']:6.1%} {'█' * round(40 * token['probability']):<40} {token['text']!r}")
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    draw_bars(distributions, output / "distribution.png")

    # the same prompt many times
    metrics = {"entropy_bits": sum(entropies) / len(entropies), "prompts": len(config.prompts), "draws": config.draws}
    continuations = []
    for way in config.ways:
        options = {"temperature": way.temperature, "top_k": way.top_k, "top_p": way.top_p, "seed": config.seed}
        prompts = [start + prompt for prompt in config.prompts for _ in range(config.draws)]
        texts = [c.text for c in complete(model, tokenizer, prompts, config.max_new_tokens, progress=True, **options)]
        groups = [texts[i : i + config.draws] for i in range(0, len(texts), config.draws)]
        share = sum(len(set(group)) for group in groups) / len(texts)
        pairs = sum(map(distinct_2, groups)) / len(groups)
        metrics |= {f"{way.name}/distinct_continuations": share, f"{way.name}/distinct_2": pairs}
        print(f"\n{way.name}: {share:.0%} of {config.draws} continuations differ, distinct-2 {pairs:.2f}")
        for prompt, group in zip(config.prompts, groups, strict=True):
            continuations.append(
                {"way": asdict(way), "prompt": prompt, "texts": group, "distinct_2": distinct_2(group)}
            )
            print(f"  {prompt!r}{''.join(f'{chr(10)}    {text!r}' for text in group[:2])}")

    # save
    first = config.ways[0].name
    metrics |= {key: metrics[f"{first}/{key}"] for key in ("distinct_continuations", "distinct_2")}
    samples = {"distributions": distributions, "continuations": continuations}
    write_text(output / "samples.json", json.dumps(samples, ensure_ascii=False, indent=1) + "\n")
    finish(
        output,
        metrics,
        read=config.model_name_or_path,
        wrote=f"{output / 'samples.json'}, distribution.png",
        headline=f"{metrics['distinct_continuations']:.0%} of continuations differ",
    )


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
