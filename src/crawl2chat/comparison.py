"""Two runs on one page: every number side by side, curves laid over each other, recipes line by line."""

import difflib
import hashlib
from collections.abc import Sequence
from html import escape

from crawl2chat import figures
from crawl2chat.practice_figures import series
from crawl2chat.report import document
from crawl2chat.runs import Run, Target, all_numbers, read_text
from crawl2chat.web.fragments import clip, details, said, section, table

# title, stage, side file, what is across, what is up
CURVES = [
    ("pretraining loss, nats a token", "pretrain", "log_history.json", "step", "loss"),
    ("held-out pages, bits per byte", "pretrain", "log_history.json", "step", "eval_bits_per_byte"),
    ("loss on the assistant's words", "sft", "log_history.json", "step", "loss"),
    ("rejection sampling, right answers", "rejection", "rounds.json", "rollouts", "pass_at_1"),
    ("GRPO, right answers", "grpo", "curve.json", "step", "pass_at_1"),
    ("GRPO, tokens a reply", "grpo", "curve.json", "step", "mean_length"),
    ("PPO, proxy reward", "ppo", "curve.json", "episodes", "proxy"),
    ("PPO, gold reward", "ppo", "curve.json", "episodes", "gold"),
    ("PPO, nats away from the start", "ppo", "curve.json", "episodes", "kl"),
]


def names(run: Run, other: Run) -> tuple[str, str]:
    """What the two runs are called: their folders' names, with as many parents as it takes to tell them apart."""
    one, two = (list(one.folder.resolve().parts) for one in (run, other))
    for depth in range(1, max(len(one), len(two)) + 1):
        pair = "/".join(one[-depth:]), "/".join(two[-depth:])
        if pair[0] != pair[1]:
            return pair
    return pair[0], f"{pair[1]} (the same folder)"


def comparison(run: Run, other: Run) -> str:
    """The whole page: `run` (with its targets) is the first column, `other` the one it is compared with."""
    first, second = map(escape, names(run, other))
    body = [settings(run, other), reached(run, other), curves(run, other), every_number(run, other)]
    lead = f"A is <b>{first}</b>, B is <b>{second}</b>. A difference is what A has more than B."
    top = f'<header><h1>Two runs</h1><p class="lead">{lead}</p></header>'
    return document(f"crawl2chat: {first} beside {second}", top + "".join(body) + recipes(run, other))


def settings(run: Run, other: Run) -> str:
    """Stages that one of them lacks, and whether tokenizer and evaluation are the same."""
    lines = []
    for one, two, which in ((run, other, "A"), (other, run, "B")):
        alone = [stage for stage in one.metrics if stage not in two.metrics]
        lines += [f"Only {which} has {', '.join(map(escape, alone))}."] if alone else []
    digests = [digest(one) for one in (run, other)]
    if None not in digests:
        same = digests[0] == digests[1]
        lines.append(
            "The same tokenizer."
            if same
            else "<b>Another tokenizer:</b> losses in nats a token are not comparable; bits per byte are."
        )
    asked = [one.json("eval", "settings.json") for one in (run, other)]
    if None not in asked:
        found = otherwise(*asked)
        lines.append(
            f"<b>Evaluated otherwise:</b> {'; '.join(found)}." if found else "The same questions, asked alike."
        )
    return section("May they be compared?", "", "".join(f"<p>{line}</p>" for line in lines))


def digest(run: Run) -> str | None:
    """The sha256 of a run's tokenizer, None without one."""
    homes = (stage for stage in ("tokenizer", "pretrain", "sft") if stage in run.metrics)
    for path in (run.folder / stage / "tokenizer.json" for stage in homes):
        if path.is_file():
            return hashlib.sha256(path.read_bytes()).hexdigest()
    return None


def otherwise(one: dict, two: dict) -> list[str]:
    """What differs between two evaluations' settings.json, in words."""
    words = {"prompts_sha256": "other questions"}
    tasks = [each.get("tasks") or {} for each in (one, two)]
    found: dict[str, list[str]] = {}
    for task in dict.fromkeys([*tasks[0], *tasks[1]]):
        left, right = (each.get(task) for each in tasks)
        if left is None or right is None:
            found.setdefault("asked of one alone", []).append(task)
            continue
        for key in dict.fromkeys([*left, *right]):
            if left.get(key) != right.get(key):
                name = words.get(key, f"{key} {left.get(key)} and {right.get(key)}")
                found.setdefault(name, []).append(task)
    shared = [key for key in dict.fromkeys([*one, *two]) if key != "tasks" and one.get(key) != two.get(key)]
    parts = [f"{name}: {', '.join(several[:6])}{' and more' * (len(several) > 6)}" for name, several in found.items()]
    for key in shared:
        left, right = ([str(x) for x in each.get(key)] if isinstance(each.get(key), list) else [str(each.get(key))]
                       for each in (one, two))  # fmt: skip
        apart = [("A", [x for x in left if x not in right]), ("B", [x for x in right if x not in left])]
        told = [f"{clip(', '.join(several), 200)} in {name}" for name, several in apart if several]
        parts.append(f"{key}: {' and '.join(told) or 'in another order'}")
    return [escape(part) for part in parts]


