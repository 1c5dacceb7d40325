"""Figures of the report: drawn by matplotlib once, embedded as SVG whose colours are the page's CSS variables."""

import io
import re
from collections.abc import Callable, Sequence
from html import escape
from math import isfinite

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crawl2chat.web.fragments import bar, spoken

# each colour on a light page (what matplotlib draws with) and on a dark one; ink, quiet and line are report.css's
SERIES = [
    ("#0f766e", "#2dd4bf"),
    ("#b45309", "#fbbf24"),
    ("#2563eb", "#7db2ff"),
    ("#be185d", "#f472b6"),
    ("#7c3aed", "#b9a2ff"),
    ("#4d7c0f", "#a3e635"),
    ("#0e7490", "#22d3ee"),
    ("#57534e", "#d6d3d1"),
]
TEXT, QUIET, GRID = "#1f2933", "#5d6673", "#e4e0d8"
VARIABLES = {TEXT: "ink", QUIET: "quiet", GRID: "line"} | {light: f"c{i}" for i, (light, _) in enumerate(SERIES, 1)}
STYLE = (
    f":root {{ {' '.join(f'--c{i}: {light};' for i, (light, _) in enumerate(SERIES, 1))} }}\n"
    "@media screen and (prefers-color-scheme: dark) "
    f"{{ :root {{ {' '.join(f'--c{i}: {dark};' for i, (_, dark) in enumerate(SERIES, 1))} }} }}\n"
)


class Ink:
    """The colours of a light page: `text`, `quiet`, `grid` and a list of `series`; a CSS variable each in a report."""

    text, quiet, grid = TEXT, QUIET, GRID
    series = [light for light, _ in SERIES]

    def __init__(self, scheme: str = "light"):
        assert scheme == "light", "a dark page gives the variables other values"


LOOK = {
    **dict.fromkeys(("text.color", "axes.labelcolor"), TEXT),
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), QUIET),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon", "text.parse_math"), False),
    **{"grid.color": GRID, "axes.axisbelow": True, "axes.titlelocation": "left", "axes.titlesize": 10.5},
    **{"lines.linewidth": 1.8, "axes.prop_cycle": matplotlib.cycler(color=Ink.series), "font.size": 10},
    "svg.fonttype": "none",  # words stay words: found, read aloud, and as large as the reader wants them
}


def picture(draw: Callable[[Figure, Ink], None], width: float, height: float, alt: str) -> str:
    """HTML of a figure of `width` x `height` inches, or narrower where the page is; in the reader's colour scheme."""
    with matplotlib.rc_context({**LOOK, "svg.hashsalt": alt}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure, Ink())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    room = f"flex:1 1 {4.9 * width:.0f}rem;max-width:{7.5 * width:.0f}rem"
    return (
        f'<div class="fig" role="img" aria-label="{escape(alt)}" style="{room}">'
        f"{inline(buffer.getvalue().decode('utf-8'))}</div>"
    )


