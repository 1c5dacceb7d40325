"""The numbers and figures of a run on one page: reads what the stages wrote, loads no model, and skips what is not there."""

import json
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from crawl2chat import figures
from crawl2chat.protocol import load_tokenizer, loss_mask, token_view
from crawl2chat.stage import fail
from crawl2chat.web.tokens import STYLE as TOKEN_STYLE

PACKAGES = (
    "torch transformers tokenizers trl peft accelerate datasets evaluate datatrove lm-eval bm25s pydantic-monty matplotlib"
).split()
# the number that stands for a stage at the top of the page
MAIN = {
    "data": ("documents_kept", "clean pages"),
    "tokenizer": ("vocab_size", "tokens in the vocabulary"),
    "pretrain": ("parameters", "parameters, from random weights"),
    "conversations": ("rows", "conversations"),
    "sft": ("train_loss", "loss on the assistant's words"),
}


@dataclass
class Target:
    """A number to reach: `key` is <stage>/<key> of report.json, with a bound below or above."""

    key: str
    label: str
    at_least: float | None = None
    at_most: float | None = None

    def met(self, value: float) -> bool:
        low, high = self.at_least, self.at_most
        return (low is None or value >= low) and (high is None or value <= high)


@dataclass
class Run:
    """A run's folder and the metrics of its complete stages, in the lifecycle's order."""

    folder: Path
    metrics: dict[str, dict[str, float]]

    def has(self, stage: str, name: str) -> bool:
        return stage in self.metrics and (self.folder / stage / name).exists()

    def json(self, stage: str, name: str):
        """A side file's content, None where the stage did not write it; a broken one is one clear line."""
        if not self.has(stage, name):
            return None
        return read_json(self.folder / stage / name)

    def rows(self, stage: str, name: str) -> list[dict]:
        """The rows of a JSONL side file, none where the stage did not write it."""
        path = self.folder / stage / name
        if not self.has(stage, name):
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        return [read_json(path, line, f", line {number}") for number, line in enumerate(lines, start=1)]


def read_json(path: Path, text: str | None = None, where: str = ""):
    try:
        return json.loads(path.read_text(encoding="utf-8") if text is None else text)
    except ValueError as error:
        fail(f"{path}{where}: not JSON ({error}); run the stage that writes it again")


def read_run(folder: str | Path, stages: Sequence[str]) -> Run:
    """The complete stages (those with a metrics.json) of a run's folder; none at all is one clear line."""
    folder = Path(folder)
    files = {stage: folder / stage / "metrics.json" for stage in stages}
    metrics = {stage: read_json(path) for stage, path in files.items() if path.is_file()}
    for stage, numbers in metrics.items():
        if not isinstance(numbers, dict) or not all(isinstance(value, int | float) for value in numbers.values()):
            fail(f"{files[stage]}: not a flat object of numbers; run the stage {stage} again")
    if not metrics:
        fail(f"{folder}: no stage has written a metrics.json; run scripts/lifecycle.sh first")
    return Run(folder, metrics)


def all_numbers(run: Run) -> dict[str, float]:
    """{"<stage>/<key>": number} of every stage, total_seconds (sum over stages) and peak_memory_gb (the largest)."""
    numbers = {f"{stage}/{key}": value for stage, metrics in run.metrics.items() for key, value in metrics.items()}
    numbers["total_seconds"] = sum(metrics.get("seconds", 0) for metrics in run.metrics.values())
    numbers["peak_memory_gb"] = max(metrics.get("peak_memory_gb", 0) for metrics in run.metrics.values())
    return numbers


# what is written on the page, always through escape()


def said(value: float, key: str = "") -> str:
    """A number for people: shares in per cent, large ones with commas or M, others with three figures."""
    if key.endswith(("accuracy", "share", "precision", "recall", "stderr")):
        return f"{100 * value:.1f} %"
    if key.endswith("seconds"):
        return f"{value:.0f} s" if value < 120 else f"{value / 60:.1f} min"
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.1f} M"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3g}"


