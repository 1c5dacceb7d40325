"""Figures of the report, drawn by matplotlib twice, for a light and for a dark page, and embedded as SVG."""

import base64
import io
from collections.abc import Callable, Sequence
from html import escape

import matplotlib
from matplotlib.figure import Figure

SERIES = {
    "light": ["#0f766e", "#d97706", "#2563eb", "#be185d", "#7c3aed", "#65a30d", "#0891b2", "#b45309"],
    "dark": ["#2dd4bf", "#fbbf24", "#60a5fa", "#f472b6", "#a78bfa", "#a3e635", "#22d3ee", "#fb923c"],
}
INK = {"light": ("#1f2933", "#6b7280", "#d8dce2"), "dark": ("#e8eaed", "#9aa3af", "#3b424d")}  # text, quiet, grid


class Ink:
    """The colours of one page: `text`, `quiet`, `grid` and a list of `series`."""

    def __init__(self, scheme: str):
        self.text, self.quiet, self.grid = INK[scheme]
        self.series = SERIES[scheme]


def picture(draw: Callable[[Figure, Ink], None], width: float, height: float, alt: str) -> str:
    """HTML of a figure of `width` x `height` inches that follows the reader's colour scheme."""
    uris = {}
    for scheme in ("light", "dark"):
        ink = Ink(scheme)
        style = {
            **dict.fromkeys(("text.color", "axes.labelcolor"), ink.text),
            **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), ink.quiet),
            **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
            **{
                "grid.color": ink.grid,
                "axes.axisbelow": True,
                "axes.titlelocation": "left",
                "axes.titlesize": 11,
                "lines.linewidth": 1.8,
            },
            **{"axes.prop_cycle": matplotlib.cycler(color=ink.series), "svg.hashsalt": "report", "font.size": 10},
        }
        with matplotlib.rc_context(style):
            figure = Figure(figsize=(width, height), layout="constrained")
            draw(figure, ink)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        uris[scheme] = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<picture><source srcset="{uris["dark"]}" media="(prefers-color-scheme: dark)">'
        f'<img src="{uris["light"]}" alt="{escape(alt)}"></picture>'
    )


def funnel(steps: Sequence[tuple[str, int, int]]) -> str:
    """Documents that pass each step, as a funnel; `steps` are (name, documents in, documents out) in order."""

    def draw(figure: Figure, ink: Ink) -> None:
        axes = figure.subplots()
        axes.axis("off")
        most = max(steps[0][1], 1)
        edges = []
        for y, (name, before, after) in enumerate(steps):
            axes.barh(y, after, left=-after / 2, height=0.62, color=ink.series[0])
            axes.text(-0.54 * most, y, name.replace("_", " "), ha="right", va="center")
            label = f"{after:,}" + (f"   −{before - after:,}" if before > after else "")
            axes.text(0.54 * most, y, label, ha="left", va="center", color=ink.text if before > after else ink.quiet)
            edges += [(y - 0.31, after / 2), (y + 0.31, after / 2)]
        heights, halves = zip(*edges, strict=True)
        axes.fill_betweenx(heights, [-half for half in halves], halves, color=ink.series[0], alpha=0.22, linewidth=0)
        axes.set(xlim=(-0.9 * most, 0.85 * most), ylim=(len(steps) - 0.5, -0.5))

    return picture(draw, 8, 0.42 * len(steps) + 0.2, "documents left after each step of the funnel")


Panel = tuple[str, dict[str, list[tuple[float, float]]], float | None]


def curves(panels: Sequence[Panel]) -> str:
    """Panels side by side: a title, curves of (step, value) by name, and a target drawn as a dashed line, or None."""

    def draw(figure: Figure, ink: Ink) -> None:
        for axes, (title, lines, target) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            for name, points in lines.items():
                steps, values = zip(*points, strict=True)
                (line,) = axes.plot(steps, values, "o-" if len(points) < 25 else "-", markersize=3.5, label=name)
                place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
                axes.annotate(
                    f"{values[-1]:.2f}", (steps[-1], values[-1]), color=line.get_color(), fontsize=9, **place
                )
            if target is not None:
                axes.axhline(target, color=ink.quiet, linewidth=1, linestyle="--", label=f"target {target:g}")
            axes.grid(axis="y")
            axes.margins(x=0.1)
            axes.set_title(title)
            axes.set_xlabel("step")
            if len(lines) > 1 or target is not None:
                axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=4)

    return picture(draw, 4.3 * len(panels), 3.1, ", ".join(title for title, _, _ in panels))


def against(across: str, up: str, lines: dict[str, list[tuple[float, float]]], powers: bool = False) -> str:
    """Curves of (x, share) by name; with `powers` the x axis is logarithmic, with its zero at the left end."""

    def draw(figure: Figure, ink: Ink) -> None:
        axes = figure.subplots()
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), "o-", markersize=4, label=name)
        ticks = sorted({x for points in lines.values() for x, _ in points})
        if powers:
            axes.set_xscale("symlog", linthresh=1, base=4)
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks], minor=False)
        axes.minorticks_off()
        axes.grid(axis="y")
        axes.set(xlabel=across, ylabel=up, ylim=(-0.03, 1.05))
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)

    return picture(draw, 6, 3.1, f"{', '.join(lines)} against {across}")


def bars(rows: Sequence[tuple[str, float]], alt: str) -> str:
    """Horizontal bars, the first row on top, each with its value at its end."""

    def draw(figure: Figure, ink: Ink) -> None:
        axes = figure.subplots()
        names, values = zip(*rows, strict=True)
        drawn = axes.barh(range(len(rows)), values, color=ink.series[0], height=0.66)
        axes.bar_label(drawn, [f"{value:,.0f}" for value in values], padding=4, color=ink.text, fontsize=9)
        axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name in names], color=ink.text)
        axes.tick_params(length=0)
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1.15 * max(*values, 1e-9)), xticks=[])
        for side in ("bottom", "left"):
            axes.spines[side].set_visible(False)

    return picture(draw, 7, 0.3 * len(rows) + 0.25, alt)
