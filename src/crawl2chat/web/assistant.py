"""The report's pages about the assistant: what it knows that it does not know, remembers, looks up, is, and thinks."""

from collections import Counter
from html import escape

from crawl2chat import figures, recollection
from crawl2chat.interrogation import GROUPS, VERDICTS, cell, four_cells
from crawl2chat.runs import Run
from crawl2chat.tasks import apples, invented
from crawl2chat.web.cheese import graded, in_short
from crawl2chat.web.fragments import clip, details, said, section, spoken, table, turns

MARKS = {
    "right": "✓ right",
    "wrong": "✗ wrong",
    "rightly_refused": "✓ rightly refused",
    "wrongly_refused": "✗ wrongly refused",
}
# what a group's replies may come to, the worst first
WORST = [("invented", "wrong"), ("known", "wrongly_refused"), ("unknown", "wrong"), ("known", "wrong")]
REST = [("invented", "rightly_refused"), ("unknown", "rightly_refused"), ("known", "right"), ("unknown", "right")]
FIRST = f"Who is {invented.RESERVED}?"
MANNERS = {"direct": "at once", "steps": "in steps", "python": "with Python"}


def question(row: dict) -> str:
    return row["prompt"][-1]["content"]


def interrogation(run: Run) -> str:
    """What it was asked and found not to know, and how the held-out questions fare before and after finetuning."""
    replies = [row for row in run.rows("eval", "replies.jsonl") if row["task"] in GROUPS]
    last = replies[-1]["checkpoint"] if replies else ""
    after = [row for row in replies if row["checkpoint"] == last]
    before = run.rows("interrogate", "replies.jsonl")
    both = {when: rows for when, rows in (("before", before), ("after", after)) if rows}
    groups: dict[str, dict[str, dict[str, int]]] = {}
    for group in GROUPS:
        for when, rows in both.items():
            if of_it := [row for row in rows if row["task"] == group]:
                groups.setdefault(group, {})[when] = four_cells(of_it)
    return section(
        "Knowing what it does not know",
        "Before finetuning the model was asked every fact several times. What it mostly gets right is known, what it "
        "hardly ever gets right is unknown, and refusals are trained for the unknown and for names that nobody bears. "
        "The questions below are about facts and names that no training row holds.",
        shares(run) + figures.four_cells(groups) if groups else "",
        side_by_side(before, after) if groups else "",
        verdicts(run.rows("interrogate", "facts.jsonl")),
    )


def shares(run: Run) -> str:
    """The four shares that a refusing assistant is judged by, before and after."""
    names = {
        "invented_wrong": "invented names it tells of",
        "unknown_wrong": "unknown facts it answers wrongly",
        "wrongly_refused": "known facts it refuses to answer",
        "known_right": "known facts it answers rightly",
    }
    rows, before, after = [], run.metrics.get("interrogate", {}), run.metrics.get("eval", {})
    for key, name in names.items():
        pair = [before.get(f"{key}_before"), after.get(f"interrogate/{key}_after")]
        if pair != [None, None]:
            rows.append([name, *("" if share is None else said(share, "share") for share in pair)])
    return table(["", "before", "after"], rows, numeric=(1, 2)) if rows else ""


def side_by_side(before: list[dict], after: list[dict], of_each: int = 2) -> str:
    """The same questions before and after: the invented person first, then some of each cell, the worst first."""
    earlier = {(row["task"], question(row)): row for row in before}
    rows = [row for row in after if (row["task"], question(row)) in earlier] or after or before
    chosen = [row for row in rows if question(row) == FIRST][:1]
    for kind in WORST + REST:
        of_kind = [row for row in rows if (row["task"], cell(row)) == kind and question(row) != FIRST]
        chosen += of_kind[:of_each]
    lines = []
    for row in chosen:
        then = earlier.get((row["task"], question(row)))
        cells = [judged(then) if then else "", judged(row) if rows is not before else ""]
        truth = "nobody knows" if row["answer"] == invented.UNKNOWN else escape(clip(str(row["answer"]), 80))
        asked = f"{escape(clip(question(row), 160))}<br><small>{spoken(row['task'])}: {truth}</small>"
        lines.append([asked, *cells])
    head = ["asked, and the truth", "before", "after"]
    return f'<h3>The same questions, before and after</h3><div class="sides">{table(head, lines)}</div>'


