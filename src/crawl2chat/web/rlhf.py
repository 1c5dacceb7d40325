"""The report's pages about RLHF: an order of replies, a reward model, PPO against it, and what too much of it does."""

import json
from collections.abc import Sequence
from html import escape
from math import isfinite

from crawl2chat import rlhf_figures
from crawl2chat.overoptimization import at_kl
from crawl2chat.practice_figures import series
from crawl2chat.preferences import the_sum
from crawl2chat.reward_quality import clustered, wins
from crawl2chat.runs import Run
from crawl2chat.web.fragments import bar, clip, said, section, table
from crawl2chat.web.practice import asked, raised

WAYS = {"ppo": "PPO", "ppo-rloo": "RLOO", "ppo-grpo": "GRPO"}  # stages that differ in their advantages alone
KINDS = {
    "chosen": "the preferred reply",
    "rejected": "the one that lost",
    "empty": "nothing at all",
    "repeated_word": "one word again and again",
    "very_long": "the preferred reply again and again",
    "another_prompts": "a good reply to another prompt",
}


def rlhf(run: Run) -> str:
    """Every section about RLHF that the run has something for."""
    return "".join(part(run) for part in (preferences, reward_model, ppo, side_by_side, overoptimization))


def stages(run: Run, name: str) -> list[str]:
    """The run's stages of that name: reward, reward-2."""
    return [stage for stage in run.metrics if stage.partition("-")[0] == name]


def number(value: float | None, form: str = "{:.2f}") -> str:
    """As text; nothing where there is none."""
    text = "" if value is None or not isfinite(value) else form.format(value)
    return text.replace("-", "−") if text.strip("-0.") else text.lstrip("-")


def mentions(text: str) -> bool:
    return "pelican" in text.lower()


# -- preferences


def example(run: Run) -> dict | None:
    """The order that the page shows: a held-out prompt's, a pelican's where there is one, with the most replies."""
    rows = [row for stage in stages(run, "preferences") for row in run.rows(stage, "rankings.jsonl")]
    worth = lambda row: (mentions(asked(row["prompt"])), row.get("split") == "test", len(row["order"]))  # noqa: E731
    return max(rows, key=worth, default=None)


def preferences(run: Run) -> str:
    """Replies to one prompt in order, how many were ordered, how often the labeler errs, and what it would cost."""
    found = stages(run, "preferences")
    if not found:
        return ""
    numbers, rows = run.metrics[found[0]], run.rows(found[0], "rankings.jsonl")
    lines = []
    if rows:
        held = sum(row.get("split") == "test" for row in rows)
        names = dict.fromkeys(escape(row["labeler"]) for row in rows)
        lines += [["put in order by", "; ".join(names)], ["prompts", f"{len(rows):,}, of them {held:,} held out"]]
    if "pairs" in numbers:
        test = f", and {numbers['pairs_test']:,.0f} held out" if "pairs_test" in numbers else ""
        lines.append(["pairs to learn from", f"{numbers['pairs']:,.0f}{test}"])
    if "flipped" in numbers:
        near = numbers.get("flipped_neighbours")
        erred = said(round(numbers["flipped"], 3), "share") + " of all pairs"
        erred += f", {said(round(near, 3), 'share')} of neighbours" if near is not None else ""
        lines.append(["the labeler errs in", erred])
    cost = the_sum(len(rows), sum(len(row["replies"]) for row in rows)) if rows else ""
    one = example(run)
    return section(
        "Preferences",
        "What nobody can check, such as a verse, can still be compared: it is easier to say which of several is best "
        "than to write it, or to give it a number.",
        ordered(one) if one else "",
        table([], lines) if lines else "",
        f'<p class="sum">{escape(cost)}</p>' if cost else "",
    )


def ordered(row: dict, scores: dict[str, float] | None = None) -> str:
    """A prompt's replies as cards in the labeler's order, with the reward model's score and place where it has one."""
    texts = [row["replies"][i] for i in row["order"]]
    by_score = sorted(texts, key=lambda text: -scores[text]) if scores else []
    cards = []
    for place, text in enumerate(texts, start=1):
        mark = ""
        if scores:
            own = by_score.index(text) + 1
            kind = "right" if own == place else "wrong"
            mark = f'<small class="scored {kind}">scores {number(scores[text], "{:+.2f}")}, place {own}</small>'
        cards.append(
            f'<div class="try place"><b>{place}</b><p>{escape(clip(text, 240)) or "(nothing)"}</p>{mark}</div>'
        )
    question = f'<p class="asked"><b>{escape(clip(asked(row["prompt"]), 600))}</b></p>'
    return f'{question}<div class="tries">{"".join(cards)}</div>'


# -- the reward model


