"""Figures of practice (rejection sampling, GRPO): accuracy, length and thinking over steps, and what a run logs."""

from collections.abc import Sequence
from math import isfinite

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crawl2chat import figures
from crawl2chat.figures import Ink, picture

Points = list[tuple[float, float]]
PHASES = ("rollout", "reward", "update")


def series(rows: Sequence[dict], across: str, up: str) -> Points:
    """(x, y) of the rows that have both as finite numbers."""
    pairs = ((row.get(across), row.get(up)) for row in rows)
    return [(x, y) for x, y in pairs if isinstance(x, int | float) and isinstance(y, int | float) and isfinite(y)]


def shares(axes: Axes) -> None:
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_ylim(-0.04, 1.07)


def accuracy(axes: Axes, rows: Sequence[dict], across: str, colour: str, label: str) -> None:
    """pass@1 with a band of one standard error on either side."""
    points = series(rows, across, "pass_at_1")
    xs, ys = zip(*points, strict=True)
    errors = [row.get("stderr") or 0.0 for row in rows if row.get("pass_at_1") is not None and across in row]
    low, high = ([y + sign * error for y, error in zip(ys, errors, strict=True)] for sign in (-1, 1))
    axes.fill_between(xs, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(xs, ys, "o-", color=colour, markersize=3.5 if len(xs) < 40 else 0, label=label)


def ends(axes: Axes, points: Points, form: str, colour: str, last: tuple[float, float] = (7, 0)) -> None:
    """The first and the last value, beside their points; the last one `last` points away from its own."""
    marks = [(points[0], (0, 9), "center"), (points[-1], last, "left" if last[0] >= 0 else "right")]
    for (x, y), away, side in marks if len(points) > 1 else marks[1:]:
        text = form.format(100 * y if "%" in form else y)
        style = {"textcoords": "offset points", "ha": side, "va": "center", "fontsize": 10, "fontweight": "bold"}
        axes.annotate(text, (x, y), xytext=away, color=colour, **style)


def discovered(rows: Sequence[dict]) -> str:
    """Panels over training steps: held-out accuracy, length of a reply, the share of replies that
    show their work and, where any is used, words of strategy a reply. `rows` are those of grpo/curve.json.
    """
    words = dict.fromkeys(word for row in rows for word in row.get("strategies") or {})
    counted = [{"step": row["step"], **(row.get("strategies") or {})} for row in rows]
    used = [word for word in words if any(y for _, y in series(counted, "step", word))]
    panels = [name for name in ("pass_at_1", "mean_length", "worked") if series(rows, "step", name)]
    panels += ["strategies"] if used else []
    titles = {
        "pass_at_1": "right answers to held-out problems",
        "mean_length": "length of a reply, tokens",
        "worked": "replies that show their work",
        "strategies": "words of strategy, times a reply",
    }

    def drawn(name: str, colour: str) -> str:
        def draw(figure: Figure, ink: Ink) -> None:
            axes, points = figure.subplots(), series(rows, "step", name)
            axes.set_title(titles[name])
            axes.set_xlabel("training step")
            axes.grid(axis="y")
            axes.margins(x=0.14)
            if name == "pass_at_1":
                accuracy(axes, rows, "step", colour, "drawn, ± one standard error")
                if greedy := series(rows, "step", "greedy"):
                    axes.plot(*zip(*greedy, strict=True), ":", color=ink.quiet, linewidth=1.4, label="greedy")
                axes.legend(fontsize=9, loc="lower right")
            elif name == "strategies":
                for word, shade in zip(used, ink.series * 4, strict=False):
                    marked = series(counted, "step", word)
                    axes.plot(*zip(*marked, strict=True), "o-", color=shade, markersize=3, label=word)
                axes.legend(fontsize=9, loc="upper left", ncols=2)
                axes.set_ylim(bottom=0)
            else:
                axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=3.5 if len(points) < 40 else 0)
            if name in ("pass_at_1", "worked"):
                shares(axes)
            if name == "mean_length":
                axes.set_ylim(0, 1.15 * max(y for _, y in points) or 1)
            if points:
                ends(axes, points, "{:.0f} %" if name != "mean_length" else "{:.0f}", colour)

        return picture(draw, 4.3, 2.5, f"{titles[name]}, over training steps")

    return figures.panels(*(drawn(name, colour) for name, colour in zip(panels, Ink.series, strict=False)))


def side_by_side(ways: dict[str, Sequence[dict]]) -> str:
    """Held-out accuracy of each way to practise against rollouts drawn, and against seconds spent."""
    across = {"rollouts": "rollouts drawn", "seconds": "seconds spent"}
    across = {
        key: name for key, name in across.items() if any(series(rows, key, "pass_at_1") for rows in ways.values())
    }

    def drawn(key: str, name: str) -> str:
        def draw(figure: Figure, ink: Ink) -> None:
            axes = figure.subplots()
            for (way, rows), colour in zip(ways.items(), ink.series, strict=False):
                if series(rows, key, "pass_at_1"):
                    accuracy(axes, rows, key, colour, way)
            shares(axes)
            axes.grid(axis="y")
            axes.set_title(f"right answers against {name}")
            axes.set_xlabel(name)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.locator_params(axis="x", nbins=5)
            axes.legend(fontsize=9, loc="lower right")

        return picture(draw, 4.3, 2.9, f"held-out accuracy of {' and '.join(ways)}, against {name}")

    return figures.panels(*(drawn(key, name) for key, name in across.items()))


