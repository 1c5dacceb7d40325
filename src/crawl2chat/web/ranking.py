"""The page on which a person orders the replies to a prompt from best to worst.

    python -m crawl2chat.web.ranking output/laptop/preferences --labeler ada

The command reads the folder's rankings.jsonl (what scripts/preferences.py wrote; its orders are compared and never
shown), appends the person's decisions to people/rankings.jsonl and writes people/dataset.jsonl from them. The order
is blind: the replies of a prompt are shuffled by seed, prompt and labeler, and the page knows them by where it shows
them. The server answers this machine alone; whoever has an account on it could open the page too.
"""

import argparse
import json
import math
import random
import re
import socket
import threading
import time
import webbrowser
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from crawl2chat.stage import fail, write_text
from crawl2chat.web.decisions import Decisions, agreement, is_order, key_of, said

LARGEST = 64 * 1024  # bytes of a request's body that is read; an order takes about 150
DRAINED = 16 * 1024 * 1024  # bytes that are let go by, so that a browser gets to its answer
PATIENCE = 10  # seconds that a connection may stay silent
ENDED = {"ended": True}
LINGER = 30  # seconds after the last decision in which it can still be taken back
STATIC = {"/": "ranking.html", "/ranking.css": "ranking.css", "/ranking.js": "ranking.js"}
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".json": "application/json"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A request that is answered with `status` and one line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Page:
    """What the page of one labeler shows, and what a request changes: no HTTP in here."""

    def __init__(self, rows: Sequence[dict], path: str | Path, labeler: str, seed: int = 0) -> None:
        """`rows` as `rank` takes them; one clear line for a row or a labeler that cannot be used."""
        if not isinstance(labeler, str) or not re.fullmatch(r"[\w.@+-]+(?: [\w.@+-]+)*", labeler) or len(labeler) > 60:
            fail(f"labeler {labeler!r}: needs a name of 1 to 60 letters, digits, single spaces or . _ @ + -")
        self.items: dict[str, dict] = {}
        for number, row in enumerate(rows, 1):
            if reason := unusable(row):
                fail(f"ranking: prompt {number} of {len(rows)} cannot be ordered, {reason}")
            self.items.setdefault(key_of(row), {"split": "train", **row})
        if not self.items:
            fail("ranking: there is nothing to order; give at least one prompt with two replies")
        self.given = [row for row in rows if "labeler" in row and row.get("order") is not None]
        self.labeler, self.seed, self.decisions = labeler, seed, Decisions(path)
        self.ended, self.done_at = threading.Event(), math.inf
        with self.decisions.held():
            pass  # what stands in the file is read

    def shown(self, key: str) -> list[int]:
        """The replies' numbers from top to bottom, as this labeler sees them first."""
        numbers = list(range(len(self.items[key]["replies"])))
        random.Random(f"{self.seed} {self.labeler} {key}").shuffle(numbers)
        return numbers

    def counts(self) -> Counter:
        """How many prompts are "ordered", "skipped" and "open"."""
        mine = self.decisions.of(self.labeler)
        kinds = Counter("skipped" if mine[key]["order"] is None else "ordered" for key in self.items if key in mine)
        return kinds + Counter(open=len(self.items) - kinds.total())

    def state(self) -> dict:
        """All that the page shows: {"labeler", "total", "ordered", "skipped", "last": decision that undo takes back,
        "item": {"id", "prompt", "replies", "start"}, "agreement": once nothing is open}."""
        mine, counts = self.decisions.of(self.labeler), self.counts()
        last = next((row["decision"] for key, row in reversed(mine.items()) if key in self.items), None)
        taken_back = [key for name, key in reversed(self.decisions.retracted) if name == self.labeler]
        key = next((key for key in [*taken_back, *self.items] if key in self.items and key not in mine), None)
        item, known = None, None
        if key is not None:
            shown, row = self.shown(key), self.items[key]
            before = self.decisions.retracted.get((self.labeler, key)) or shown
            start, replies = [shown.index(number) for number in before], [row["replies"][number] for number in shown]
            item = {"id": key, "prompt": row["prompt"], "replies": replies, "start": start}
        else:
            known = [said(pair) for pair in agreement(self.rows()) if self.labeler in pair["labelers"]]
        numbers = {name: counts[name] for name in ("ordered", "skipped")}
        return {
            "labeler": self.labeler,
            "total": len(self.items),
            "last": last,
            "item": item,
            "agreement": known,
        } | numbers

    def rows(self) -> list[dict]:
        """The dataset: the orders that stand in the file, of every labeler, and those that came with the prompts."""
        return self.decisions.dataset() + [
            row for row in self.given if row["labeler"] not in self.decisions.labelers()
        ]

    def change(self, path: str, body: dict) -> dict:
        """Do what was asked for and return the state. Raises Refused, and OSError where it could not be saved."""
        wanted = {
            "/rank": {"item", "decision", "order", "seconds"},
            "/skip": {"item", "decision", "seconds"},
            "/undo": {"decision", "retracts"},
            "/end": set(),
        }.get(path)
        if wanted is None:
            raise Refused(404, f"there is nothing at {path[:80]}")
        if set(body) != wanted:
            raise Refused(400, f"{path} takes {', '.join(sorted(wanted)) or 'nothing'}")
        if path == "/end":
            return dict(ENDED)
        for name in wanted & {"decision", "retracts"}:
            if not isinstance(body[name], str) or not re.fullmatch("[0-9a-f]{32}", body[name]):
                raise Refused(400, f"{name} needs 32 hexadecimal digits")
        with self.decisions.held():
            self.retract(body) if path == "/undo" else self.decide(body)
            state = self.state()
            self.done_at = time.monotonic() if state["item"] is None else math.inf
        return state

    def decide(self, body: dict) -> None:
        """Append an order, or a skip where the body has none. The same decision sent again changes nothing."""
        key, seconds = body["item"], body["seconds"]
        if not isinstance(key, str) or key not in self.items:
            raise Refused(404, "there is no such prompt")
        if type(seconds) not in (int, float) or not 0 <= seconds <= 1e7:
            raise Refused(400, "seconds needs a number from 0 on")
        item, shown, order = self.items[key], self.shown(key), None
        if "order" in body:
            if not is_order(body["order"], len(shown)):
                raise Refused(400, f"order needs each of the numbers 0 to {len(shown) - 1} once")
            order = [shown[place] for place in body["order"]]
        standing = self.decisions.of(self.labeler).get(key)
        if standing and standing["decision"] == body["decision"] and standing["order"] == order:
            return
        if body["decision"] in self.decisions.seen:
            raise Refused(409, "this decision was sent before; what the page shows was out of date")
        if standing:
            raise Refused(409, "this prompt was decided already, in another tab or by a second press")
        row = {name: item[name] for name in ("prompt", "replies")} | {"order": order, "labeler": self.labeler}
        row |= {"split": item["split"], "decision": body["decision"], "shown": shown, "seconds": round(seconds, 1)}
        self.decisions.append(row | {"at": datetime.now(timezone.utc).isoformat(timespec="seconds")})

    def retract(self, body: dict) -> None:
        """Append a row that takes the last decision back."""
        if body["retracts"] in self.decisions.gone:
            return  # the same undo, from another tab or sent again
        if body["retracts"] != self.state()["last"]:
            raise Refused(409, "that is not the last decision; what the page shows was out of date")
        if body["decision"] in self.decisions.seen:
            raise Refused(409, "this decision was sent before")
        self.decisions.append({**body, "labeler": self.labeler})


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
    static = {
        path: (Path(__file__).with_name(name).read_bytes(), KINDS[Path(name).suffix]) for path, name in STATIC.items()
    }

    class Handler(BaseHTTPRequestHandler):
        timeout, server_version, sys_version = PATIENCE, "ranking", ""

        def do_GET(self) -> None:
            self.answered(self.get)

        def do_POST(self) -> None:
            self.answered(lambda: (page.change(self.path, self.body()), "application/json"))

        def get(self) -> tuple[object, str]:
            if self.path in static:
                return static[self.path]
            if self.path not in ("/state", "/dataset.jsonl"):
                raise Refused(404, f"there is nothing at {self.path[:80]}")
            with page.decisions.held():
                if self.path == "/state":
                    return page.state(), "application/json"
                return lines(page.decisions.dataset()).encode(), "application/jsonl"

        def answered(self, reply: Callable[[], tuple[object, str]]) -> None:
            """Answer with what `reply` gives, or with why not."""
            status = 200
            try:
                self.check()
                content, kind = reply()
            except Refused as error:
                status, content, kind = error.status, {"error": str(error)}, "application/json"
            except OSError as error:
                print(f"ranking: NOT saved: {error}", flush=True)
                status, content, kind = 507, {"error": f"not saved: {error}"}, "application/json"
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            with suppress(OSError):  # the browser has gone; what was decided is saved
                self.send_response(status)
                self.send_header("Content-Type", f"{kind}; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                for name, value in HEADERS.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            if content == ENDED:
                page.ended.set()

        def check(self) -> None:
            """A page of another site cannot ask through the person's browser, under any name of this machine."""
            hosts, origin = self.headers.get_all("Host", []), self.headers.get("Origin")
            if len(hosts) != 1 or not re.fullmatch(r"(localhost|127\.0\.0\.1)(:\d+)?", hosts[0]):
                raise Refused(403, "this page answers at 127.0.0.1 and localhost alone")
            if origin is not None and origin != f"http://{hosts[0]}":
                raise Refused(403, "another site's page may not ask here")

        def body(self) -> dict:
            length = self.headers.get("Content-Length", "")
            if "Transfer-Encoding" in self.headers or not length:
                raise Refused(411, "a body needs its Content-Length")
            if not re.fullmatch("[0-9]{1,9}", length):
                raise Refused(400, "Content-Length needs a whole number")
            if int(length) > LARGEST:
                raise Refused(413, f"a body of {length} bytes; at most {LARGEST} are read")
            if self.headers.get_content_type() != "application/json":
                raise Refused(415, "a body needs Content-Type: application/json")
            try:
                content = self.rfile.read(int(length))
            except TimeoutError:
                raise Refused(408, f"the body did not come within {PATIENCE} s") from None
            except OSError:
                raise Refused(400, "the body was broken off") from None
            try:
                value = json.loads(content)
            except (ValueError, RecursionError):
                raise Refused(400, "the body is no JSON") from None
            if len(content) < int(length) or not isinstance(value, dict):
                raise Refused(400, "the body is no whole JSON object")
            return value

        def finish(self) -> None:
            """A connection that is closed with something unread is reset, and the answer may be lost with it."""
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_WR)
                left = DRAINED
                while left > 0 and (more := self.rfile.read1(LARGEST)):
                    left -= len(more)
            super().finish()

        def log_message(self, *args: object) -> None:
            """Requests are not worth a line."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def lines(rows: Sequence[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


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
        try:
            server = make_server(page, port)
        except (OSError, OverflowError) as error:
            fail(f"port {port}: cannot be listened on ({error}); name another, or 0 for one that is free")
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        print(
            f"ranking: {counts['open']} of {len(page.items)} prompts to order as {labeler}: {url} (Ctrl-C ends it)",
            flush=True,
        )
        if open_browser:
            webbrowser.open(url)
        try:
            while not page.ended.wait(0.1) and time.monotonic() < page.done_at + LINGER:
                pass
        except KeyboardInterrupt:
            print()
        server.shutdown()
        server.server_close()
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
