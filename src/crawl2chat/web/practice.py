"""The report's pages about practice: thinking discovered, two ways to practise, rollouts, and what a run logged."""

from html import escape

from crawl2chat import practice_figures
from crawl2chat.runs import Run
from crawl2chat.web.fragments import clip, details, said, section, table


def practice(run: Run) -> str:
    """Every section about practice that the run has something for."""
    parts = (discovered(run), beyond_the_teacher(run), side_by_side(run), rollouts(run), vitals(run))
    return "".join(parts)


def history(run: Run) -> list[dict]:
    return [row for row in run.json("grpo", "log_history.json") or [] if "step" in row]


def discovered(run: Run) -> str:
    """Accuracy, length and shown work over the steps of GRPO."""
    rows = run.json("grpo", "curve.json") or []
    rows = [row for row in rows if row.get("pass_at_1") is not None]
    if not rows:
        return ""
    first, last = rows[0], rows[-1]
    names = practice_figures.rewards(history(run))
    why = f"It is rewarded by: {', '.join(map(escape, names))}." if names else ""
    if names == ["correct"]:
        why = "<b>The reward is for the right answer alone</b>: no word in it about length, steps or showing work."
        grown = {"mean_length": "replies grow longer", "worked": "more of them show their work"}
        found = [text for key, text in grown.items() if (last.get(key) or 0) > (first.get(key) or 0)]
        why += f" That {' and that '.join(found)} is what the model found by itself." if found else ""
    pairs = [
        f"{said(row['pass_at_1'], 'share')} <small>±&nbsp;{100 * (row.get('stderr') or 0):.1f}</small>"
        for row in (first, last)
    ]
    lines = [["right answers, drawn", *pairs]]
    for key, name, kind in (
        ("greedy", "right answers, greedy", "share"),
        ("mean_length", "tokens a reply", ""),
        ("worked", "replies that show their work", "share"),
    ):
        if first.get(key) is not None and last.get(key) is not None:
            lines.append([name, *(said(round(row[key], 3 if kind else 1), kind) for row in (first, last))])
    spent = [
        f"{last[key]:,.0f} {name}" for key, name in (("rollouts", "rollouts"), ("seconds", "seconds")) if key in last
    ]
    head = ["on held-out problems", "before", f"after {last['step']:,} steps"]
    return section(
        "Thinking, discovered",
        "The model practises on problems whose answers can be checked: it answers each of them several times, and "
        f"what led to right answers is made more likely. {why}",
        practice_figures.discovered(rows),
        table(head, lines, numeric=(1, 2)),
        f'<p class="quiet">{", ".join(spent)}.</p>' if spent else "",
    )


def beyond_the_teacher(run: Run) -> str:
    """Learning from a teacher who errs, and practice from there on."""
    found = run.json("grpo", "teacher.json")
    if found is None:
        return ""
    sft = [(step, share) for step, share in found["sft"]]
    began = sft[-1][0] if sft else 0
    curve = practice_figures.series(run.json("grpo", "curve.json") or [], "step", "pass_at_1")
    rl = [(began + step, share) for step, share in curve]
    if not (sft or rl):
        return ""
    wrong = said(1 - found["teacher"], "share")
    return section(
        "Beyond the teacher",
        f"The teacher's worked solutions are wrong in {wrong} of all problems. Who only imitates it comes to err as "
        "it does; practice starts there, never sees the teacher again, and can pass it.",
        practice_figures.beyond_the_teacher(found["teacher"], sft, rl),
    )


def side_by_side(run: Run) -> str:
    """Rejection sampling beside GRPO, and rejection sampling's rounds as a table."""
    rounds = run.json("rejection", "rounds.json") or []
    curve = run.json("grpo", "curve.json") or []
    ways = {"rejection sampling": rounds, "GRPO": curve}
    ways = {
        name: rows
        for name, rows in ways.items()
        if any(practice_figures.series(rows, key, "pass_at_1") for key in ("rollouts", "seconds"))
    }
    if "rejection sampling" not in ways:
        return ""
    lines = []
    for row in rounds:
        error = f" <small>±&nbsp;{100 * (row.get('stderr') or 0):.1f}</small>"
        shares = [
            said(row[key], "share") if row.get(key) is not None else "" for key in ("greedy", "pass_at_k", "worked")
        ]
        counts = [f"{row[key]:,.0f}" if row.get(key) is not None else "" for key in ("kept", "all_right", "all_wrong")]
        length = f"{row['mean_length']:.1f}" if row.get("mean_length") is not None else ""
        lines.append([f"{row['round']}", said(row["pass_at_1"], "share") + error, *shares, length, *counts])
    k = next((row["k"] for row in rounds if row.get("k")), "k")
    head = ["round", "pass@1", "greedy", f"pass@{k}", "show work", "tokens", "kept", "all right", "all wrong"]
    return section(
        "Two ways to practise",
        "Rejection sampling answers every problem many times, keeps the best right answer and finetunes on it, round "
        "after round. GRPO takes a small step after every batch, towards what did better than the other tries and "
        "away from what did worse.",
        practice_figures.side_by_side(ways),
        table(head, lines, numeric=range(9)),
        '<p class="quiet">All right and all wrong: problems that teach nothing, set aside.</p>',
    )