def inline(svg: str) -> str:
    """matplotlib's SVG as part of a page: its colours as variables, without what repeats or names an address."""
    svg = svg[svg.index("<svg") :]
    for pattern in (
        r"<metadata>.*?</metadata>",
        r"<style.*?</style>",
        r' xmlns(:xlink)?="[^"]*"',
        r' version="[^"]*"',
    ):
        svg = re.sub(pattern, "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r'\1 aria-hidden="true"', svg, count=1)
    used = set(re.findall(r'#([\w.-]+)["\')]', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"', "", svg).replace("xlink:href", "href")
    for colour, name in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r"<[^<>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), svg)  # points, not words
    return re.sub(r">\s+<", "><", re.sub(r"\s*\n\s*", " ", svg))


def panels(*figures: str) -> str:
    """Figures side by side, below each other where there is no room."""
    shown = [figure for figure in figures if figure]
    return f'<div class="panels">{"".join(shown)}</div>' if len(shown) > 1 else "".join(shown)


def funnel(steps: Sequence[tuple[str, int, int]]) -> str:
    """Documents that pass each step, as a funnel; `steps` are (name, documents in, documents out) in order."""
    most, rows = max((after for _, _, after in steps), default=0) or 1, []
    for i, (name, before, after) in enumerate(steps):
        low = steps[i + 1][2] if i + 1 < len(steps) else after
        edges = [50 + sign * 50 * count / most for sign, count in ((-1, after), (1, after), (1, low), (-1, low))]
        shape = ", ".join(f"{x:.1f}% {y}" for x, y in zip(edges, ("0", "0", "100%", "100%"), strict=True))
        gone = f" <small>−{before - after:,}</small>" if before > after else ""
        rows.append(
            f"<div><span>{spoken(name)}</span><i style='clip-path: polygon({shape})'></i>"
            f"<span>{after:,}{gone}</span></div>"
        )
    return f'<div class="funnel">{"".join(rows)}</div>'


def bars(rows: Sequence[tuple[str, float]]) -> str:
    """Horizontal bars, the first row on top, each with its value at its end."""
    most = max((value for _, value in rows), default=0) or 1
    lines = [bar(name.replace("_", " "), value / most, f"{value:,.0f}") for name, value in rows]
    return f'<div class="bars">{"".join(lines)}</div>'


def finite(points: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """The points all of whose numbers are numbers."""
    return [point for point in points if all(isinstance(x, int | float) and isfinite(x) for x in point)]


def names_at_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], height: float) -> None:
    """(x, y, words, colour) of the curves' last points, with the words moved apart where they would overlap.

    `height` is that of the axes in points, about.
    """
    low, high = axes.get_ylim()
    place, below = -1e9, []
    for x, y, words, colour in sorted(ends, key=lambda end: end[1]):
        place = max(place + 11.5, (y - low) / ((high - low) or 1) * height)
        below.append((x, y, words, colour, place))
    over = max(place - height, 0)  # the topmost went past the top: all of a heap move down together
    for x, y, words, colour, at in below:
        away = at - over * (at / max(place, 1)) - (y - low) / ((high - low) or 1) * height
        axes.annotate(words, (x, y), (6, away), textcoords="offset points", color=colour, va="center", fontsize=9)


Panel = tuple[str, dict[str, list[tuple[float, float]]], float | None]


def curves(several: Sequence[Panel], across: str = "step") -> str:
    """Panels side by side: a title, curves of (step, value) by name, and a target drawn as a dashed line, or None."""
    return panels(*(curve(*panel, across) for panel in several))


def curve(title: str, lines: dict[str, list[tuple[float, float]]], target: float | None, across: str) -> str:
    """One panel of `curves`; every curve is named at its end. Nothing where no point is a number."""
    lines = {name: finite(points) for name, points in lines.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    height = 2.5 if len(lines) < 6 else 3.1

    def draw(figure: Figure, ink: Ink) -> None:
        axes, last = figure.subplots(), []
        for (name, points), colour in zip(lines.items(), ink.series * 8, strict=False):
            look = {"markersize": 3.5, "linewidth": 4 if len(lines) == 2 and not last else 1.8}  # seen below its like
            axes.plot(*zip(*points, strict=True), "o-" if len(points) < 25 else "-", color=colour, **look)
            words = f"{points[-1][1]:.2f}" + (f" {name}" if len(lines) > 1 else "")
            last.append((*points[-1], words, colour))
        if target is not None:
            axes.axhline(target, color=ink.quiet, linewidth=1, linestyle="--")
            low = min(x for points in lines.values() for x, _ in points)
            place = {"textcoords": "offset points", "fontsize": 8.5, "color": ink.quiet}
            axes.annotate(f"target {target:g}", (low, target), (0, 3), **place)
        axes.grid(axis="y")
        axes.margins(x=0.04)
        names_at_ends(axes, last, 72 * (height - 0.75))
        axes.set_title(title)
        axes.set_xlabel(across)

    return picture(draw, 4.3, height, f"{title}: {', '.join(lines)}, over {across}")


def against(across: str, up: str, lines: dict[str, list[tuple[float, float]]], powers: bool = False) -> str:
    """Curves of (x, share) by name; with `powers` the x axis is logarithmic, with its zero at the left end."""
    lines = {name: finite(points) for name, points in lines.items()}
    if not any(lines.values()):
        return ""

    def draw(figure: Figure, ink: Ink) -> None:
        axes = figure.subplots()
        for name, points in lines.items():
            if points:
                axes.plot(*zip(*points, strict=True), "o-", markersize=4, label=name)
        ticks = sorted({x for points in lines.values() for x, _ in points})
        if powers:
            axes.set_xscale("symlog", linthresh=1, base=4)
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks], minor=False)
        axes.minorticks_off()
        axes.grid(axis="y")
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        axes.set(xlabel=across, ylim=(-0.03, 1.05))
        axes.set_title(up)
        axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1)

    return picture(draw, 4.6, 3.0, f"{', '.join(lines)} against {across}")


