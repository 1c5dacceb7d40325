"""The report: every number and figure of a run on one page, in the lifecycle's order; what a run lacks is left out."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from crawl2chat import figures
from crawl2chat.protocol import load_tokenizer, loss_mask, token_view
from crawl2chat.runs import Run, Target, all_numbers, read_json, versions
from crawl2chat.web.assistant import identity, interrogation, memory, thinking
from crawl2chat.web.cheese import capabilities, examples
from crawl2chat.web.fragments import bar, clip, details, said, section, spoken, table
from crawl2chat.web.practice import practice
from crawl2chat.web.psychology import psychology, sample
from crawl2chat.web.rlhf import rlhf
from crawl2chat.web.tokens import STYLE as TOKEN_STYLE

# the number that stands for a stage at the top of the page
MAIN = {
    "data": ("documents_kept", "clean pages"),
    "tokenizer": ("vocab_size", "tokens"),
    "pretrain": ("parameters", "parameters"),
    "sample": ("distinct_continuations", "of continuations differ"),
    "conversations": ("rows", "conversations"),
    "interrogate": ("asked", "replies judged"),
    "sft": ("tokens", "tokens"),
    "rejection": ("rounds", "rounds"),
    "grpo": ("rollouts", "tries at problems"),
    "preferences": ("pairs", "pairs"),
    "reward": ("accuracy", "of pairs right"),
    "ppo": ("episodes", "episodes"),
    "overoptimization": ("runs", "runs, too far"),
}


def headline(numbers: dict[str, float], targets: Sequence[Target]) -> str:
    """A card for each target: the number, what was wanted, reached or short."""
    cards = []
    for target in targets:
        if target.key not in numbers:
            continue
        value = numbers[target.key]
        met = target.met(value)
        mark = '<span class="mark pass">✓ reached</span>' if met else '<span class="mark short">✗ short</span>'
        bounds = [(target.at_least, "≥"), (target.at_most, "≤")]
        wanted = " and ".join(f"{sign}\u00a0{said(bound, target.key)}" for bound, sign in bounds if bound is not None)
        cards.append(
            f'<div class="card{"" if met else " short"}"><small>{escape(target.label)}</small>'
            f"<b>{said(value, target.key)}</b><small>{mark} {wanted}</small></div>"
        )
    explain = "Measured on questions and pages that no stage has trained on."
    return section("Numbers to reach", explain, f'<div class="cards">{"".join(cards)}</div>' if cards else "")


def data(run: Run) -> str:
    """The funnel: documents, bytes and reasons at each step, precision and recall where labels are known."""
    funnel = run.json("data", "funnel.json")
    if funnel is None:
        return ""
    steps, rows = funnel["steps"], []
    for step in steps:
        reasons = sorted(step["reasons"].items(), key=lambda item: -item[1])[:3]
        gone = step["documents_in"] - step["documents"]
        right = ["" if step[key] is None else f"{step[key]:.3f}" for key in ("precision", "recall")]
        why = ", ".join(f"{spoken(reason)} ({count:,})" for reason, count in reasons)
        size = f"{step['bytes'] / 1e6:.1f}"
        rows.append([spoken(step["step"]), f"{step['documents']:,}", f"{gone:,}", size, *right, why])
    head = ["step", "kept", "dropped", "MB left", "precision", "recall", "most frequent reasons"]
    sources = sorted(funnel["sources"].items(), key=lambda item: -item[1])
    return section(
        "From crawl to clean text",
        "What each filter let through and why it dropped the rest. Precision: how many of the pages it dropped "
        "deserved it. Recall: how many of the pages that deserved it were dropped.",
        figures.funnel([(step["step"], step["documents_in"], step["documents"]) for step in steps]),
        table(head, rows, numeric=range(1, 6)),
        "<h3>Pages kept, by source</h3>" + figures.bars(sources) if sources else "",
    )


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


def pretrain(run: Run, targets: Sequence[Target]) -> str:
    """Training loss, and bits per byte on held-out pages, over the steps."""
    history = run.json("pretrain", "log_history.json") or []
    losses = [(row["step"], row["loss"]) for row in history if "loss" in row]
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in history:
        for key, value in row.items():
            if key.startswith("eval_bits_per_byte"):
                name = key.removeprefix("eval_bits_per_byte").lstrip("_") or "the mixture"
                lines.setdefault(name, []).append((row["step"], value))
    target = next((t.at_most for t in targets if t.key == "pretrain/eval_bits_per_byte"), None)
    panels = [("training loss, nats a token", {"loss": losses}, None)] if losses else []
    panels += [("held-out pages, bits per byte", lines, target)] if lines else []
    return section(
        "Learning to predict the next token",
        "From random weights. Bits per byte: what the model needs to write down one byte of a page it has never seen; "
        "8 would be knowing nothing.",
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
        lines = [f"<span>step {step:,}</span><p><mark>{escape(prompt)}</mark>{text}</p>" for step, text in pairs]
        parts.append(f'<div class="dream">{"".join(lines)}</div>')
    return section("The dream sharpens", "The same beginnings, continued by the model as it learns.", *parts)


def conversations(run: Run) -> str:
    """How many conversations of each task, and which tokens of one of them bear loss."""
    numbers = run.metrics.get("conversations", {})
    rows = [(key.removeprefix("rows/"), value) for key, value in numbers.items() if key.startswith("rows/") and value]
    rows.sort(key=lambda row: -row[1])
    firsts = []
    for path in sorted((run.folder / "conversations").glob("*/train.jsonl")) if numbers else ():
        with path.open(encoding="utf-8") as lines:
            firsts += [read_json(path, line, 1)["messages"] for line in [next(lines, "")] if line.strip()]
    view, home = "", next((stage for stage in ("sft", "pretrain", "tokenizer") if stage in run.metrics), None)
    if firsts and home:
        messages = max(firsts, key=lambda turns: len({turn["role"] for turn in turns}))  # one with a tool, if any has
        words = load_tokenizer(run.folder / home)
        ids, mask = loss_mask(words, messages)
        view = (
            f'<h3>What bears loss</h3><p class="explain">The {sum(mask)} underlined of these {len(ids)} tokens are '
            "what the model is trained to write: the assistant's words, its calls and its end tokens. Questions and "
            f'tool results are only read.</p><div class="paper">{token_view(ids, words, mask)}</div>'
        )
    return section(
        "Conversations to learn from",
        "Questions, worked answers, and tool calls with what the tools really answered.",
        figures.bars(rows) if rows else "",
        view,
    )


def sft(run: Run) -> str:
    """Loss and accuracy on the assistant's words over the steps."""
    history = run.json("sft", "log_history.json") or []
    panels = []
    for key, title in (("loss", "loss on the assistant's words"), ("mean_token_accuracy", "next token right, share")):
        points = [(row["step"], row[key]) for row in history if key in row]
        panels += [(title, {key: points}, None)] if points else []
    return section(
        "Supervised finetuning", "The base model becomes an assistant.", figures.curves(panels) if panels else ""
    )


