"""Pieces of a page: numbers, tables, bars and conversations as HTML, with every text escaped."""

import re
from collections.abc import Sequence
from html import escape
from math import isfinite

SHARES = ("accuracy", "share", "precision", "recall", "stderr", "distinct_continuations")
SHARES += ("verbatim_recall_train", "verbatim_recall_heldout", "_before", "_after", "pass_at_1_gain")
SHARES += ("pass_at_1_first", "pass_at_1_last")
SHARES += ("win_rate", "win_rate_low", "win_rate_high")


def said(value: float, key: str = "") -> str:
    """A number for people: shares in per cent, times in seconds or minutes, large ones in millions."""
    if not isfinite(value):
        return "not a number"
    if key.endswith(SHARES) and "length" not in key or key.startswith("recollection/"):
        return f"{100 * value:.1f}".removesuffix(".0") + "\u00a0%"
    if key.endswith("seconds"):
        return f"{value:.0f}\u00a0s" if value < 120 else f"{value / 60:.1f}".removesuffix(".0") + "\u00a0min"
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.1f}\u00a0M"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3g}"


def section(title: str, explain: str, *parts: str) -> str:
    """A section of the page, or nothing where all its parts are empty."""
    body = "".join(parts)
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    note = f'<p class="explain">{explain}</p>' if explain else ""
    return f'<section id="{name}"><h2>{title}</h2>{note}{body}</section>' if body else ""


def clip(text: str, length: int = 400) -> str:
    return text if len(text) <= length else text[:length].rstrip() + " …"


def spoken(name: str) -> str:
    """A task's or step's name for people, escaped."""
    return escape(name.replace("_", " "))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already; `numeric` columns stand right."""

    def row(tag: str, cells: Sequence[str]) -> str:
        marks = (' class="n"' if i in numeric else "" for i in range(len(cells)))
        return (
            "<tr>" + "".join(f"<{tag}{mark}>{cell}</{tag}>" for mark, cell in zip(marks, cells, strict=True)) + "</tr>"
        )

    top = row("th", head) if head else ""
    return f'<div class="scroll"><table>{top}{"".join(row("td", cells) for cells in rows)}</table></div>'


def bar(label: str, share: float, note: str) -> str:
    """A labelled bar, `share` (0 to 1) of the room it has; `note` is HTML behind its end."""
    width = f"width:{65 * min(max(share, 0), 1) if isfinite(share) else 0:.1f}%"
    return f'<div class="rung"><span>{escape(clip(label, 60))}</span><span><i style="{width}"></i>{note}</span></div>'


def tiles(facts: Sequence[tuple[str, str]]) -> str:
    """Numbers in a row, of (number, what it counts); both are HTML already."""
    shown = "".join(f"<div><b>{value}</b><small>{name}</small></div>" for value, name in facts)
    return f'<div class="tiles">{shown}</div>' if facts else ""


def details(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def turns(messages: Sequence[dict]) -> str:
    """A conversation as bubbles, tool calls and their results among them."""
    html = []
    for message in messages:
        role, content = message["role"], message.get("content") or ""
        if content:
            label = f"<em>{'result' if role == 'tool' else 'system'}</em>" if role in ("tool", "system") else ""
            html.append(f'<div class="turn {escape(role)}">{label}{escape(clip(content))}</div>')
        for call in message.get("tool_calls") or ():
            function = call["function"]
            if isinstance(function, dict):
                arguments = function.get("arguments")
                shown = "\n".join(map(str, arguments.values())) if isinstance(arguments, dict) else str(arguments)
                name = f"calls {function.get('name')}"
            else:  # a call that could not be read is its raw text
                name, shown = "a broken call", str(function)
            html.append(f'<div class="turn call"><em>{escape(name)}</em><code>{escape(clip(shown))}</code></div>')
    return "".join(html)
