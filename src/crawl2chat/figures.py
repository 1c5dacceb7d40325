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


# Okabe and Ito's colours, told apart by people who see no red or no green: blues are as it should be, oranges are not
JUDGED = {
    "light": {"right": "#0072b2", "rightly_refused": "#7cc4ee", "wrongly_refused": "#f2bd4a", "wrong": "#d55e00"},
    "dark": {"right": "#3d9fdc", "rightly_refused": "#a9d8f5", "wrongly_refused": "#f2c766", "wrong": "#ee7c2b"},
}


def four_cells(groups: dict[str, dict[str, dict[str, int]]]) -> str:
    """Stacked bars of shares: {group: {when: {right, rightly_refused, wrongly_refused, wrong: replies}}}."""
    rows = [(group, when, counts) for group, times in groups.items() for when, counts in times.items()]

    def draw(figure: Figure, ink: Ink) -> None:
        axes, colours = figure.subplots(), JUDGED["light" if ink.text == INK["light"][0] else "dark"]
        places, labels = [], []
        for i, (group, when, counts) in enumerate(rows):
            y = i + 0.45 * list(groups).index(group)
            total, left = max(sum(counts.values()), 1), 0.0
            for name, colour in colours.items():
                share = counts[name] / total
                axes.barh(y, share, left=left, height=0.84, color=colour, label=name if i == 0 else None)
                if share >= 0.045:
                    dark = name in ("right", "wrong") and colours is JUDGED["light"]
                    text = {"color": "#ffffff" if dark else "#15202b", "fontsize": 9, "ha": "center", "va": "center"}
                    axes.text(left + share / 2, y, f"{100 * share:.0f} %", **text)
                left += share
            places.append(y)
            labels.append(f"{group}, {when}")
            axes.text(1.012, y, f"{sum(counts.values()):,} asked", va="center", fontsize=9, color=ink.quiet)
        axes.set_yticks(places, labels, color=ink.text)
        axes.tick_params(length=0)
        axes.set(xlim=(0, 1), ylim=(places[-1] + 0.55, -0.55), xticks=[])
        for side in ("bottom", "left"):
            axes.spines[side].set_visible(False)
        names = [name.replace("_", " ") for name in colours]
        handles = [axes.patches[0].__class__((0, 0), 1, 1, color=colour) for colour in colours.values()]
        axes.legend(handles, names, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, borderaxespad=0.2)

    alt = "shares of right, wrong, rightly and wrongly refused replies before and after finetuning"
    return picture(draw, 8, 0.34 * len(rows) + 0.16 * len(groups) + 0.55, alt)


Curve = tuple[str, list[tuple[float, float, float]], bool]  # name, (times, share, standard error), a thin line


def by_times(panels: Sequence[tuple[str, Sequence[Curve]]]) -> str:
    """Panels of shares against how often something was read: powers of four, with the zero at the left end."""

    def draw(figure: Figure, ink: Ink) -> None:
        for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for name, points, thin in lines:
                times, shares, errors = zip(*points, strict=True)
                look = {"fmt": "o:", "linewidth": 1, "color": ink.quiet, "markersize": 2.5} if thin else {"fmt": "o-"}
                look = {"capsize": 3, "markersize": 4.5, **look}
                axes.errorbar(times, shares, errors, label=name, **look)
            axes.set_xscale("symlog", linthresh=1, base=4)
            ticks = sorted({x for _, points, _ in lines for x, _, _ in points})
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks], minor=False)
            axes.minorticks_off()
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
            axes.grid(axis="y")
            axes.set(xlabel="times that the fact stood in the training text", ylim=(-0.04, 1.06))
            axes.set_title(title)
            axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)

    return picture(draw, 4.4 * len(panels), 3.3, ", ".join(title for title, _ in panels))


Manner = tuple[str, float, float, float]  # the manner's name, tokens written, accuracy, its standard error
MARKS = "os^Dv"


def thinking(families: dict[str, Sequence[Manner]]) -> str:
    """Accuracy against tokens written (logarithmic, from 1): a colour a family, a marker a manner, arrows between."""
    manners = list(dict.fromkeys(manner[0] for points in families.values() for manner in points))

    def draw(figure: Figure, ink: Ink) -> None:
        axes = figure.subplots()
        for colour, (family, points) in zip(ink.series * 4, families.items(), strict=False):
            spots = [(max(tokens, 1.0), share) for _, tokens, share, _ in points]
            for before, after in zip(spots, spots[1:], strict=False):
                arrow = {"arrowstyle": "-|>", "color": colour, "alpha": 0.55, "shrinkA": 6, "shrinkB": 6}
                axes.annotate("", after, before, arrowprops={**arrow, "connectionstyle": "arc3,rad=0.08"})
            for (name, _, share, error), (x, _) in zip(points, spots, strict=True):
                mark = MARKS[manners.index(name) % len(MARKS)]
                axes.errorbar(x, share, error, fmt=mark, color=colour, markersize=8, capsize=2, elinewidth=1)
            axes.plot([], [], "-", color=colour, linewidth=4, label=family)
        for mark, name in zip(MARKS * 2, manners, strict=False):
            axes.plot([], [], mark, color=ink.quiet, markersize=7, label=name)
        axes.set_xscale("log")
        most = max(manner[1] for points in families.values() for manner in points)
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if tick < 2 * most]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        axes.minorticks_off()
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        axes.grid(axis="y")
        axes.set(xlabel="tokens that a reply takes, the mean", ylabel="right answers", ylim=(-0.05, 1.07))
        axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))

    return picture(draw, 8, 3.9, "accuracy against tokens written, for " + ", ".join(families))


def heat(share: float) -> tuple[str, str]:
    """The colour of a share of right answers (dark blue to yellow: cividis, made for every kind of eye), and of the
    text upon it.
    """
    red, green, blue, _ = matplotlib.colormaps["cividis"](0.12 + 0.83 * min(max(share, 0.0), 1.0))
    luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    return matplotlib.colors.to_hex((red, green, blue)), "#000000" if luminance > 0.18 else "#ffffff"