def difference(key: str, left: float | None, right: float | None) -> str:
    """left - right as HTML, nothing where one of them is missing."""
    if left is None or right is None:
        return ""
    if left == right:
        return "="
    gap = said(abs(left - right), key).replace("\u00a0%", " points")
    return "≈" if gap == "0 points" else f"{'+' if left > right else '−'}{gap}"


def noise(numbers: Sequence[dict[str, float]], key: str) -> str:
    """Whether a difference is within two standard errors of what both were measured with."""
    stem, _, last = key.rpartition("/")
    errors = [each.get(f"{stem}/stderr") for each in numbers]
    if last != "accuracy" or None in errors:
        return ""
    gap, spread = abs(numbers[0][key] - numbers[1][key]), sum(error**2 for error in errors) ** 0.5
    return "within the noise" if 0 < gap < 2 * spread else ""


def verdict(target: Target, left: float, right: float) -> str:
    """Better or worse, where the target says which way is better."""
    one_way = (target.at_least is None) != (target.at_most is None)
    if not one_way or left == right:
        return ""
    better = (left > right) == (target.at_least is not None)
    return '<b class="better">▲ better</b>' if better else '<b class="worse">▼ worse</b>'


def reached(run: Run, other: Run) -> str:
    """The numbers to reach, of both."""
    numbers, rows = [all_numbers(one) for one in (run, other)], []
    for target in run.targets:
        pair = [each.get(target.key) for each in numbers]
        if None in pair:
            continue
        marks = [f"{said(value, target.key)} {'✓' if target.met(value) else '✗'}" for value in pair]
        unsure = noise(numbers, target.key)
        gap = difference(target.key, *pair)
        how = f"<small>{unsure}</small>" if unsure else verdict(target, *pair) if gap not in ("=", "≈") else ""
        rows.append([escape(target.label), *marks, gap, how])
    head = ["", "A", "B", "difference", ""]
    return section("Numbers to reach", "", table(head, rows, numeric=(1, 2, 3)) if rows else "")


def curves(run: Run, other: Run) -> str:
    """What both have logged, one over the other."""
    drawn = []
    for title, stage, file, across, up in CURVES:
        lines = {name: series(one.json(stage, file) or [], across, up) for name, one in (("A", run), ("B", other))}
        if all(len(points) > 1 for points in lines.values()):
            drawn.append(figures.curve(title, lines, None, across))
    return section("Curves", "", figures.panels(*drawn))


def every_number(run: Run, other: Run) -> str:
    """All numbers of all stages, folded by stage."""
    numbers = [all_numbers(one) for one in (run, other)]
    keys = dict.fromkeys(key for each in numbers for key in each)
    stages: dict[str, list[str]] = {}
    for key in keys:
        stages.setdefault(key.partition("/")[0] if "/" in key else "the whole run", []).append(key)
    parts = []
    for stage, own in stages.items():
        rows = []
        for key in own:
            left, right = (each.get(key) for each in numbers)
            cells = ["–" if value is None else f"{value:,.6g}" for value in (left, right)]
            both = left is not None and right is not None
            gap = "" if not both or left == right else f"{left - right:+,.4g}".replace("-", "−")
            rows.append([f"<code>{escape(key)}</code>", *cells, gap, noise(numbers, key) if both else ""])
        changed = sum(numbers[0].get(key) != numbers[1].get(key) for key in own)
        head = ["", "A", "B", "difference", ""]
        parts.append(
            details(f"{stage}: {changed:,} of {len(own):,} numbers differ", table(head, rows, numeric=(1, 2, 3)))
        )
    return section("Every number", "", *parts)


def recipes(run: Run, other: Run) -> str:
    """The lines that only one of them has, of each stage's recipe."""
    parts, alike = [], []
    for stage in (stage for stage in run.metrics if stage in other.metrics):
        files = [one.folder / stage / "recipe.yaml" for one in (run, other)]
        if not all(path.is_file() for path in files):
            continue
        new, old = (read_text(path).splitlines() for path in files)
        changes = [line for line in difflib.ndiff(old, new) if line[:2] in ("- ", "+ ") and line[2:].strip()]
        if not changes:
            alike.append(stage)
            continue
        lines = []
        for line in changes[:200]:
            kind, sign = ("new", "+") if line[0] == "+" else ("gone", "−")
            lines.append(f'<div class="{kind}"><code>{sign} {escape(line[2:400])}</code></div>')
        more = f"<p>and {len(changes) - 200:,} lines more</p>" if len(changes) > 200 else ""
        parts.append(f'<h3>{escape(stage)}</h3><div class="diff">{"".join(lines)}{more}</div>')
    note = f'<p class="quiet">The same recipe: {", ".join(map(escape, alike))}.</p>' if alike else ""
    return section(
        "Recipes, line by line",
        "Lines with + stand in the recipe of A alone, lines with − in that of B.",
        *parts,
        note,
    )