def clip(text: str, length: int = 400) -> str:
    return text if len(text) <= length else text[:length].rstrip() + " …"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """An HTML table of cells that are HTML already; `numeric` columns stand right."""
    mark = lambda i: ' class="n"' if i in numeric else ""  # noqa: E731
    top = "".join(f"<th{mark(i)}>{cell}</th>" for i, cell in enumerate(head))
    body = "".join("<tr>" + "".join(f"<td{mark(i)}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def details(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def turns(messages: Sequence[dict]) -> str:
    """A conversation as bubbles, tool calls and their results among them."""
    html = []
    for message in messages:
        role = message["role"]
        content = message.get("content") or ""
        if content:
            label = {"tool": "<em>result</em>", "system": "<em>system</em>"}.get(role, "")
            html.append(f'<div class="turn {escape(role)}">{label}{escape(clip(content))}</div>')
        for call in message.get("tool_calls") or ():
            function = call.get("function", call)
            if isinstance(function, dict):
                arguments = function.get("arguments")
                shown = "\n".join(map(str, arguments.values())) if isinstance(arguments, dict) else str(arguments)
                name = f"calls {function.get('name')}"
            else:  # a call that could not be read is its raw text
                name, shown = "a broken call", str(function)
            html.append(f'<div class="turn call"><em>{escape(name)}</em><code>{escape(clip(shown))}</code></div>')
    return "".join(html)


def reply_text(row: dict) -> str:
    """The last words of a reply."""
    return next((m["content"] for m in reversed(row["reply"]) if m["role"] == "assistant" and m.get("content")), "")


# sections, in the lifecycle's order: each returns its HTML, or "" where the run has nothing to show


def headline(run: Run, targets: Sequence[Target]) -> str:
    numbers = all_numbers(run)
    cards = []
    for target in targets:
        if target.key in numbers:
            value, met = numbers[target.key], target.met(numbers[target.key])
            bound, sign = (target.at_least, "≥") if target.at_least is not None else (target.at_most, "≤")
            mark = '<span class="mark pass">✓ reached</span>' if met else '<span class="mark short">✗ short</span>'
            cards.append(
                f'<div class="card{"" if met else " short"}"><small>{escape(target.label)}</small>'
                f"<b>{said(value, target.key)}</b><small>{mark} · target {sign} {said(bound, target.key)}</small></div>"
            )
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def data(run: Run) -> str:
    funnel = run.json("data", "funnel.json")
    if not funnel:
        return ""
    steps = funnel["steps"]
    figure = figures.funnel([(step["step"], step["documents_in"], step["documents"]) for step in steps])
    rows = []
    for step in steps:
        reasons = sorted(step["reasons"].items(), key=lambda item: -item[1])[:3]
        why = ", ".join(f"{escape(reason)} ({count:,})" for reason, count in reasons)
        found = [("" if step.get(key) is None else f"{step[key]:.3f}") for key in ("precision", "recall")]
        gone = step["documents_in"] - step["documents"]
        rows.append([escape(step["step"]), f"{step['documents']:,}", f"{gone:,}", f"{step['bytes'] / 1e6:.1f}", *found, why])
    head = ["step", "kept", "dropped", "MB left", "precision", "recall", "most frequent reasons"]
    sources = sorted(funnel["sources"].items(), key=lambda item: -item[1])
    kept = figures.bars(sources, alt="pages kept of each source") if sources else ""
    return figure + table(head, rows, numeric=(1, 2, 3, 4, 5)) + "<h3>Pages kept, by source</h3>" + kept


def tokenizer(run: Run) -> str:
    rungs = run.json("tokenizer", "ladder.json")
    if not rungs:
        return ""
    symbols = {"bits": "2 symbols", "bytes": "256 symbols", "tokens": f"{rungs.get('vocabulary', 0):,} symbols"}
    symbols["cl100k_tokens"] = "100,277 symbols (GPT-4)"
    html = []
    for name in ("bits", "characters", "bytes", "tokens", "cl100k_tokens"):
        if name in rungs:
            width = 60 * math.log(1 + rungs[name]) / math.log(1 + rungs["bits"])
            note = f"<b>{rungs[name]:,}</b> <small class='quiet'>{symbols.get(name, '')}</small>"
            label = name.replace("_", " ")
            html.append(f'<div class="rung"><span>{label}</span><span><i style="width:{width:.1f}%"></i>{note}</span></div>')
    words = load_tokenizer(run.folder / "tokenizer")
    ids = words(rungs["text"][:900], add_special_tokens=False)["input_ids"]
    explain = '<h3>The same text as the model reads it</h3><p class="explain">One colour, one token.</p>'
    return "".join(html) + explain + f'<div class="paper">{token_view(ids, words)}</div>'


def pretrain(run: Run, targets: Sequence[Target]) -> str:
    history = run.json("pretrain", "log_history.json") or []
    panels = []
    losses = [(row["step"], row["loss"]) for row in history if "loss" in row]
    if losses:
        panels.append(("training loss, nats a token", {"loss": losses}))
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in history:
        for key, value in row.items():
            if key.startswith("eval_bits_per_byte"):
                name = key.removeprefix("eval_bits_per_byte").lstrip("_") or "the mixture"
                lines.setdefault(name, []).append((row["step"], value))
    title = "held-out pages, bits per byte"
    if lines:
        panels.append((title, lines))
    bounds = {title: t.at_most for t in targets if t.key == "pretrain/eval_bits_per_byte" and t.at_most is not None}
    return figures.curves(panels, bounds if lines else {}) if panels else ""


def dream(run: Run) -> str:
    samples: dict[str, dict[int, str]] = {}
    for row in run.rows("pretrain", "samples.jsonl"):
        samples.setdefault(row["prompt"], {})[row["step"]] = row["text"]
    html = []
    for prompt, texts in list(samples.items())[:4]:
        steps = sorted(texts)
        chosen = sorted({steps[round(i * (len(steps) - 1) / 5)] for i in range(6)})
        lines = "".join(
            f"<span>step {step:,}</span><p><mark>{escape(prompt)}</mark>{escape(clip(texts[step], 220))}</p>" for step in chosen
        )
        html.append(f'<div class="dream">{lines}</div>')
    return "".join(html)


def sample(run: Run) -> str:
    return ""


def conversations(run: Run) -> str:
    numbers = run.metrics.get("conversations", {})
    rows = [(key.removeprefix("rows/"), value) for key, value in numbers.items() if key.startswith("rows/") and value]
    html = figures.bars(sorted(rows, key=lambda row: -row[1]), alt="conversations of each task") if rows else ""
    files = sorted((run.folder / "conversations").glob("*/train.jsonl")) if numbers else []
    firsts = []
    for path in files:
        with path.open(encoding="utf-8") as lines:
            firsts += [read_json(path, line, ", line 1")["messages"] for line in [next(lines, "")] if line.strip()]
    if firsts:
        # the longest on show: the one with most roles
        messages = max(firsts, key=lambda m: (len({turn["role"] for turn in m}), len(m)))
        words = load_tokenizer(run.folder / ("sft" if "sft" in run.metrics else "tokenizer"))
        ids, mask = loss_mask(words, messages)
        html += (
            "<h3>What bears loss</h3>"
            f'<p class="explain">The {sum(mask)} underlined of {len(ids)} tokens are what the model is trained to write: '
            "the assistant's words, its calls and its end tokens. Questions and tool results are only read.</p>"
            f'<div class="paper">{token_view(ids, words, mask)}</div>'
        )
    return html


def sft(run: Run) -> str:
    history = run.json("sft", "log_history.json") or []
    panels = [
        (title, {key: [(row["step"], row[key]) for row in history if key in row]})
        for key, title in (("loss", "loss on the assistant's words"), ("mean_token_accuracy", "next token right, share"))
    ]
    panels = [(title, lines) for title, lines in panels if all(lines.values())]
    return figures.curves(panels, {}) if panels else ""


def checkpoints_and_tasks(run: Run) -> tuple[list[str], list[str]]:
    """Names in the order that eval wrote them."""
    parts = [key.split("/") for key in run.metrics.get("eval", {}) if key.endswith("/accuracy")]
    return list(dict.fromkeys(p[0] for p in parts)), list(dict.fromkeys("/".join(p[1:-1]) for p in parts))


def cheese(run: Run) -> str:
    """Tasks x checkpoints: each a slice of cheese, with a hole as large as what goes wrong."""
    checkpoints, tasks = checkpoints_and_tasks(run)
    numbers = run.metrics.get("eval", {})
    rows = []
    for task in tasks:
        cells = []
        for name in checkpoints:
            right, error = (numbers.get(f"{name}/{task}/{key}") for key in ("accuracy", "stderr"))
            if right is None:
                cells.append("<td></td>")
                continue
            hole = f'<i style="width:{2.6 * math.sqrt(1 - right):.2f}rem;height:{2.6 * math.sqrt(1 - right):.2f}rem"></i>'
            cells.append(
                f'<td class="slice"><div><b>{100 * right:.0f} % <small>± {100 * (error or 0):.0f}</small></b>{hole}</div></td>'
            )
        rows.append(f"<tr><th>{escape(task.replace('_', ' '))}</th>{''.join(cells)}</tr>")
    ends = [(name, numbers[f"{name}/ended/share"]) for name in checkpoints if f"{name}/ended/share" in numbers]
    note = ", ".join(f"{escape(name)} {100 * share:.1f} %" for name, share in ends)
    note = f'<p class="explain">Replies that end by themselves: {note}.</p>' if ends else ""
    head = "".join(f"<th>{escape(name)}</th>" for name in checkpoints)
    return f'<div class="scroll"><table class="cheese"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>{note}' if rows else ""


def holes(run: Run) -> str:
    """The last checkpoint's worst tasks, each with a question that it got wrong."""
    checkpoints, tasks = checkpoints_and_tasks(run)
    if not checkpoints:
        return ""
    numbers, name = run.metrics["eval"], checkpoints[-1]
    html = []
    scores = {task: numbers.get(f"{name}/{task}/accuracy", 1.0) for task in tasks}
    wrong = [row for row in run.rows("eval", "replies.jsonl") if row["checkpoint"] == name and row["score"] == 0]
    for task in sorted(tasks, key=lambda task: scores[task])[:6]:
        row = next((row for row in wrong if row["task"] == task), None)
        if row:
            calls = [call for m in row["reply"] for call in m.get("tool_calls") or ()]
            note = f" (after {len(calls)} tool call{'s' if len(calls) > 1 else ''})" if calls else ""
            html.append(
                f'<div class="hole"><b>{escape(task.replace("_", " "))}</b> · {100 * (1 - scores[task]):.0f} % wrong, such as'
                f"<dl><dt>asked</dt><dd>{escape(clip(row['prompt'][-1]['content']))}</dd>"
                f"<dt>answered</dt><dd>{escape(clip(reply_text(row)) or '(nothing)')}{note}</dd>"
                f"<dt>right is</dt><dd>{escape(clip(str(row['answer'])))}</dd></dl></div>"
            )
    return "".join(html)


def examples(run: Run) -> str:
    """One right answer a task of the last checkpoint, with what the others said to the same question."""
    checkpoints, tasks = checkpoints_and_tasks(run)
    rows = run.rows("eval", "replies.jsonl")
    html = []
    for task in tasks:
        of_task = [row for row in rows if row["task"] == task]
        right = [row for row in of_task if row["checkpoint"] == checkpoints[-1] and row["score"] == 1]
        if not right:
            continue
        row = next((row for row in right if any(m.get("tool_calls") for m in row["reply"])), right[0])
        others = "".join(
            f'<div class="other">{escape(other["checkpoint"])} said: {escape(clip(reply_text(other), 160)) or "(nothing)"}</div>'
            for other in of_task
            if other["prompt"] == row["prompt"] and other["checkpoint"] != row["checkpoint"]
        )
        html.append(f'<div class="chat"><h3>{escape(task.replace("_", " "))}</h3>{turns(row["prompt"] + row["reply"])}{others}</div>')
    return f'<div class="chats">{"".join(html)}</div>' if html else ""


def times(run: Run) -> str:
    longest = max(metrics.get("seconds", 0) for metrics in run.metrics.values()) or 1
    rows = []
    for stage, metrics in run.metrics.items():
        seconds = metrics.get("seconds", 0)
        bar = f'<span class="bar" style="width:{14 * seconds / longest:.2f}rem"></span>'
        rows.append([escape(stage), f"{seconds:,.0f} s", bar, f"{metrics.get('peak_memory_gb', 0):.2f} GB"])
    total = all_numbers(run)
    rows.append(["<b>all</b>", f"<b>{total['total_seconds']:,.0f} s</b>", "", f"<b>{total['peak_memory_gb']:.2f} GB</b>"])
    return table(["stage", "time", "", "peak memory"], rows, numeric=(1, 3))


def versions() -> dict[str, str]:
    """The interpreter, the machine, and the packages that a run rests on, with their versions."""
    found = {"Python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found["processor"] = f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB of memory"
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def appendix(run: Run) -> str:
    html = details("Versions", table([], [[escape(k), escape(v)] for k, v in versions().items()]))
    for stage, metrics in run.metrics.items():
        recipe = run.folder / stage / "recipe.yaml"
        text = f"<pre>{escape(recipe.read_text(encoding='utf-8'))}</pre>" if recipe.is_file() else ""
        numbers = table([], [[f"<code>{escape(key)}</code>", f"{value:,.6g}"] for key, value in metrics.items()], numeric=(1,))
        html += details(f"{stage}: recipe and every number", text + numbers)
    return html


def sections(run: Run, targets: Sequence[Target]) -> list[tuple[str, str, Callable[[], str]]]:
    """(title, what one sees, the section) in the lifecycle's order."""
    here = partial
    return [
        ("Numbers to reach", "Measured on questions and pages that no stage has trained on.", here(headline, run, targets)),
        ("From crawl to clean text", "What each filter let through, and why it dropped the rest. Precision: how much of what "
         "a step dropped deserved it; recall: how much of what deserved it was dropped.", here(data, run)),
        ("Text into tokens", "The same text in ever larger alphabets: the more symbols, the shorter the text.",
         here(tokenizer, run)),
        ("Learning to predict the next token", "From random weights. Bits per byte: how many bits the model needs to write "
         "down one byte of a page it has never seen.", here(pretrain, run, targets)),
        ("The dream sharpens", "The same beginnings continued by the model as it learns.", here(dream, run)),
        ("One token at a time", "A base model is a simulator of documents: it weighs every token that could come next.",
         here(sample, run)),
        ("Conversations to learn from", "Questions, worked answers, tool calls with their real results.",
         here(conversations, run)),
        ("Supervised finetuning", "The base model becomes an assistant.", here(sft, run)),
        ("A map of what it can do", "Swiss cheese: the larger the hole, the more answers are wrong.", here(cheese, run)),
        ("The largest holes", "Where the last checkpoint fails most, and how.", here(holes, run)),
        ("In its own words", "One right answer for each task.", here(examples, run)),
        ("Time and memory", "", here(times, run)),
        ("To make it again", "", here(appendix, run)),
    ]  # fmt: skip


def page(run: Run, targets: Sequence[Target] = ()) -> str:
    """The report: one HTML page that needs no script, no server and no other file."""
    numbers = all_numbers(run)
    strip = []
    for stage, metrics in run.metrics.items():
        key, unit = MAIN.get(stage, ("", ""))
        value = f"<b>{said(metrics[key], key)}</b><small>{unit}</small>" if key in metrics else "<b>✓</b>"
        strip.append(f"<li><small>{escape(stage)}</small>{value}<small>{said(metrics.get('seconds', 0), 'seconds')}</small></li>")
    body, links = [], []
    for number, (title, explain, section) in enumerate(sections(run, targets)):
        if html := section():
            explain = f'<p class="explain">{explain}</p>' if explain else ""
            body.append(f'<section id="s{number}"><h2>{title}</h2>{explain}{html}</section>')
            links.append(f'<a href="#s{number}">{title}</a>')
    style = (Path(__file__).parent / "web" / "report.css").read_text(encoding="utf-8")
    took = f"{said(numbers['total_seconds'], 'seconds')} and {numbers['peak_memory_gb']:.1f} GB of memory"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>crawl2chat: the report of a run</title>
<style>{style}{TOKEN_STYLE}</style>
</head>
<body>
<main>
<header>
<h1>From raw web pages<br>to a chatting assistant</h1>
<p class="lead">Every stage of one run, with its numbers, in {took}.</p>
<ol class="strip">{"".join(strip)}</ol>
<nav>{"".join(links)}</nav>
</header>
{"".join(body)}
<footer>Made by crawl2chat from the metrics.json of each stage in {escape(str(run.folder))}.</footer>
</main>
</body>
</html>
"""
