"""Verdicts on two replies: what there is to judge, who wins the battles then, and how far judges agree."""

import json
from collections.abc import Iterator, Sequence

VERDICTS = ("first", "second", "tie", "both bad")
SWAPPED = {"first": "second", "second": "first"}
Verdict = str | None  # None: nobody could say


def matches(rows: Sequence[dict]) -> dict[str, dict]:
    """{key: {"prompt", "replies": two different texts in the order of the alphabet}}: what is to be judged, once
    each, whoever wrote the texts and whichever is a's."""
    found = {}
    for row in rows:
        if row["replies"][0] != row["replies"][1]:
            found.setdefault(key(row), {"prompt": row["prompt"], "replies": sorted(row["replies"])})
    return found


def key(row: dict) -> str:
    """What a prompt with its two texts is known by."""
    return json.dumps([row["prompt"], sorted(row["replies"])], sort_keys=True)


def settled(rows: Sequence[dict], verdicts: dict[str, Verdict], judge: str, identical: Verdict = "tie") -> list[dict]:
    """The battles with "winner" ("a", "b", "tie", "both bad" or None) and "judge", by verdicts on their `matches`;
    `identical` is the winner between one and the same text, where there is no verdict on that too."""
    found = []
    for row in rows:
        verdict = verdicts.get(key(row), identical if row["replies"][0] == row["replies"][1] else None)
        if sorted(row["replies"]) != row["replies"]:
            verdict = SWAPPED.get(verdict, verdict)
        winner = {"first": "a", "second": "b"}.get(verdict, verdict)
        found.append({**row, "winner": winner, "judge": judge})
    return found


def agreement(one: Sequence[dict], other: Sequence[dict]) -> tuple[float, int]:
    """(share, number) of the matches that both judges decided in which they say the same; two that are equally good
    and two that are equally bad count as the same."""
    said = []
    for rows in (one, other):
        own = {}
        for row in rows:
            if row.get("winner") is not None and row["replies"][0] != row["replies"][1]:
                own[key(row)] = {"a": row["replies"][0], "b": row["replies"][1]}.get(row["winner"])
        said.append(own)
    both = said[0].keys() & said[1].keys()
    return (sum(said[0][name] == said[1][name] for name in both) / len(both) if both else 0.0), len(both)


def counts(rows: Sequence[dict]) -> Iterator[tuple[str, float]]:
    """Numbers about settled battles for metrics.json, beside the ratings'."""
    decided = [row["winner"] for row in rows if row["winner"] is not None]
    yield "prompts", len({json.dumps(row["prompt"]) for row in rows})
    yield "undecided", len(rows) - len(decided)
    yield "identical", sum(row["replies"][0] == row["replies"][1] for row in rows)
    for name in ("tie", "both bad"):
        yield f"{name.replace(' ', '_')}_share", decided.count(name) / max(len(decided), 1)
