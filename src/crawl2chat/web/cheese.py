"""The report's map of capabilities: every task of every checkpoint, the largest holes, and replies in full."""

import math
from html import escape

from crawl2chat import figures
from crawl2chat.runs import Run
from crawl2chat.tasks.invented import UNKNOWN
from crawl2chat.web.fragments import clip, details, said, section, spoken, turns


def graded(run: Run) -> tuple[list[str], list[str]]:
    """Names of the checkpoints and of the tasks, in the order that eval wrote them."""
    keys = [key.split("/") for key in run.metrics.get("eval", {}) if key.endswith("/accuracy")]
    return list(dict.fromkeys(key[0] for key in keys)), list(dict.fromkeys("/".join(key[1:-1]) for key in keys))


def capabilities(run: Run) -> str:
    """Tasks x checkpoints, each a slice of cheese with a hole as large as the share of wrong answers."""
    numbers, (checkpoints, tasks) = run.metrics.get("eval", {}), graded(run)
    if not tasks:
        return ""
    rows = []
    for task in tasks:
        cells = []
        for name in checkpoints:
            right, error = (numbers.get(f"{name}/{task}/{key}") for key in ("accuracy", "stderr"))
            if right is None:
                cells.append("<td></td>")
                continue
            width = f"{1.75 * math.sqrt(max(1 - right, 0)):.2f}rem"
            text = f"<b>{100 * right:.0f}&nbsp;% <small>±&nbsp;{100 * (error or 0):.0f}</small></b>"
            back, ink = figures.heat(right)
            hole = f'<i style="width:{width};height:{width}"></i>'
            cells.append(f'<td class="slice" style="background:{back};color:{ink}"><div>{text}{hole}</div></td>')
        rows.append(f"<tr><th>{spoken(task)}</th>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in checkpoints)
    ends = [(name, numbers[f"{name}/ended/share"]) for name in checkpoints if f"{name}/ended/share" in numbers]
    note = ", ".join(f"{escape(name)} {said(share, 'share')}" for name, share in ends)
    cheese = f'<div class="scroll"><table class="cheese"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
    note = f'<p class="quiet">Replies that end by themselves: {note}.</p>' if ends else ""
    return section(
        "A map of what it can do",
        "Swiss cheese: each slice is a task; its hole is as large as the share of wrong answers, and the darker it "
        "is, the fewer answers are right.",
        f'<div class="map"><div>{cheese}{note}</div>',
        f"<div><h3>The largest holes of {escape(checkpoints[-1])}</h3>{holes(run)}</div></div>",
    )


def holes(run: Run, most: int = 6) -> str:
    """The last checkpoint's worst tasks, each with a question that it got wrong."""
    numbers, (checkpoints, _) = run.metrics["eval"], graded(run)
    wrong: dict[str, dict] = {}
    for row in run.rows("eval", "replies.jsonl"):
        if row["checkpoint"] == checkpoints[-1] and row["score"] == 0:
            wrong.setdefault(row["task"], row)
    parts = []
    scores = {task: numbers.get(f"{checkpoints[-1]}/{task}/accuracy", 0.0) for task in wrong}
    for task in sorted(scores, key=lambda task: scores[task])[:most]:
        row = wrong[task]
        calls = sum(len(message.get("tool_calls") or ()) for message in row["reply"])
        said_last = in_short(row, 200)
        used = f" (after {calls} tool call{'s' if calls > 1 else ''})" if calls and last_words(row) else ""
        wanted = "that it does not know" if row["answer"] == UNKNOWN else str(row["answer"])
        parts.append(
            f'<div class="hole"><b>{spoken(task)}</b>: {100 * (1 - scores[task]):.0f}&nbsp;% wrong, such as'
            f"<dl><dt>asked</dt><dd>{escape(clip(row['prompt'][-1]['content'], 200))}</dd>"
            f"<dt>answered</dt><dd>{said_last}{used}</dd>"
            f"<dt>right is</dt><dd>{escape(clip(wanted, 200))}</dd></dl></div>"
        )
    return "".join(parts) or '<p class="quiet">None: every answer was right.</p>'


def last_words(row: dict) -> str:
    """What a reply (messages, or a text) says in the end."""
    if isinstance(row["reply"], str):
        return row["reply"]
    said = (message["content"] for message in reversed(row["reply"]) if message["role"] == "assistant")
    return next((words for words in said if words), "")


def in_short(row: dict, length: int) -> str:
    """A reply's last words, escaped; where it has none, the tool that it calls and with what."""
    if words := last_words(row):
        return escape(clip(words, length))
    calls = [] if isinstance(row["reply"], str) else [call for m in row["reply"] for call in m.get("tool_calls") or ()]
    if not calls:
        return "(nothing)"
    function = calls[-1]["function"]
    if not isinstance(function, dict):  # a call that could not be read is its raw text
        return f"(a broken call: {escape(clip(str(function), length))})"
    given = function.get("arguments")
    given = ", ".join(map(str, given.values())) if isinstance(given, dict) else str(given)
    return f"(calls {escape(clip(str(function.get('name')), 40))}: {escape(clip(given, length))})"


def examples(run: Run, shown: int = 9) -> str:
    """One right answer for each task by the last checkpoint, and what the others said; the first `shown` unfolded."""
    checkpoints, tasks = graded(run)
    rows, parts = run.rows("eval", "replies.jsonl"), []
    for task in tasks:
        of_task = [row for row in rows if row["task"] == task]
        right = [row for row in of_task if row["checkpoint"] == checkpoints[-1] and row["score"] == 1]
        if not right:
            continue
        row = right[0]
        same = [other for other in of_task if other["prompt"] == row["prompt"]]
        others = {other["checkpoint"]: in_short(other, 160) for other in same}
        lines = [
            f'<div class="other">{escape(n)} said: {text}</div>' for n, text in others.items() if n != checkpoints[-1]
        ]
        bubbles = turns([*row["prompt"], *row["reply"]])
        parts.append(f'<div class="chat"><h3>{spoken(task)}</h3>{bubbles}{"".join(lines)}</div>')
    body = f'<div class="chats">{"".join(parts[:shown])}</div>' if parts else ""
    if parts[shown:]:
        body += details(f"{len(parts) - shown} more", f'<div class="chats">{"".join(parts[shown:])}</div>')
    return section(
        "In its own words",
        "A right answer for each task, and what the other checkpoints said to the same question.",
        body,
    )