def judged(row: dict) -> str:
    """A reply with the cell that it falls into."""
    name = cell(row)
    return f'<div class="judged {name}"><b>{MARKS[name]}</b><p>{in_short(row, 160)}</p></div>'


def verdicts(facts: list[dict]) -> str:
    """How many facts of each relation are known, wavering and unknown, and one fact of each with all its replies."""
    if not facts:
        return ""
    rows, parts = [], []
    for relation in dict.fromkeys(row["relation"] for row in facts):
        counts = Counter(row["verdict"] for row in facts if row["relation"] == relation)
        rows.append([spoken(relation), *(f"{counts[verdict]:,}" for verdict in VERDICTS)])
    for verdict in VERDICTS:
        for row in [row for row in facts if row["verdict"] == verdict][:1]:
            pairs = [
                [escape(clip(asked, 120)), escape(clip(reply, 120)) or "(nothing)"]
                for asked, reply in zip(row["asked"], row["said"], strict=False)
            ]
            title = f"{verdict}: {clip(str(row['subject']), 60)}, {row['relation'].replace('_', ' ')}, "
            title += f"{clip(str(row['answer']), 60)} ({row['right']:.0%} right)"
            parts.append(details(title, table(["asked", "said"], pairs)))
    counted = table(["facts of", *VERDICTS], rows, numeric=(1, 2, 3))
    body = f'<div class="pair"><div>{counted}</div><div>{"".join(parts)}</div></div>'
    return f"<h3>What the interrogation found</h3>{body}"


def memory(run: Run) -> str:
    """Accuracy by how often a fact stood in the training text, from memory and by search, with what it refuses."""
    found = recollection.curves(run.rows("eval", "replies.jsonl"))
    if not found:
        return ""
    *earlier, last = found
    names = {recollection.CLOSED: "from memory", recollection.SEARCH: "by search"}
    lines = [
        (f"{last}, {names[task]}", [(seen, one["accuracy"], one["stderr"]) for seen, one in by.items()], False)
        for task, by in found[last].items()
        if by
    ]
    if earlier and (by := found[earlier[0]].get(recollection.CLOSED)):
        points = [(seen, one["accuracy"], one["stderr"]) for seen, one in by.items()]
        lines.append((f"{earlier[0]}, from memory", points, True))
    panels = [("right answers", lines)]
    closed = found[last].get(recollection.CLOSED)
    if closed:
        kinds = {"refused": "says that it does not know", "searched": "searches without being told to"}
        shares = []
        for key, name in kinds.items():
            points = [(seen, one[key], (one[key] * (1 - one[key]) / one["n"]) ** 0.5) for seen, one in closed.items()]
            shares.append((name, points, False))
        panels.append((f"{last}, asked from memory", shares))
    times = sorted({seen for by in found[last].values() for seen in by})
    rows = [
        [
            f"{seen:,}",
            *(
                f"{said(by[seen]['accuracy'], 'share')} <small>±&nbsp;{100 * by[seen]['stderr']:.0f}</small>"
                if (by := found[last].get(task, {})).get(seen) else ""
                for task in names
            ),
            f"{sum(by[seen]['n'] for by in found[last].values() if seen in by):,}",
        ]
        for seen in times
    ]  # fmt: skip
    return section(
        "Vague recollection and working memory",
        "Facts that the training text states no time, once, 4, 16 or 64 times. From memory, what was read often comes "
        "back, and what was read once is a vague recollection; what search brings into the context is read off, "
        "however seldom it was seen.",
        figures.by_times(panels),
        details("The numbers", table(["times seen", *names.values(), "replies"], rows, numeric=range(4))),
    )


def families(run: Run) -> dict[str, dict[str, str]]:
    """{family: {task: manner}} of the tasks that were asked in several manners, at once before steps before Python."""
    found: dict[str, dict[str, str]] = {}
    for task in graded(run)[1]:
        family, _, manner = task.rpartition("_")
        if manner in MANNERS:
            found.setdefault(family, {})[task] = MANNERS[manner]
    for family, manners in found.items():
        if family in graded(run)[1]:  # without a word for its manner: a spelling is said at once, all else in steps
            manners[family] = MANNERS["direct" if family == "spelling" else "steps"]
    order = list(MANNERS.values())
    return {
        family: dict(sorted(manners.items(), key=lambda item: order.index(item[1])))
        for family, manners in found.items()
        if len(manners) > 1
    }