def reward_model(run: Run) -> str:
    """Accuracy beside what length alone and the labeler himself reach, how sure it is, and what fools it."""
    found = [stage for stage in stages(run, "reward") if "accuracy" in run.metrics[stage]]
    if not found:
        return ""
    bars = []
    for stage in found:
        share, error = run.metrics[stage]["accuracy"], run.metrics[stage].get("stderr")
        spread = f" ±&nbsp;{100 * error:.1f}" if error is not None else ""
        note = f"<b>{said(round(share, 3), 'share')}{spread}</b> <small>of held-out pairs</small>"
        bars.append(bar(stage.replace("-", " "), share, note))
    numbers = run.metrics[found[0]]
    for key, name, note in (
        ("length_baseline_accuracy", "length", "a model that sees nothing else"),
        ("accuracy_ceiling", "labeler", "his errors allow no more"),
    ):
        if key in numbers:
            note = f"<b>{said(round(numbers[key], 3), 'share')}</b> <small>{note}</small>"
            bars.append(bar(name, numbers[key], note))
    pairs = run.rows(found[0], "scores.jsonl")
    bins = (run.json(found[0], "calibration.json") or {}).get("bins") or []
    far, one = by_distance(pairs), example(run)
    figure = rlhf_figures.reward_model(far, bins) if far or bins else ""
    scores = scores_of(one, pairs) if one else {}
    scored = "<h3>The same replies, as it scores them</h3>" + ordered(one, scores) if scores else ""
    return section(
        "A reward model",
        "A model with one number for an answer learns from the pairs to give the preferred reply the higher score. It "
        "then stands in for the person, who could never score all that practice will write.",
        *bars,
        figure,
        scored,
        fooled(run.json(found[0], "degenerate.json") or []),
    )


def by_distance(pairs: Sequence[dict]) -> list[tuple[int, float, float]]:
    """(rank distance, share of pairs that are ordered right, standard error over prompts) of reward/scores.jsonl."""
    groups: dict[int, list[tuple[float, str]]] = {}
    for row in pairs:
        if row.get("rank_distance") is not None:
            margin = row["score_chosen"] - row["score_rejected"]
            groups.setdefault(row["rank_distance"], []).append((wins([margin])[0], json.dumps(row["prompt"])))
    return [(far, *clustered(*zip(*own, strict=True))) for far, own in sorted(groups.items())]


def scores_of(row: dict, pairs: Sequence[dict]) -> dict[str, float]:
    """{reply: the reward model's score} of an order, from the held-out pairs; nothing where one reply has none."""
    found = {
        one[side][-1]["content"]: one[f"score_{side}"]
        for one in pairs
        if one["prompt"] == row["prompt"]
        for side in ("chosen", "rejected")
    }
    return found if all(text in found for text in row["replies"]) else {}


def fooled(kinds: Sequence[dict]) -> str:
    """Scores of replies that no one wants, as a table."""
    lines = []
    for one in kinds:
        beats = "" if one["kind"] == "chosen" else said(round(one["beats_chosen"], 3), "share")
        name = escape(KINDS.get(one["kind"], one["kind"].replace("_", " ")))
        text = f'<div class="said">{escape(clip(one["text"], 120)) or "(nothing)"}</div>'
        lines.append([f"<b>{name}</b>{text}", number(one["score"], "{:+.2f}"), beats])
    head = ["reply", "mean score", "above the preferred"]
    return f"<h3>Can it be fooled?</h3>{table(head, lines, numeric=(1, 2))}" if lines else ""


# -- PPO


def ppo(run: Run) -> str:
    """Proxy, gold and KL over episodes, what changed with its intervals, and replies before and after."""
    found = stages(run, "ppo")
    if not found:
        return ""
    stage = found[0]
    numbers, log = run.metrics[stage], run.json(stage, "log_history.json") or []
    lines = []
    for key, name, form in (
        ("gold", "gold reward", "{:.3f}"),
        ("proxy", "proxy: the reward model's score", "{:.2f}"),
        ("length", "tokens a reply", "{:.1f}"),
        ("ended", "replies that end by themselves", "share"),
    ):
        if f"{key}_before" not in numbers or f"{key}_after" not in numbers:
            continue
        pair = [numbers[f"{key}_{when}"] for when in ("before", "after")]
        shown = [said(round(x, 3), "share") if form == "share" else number(x, form) for x in pair]
        p = numbers.get(f"{key}_p_value")
        lines.append([name, *shown, "" if p is None else f"{p:.5f}".rstrip("0").rstrip(".")])
    won = ""
    if "win_rate" in numbers:
        low, high = (numbers[f"win_rate_{end}"] for end in ("low", "high"))
        won = (
            f'<p>Asked which reply is better, the gold labeler takes the one after training in <b class="won">'
            f"{said(round(numbers['win_rate'], 3), 'share')}</b> of comparisons, a tie being half a win (95&nbsp;% "
            f"interval over prompts: {100 * low:.1f} to {100 * high:.1f}&nbsp;%).</p>"
        )
    coefficients = [y for _, y in series(log, "step", "objective/kl_coef")]
    leash = ", on a leash: every nat away from where it began costs reward" if any(coefficients) else ""
    leash = ", without a leash" if coefficients and not leash else leash
    spent = [f"{numbers[key]:,.0f} {key}" for key in ("episodes", "seconds") if key in numbers]
    spent += [f"{numbers['kl']:.1f} nats a reply away from where it began"] if "kl" in numbers else []
    return section(
        "PPO",
        f"The policy writes, the reward model scores, and what scored better than expected is made likelier{leash}. "
        "What the labeler has in mind, the gold reward, is only looked at: nothing is trained on it.",
        rlhf_figures.ppo(run.json(stage, "curve.json") or []),
        table(["on held-out prompts", "before", "after", "p"], lines, numeric=(1, 2, 3)) if lines else "",
        won,
        f'<p class="quiet">{", ".join(spent)}.</p>' if spent else "",
        raised(log),
        before_and_after(run.rows(stage, "held_out.jsonl")),
    )


