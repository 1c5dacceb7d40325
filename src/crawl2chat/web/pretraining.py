"""The report's pages about pretraining: from crawl to clean text, to tokens, and from random weights to a dream."""

import math
from html import escape

from crawl2chat import figures
from crawl2chat.protocol import load_tokenizer, token_view
from crawl2chat.runs import Run
from crawl2chat.web.fragments import bar, clip, said, section, tiles


def tokenizer(run: Run) -> str:
    """The ladder of alphabets, and a text as its tokens."""
    rungs = run.json("tokenizer", "ladder.json")
    if rungs is None:
        return ""
    symbols = {
        "bits": "of 2 symbols",
        "bytes": "of 256 symbols",
        "tokens": f"of {rungs['vocabulary']:,} symbols, ours",
    }
    symbols["cl100k_tokens"] = "of 100,277 symbols, GPT-4's"
    bars = []
    for name in ("bits", "characters", "bytes", "tokens", "cl100k_tokens"):
        if name in rungs:
            share = math.log(1 + rungs[name]) / math.log(1 + rungs["bits"])
            note = f"<b>{rungs[name]:,}</b> <small>{symbols.get(name, '')}</small>"
            bars.append(bar(name.removesuffix("_tokens"), share, note))
    words = load_tokenizer(run.folder / "tokenizer")
    ids = words(rungs["text"][:900], add_special_tokens=False)["input_ids"]
    return section(
        "Text into tokens",
        "The same text in ever larger alphabets: the more symbols, the shorter it gets (bars on a logarithmic scale).",
        *bars,
        f'<h3>A page as the model reads it</h3><div class="paper">{token_view(ids, words)}</div>',
    )


def pretrain(run: Run) -> str:
    """Training loss, and bits per byte on held-out pages, over the steps."""
    history = run.json("pretrain", "log_history.json") or []
    losses = [(row["step"], row["loss"]) for row in history if "loss" in row]
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in history:
        for key, value in row.items():
            if key.startswith("eval_bits_per_byte"):
                name = key.removeprefix("eval_bits_per_byte").lstrip("_") or "the mixture"
                lines.setdefault(name, []).append((row["step"], value))
    target = next((t.at_most for t in run.targets if t.key == "pretrain/eval_bits_per_byte"), None)
    panels = [("training loss, nats a token", {"loss": losses}, None)] if losses else []
    panels += [("held-out pages, bits per byte", lines, target)] if lines else []
    numbers, facts = run.metrics.get("pretrain", {}), []
    for key, name, scale, form in (
        ("parameters", "parameters", 1, ""),
        ("tokens", "tokens read", 1, ""),
        ("tokens_per_second", "tokens a second", 1, ",.0f"),
        ("flops_per_second", "GFLOP/s", 1e-9, ",.0f"),
        ("mfu", "of the hardware's peak (MFU)", 100, ".1f"),
        ("eval_bits_per_byte", "bits per byte, held out", 1, ".3f"),
    ):
        if key in numbers:
            value = format(scale * numbers[key], form) if form else said(numbers[key])
            facts.append((value + ("\u00a0%" if key == "mfu" else ""), name))
    return section(
        "Learning to predict the next token",
        "From random weights. Bits per byte: what the model needs to write down one byte of a page it has never seen; "
        "8 would be knowing nothing.",
        tiles(facts),
        figures.curves(panels) if panels else "",
    )


def dream(run: Run) -> str:
    """The same beginnings continued at several steps of the training."""
    samples: dict[str, dict[int, str]] = {}
    for row in run.rows("pretrain", "samples.jsonl"):
        samples.setdefault(row["prompt"], {})[row["step"]] = row["text"]
    parts = []
    for prompt, texts in list(samples.items())[:4]:
        steps = sorted(texts)
        chosen = sorted({steps[round(i * (len(steps) - 1) / 5)] for i in range(6)})
        pairs = [(step, escape(clip(texts[step], 220))) for step in chosen]
        lines = [
            f"<span>step {step:,}</span><p><mark>{escape(clip(prompt, 300))}</mark>{text}</p>" for step, text in pairs
        ]
        parts.append(f'<div class="dream">{"".join(lines)}</div>')
    return section("The dream sharpens", "The same beginnings, continued by the model as it learns.", *parts)