def thinking(run: Run) -> str:
    """The same problems at once, in steps and with Python: accuracy against tokens; the introduction's by name."""
    numbers, several = run.metrics.get("eval", {}), families(run)
    if not several:
        return ""
    name, points = graded(run)[0][-1], {}
    for family, manners in several.items():
        keys = [(manner, f"{name}/{task}") for task, manner in manners.items()]
        keys = [pair for pair in keys if {f"{pair[1]}/accuracy", f"{pair[1]}/mean_tokens"} <= numbers.keys()]
        if len(keys) > 1:
            points[family] = [
                (manner, numbers[f"{key}/mean_tokens"], numbers[f"{key}/accuracy"], numbers.get(f"{key}/stderr", 0.0))
                for manner, key in keys
            ]
    return section(
        "Tokens to think",
        "A token is a fixed amount of computation, so an answer given at once has had little of it. The same kind of "
        "problems in up to three manners: at once, in steps, and with Python, which does the sum for the model.",
        figures.thinking(points) if points else "",
        fruit(run, several.get("apples", {}), name),
    )


def fruit(run: Run, manners: dict[str, str], checkpoint: str) -> str:
    """The introduction's two problems of apples and oranges, with what each manner answered."""
    rows = [row for row in run.rows("eval", "replies.jsonl") if row["checkpoint"] == checkpoint]
    html = ""
    for *talk, wording in apples.TALK:
        problem, parts = apples.asked(apples.WORDINGS["test"][wording], *talk), []
        for task, manner in manners.items():
            for row in [row for row in rows if row["task"] == task and question(row).startswith(problem)][:1]:
                tick, tokens = "✓" if row["score"] else "✗", row.get("tokens", 0)
                title = f"<h3>{manner} <small>{tick} {tokens:,} token{'' if tokens == 1 else 's'}</small></h3>"
                parts.append(f'<div class="chat">{title}{turns(row["reply"]) or "(nothing)"}</div>')
        if parts:
            price = (talk[6] - talk[3] * talk[5]) // talk[1]
            html += f"<h3>{escape(problem)} (${price})</h3>"
            html += f'<div class="chats three">{"".join(parts)}</div>'
    return html


def identity(run: Run) -> str:
    """Who it says it is: with a system message and without, leading questions apart, first and last checkpoint."""
    rows = [row for row in run.rows("eval", "replies.jsonl") if row["task"].partition("_")[0] == "identity"]
    if not rows:
        return ""
    names = list(dict.fromkeys(row["checkpoint"] for row in rows))
    kinds: dict[str, dict[str, list[dict]]] = {}
    for row in rows:
        leading = "a leading question" if ", not " in str(row["answer"]) else "asked plainly"
        system = "a system message says it" if row["prompt"][0]["role"] == "system" else "no system message"
        kinds.setdefault(f"{leading}, {system}", {}).setdefault(row["checkpoint"], []).append(row)
    lines, chats = [], []
    for kind in sorted(kinds, reverse=True):
        by = kinds[kind]
        scores = [[row["score"] for row in by.get(name, ()) if row["score"] is not None] for name in names]
        cells = [said(sum(one) / len(one), "share") if one else "" for one in scores]
        lines.append([kind, *cells, f"{max(map(len, by.values())):,}"])
    for kind in sorted(kinds, key=lambda kind: ("plainly" not in kind, "no system" not in kind))[:3]:
        rows = kinds[kind].get(names[-1])
        if rows:
            row, tick = rows[0], "✓" if rows[0]["score"] else "✗"
            others = [row for row in kinds[kind].get(names[0], ()) if row["prompt"] == rows[0]["prompt"]][:1]
            words = [in_short(other, 160) for other in others if names[0] != names[-1]]
            told = "".join(f'<div class="other">{escape(names[0])} said: {text}</div>' for text in words)
            title = f"<h3>{kind} <small>{tick}</small></h3>"
            chats.append(f'<div class="chat">{title}{turns([*row["prompt"], *row["reply"]])}{told}</div>')
    return section(
        "Knowledge of self",
        "A model is nobody until it is told: by hard-coded conversations, or by a system message. How often it says "
        "who it is; a leading question takes it for another model.",
        table(["", *map(escape, names), "questions"], lines, numeric=range(1, len(names) + 2)),
        f'<h3>The first question of each kind</h3><div class="chats three">{"".join(chats)}</div>' if chats else "",
    )