def alarms(rows: Sequence[dict]) -> dict[str, list[float]]:
    """{alarm: the steps that it was raised at} of a trainer's log rows."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for key in [key for key, value in row.items() if key.startswith("alarms/") and value]:
            found.setdefault(key.removeprefix("alarms/"), []).append(row["step"])
    return found


def rewards(rows: Sequence[dict]) -> list[str]:
    """Names of the rewards in a trainer's log rows."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [
        key[len("rewards/") : -len("/mean")] for key in keys if key.startswith("rewards/") and key.endswith("/mean")
    ]


def logged(rows: Sequence[dict]) -> list[tuple[str, dict[str, Points]]]:
    """The panels of `vitals`, titles with curves by name; without what the log lacks."""
    earned = {name: series(rows, "step", f"rewards/{name}/mean") for name in rewards(rows)}
    if len(earned) != 1:
        earned = {"all, weighted": series(rows, "step", "reward"), **earned}
    lengths = {name: series(rows, "step", f"completions/{name}_length") for name in ("mean", "max")}
    phases = {phase: series(rows, "step", f"{phase}_seconds") for phase in PHASES}
    spent = sum(y for points in phases.values() for _, y in points) or 1
    panels = {
        "rewards, mean of a step": earned,
        "entropy of the next token, nats": {"entropy": series(rows, "step", "entropy")},
        "tokens of a completion": lengths,
        "completions cut off": {"share": series(rows, "step", "completions/clipped_ratio")},
        "groups whose rewards are all equal": {"share": series(rows, "step", "frac_reward_zero_std")},
        "seconds a step": {f"{phase} {100 * sum(y for _, y in points) / spent:.0f} %": points
                           for phase, points in phases.items()},
    }  # fmt: skip
    drawn = [(title, {name: points for name, points in lines.items() if points}) for title, lines in panels.items()]
    return [(title, lines) for title, lines in drawn if lines]


def vitals(rows: Sequence[dict]) -> str:
    """What GRPO logs, as panels: rewards, entropy, tokens, groups that teach nothing, seconds by phase.

    Alarms are vertical lines through all of them. `rows` are those of grpo/log_history.json.
    """
    panels, raised = logged(rows), alarms(rows)

    def drawn(title: str, lines: dict[str, Points]) -> str:
        def draw(figure: Figure, ink: Ink) -> None:
            axes = figure.subplots()
            steps = {tuple(x for x, _ in points) for points in lines.values()}
            if title == "seconds a step" and len(steps) == 1:
                heights = [[y for _, y in points] for points in lines.values()]
                axes.stackplot(*steps, heights, labels=list(lines), colors=ink.series, alpha=0.85)
            else:
                for name, points in lines.items():
                    axes.plot(*zip(*points, strict=True), label=name if len(lines) > 1 else None)
            for (name, when), colour in zip(raised.items(), (ink.series[3:] + ink.series[:3]) * 3, strict=False):
                for i, step in enumerate(when):
                    label = f"alarm: {name.replace('_', ' ')}" if i == 0 and title == panels[0][0] else None
                    axes.axvline(step, color=colour, linewidth=1.1, linestyle="--", label=label)
            axes.grid(axis="y")
            axes.set_title(title)
            axes.set_xlabel("step")
            if "share" in lines:
                shares(axes)
            else:
                axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
            if axes.get_legend_handles_labels()[1]:
                axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3)

        return picture(draw, 4.3, 2.5, f"{title}, over steps")

    return figures.panels(*(drawn(title, lines) for title, lines in panels))


def beyond_the_teacher(teacher: float, sft: Points, rl: Points) -> str:
    """Held-out accuracy (x, share) of learning from a teacher's solutions and of practice, with the teacher's own as a
    line. After figure 3 of Silver et al. 2017 (AlphaGo Zero, doi:10.1038/nature24270).
    """

    def draw(figure: Figure, ink: Ink) -> None:
        axes = figure.subplots()
        ways = {"SFT on the teacher's solutions": sft, "practice, rewarded for right answers": rl}
        for (name, points), colour in zip(ways.items(), (ink.series[1], ink.series[0]), strict=True):
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=4, label=name)
        if sft:
            ends(axes, sft, "{:.0f} %", ink.series[1], last=(-7, -12))  # practice begins to its right
        if rl:
            ends(axes, rl[-1:] if sft else rl, "{:.0f} %", ink.series[0])
        axes.axhline(teacher, color=ink.quiet, linewidth=1.2, linestyle="--")
        place = {"textcoords": "offset points", "fontsize": 9.5, "color": ink.quiet, "va": "bottom"}
        low = min(x for points in (sft, rl) for x, _ in points)
        axes.annotate(f"the teacher: {100 * teacher:.0f} %", (low, teacher), xytext=(0, 3), **place)
        shares(axes)
        axes.margins(x=0.1)
        axes.grid(axis="y")
        axes.set(xlabel="training step", ylabel="right answers, held-out")
        axes.legend(fontsize=9, loc="lower right")

    return picture(draw, 4.6, 3.1, f"accuracy of SFT and of practice beside the teacher's {teacher:.0%}")
