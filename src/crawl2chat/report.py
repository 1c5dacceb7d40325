"""The report: every number and figure of a run on one page, in the lifecycle's order; what a run lacks is left out."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from crawl2chat import figures
from crawl2chat.runs import Run, Target, all_numbers, read_text, versions
from crawl2chat.stage import fail
from crawl2chat.web import practice, rlhf
from crawl2chat.web.assistant import identity, interrogation, memory, thinking
from crawl2chat.web.battles import arena
from crawl2chat.web.cheese import capabilities, examples, graded
from crawl2chat.web.crawl import crawl
from crawl2chat.web.finetuning import conversations, labelling, sft
from crawl2chat.web.fragments import clip, details, said, section, table, turns
from crawl2chat.web.leaving import release
from crawl2chat.web.oddities import oddities, tools
from crawl2chat.web.pretraining import dream, pretrain, tokenizer
from crawl2chat.web.psychology import psychology, sample
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
    "arena": ("battles", "battles"),
    "release": ("files", "files"),
}
# chapters in the lifecycle's order: sections, each with the stage that it is drawn from
CHAPTERS = {
    "Pretraining": (
        (crawl, "data"),
        (tokenizer, "tokenizer"),
        (pretrain, "pretrain"),
        (dream, "pretrain"),
        (sample, "sample"),
        (psychology, "sample"),
    ),
    "An assistant": (
        (conversations, "conversations"),
        (labelling, "conversations"),
        (sft, "sft"),
        (interrogation, "interrogate"),
        (memory, "eval"),
        (identity, "eval"),
        (thinking, "eval"),
        (oddities, "eval"),
        (tools, "eval"),
    ),
    "Practice": (
        (practice.discovered, "grpo"),
        (practice.beyond_the_teacher, "grpo"),
        (practice.side_by_side, "rejection"),
        (practice.rollouts, "rejection"),
        (practice.vitals, "grpo"),
    ),
    "Human feedback": (
        (rlhf.preferences, "preferences"),
        (rlhf.reward_model, "reward"),
        (rlhf.ppo, "ppo"),
        (rlhf.side_by_side, "ppo"),
        (rlhf.overoptimization, "overoptimization"),
    ),
    "What it can do": ((capabilities, "eval"), (examples, "eval"), (arena, "arena")),
    "Out of the door": ((release, "release"),),
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
        text = f"<pre>{escape(clip(read_text(recipe), 20_000))}</pre>" if recipe.is_file() else ""
        rows = [[f"<code>{escape(key)}</code>", f"{value:,.6g}"] for key, value in metrics.items()]
        parts.append(details(f"{stage}: recipe and every number", text + table([], rows, numeric=(1,))))
    return section("To make it again", "", *parts)


def drawn(part: Callable[[Run], str], run: Run, stage: str) -> str:
    """A section with its stage and its time; one clear line for a side file that is not as its stage writes it."""
    try:
        html = part(run)
    except (ArithmeticError, AttributeError, EOFError, LookupError, OSError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}".encode("ascii", "replace").decode()
        fail(f"{run.folder / stage}: a file is not as the stage writes it ({clip(why, 200)}); run the stage again")
    if stage not in run.metrics:
        return html
    took = f", {said(run.metrics[stage]['seconds'], 'seconds')}" if "seconds" in run.metrics[stage] else ""
    return html.replace("<h2>", f'<small class="made">{escape(stage)}{took}</small><h2>', 1)


def chapters(run: Run) -> dict[str, str]:
    """{chapter: its sections}, without the chapters that have none."""
    found = {"Numbers to reach": headline(all_numbers(run), run.targets)}
    for name, parts in CHAPTERS.items():
        found[name] = "".join(drawn(part, run, stage) for part, stage in parts)
    found["The run"] = times(run, all_numbers(run)) + appendix(run)
    return {name: html for name, html in found.items() if html}


def part(i: int, name: str, html: str) -> tuple[str, str]:
    """A chapter's anchor and its heading; a chapter that is one section of the same name needs no other."""
    if same := re.search(rf'<section id="([^"]*)"><h2>{name}</h2>', html):
        return same[1], ""
    return f"part-{i}", f'<div class="part" id="part-{i}">{name}</div>'


