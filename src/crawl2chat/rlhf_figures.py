"""Figures of RLHF: how good a reward model is, what PPO made of it, and what becomes of too much of that."""

from collections.abc import Sequence
from html import escape
from math import sqrt

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crawl2chat.figures import Ink, panels, picture
from crawl2chat.overoptimization import gained
from crawl2chat.practice_figures import Points, ends, series, shares

NAMES = {"proxy": "proxy: the reward model's score", "gold": "gold: what the labeler has in mind"}


def reward_model(by_distance: Sequence[tuple[int, float, float]], bins: Sequence[dict]) -> str:
    """Two panels: accuracy on held-out pairs by (rank distance, share, standard error), and how often the model is
    right where it is so sure; `bins` are those of reward/calibration.json. Either may be empty, not both.
    """

    def distance_panel(figure: Figure, ink: Ink) -> None:
        axes, (places, right, errors) = figure.subplots(), zip(*by_distance, strict=True)
        axes.grid(axis="y")
        axes.bar(places, right, width=0.62, color=ink.series[0])
        axes.errorbar(places, right, errors, fmt="none", color=ink.text, elinewidth=1.2, capsize=3)
        for x, y, error in by_distance:
            style = {"ha": "center", "fontsize": 9.5, "fontweight": "bold"}
            axes.annotate(f"{100 * y:.0f} %", (x, y + error), (0, 3), textcoords="offset points", **style)
        shares(axes)
        axes.set_ylim(0, 1.15)
        axes.axhline(0.5, color=ink.quiet, linewidth=1.2, linestyle="--")
        axes.set_xticks(places, [str(place) for place in places])
        axes.set_title("pairs ordered right, by how far apart they are")
        axes.set_xlabel("places between the two in the labeler's order")

    def sure_panel(figure: Figure, ink: Ink) -> None:
        axes = figure.subplots()
        axes.grid(axis="y")
        axes.plot((0.5, 1), (0.5, 1), "--", color=ink.quiet, linewidth=1.2, label="as sure as it should be")
        xs, ys = ([one[key] for one in bins] for key in ("confidence", "accuracy"))
        errors = [sqrt(max(one["accuracy"] * (1 - one["accuracy"]), 0) / max(one["pairs"], 1)) for one in bins]
        axes.errorbar(xs, ys, errors, fmt="o-", color=ink.series[0], markersize=4.5, capsize=2, elinewidth=1)
        ticks = [0.5, 0.6, 0.7, 0.8, 0.9, 1]
        axes.set_xticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])
        axes.set_yticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])
        low = min(y - error for y, error in zip(ys, errors, strict=True))
        axes.set_ylim(min(0.46, low - 0.02), 1.03)
        axes.set_title("how often right, by how sure it is")
        axes.set_xlabel("how sure the model is of its order")
        axes.legend(fontsize=9, loc="lower right")

    return panels(
        picture(distance_panel, 4.3, 2.9, "the reward model's accuracy by rank distance") if by_distance else "",
        picture(sure_panel, 4.3, 2.9, "calibration of the reward model") if bins else "",
    )


def ppo(rows: Sequence[dict]) -> str:
    """Proxy, gold and KL on held-out prompts over episodes, side by side; `rows` are those of ppo/curve.json."""
    titles = {"proxy": "proxy: the reward model", "gold": "gold: the labeler's mind", "kl": "nats away from the start"}

    def drawn(name: str, colour: str) -> str:
        points = series(rows, "episodes", name)

        def draw(figure: Figure, ink: Ink) -> None:
            axes = figure.subplots()
            axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=3.5 if len(points) < 40 else 0)
            ends(axes, points[-1:], "{:.1f}" if name == "kl" else "{:.2f}", colour)
            axes.grid(axis="y")
            axes.margins(x=0.2, y=0.12)
            axes.set_title(titles[name])
            axes.set_xlabel("episodes")
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.locator_params(axis="x", nbins=4)

        return picture(draw, 3.4, 2.6, f"{titles[name]}, over episodes") if points else ""

    return panels(*(drawn(name, colour) for name, colour in zip(titles, Ink.series, strict=False)))


def at_equal_seconds(ways: dict[str, Sequence[dict]], up: str) -> str:
    """The `up` ("gold" or "proxy") of several ways to learn from one reward model, against seconds of training."""

    def draw(figure: Figure, ink: Ink) -> None:
        axes = figure.subplots()
        for (way, rows), colour in zip(ways.items(), ink.series * 4, strict=False):
            points = series(rows, "seconds", up)
            axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=4, label=way)
        axes.grid(axis="y")
        axes.set(xlabel="seconds of training", ylabel=up)
        axes.set_title(f"{NAMES[up]}, held-out prompts")
        axes.legend(fontsize=9, loc="lower right")

    return picture(draw, 4.6, 3.0, f"{up} of {', '.join(ways)} against seconds of training")


def distance(points: Sequence[dict], up: str) -> Points:
    """(square root of the KL, value) of the points that have both."""
    return [(sqrt(max(kl, 0.0)), y) for kl, y in series(points, "kl", up)]