# blues are as it should be, oranges are not (Okabe and Ito's colours, told apart by people who see no red or no green)
JUDGED = ("right", "rightly_refused", "wrongly_refused", "wrong")


def four_cells(groups: dict[str, dict[str, dict[str, int]]]) -> str:
    """Stacked bars of shares: {group: {when: {right, rightly_refused, wrongly_refused, wrong: replies}}}."""
    keys = "".join(f'<span><i class="{name}"></i>{spoken(name)}</span>' for name in JUDGED)
    rows = []
    for group, times in groups.items():
        for when, counts in times.items():
            total = sum(counts[name] for name in JUDGED)
            parts = [(name, 100 * counts[name] / max(total, 1)) for name in JUDGED if counts[name]]
            shares = ", ".join(f"{share:.0f} % {name.replace('_', ' ')}" for name, share in parts)
            stack = "".join(
                f'<i class="{name}" style="width:{share:.2f}%">{f"{share:.0f}&nbsp;%" if share >= 7 else ""}</i>'
                for name, share in parts
            )
            stack = f'<span class="stack" role="img" aria-label="{shares}">{stack}</span>'
            rows.append(
                f"<div><span>{escape(group)}, {escape(when)}</span>{stack}<small>{total:,} asked</small></div>"
            )
    return f'<div class="stacks"><p class="keys">{keys}</p>{"".join(rows)}</div>'


Curve = tuple[str, list[tuple[float, float, float]], bool]  # name, (times, share, standard error), a thin line


def by_times(several: Sequence[tuple[str, Sequence[Curve]]]) -> str:
    """Panels of shares against how often something was read: powers of four, with the zero at the left end."""

    def drawn(title: str, lines: Sequence[Curve]) -> str:
        def draw(figure: Figure, ink: Ink) -> None:
            axes = figure.subplots()
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
            axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1)

        return picture(draw, 4.3, 3.4, f"{title}: {', '.join(name for name, _, _ in lines)}")

    kept = [
        (title, [(name, points, thin) for name, given, thin in lines if (points := finite(given))])
        for title, lines in several
    ]
    return panels(*(drawn(title, lines) for title, lines in kept if lines))


Manner = tuple[str, float, float, float]  # the manner's name, tokens written, accuracy, its standard error
MARKS = "os^Dv"


def thinking(families: dict[str, Sequence[Manner]]) -> str:
    """Accuracy against tokens written (logarithmic, from 1): a colour a family, a marker a manner, arrows between."""
    manners = list(dict.fromkeys(manner[0] for points in families.values() for manner in points))

    def draw(figure: Figure, ink: Ink) -> None:
        axes = figure.subplots()
        for colour, (family, points) in zip(ink.series * 8, families.items(), strict=False):
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
        axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)

    return picture(draw, 4.6, 4.4, "accuracy against tokens written, for " + ", ".join(families))


def heat(share: float) -> tuple[str, str]:
    """The colour of a share of right answers (dark blue to yellow: cividis, made for every kind of eye), and of the
    text upon it.
    """
    red, green, blue, _ = matplotlib.colormaps["cividis"](0.12 + 0.83 * min(max(share, 0.0), 1.0))
    luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    return matplotlib.colors.to_hex((red, green, blue)), "#000000" if luminance > 0.18 else "#ffffff"