def contents(several: dict[str, str]) -> str:
    """Links to every chapter and section."""
    items = []
    for i, (name, html) in enumerate(several.items()):
        own = re.findall(r'<section id="([^"]*)">.*?<h2>(.*?)</h2>', html)
        below = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title in own)
        below = f"<ol>{below}</ol>" if len(own) > 1 else ""
        items.append(f'<li><a href="#{part(i, name, html)[0]}">{name}</a>{below}</li>')
    return f'<nav aria-label="Contents"><ol>{"".join(items)}</ol></nav>'


def moments(run: Run) -> str:
    """The same model three times: at its first sample, as the base model, and as the assistant that uses a tool."""
    cards, samples = [], run.rows("pretrain", "samples.jsonl")
    if samples:
        steps = sorted({row["step"] for row in samples})
        for step in dict.fromkeys((steps[0], steps[-1])):
            row = next(row for row in samples if row["step"] == step)
            words = f"<p><mark>{escape(clip(row['prompt'], 120))}</mark>{escape(clip(row['text'], 200))}</p>"
            cards.append(f'<div class="chat"><h3>at step {step:,}, it goes on</h3>{words}</div>')
    right = [row for row in run.rows("eval", "replies.jsonl") if row["score"] == 1 and isinstance(row["reply"], list)]
    last = graded(run)[0][-1:]
    for way, with_tool in (("asked, it answers", False), ("it uses a tool", True)):
        rows = [row for row in right if [row["checkpoint"]] == last and (len(row["reply"]) > 1) == with_tool]
        if rows:
            row = min(
                rows, key=lambda row: (row["task"] != "identity_no_system", len(str(row["prompt"] + row["reply"])))
            )
            cards.append(f'<div class="chat"><h3>{way}</h3>{turns([*row["prompt"], *row["reply"]])}</div>')
    return f'<div class="moments">{"".join(cards)}</div>' if len(cards) > 1 else ""


def strip(run: Run) -> str:
    """A card a stage: its main number and its time."""
    items = []
    for stage, metrics in run.metrics.items():
        key, unit = MAIN.get(stage.partition("-")[0], ("", ""))  # ppo-rloo is a ppo
        number = f"<b>{said(metrics[key], key)}</b><small>{unit}</small>" if key in metrics else "<b>✓</b>"
        if stage == "eval" and (examined := graded(run))[1]:
            number = f"<b>{len(examined[1])}</b><small>tasks, {len(examined[0])} checkpoints</small>"
        spent = said(metrics.get("seconds", 0), "seconds")
        items.append(f"<li><small>{escape(stage)}</small>{number}<small>{spent}</small></li>")
    return f'<ol class="strip">{"".join(items)}</ol>'


def page(run: Run, targets: Sequence[Target] = ()) -> str:
    """The whole report: one HTML page that needs no script, no server and no other file."""
    numbers, several = all_numbers(run), chapters(replace(run, targets=targets))
    took = f"{said(numbers['total_seconds'], 'seconds')} and {numbers['peak_memory_gb']:.1f} GB of memory"
    top = f"""<a class="skip" href="#report">To the report</a>
<header>
<h1>From raw web pages<br>to a chatting assistant</h1>
<p class="lead">Every stage of one run, with its numbers, in {took}.</p>
{moments(run)}{strip(run)}
</header>"""
    body = [part(i, name, html)[1] + html for i, (name, html) in enumerate(several.items())]
    body.append(f"<footer>Made by crawl2chat from what the stages wrote below {escape(str(run.folder))}.</footer>")
    return document(
        "crawl2chat: the report of a run", top + contents(several) + f'<div id="report">{"".join(body)}</div>'
    )


def document(title: str, body: str) -> str:
    """A page of `body` that brings its style along."""
    style = (Path(__file__).parent / "web" / "report.css").read_text(encoding="utf-8")
    html = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}{figures.STYLE}{TOKEN_STYLE}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
    return html.encode("utf-8", "replace").decode()  # a model may write half a surrogate pair
