"""The report's pages about what a token hides (letters, dots, 9.11 and 9.9) and about the tools that see it."""

import re
from html import escape

from crawl2chat.evaluation import tools_called
from crawl2chat.protocol import load_tokenizer, token_view
from crawl2chat.runs import Run
from crawl2chat.web.assistant import MANNERS, question
from crawl2chat.web.cheese import graded, in_short
from crawl2chat.web.fragments import bar, clip, said, section, table, turns

FAMILIES = {
    "counting": ("Counting", "Letters and dots are inside of tokens, where a model does not look."),
    "spelling": ("Spelling", "A word is one or two tokens; its letters have to be remembered."),
    "comparison": ("9.11 or 9.9", "Digits and points are tokens like any other; 9.11 looks like the later chapter."),
}


def oddities(run: Run) -> str:
    """Counting, spelling and comparing numbers, by itself and with Python: accuracy and the same question twice."""
    names, tasks = graded(run)
    rows = run.rows("eval", "replies.jsonl")
    cards = []
    for family, (title, why) in FAMILIES.items():
        found = [task for task in tasks if task == family or task.startswith(f"{family}_")]
        bars = []
        for task in found:
            manner = MANNERS.get(task.removeprefix(family).lstrip("_"), "by itself")
            share = run.metrics["eval"].get(f"{names[-1]}/{task}/accuracy")
            if share is not None:
                bars.append(bar(manner, share, f"<b>{said(round(share, 3), 'share')}</b>"))
        asked = example(run, [row for row in rows if row["checkpoint"] == names[-1] and row["task"] in found])
        if bars:
            heading = f'<h3>{title}</h3><p class="quiet">{why}</p>'
            cards.append(f'<div class="chat odd">{heading}{"".join(bars)}{asked}</div>')
    return section(
        "What a token hides",
        "A model reads tokens, not letters, and has no fingers to count on. What it gets right by itself, and with "
        "Python, which sees every letter.",
        f'<div class="chats">{"".join(cards)}</div>' if cards else "",
    )


def example(run: Run, rows: list[dict]) -> str:
    """A question as its tokens, with the reply to it in each manner: 9.11 and 9.9 where they were asked of, else one
    that was got wrong."""
    known = {plain(row): [] for row in rows}
    for row in rows:
        known[plain(row)].append(row)
    famous = lambda asked: {"9.11", "9.9"} <= set(re.findall(r"[\d.]*\d", asked))  # noqa: E731
    worth = lambda asked: (famous(asked), told_apart(known[asked]))  # noqa: E731
    if not known:
        return ""
    asked = max(known, key=worth)
    home = next((stage for stage in ("sft", "pretrain", "tokenizer") if stage in run.metrics), None)
    view = f"<p>{escape(clip(asked, 200))}</p>"
    if home and (run.folder / home / "tokenizer.json").exists():
        words = load_tokenizer(run.folder / home)
        view = f'<div class="paper">{token_view(words(clip(asked, 200)).input_ids, words)}</div>'
    lines = []
    for row in known[asked]:
        mark = {None: "?", True: "✓"}.get(row["score"] if row["score"] is None else row["score"] >= 1, "✗")
        calls = "with a tool" if tools_called(messages(row)) else "by itself"
        lines.append(f'<div class="other"><b>{mark} {calls}</b>: {in_short(row, 120)}</div>')
    return view + "".join(lines[:3])


def plain(row: dict) -> str:
    """A question without the words that ask for Python."""
    return re.sub(r"\s*(Work it out with|Use) (Python|code)\.$", "", question(row))


def told_apart(rows: list[dict]) -> int:
    """How much a question shows: 2 where it is got wrong without a tool and right with one, 1 where it is wrong."""
    alone = {row["score"] for row in rows if not tools_called(messages(row))}
    helped = {row["score"] for row in rows if tools_called(messages(row))}
    return (0.0 in alone) + (0.0 in alone and 1.0 in helped)


def messages(row: dict) -> list[dict]:
    return row["reply"] if isinstance(row["reply"], list) else []


def tools(run: Run) -> str:
    """How often each tool is called, how often the answer is right then, and a conversation with each."""
    names, _ = graded(run)
    rows = [row for row in run.rows("eval", "replies.jsonl") if names and row["checkpoint"] == names[-1]]
    called: dict[str, list[dict]] = {}
    for row in rows:
        for name in tools_called(messages(row)):
            called.setdefault(str(name), []).append(row)
    lines, chats = [], []
    for name, own in sorted(called.items(), key=lambda item: -len(item[1]))[:4]:
        judged = [row["score"] for row in own if row["score"] is not None]
        right = said(round(sum(judged) / len(judged), 3), "share") if judged else ""
        lines.append([f"<code>{escape(clip(name, 40))}</code>", f"{len(own):,}", right])
        row = max(own, key=lambda one: ((one["score"] or 0), -len(str(one["reply"]))))
        bubbles = turns([*row["prompt"], *row["reply"]])
        chats.append(f'<div class="chat"><h3>{escape(clip(name, 40))}</h3>{bubbles}</div>')
    return section(
        "It uses tools",
        "A call is written token by token like everything else; it is run, in a sandbox, and what came of it stands "
        "in the context for the rest of the answer. No result is ever trained on.",
        table(["tool", "replies that call it", "right"], lines, numeric=(1, 2)) if lines else "",
        f'<div class="chats three">{"".join(chats)}</div>' if chats else "",
    )