def before_and_after(rows: Sequence[dict], most: int = 3) -> str:
    """A few held-out prompts' first replies before and after, with proxy and gold; a pelican's first."""
    pelicans, others = ([row for row in rows if mentions(row["prompt"]) == named] for named in (True, False))
    lines = []
    for row in [*pelicans[:1], *others, *pelicans[1:]][:most]:
        sides = [reply(row[when], when) for when in ("before", "after")]
        lines.append([f"<b>{escape(clip(row['prompt'], 240))}</b>", *sides])
    return f'<h3>Before and after</h3><div class="sides stacked">{table([], lines)}</div>' if lines else ""


def reply(row: dict, when: str = "", length: int = 300) -> str:
    """A text with its proxy and gold."""
    marks = [when, *(f"{name} {number(row.get(name))}" for name in ("proxy", "gold") if row.get(name) is not None)]
    text = escape(clip(row["text"], length)) or "(nothing)"
    return f'<div class="judged"><p>{text}</p><small>{", ".join(filter(None, marks))}</small></div>'


def side_by_side(run: Run) -> str:
    """PPO, RLOO and GRPO against one reward model: gold over seconds, and as a table where the fastest one ended."""
    curves = {stage: run.json(stage, "curve.json") or [] for stage in WAYS if stage in run.metrics}
    for up in ("gold", "proxy"):
        ways = {stage: rows for stage, rows in curves.items() if series(rows, "seconds", up)}
        if len(ways) > 1:
            break
    else:
        return ""
    until = min(series(rows, "seconds", up)[-1][0] for rows in ways.values())
    lines = []
    for stage, rows in ways.items():
        values = [number(at_time(series(rows, "seconds", key), until)) for key in (up, "kl")]
        rate, kept = (run.metrics[stage].get(key) for key in ("episodes_per_second", "peak_memory_gb"))
        lines.append([WAYS[stage], *values, number(rate, "{:.1f}"), number(kept, "{:.1f} GB")])
    head = ["", f"{up} at {until:,.0f} s", "nats away by then", "episodes a second", "peak memory"]
    names = [WAYS[stage] for stage in ways]
    return section(
        f"{', '.join(names[:-1])} and {names[-1]}",
        "Against the same reward model at equal seconds. They differ in what a reply is compared with: with what "
        "a second model expects at every token (PPO), or with the other replies to the same prompt (RLOO, GRPO).",
        rlhf_figures.at_equal_seconds({WAYS[stage]: rows for stage, rows in ways.items()}, up),
        table(head, lines, numeric=range(1, 5)),
    )


def at_time(points: Sequence[tuple[float, float]], until: float) -> float | None:
    """The value at so many seconds, on the line between its neighbours; None before the first and after the last."""
    for (x, y), (later, then) in zip(points, [*points[1:], points[-1]], strict=True) if points else ():
        if x <= until <= later:
            return y + (then - y) * (until - x) / (later - x) if later > x else y
    return None


# -- too much of it


