"""The page on which a person says which of two replies is better.

    python -m crawl2chat.web.arena output/laptop/arena --judge ada

The command reads the folder's battles.jsonl (what scripts/arena.py wrote; its winners are compared and never shown),
appends the person's decisions to people/decisions.jsonl and writes people/battles.jsonl from everybody's, with their
ratings printed. It is blind: no checkpoint is named, and the sides are swapped by seed, prompt and judge. Two texts
that several pairs of checkpoints wrote are shown once, and one and the same text is no question.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

from crawl2chat import verdicts
from crawl2chat.ratings import rate, table
from crawl2chat.stage import fail, write_text
from crawl2chat.web import deciding
from crawl2chat.web.deciding import Refused, lines, serve
from crawl2chat.web.decisions import key_of

SIDES = ("left", "right", "tie", "both bad")


def is_verdict(value: object, count: int) -> bool:
    """Whether `value` says which of `count` = 2 replies is better."""
    return count == 2 and value in verdicts.VERDICTS


class Page(deciding.Page):
    """The page of one judge."""

    name, field, path, done, todo = "arena", "verdict", "/judge", "judged", "battles to judge"
    static = {"/": "arena.html", "/ranking.css": "ranking.css", "/arena.css": "arena.css"}
    static |= {"/deciding.js": "deciding.js", "/arena.js": "arena.js"}
    valid = staticmethod(is_verdict)

    def __init__(self, battles: Sequence[dict], path: str | Path, judge: str, seed: int = 0) -> None:
        """`battles` as `judge` takes them; one clear line for a battle or a name that cannot be used."""
        for number, row in enumerate(battles, 1):
            if reason := unusable(row):
                fail(f"arena: battle {number} of {len(battles)} cannot be judged, {reason}")
        self.battles = list(battles)
        matches = list(verdicts.matches(battles).values())
        # in an order of their own, so that whoever ends early has judged something of every pair of checkpoints
        random.Random(f"{seed} {judge}").shuffle(matches)
        super().__init__({key_of(match): match for match in matches}, path, judge, seed)

    def read(self, value: object, shown: list[int]) -> str:
        if not isinstance(value, str) or value not in SIDES:
            raise Refused(400, f"verdict needs one of {', '.join(SIDES)}")
        return verdicts.VERDICTS[shown[SIDES.index(value)]] if value in ("left", "right") else value

    def start(self, before: str | None, shown: list[int]) -> str | None:
        if before in ("first", "second"):
            return SIDES[shown.index(verdicts.VERDICTS.index(before))]
        return before

    def outcome(self) -> list[str]:
        return agreements(self.settled(), self.battles, self.labeler)

    def settled(self) -> dict[str, list[dict]]:
        """{judge: all battles with that judge's winners} of everybody who has decided something here. One and the same
        text is a tie once a judge has left nothing open: before, such ties would outweigh what was judged."""
        said: dict[str, dict[str, str]] = {}
        for row in self.decisions.dataset():
            said.setdefault(row["labeler"], {})[verdicts.key(row)] = row["verdict"]
        plain = [{key: row[key] for key in row if key not in ("scores", "winner", "judge")} for row in self.battles]
        whole = {name: self.items.keys() <= self.decisions.of(name).keys() for name in said}
        return {name: verdicts.settled(plain, own, name, "tie" if whole[name] else None) for name, own in said.items()}


def unusable(row: dict) -> str:
    """Why a battle cannot be judged, or nothing."""
    if not isinstance(row, dict):
        return f"it is a {type(row).__name__} instead of an object"
    prompt, replies = row.get("prompt"), row.get("replies")
    if not isinstance(prompt, list) or not prompt or not all(isinstance(turn, dict) for turn in prompt):
        return 'its "prompt" is no list of messages'
    if not isinstance(replies, list) or len(replies) != 2 or not all(isinstance(text, str) for text in replies):
        return 'its "replies" are not two texts'
    if not all(isinstance(row.get(side), str) for side in "ab") or row["a"] == row["b"]:
        return 'its "a" and "b" are not two names'
    return ""


def agreements(settled: dict[str, list[dict]], battles: Sequence[dict], judge: str) -> list[str]:
    """How often `judge` says what every other one says, in lines for people."""
    others = {name: rows for name, rows in settled.items() if name != judge}
    if any(row.get("winner") is not None for row in battles):
        others |= {str(battles[0].get("judge")): battles}
    found = []
    for name, rows in others.items() if judge in settled else ():
        share, both = verdicts.agreement(settled[judge], rows)
        found += [f"{judge} and {name} say the same of {share:.0%} of {both} pairs of replies"] if both else []
    return found


def judge(
    battles: Sequence[dict], path: str | Path, name: str, port: int = 0, open_browser: bool = False, seed: int = 0
) -> list[dict]:
    """Let a person judge battles on a page, until all are done or the person ends it (the page's button, or Ctrl-C).

    `battles`: {"prompt", "a", "b", "replies": two texts, "winner"?, "judge"?} each; winners are compared with the
    person's and never shown. `path` is the append-only file of decisions: what `name` decided there before is not
    asked again, and other judges may share it, at the same time too. Returns the battles with this judge's winners,
    None for what was skipped or left. One clear line for battles that cannot be judged, a file that cannot be written
    or a port that is taken.
    """
    try:
        page = Page(battles, path, name, seed)
    except OSError as error:
        fail(f"{path}: cannot be read and written ({error.strerror}); name another file for the decisions")
    if page.decisions.unreadable:
        where = ", ".join(map(str, page.decisions.unreadable))
        print(f"arena: {path}: {len(page.decisions.unreadable)} cut or broken lines left out (line {where})")
    if page.counts()["open"]:
        serve(page, port, open_browser)
    with page.decisions.held():
        counts, settled = page.counts(), page.settled()
    print(f"arena: {path} | {', '.join(f'{counts[kind]} {kind}' for kind in ('judged', 'skipped', 'open'))}")
    for line in agreements(settled, page.battles, name):
        print(f"arena: {line}")
    return settled.get(name) or verdicts.settled(page.battles, {}, name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Say which of two replies is better, on a page.")
    parser.add_argument("folder", type=Path, help="what scripts/arena.py wrote: battles.jsonl")
    parser.add_argument("--judge", required=True, help="who judges; each judge is asked everything")
    parser.add_argument("--port", type=int, default=0, help="0: one that is free")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    wanted = parser.parse_args()
    source, log = wanted.folder / "battles.jsonl", wanted.folder / "people/decisions.jsonl"
    try:
        rows = [json.loads(line) for line in source.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        fail(f"{source}: cannot be read ({error}); run scripts/arena.py with this output_dir")
    judge(rows, log, wanted.judge, wanted.port, wanted.open)
    page = Page(rows, log, wanted.judge)
    with page.decisions.held():
        settled = page.settled()
    decided = [row for own in settled.values() for row in own if row["winner"] is not None]
    write_text(log.with_name("battles.jsonl"), lines(decided))
    if mine := [row for row in decided if row["judge"] == wanted.judge]:
        print(table(rate(mine)))
    by = ", ".join(sorted({row["judge"] for row in decided})) or "nobody"
    print(f"arena: wrote {log.with_name('battles.jsonl')}, {len(decided)} battles judged by {by}")


if __name__ == "__main__":
    main()