def asked(prompt: str | list[dict]) -> str:
    """A prompt's last question: of messages the last one's words, a text as it is."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def rollouts(run: Run) -> str:
    """All tries at one problem as cards: right ones marked, the one that was learnt from outlined."""
    problems = [row for row in run.rows("rejection", "rollouts.jsonl") if row["rollouts"]]
    if not problems:
        return ""

    def mixed(row: dict) -> tuple[bool, float]:
        right = sum((one["score"] or 0) >= 1 for one in row["rollouts"]) / len(row["rollouts"])
        return any(one.get("chosen") for one in row["rollouts"]), right * (1 - right)

    row, cards = max(problems, key=mixed), []
    for one in row["rollouts"]:
        verdict = "none" if one["score"] is None else "right" if one["score"] >= 1 else "wrong"
        mark = {"none": "? no verdict", "right": "✓ right", "wrong": "✗ wrong"}[verdict]
        kept, name = (" · learnt from", f"{verdict} chosen") if one.get("chosen") else ("", verdict)
        cards.append(
            f'<div class="try {name}"><small><b>{mark}{kept}</b> {one["tokens"]:,}</small>'
            f"<p>{escape(clip(one['text'], 240)) or '(nothing)'}</p></div>"
        )
    right = sum((one["score"] or 0) >= 1 for one in row["rollouts"])
    return section(
        "Many tries at one problem",
        f"One problem of round {row['round']}, answered {len(cards)} times: {right} right. The outlined answer is the "
        "one that the model is finetuned on; the number in a corner is its length in tokens.",
        f'<p class="asked"><b>{escape(clip(asked(row["prompt"]), 600))}</b> '
        f"<small>right is {escape(clip(str(row['answer']), 80))}</small></p>",
        f'<div class="tries">{"".join(cards)}</div>',
    )


def raised(rows: list[dict]) -> str:
    """The alarms of a trainer's log rows; nothing where there was none."""
    found = [
        f"<b>{escape(name.replace('_', ' '))}</b> at step{'s' if len(steps) > 1 else ''} "
        + ", ".join(f"{step:,}" for step in steps[:8])
        + (f" and {len(steps) - 8} more" if len(steps) > 8 else "")
        for name, steps in practice_figures.alarms(rows).items()
    ]
    return f'<p class="mark short">Alarms: {"; ".join(found)}.</p>' if found else ""


def vitals(run: Run) -> str:
    """Rewards, entropy, groups that teach nothing, seconds and alarms of GRPO; completions with what they earned."""
    rows = history(run)
    figure = practice_figures.vitals(rows)
    note = raised(rows) or '<p class="quiet">No alarm was raised.</p>'
    return section(
        "How the practice went",
        "What each step of GRPO was rewarded with, how sure the model was of its next token, how many groups taught "
        "nothing because all their tries earned the same, and where the time went.",
        figure + note if figure else "",
        completions(run),
    )


def completions(run: Run, steps: int = 6, of_each: int = 8) -> str:
    """Sampled completions with their rewards, folded by step: the first step, the last, and some between."""
    rows = run.rows("grpo", "completions.jsonl")
    if not rows:
        return ""
    every = sorted({row["step"] for row in rows})
    last = len(every) - 1
    chosen = sorted({every[round(i * last / max(steps - 1, 1))] for i in range(steps)})
    names, parts, shown = list(dict.fromkeys(name for row in rows for name in row["rewards"])), [], 0
    for step in chosen:
        of_step = [row for row in rows if row["step"] == step][:of_each]
        shown += len(of_step)
        lines = []
        for row in of_step:
            earned = [row["rewards"].get(name) for name in names]
            texts = [f'<div class="said">{escape(clip(row[key], 500))}</div>' for key in ("prompt", "completion")]
            numbers = ["" if value is None else f"{value:g}" for value in (*earned, row.get("advantage"))]
            lines.append([*texts, *numbers])
        head = ["problem", "completion", *map(escape, names), "advantage"]
        parts.append(details(f"step {step:,}", table(head, lines, numeric=range(2, len(head)))))
    note = f'<p class="quiet">{shown:,} of {len(rows):,} logged completions.</p>'
    return f"<h3>Completions and what they earned</h3>{''.join(parts)}{note}"