def times(run: Run, numbers: dict[str, float]) -> str:
    """Seconds and peak memory of each stage."""
    longest = max(metrics.get("seconds", 0) for metrics in run.metrics.values()) or 1
    rows = []
    for stage, metrics in run.metrics.items():
        width = f"width:{14 * metrics.get('seconds', 0) / longest:.2f}rem"
        spent = f"{metrics.get('seconds', 0):,.0f} s"
        memory = f"{metrics.get('peak_memory_gb', 0):.2f} GB"
        rows.append([escape(stage), spent, f'<span class="bar" style="{width}"></span>', memory])
    total, peak = f"{numbers['total_seconds']:,.0f} s", f"{numbers['peak_memory_gb']:.2f} GB"
    rows.append(["<b>all</b>", f"<b>{total}</b>", "", f"<b>{peak}</b>"])
    return section("Time and memory", "", table(["stage", "time", "", "peak memory"], rows, numeric=(1, 3)))


def appendix(run: Run) -> str:
    """Versions, recipe texts and every number, folded away."""
    parts = [details("Versions", table([], [[escape(name), escape(text)] for name, text in versions().items()]))]
    for stage, metrics in run.metrics.items():
        recipe = run.folder / stage / "recipe.yaml"
        text = f"<pre>{escape(recipe.read_text(encoding='utf-8'))}</pre>" if recipe.is_file() else ""
        rows = [[f"<code>{escape(key)}</code>", f"{value:,.6g}"] for key, value in metrics.items()]
        parts.append(details(f"{stage}: recipe and every number", text + table([], rows, numeric=(1,))))
    return section("To make it again", "", *parts)


def page(run: Run, targets: Sequence[Target] = ()) -> str:
    """The whole report: one HTML page that needs no script, no server and no other file."""
    numbers, strip = all_numbers(run), []
    for stage, metrics in run.metrics.items():
        key, unit = MAIN.get(stage.partition("-")[0], ("", ""))  # ppo-rloo is a ppo
        number = f"<b>{said(metrics[key], key)}</b><small>{unit}</small>" if key in metrics else "<b>✓</b>"
        spent = said(metrics.get("seconds", 0), "seconds")
        strip.append(f"<li><small>{escape(stage)}</small>{number}<small>{spent}</small></li>")
    body = [headline(numbers, targets), data(run), tokenizer(run), pretrain(run, targets), dream(run), sample(run)]
    body += [
        psychology(run),
        conversations(run),
        sft(run),
        interrogation(run),
        memory(run),
        identity(run),
        thinking(run),
        practice(run),
        rlhf(run),
        capabilities(run),
        examples(run),
        times(run, numbers),
        appendix(run),
    ]
    style = (Path(__file__).parent / "web" / "report.css").read_text(encoding="utf-8")
    took = f"{said(numbers['total_seconds'], 'seconds')} and {numbers['peak_memory_gb']:.1f} GB of memory"
    html = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>crawl2chat: the report of a run</title>
<style>
{style}{figures.STYLE}{TOKEN_STYLE}</style>
</head>
<body>
<main>
<header>
<h1>From raw web pages<br>to a chatting assistant</h1>
<p class="lead">Every stage of one run, with its numbers, in {took}.</p>
<ol class="strip">{"".join(strip)}</ol>
</header>
{"".join(body)}
<footer>Made by crawl2chat from what the stages wrote below {escape(str(run.folder))}.</footer>
</main>
</body>
</html>
"""
    return html.encode("utf-8", "replace").decode()  # a model may write half a surrogate pair
