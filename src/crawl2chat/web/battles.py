"""The report's page about the arena: ratings with their intervals, who beats whom how often, and some battles."""

import io
from collections.abc import Sequence
from html import escape

import matplotlib
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Rectangle

from crawl2chat.figures import LOOK, Ink, panels, picture
from crawl2chat.ratings import POINTS, notes, rate
from crawl2chat.runs import Run
from crawl2chat.verdicts import agreement
from crawl2chat.web.fragments import clip, said, section, table
from crawl2chat.web.practice import asked

JUDGES = {"grader": "the tasks' graders: right beats wrong", "simulated": "the simulated human, who errs a little"}


def arena(run: Run) -> str:
    """Every arena of the run: figure, table, notes, people's own verdicts, and battles to look at."""
    stages = [stage for stage in run.metrics if stage.partition("-")[0] == "arena"]
    return "".join(part(run, stage) for stage in stages if players(run.metrics[stage]))


def players(numbers: dict[str, float]) -> list[str]:
    """The checkpoints of an arena's metrics, best first."""
    found = {key.removeprefix("rating/"): value for key, value in numbers.items() if key.startswith("rating/")}
    return sorted(found, key=lambda name: -found[name])


def part(run: Run, stage: str) -> str:
    """One arena."""
    numbers, rows = run.metrics[stage], whole(run.rows(stage, "battles.jsonl"))
    who = dict.fromkeys(JUDGES.get(str(row["judge"]).partition(",")[0], str(row["judge"])) for row in rows)
    title = "Arena" + (f": {stage.partition('-')[2].replace('-', ' ')}" if "-" in stage else "")
    by = f" Judge: {escape('; '.join(who))}." if who else ""
    told = [f"{said(numbers['battles'])} battles"] if "battles" in numbers else []
    told += [f"{said(numbers['prompts'])} prompts"] if "prompts" in numbers else []
    for key, name in (("tie_share", "ties"), ("both_bad_share", "both bad")):
        told += [f"{100 * numbers[key]:.0f}&nbsp;% {name}"] if key in numbers else []
    told += [f"{numbers['undecided']:,.0f} undecided"] if numbers.get("undecided") else []
    if "length_effect" in numbers:
        ends = [numbers.get(f"length_effect_{end}", numbers["length_effect"]) for end in ("low", "high")]
        effect = f"{numbers['length_effect']:+.0f} points [{ends[0]:+.0f}, {ends[1]:+.0f}]".replace("-", "−")
        told.append(f"a reply twice as long gains {effect} by that alone")
    remarks = notes(players(numbers), rates(numbers), int(numbers.get("prompts", 0)))
    return section(
        escape(title),
        "Two checkpoints reply to the same prompt, and who is better is said without knowing who is who. Ratings are "
        "Bradley and Terry's on the scale of Elo's: 400 points more are odds of ten to one. Bars are 95&nbsp;% "
        f"intervals over prompts; a tie is half a win.{by}",
        figure(numbers),
        rated(numbers),
        f'<p class="quiet">{", ".join(told)}.</p>' if told else "",
        "".join(f"<p>Note: {escape(note)}.</p>" for note in remarks),
        people(whole(run.rows(stage, "people/battles.jsonl")), rows),
        examples(rows),
    )


def whole(rows: Sequence[dict]) -> list[dict]:
    """The battles that have all that is shown of them."""
    keys = {"prompt", "a", "b", "replies", "winner", "judge"}
    return [row for row in rows if isinstance(row, dict) and keys <= row.keys() and row["winner"] in (*POINTS, None)]


def rates(numbers: dict[str, float]) -> dict[tuple[str, str], float]:
    """{(one, other): win rate of the one} of an arena's metrics."""
    found = {}
    for key, value in numbers.items():
        name, *pair = key.split("/")
        if name == "win_rate" and len(pair) == 2:
            found[pair[0], pair[1]] = value
    return found


def figure(numbers: dict[str, float]) -> str:
    """Ratings with intervals beside the matrix of win rates, for a page."""
    names = ", ".join(players(numbers))
    return panels(
        picture(lambda canvas, ink: ratings_panel(canvas, ink, numbers), 4.6, height(numbers), f"ratings of {names}"),
        picture(lambda canvas, ink: matrix_panel(canvas, ink, numbers), 4.0, height(numbers), f"win rates of {names}"),
    )


def svg(numbers: dict[str, float]) -> str:
    """The same as a file of its own."""
    with matplotlib.rc_context({**LOOK, "svg.hashsalt": "arena"}):
        canvas, buffer = Figure(figsize=(9, height(numbers)), layout="constrained"), io.StringIO()
        for half, draw in zip(canvas.subfigures(1, 2), (ratings_panel, matrix_panel), strict=True):
            draw(half, Ink(), numbers)
        canvas.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def height(numbers: dict[str, float]) -> float:
    """Inches."""
    return 1.5 + 0.42 * len(players(numbers))


