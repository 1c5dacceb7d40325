"""The page on which a person orders the replies to a prompt from best to worst.

    python -m crawl2chat.web.ranking output/laptop/preferences --labeler ada

The command reads the folder's rankings.jsonl (what scripts/preferences.py wrote; its orders are compared and never
shown), appends the person's decisions to people/rankings.jsonl and writes people/dataset.jsonl from them. The order
is blind: the replies of a prompt are shuffled by seed, prompt and labeler, and the page knows them by where it shows
them. The server answers this machine alone; whoever has an account on it could open the page too.
"""

import argparse
import json
from collections.abc import Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path

from crawl2chat.stage import fail, write_text
from crawl2chat.web import deciding
from crawl2chat.web.deciding import HEADERS as HEADERS
from crawl2chat.web.deciding import KINDS as KINDS
from crawl2chat.web.deciding import LARGEST as LARGEST
from crawl2chat.web.deciding import LINGER, PATIENCE, Refused, lines, serve
from crawl2chat.web.decisions import Decisions, agreement, is_order, key_of, said


class Page(deciding.Page):
    """The page of one labeler who orders replies."""

    name, field, path, done, todo = "ranking", "order", "/rank", "ordered", "prompts to order"
    static = {
        "/": "ranking.html",
        "/ranking.css": "ranking.css",
        "/deciding.js": "deciding.js",
        "/ranking.js": "ranking.js",
    }

    valid = staticmethod(is_order)

    def __init__(self, rows: Sequence[dict], path: str | Path, labeler: str, seed: int = 0) -> None:
        """`rows` as `rank` takes them; one clear line for a row or a labeler that cannot be used."""
        items: dict[str, dict] = {}
        for number, row in enumerate(rows, 1):
            if reason := unusable(row):
                fail(f"ranking: prompt {number} of {len(rows)} cannot be ordered, {reason}")
            items.setdefault(key_of(row), row)
        if not items:
            fail("ranking: there is nothing to order; give at least one prompt with two replies")
        self.given = [row for row in rows if "labeler" in row and row.get("order") is not None]
        super().__init__(items, path, labeler, seed)

    def read(self, value: object, shown: list[int]) -> list[int]:
        if not is_order(value, len(shown)):
            raise Refused(400, f"order needs each of the numbers 0 to {len(shown) - 1} once")
        return [shown[place] for place in value]

    def start(self, before: list[int] | None, shown: list[int]) -> list[int]:
        return [shown.index(number) for number in before or shown]

    def outcome(self) -> list[str]:
        return [said(pair) for pair in agreement(self.rows()) if self.labeler in pair["labelers"]]

    def rows(self) -> list[dict]:
        """The dataset: the orders that stand in the file, of every labeler, and those that came with the prompts."""
        return self.decisions.dataset() + [
            row for row in self.given if row["labeler"] not in self.decisions.labelers()
        ]


def unusable(row: dict) -> str:
    """Why a prompt with replies cannot be ordered, or nothing."""
    if not isinstance(row, dict):
        return f"it is a {type(row).__name__} instead of an object"
    prompt, replies, order = row.get("prompt"), row.get("replies"), row.get("order")
    if not isinstance(prompt, list) or not prompt or not all(isinstance(turn, dict) for turn in prompt):
        return 'its "prompt" is no list of messages'
    if not isinstance(replies, list) or not all(isinstance(reply, str) for reply in replies):
        return 'its "replies" are no list of texts'
    if len(replies) < 2:
        return f"it has {len(replies)} replies; leave out prompts with fewer than two"
    if order is not None and not is_order(order, len(replies)):
        return f'its "order" is no order of {len(replies)} replies'
    if not isinstance(row.get("labeler", ""), str):
        return 'its "labeler" is no name'
    return ""


def make_server(page: Page, port: int = 0) -> ThreadingHTTPServer:
    """The page's server on 127.0.0.1, not yet serving. Raises OSError for a port that is taken."""
    return deciding.make_server(page, port, PATIENCE)


def rank(
    prompts_and_replies: list[dict],
    path: str | Path,
    labeler: str,
    port: int = 0,
    open_browser: bool = False,
    seed: int = 0,
) -> list[dict]:
    """Let a person order replies on a page, until all prompts are done or the person ends it (the page's button, or
    Ctrl-C).

    `prompts_and_replies`: {"prompt": messages, "replies": two or more texts, "split"?} each; "order" and "labeler",
    where a row has them, are compared with the person's and never shown. `path` is the append-only file of decisions:
    what `labeler` decided there before is not asked again, and other labelers may share it, at the same time too.
    Returns {"prompt", "replies", "order", "labeler", "split"} of this labeler's orders, in the order of the prompts;
    "order" holds the numbers of the replies, best first. Skipped prompts are left out. One clear line for prompts
    that cannot be ordered, a file that cannot be written or a port that is taken.
    """
    try:
        page = Page(prompts_and_replies, path, labeler, seed)
    except OSError as error:
        fail(f"{path}: cannot be read and written ({error.strerror}); name another file for the decisions")
    counts = page.counts()
    if double := len(prompts_and_replies) - len(page.items):
        print(f"ranking: {double} rows ask for an order that another row asks for; each is asked for once")
    if page.decisions.unreadable:
        where = ", ".join(map(str, page.decisions.unreadable))
        print(f"ranking: {path}: {len(page.decisions.unreadable)} cut or broken lines left out (line {where})")
    if counts["open"]:
        serve(page, port, open_browser, LINGER)
    with page.decisions.held():
        counts, all_rows = page.counts(), page.decisions.dataset()
        mine = {key_of(row): row for row in all_rows if row["labeler"] == labeler}
        known = [said(pair) for pair in agreement(page.rows()) if labeler in pair["labelers"]]
    print(f"ranking: {path} | {', '.join(f'{counts[name]} {name}' for name in ('ordered', 'skipped', 'open'))}")
    for line in known:
        print(f"ranking: {line}")
    return [mine[key] for key in page.items if key in mine]


def main() -> None:
    parser = argparse.ArgumentParser(description="Order replies from best to worst on a page.")
    parser.add_argument("folder", type=Path, help="what scripts/preferences.py wrote: rankings.jsonl")
    parser.add_argument("--labeler", required=True, help="who orders; each labeler is asked everything")
    parser.add_argument("--port", type=int, default=0, help="0: one that is free")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    wanted = parser.parse_args()
    source, log = wanted.folder / "rankings.jsonl", wanted.folder / "people/rankings.jsonl"
    try:
        rows = [json.loads(line) for line in source.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        fail(f"{source}: cannot be read ({error}); run scripts/preferences.py with this output_dir")
    rank(rows, log, wanted.labeler, wanted.port, wanted.open)
    dataset = Decisions(log)
    with dataset.held():
        rows = dataset.dataset()
    write_text(log.with_name("dataset.jsonl"), lines(rows))
    by = ", ".join(sorted({row["labeler"] for row in rows})) or "nobody"
    print(f"ranking: wrote {log.with_name('dataset.jsonl')}, {len(rows)} orders by {by}")


if __name__ == "__main__":
    main()