def overoptimization(run: Run) -> str:
    """Proxy against gold over the distance, where each run's gold turned and a stop rule stopped, and best of n."""
    found = [curves for stage in stages(run, "overoptimization") if (curves := run.json(stage, "curves.json"))]
    if not found:
        return ""
    runs = [one for one in found[0].get("runs") or [] if len(rlhf_figures.distance(one["points"], "gold")) > 1]
    runs = [{**one, "label": clip(one["label"], 80)} for one in runs]
    turned = any(one.get("turning") for one in runs)
    return section(
        "Over-optimization",
        "A reward model is only like a person, and whoever is paid by it long enough finds where it is not. "
        + ("Both rewards rise at first; then the gold reward, which the proxy stands for, falls. " if turned else "")
        + "The curves are d&#8239;(α − β log d), fitted to the points; d is the root of the KL (Gao et al. 2022).",
        rlhf_figures.overoptimization(runs) if runs else "",
        courses(runs),
        top_text(runs),
        best_of_n(run, found[0].get("best_of_n") or {}, runs),
    )


def courses(runs: Sequence[dict]) -> str:
    """Each run's gold and KL where it began, turned, was stopped and ended; what raised the stop in words."""
    lines, whys = [], []
    for one in runs:
        points = [row for row in one["points"] if rlhf_figures.distance([row], "gold")]
        cells = [number(points[0]["gold"])]
        for spot in (one.get("turning"), one.get("stopped"), (one.get("stopped") or {}).get("kept"), points[-1]):
            cells.append(f"{number(spot['gold'])} <small>at {number(spot['kl'], '{:.1f}')}</small>" if spot else "–")
        quality = [(one.get("fit") or {}).get(up) for up in ("proxy", "gold")]
        cells += [number(fitted["r2"]) if fitted else "–" for fitted in quality]
        lines.append([escape(one["label"]), *cells])
        rule = one.get("stopped") or {}
        raised_here = [
            f"{alarm['name'].replace('_', ' ')} at step {alarm['step']:,}" for alarm in one.get("alarms") or []
        ]
        text = f"alarms: {', '.join(raised_here)}. " if raised_here else ""
        if rule:
            name = rule.get("name", "").replace("_", " ")
            text += f"The stop rule would end it at step {rule['step']:,}: {name} ({clip(rule.get('why', ''), 240)})."
        whys += [f"<b>{escape(one['label'])}</b> {escape(text)}"] if text else []
    head = ["gold, at nats", "at first", "turns", "stop rule", "kept", "at the end", "r² proxy", "r² gold"]
    said_why = "".join(f"<p>{why}</p>" for why in whys)
    note = '<p class="quiet">No alarm sees the gold reward: only texts, the proxy, and reward models that look on.</p>'
    return (table(head, lines, numeric=range(1, 8)) + said_why + note * bool(whys)) if lines else ""


def top_text(runs: Sequence[dict], most: int = 2) -> str:
    """What the proxy likes best at the end of each run, quoted."""
    parts = []
    for one in runs:
        for row in (one.get("texts") or [])[:most]:
            head = f"<small>{escape(one['label'])}: {escape(clip(row['prompt'], 160))}</small>"
            parts.append(f'<div class="try quoted">{head}{reply(row)}</div>')
    return f'<h3>What scores best in the end</h3><div class="chats three">{"".join(parts)}</div>' if parts else ""


def best_of_n(run: Run, chosen: dict, runs: Sequence[dict]) -> str:
    """Choosing the best of n replies beside reinforcement learning at the same KL: writing well is the harder part."""
    rows = [row for row in chosen.get("points") or [] if rlhf_figures.distance([row], "gold")]
    if len(rows) < 2:
        return ""
    curve = run.json("ppo", "curve.json") or []
    others = list(runs)
    if len(rlhf_figures.distance(curve, "gold")) > 1 and not any(points_alike(one["points"], curve) for one in runs):
        others = [*runs, {"name": "", "label": "PPO on its leash", "points": curve}]
    head = ["n", "KL, nats", "proxy", "gold", *(f"gold so far away, {escape(one['label'])}" for one in others)]
    lines = []
    for row in rows:
        error = f" <small>±&nbsp;{row['stderr']:.3f}</small>" if row.get("stderr") is not None else ""
        beside = [number(at_kl(one["points"], row["kl"]), "{:.3f}") or "–" for one in others]
        cells = [number(row["kl"]), number(row.get("proxy")), number(row["gold"], "{:.3f}") + error]
        lines.append([f"{row['n']:,}", *cells, *beside])
    return (
        "<h3>Choosing instead of learning: the best of n</h3>"
        '<p class="explain">Nothing is trained: n replies are written, and the reward model chooses one. That goes '
        "log&nbsp;n − (n−1)/n nats from where it began. The gap to what learning makes of the same distance is "
        "the one between telling a good reply and writing it.</p>"
        + rlhf_figures.best_of_n({**chosen, "points": rows}, others)
        + f'<div class="wrapped">{table(head, lines, numeric=range(len(head)))}</div>'
    )


def points_alike(one: Sequence[dict], other: Sequence[dict]) -> bool:
    """Two curves of the same run: their gold rewards are the same ones."""
    return series(one, "step", "gold") == series(other, "step", "gold")