def ratings_panel(canvas: FigureBase, ink: Ink, numbers: dict[str, float]) -> None:
    """Ratings with their intervals; below each, hollow, the one at equal lengths."""
    axes, names = canvas.subplots(), players(numbers)
    for key, place, colour, fill, label in (
        ("rating", 0.0, ink.series[0], ink.series[0], "as judged"),
        ("length_controlled", 0.26, ink.quiet, "none", "at equal lengths"),
    ):
        known = [i for i, name in enumerate(names) if f"{key}/{name}" in numbers]
        middle = [numbers[f"{key}/{names[i]}"] for i in known]
        ends = [
            [abs(numbers.get(f"{key}_{end}/{names[i]}", x) - x) for i, x in zip(known, middle, strict=True)]
            for end in ("low", "high")
        ]
        look = {"fmt": "o", "color": colour, "markerfacecolor": fill, "capsize": 3, "elinewidth": 1.6}
        if known:
            axes.errorbar(middle, [i + place for i in known], xerr=ends, label=label, **look)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.5)
    axes.grid(axis="x")
    axes.locator_params(axis="x", nbins=5)
    axes.set_title("ratings with 95 % intervals")
    if any(key.startswith("length_controlled/") for key in numbers):
        axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)


def matrix_panel(canvas: FigureBase, ink: Ink, numbers: dict[str, float]) -> None:
    """How often the row beats the column, the darker the more often."""
    axes, names, share = canvas.subplots(), players(numbers), rates(numbers)
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            if (one, other) in share:
                value = share[one, other]
                axes.add_patch(Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, color=ink.series[0], alpha=0.55 * value))
                axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center")
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5))
    axes.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) * len(names) < 44 else 30)
    axes.set_yticks(range(len(names)), names)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("row beats column, % of battles")


def rated(numbers: dict[str, float]) -> str:
    """The ratings as a table, best first."""
    lines = []
    for name in players(numbers):
        low, high = (numbers.get(f"rating_{end}/{name}") for end in ("low", "high"))
        between = "" if low is None or high is None else f"{low:.0f} to {high:.0f}"
        equal = numbers.get(f"length_controlled/{name}")
        lines.append([f"<b>{escape(name)}</b>", f"{numbers[f'rating/{name}']:.0f}", between,
                      "" if equal is None else f"{equal:.0f}"])  # fmt: skip
    return table(["", "rating", "95 % interval", "at equal lengths"], lines, numeric=(1, 2, 3))


def people(verdicts: Sequence[dict], rows: Sequence[dict]) -> str:
    """The ratings by each person who judged on the page, and how often they agree with the arena's judge."""
    lines = []
    for name in dict.fromkeys(row["judge"] for row in verdicts):
        own = [row for row in verdicts if row["judge"] == name and row["winner"] is not None]
        if not own:
            continue
        found = rate(own)
        share, both = agreement(own, rows)
        listed = ", ".join(
            f"{escape(one)} {found.rating[one]:.0f} <small>[{found.low[one]:.0f}, {found.high[one]:.0f}]</small>"
            for one in found.players
        )
        same = f"{100 * share:.0f}&nbsp;% of {both:,}" if both else ""
        lines.append([escape(name), f"{found.battles:,}", listed, same])
    head = ["judge", "battles", "ratings", "agrees with the judge above"]
    return "<h3>By people</h3>" + table(head, lines, numeric=(1,)) if lines else ""


def examples(rows: Sequence[dict], most: int = 3) -> str:
    """Battles that somebody won, each on another prompt and of another pair of checkpoints."""
    chosen: dict[str, dict] = {}
    for row in rows:
        told = row["winner"] in ("a", "b") and all(text.strip() for text in row["replies"])
        if told and (row["a"], row["b"]) not in {(one["a"], one["b"]) for one in chosen.values()}:
            chosen.setdefault(asked(row["prompt"]), row)
    lines = []
    for row in list(chosen.values())[:most]:
        cells = [f"<b>{escape(clip(asked(row['prompt']), 240))}</b>"]
        for side, text in zip("ab", row["replies"], strict=True):
            mark = f"{escape(row[side])}{' wins' if row['winner'] == side else ''}"
            kind = " right" if row["winner"] == side else ""
            cells.append(f'<div class="judged{kind}"><p>{escape(clip(text, 300))}</p><small>{mark}</small></div>')
        lines.append(cells)
    return f'<h3>Battles</h3><div class="sides stacked">{table([], lines)}</div>' if lines else ""