def drawn_fit(axes: Axes, run: dict, up: str, form: str, colour: str) -> None:
    """The fitted curve of a run, from where it began to the furthest that was measured; nothing without one."""
    fitted, points = (run.get("fit") or {}).get(up), distance(run["points"], up)
    if fitted and points:
        far = [max(x for x, _ in points) * i / 100 for i in range(101)]
        axes.plot(far, [points[0][1] + gained(d**2, fitted, form) for d in far], color=colour, linewidth=2)


def measured(axes: Axes, run: dict, up: str, colour: str, mark: str = "o") -> None:
    """A run's points with their standard errors where they are known, joined by a line where no curve was fitted."""
    points = distance(run["points"], up)
    if not points:
        return
    known = [row for row in run["points"] if series([row], "kl", up)]
    keys = (f"{up}_stderr", "stderr") if up == "gold" else (f"{up}_stderr",)
    errors = [next((row[key] for key in keys if row.get(key) is not None), 0.0) for row in known]
    joined = "" if (run.get("fit") or {}).get(up) else "-"
    look = {"color": colour, "markersize": 4, "linewidth": 1.3, "elinewidth": 0.8}
    axes.errorbar(*zip(*points, strict=True), errors, fmt=mark + joined, alpha=0.75, **look)


def keys(names: Sequence[tuple[str, str]]) -> str:
    """A legend for several panels, of (name, its mark as HTML)."""
    return f'<p class="keys">{"".join(f"<span>{mark}{escape(name)}</span>" for name, mark in names)}</p>'


def line(i: int) -> str:
    """The mark of the i-th curve, from 1."""
    return f'<i style="background:var(--c{i})"></i>'


def overoptimization(runs: Sequence[dict]) -> str:
    """Proxy and gold over the square root of the KL, with the fitted curves of each run; a diamond where its gold
    turned, a cross where the stop rule would have ended it. After figure 1 of Gao et al. 2022 (arXiv:2210.10760).
    `runs` are those of overoptimization/curves.json.
    """

    spots = (("turning", "D", "◆", "gold turns"), ("stopped", "X", "✖", "the stop rule ends it"))

    def drawn(up: str) -> str:
        def draw(figure: Figure, ink: Ink) -> None:
            axes = figure.subplots()
            for run, colour in zip(runs, ink.series * 4, strict=False):
                measured(axes, run, up, colour)
                drawn_fit(axes, run, up, "rl", colour)
                for key, mark, _, _ in spots:
                    if up == "gold" and (spot := run.get(key)):
                        look = {"markersize": 10, "markeredgecolor": ink.text, "markeredgewidth": 1.2, "zorder": 5}
                        x = sqrt(max(spot["kl"], 0))
                        axes.plot([x], [spot["gold"]], mark, color=colour, **look)
                        axes.axvline(x, color=colour, linewidth=1, linestyle=":" if mark == "X" else "--")
            axes.grid(axis="y")
            axes.margins(x=0.06, y=0.1)
            axes.set_title(NAMES[up])
            axes.set_xlabel("√KL, from where it began; KL in nats a reply")

        alt = f"{up} over the square root of the KL: {', '.join(run['label'] for run in runs)}"
        return picture(draw, 4.3, 3.3, alt)

    named = [(run["label"], line(i % len(Ink.series) + 1)) for i, run in enumerate(runs)]
    named += [(name, f"<b>{sign}</b>") for key, _, sign, name in spots if any(run.get(key) for run in runs)]
    return panels(*(drawn(up) for up in NAMES)) + keys(named)


def best_of_n(chosen: dict, runs: Sequence[dict]) -> str:
    """Proxy and gold of the best of n beside reinforcement learning's, as far from the start as the best of n gets;
    `chosen` is the best_of_n of overoptimization/curves.json, `runs` have "label", "points" and perhaps "fit"."""
    far = 1.3 * max(x for x, _ in distance(chosen["points"], "gold"))

    def drawn(up: str) -> str:
        def draw(figure: Figure, ink: Ink) -> None:
            axes, points = figure.subplots(), distance(chosen["points"], up)
            drawn_fit(axes, chosen, up, "best_of_n", ink.text)
            measured(axes, chosen, up, ink.text, mark="s")
            seen = [y for _, y in points]
            for (x, y), row in zip(points, chosen["points"], strict=False):
                axes.annotate(f"{row['n']}", (x, y), (0, 7), textcoords="offset points", ha="center", fontsize=8.5)
            for run, colour in zip(runs, ink.series * 4, strict=False):
                measured(axes, run, up, colour)
                drawn_fit(axes, run, up, "rl", colour)
                seen += [y for x, y in distance(run["points"], up) if x <= far]
            room = 0.13 * (max(seen) - min(seen)) or 0.1
            axes.set(xlim=(-0.05 * far, far), ylim=(min(seen) - room, max(seen) + room))
            axes.grid(axis="y")
            axes.set_title(NAMES[up])
            axes.set_xlabel("√KL, from where it began; KL in nats a reply")

        return picture(draw, 4.3, 3.2, f"{up} of the best of n beside reinforcement learning, over the root of the KL")

    named = [("the best of n by the reward model", '<i style="background:var(--ink)"></i>')]
    named += [(run["label"], line(i % len(Ink.series) + 1)) for i, run in enumerate(runs)]
    return panels(*(drawn(up) for up in NAMES if distance(chosen["points"], up))) + keys(named)
