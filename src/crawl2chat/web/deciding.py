"""A page on which one person decides item after item, and the server of this machine alone that answers it.

Every decision is on the disk before the page goes on, may be taken back, and is known by its id, so that what is sent
twice is saved once. What is decided, and how it is shown, is the page's own: web/ranking.py orders replies,
web/arena.py says which of two is better.
"""

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
from typing import Any

from crawl2chat.stage import fail
from crawl2chat.web.decisions import Decisions

LARGEST = 64 * 1024  # bytes of a request's body that is read; an order takes about 150
DRAINED = 16 * 1024 * 1024  # bytes that are let go by, so that a browser gets to its answer
PATIENCE = 10  # seconds that a connection may stay silent
ENDED = {"ended": True}
LINGER = 30  # seconds after the last decision in which it can still be taken back
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
    """What the page of one labeler shows, and what a request changes: no HTTP in here.

    A page of its own says what is decided: `name` and `todo` for messages, `field` of a decision's row, `path` that it
    is posted to, `done` as the state counts it, `static` files, `valid` and `read`; perhaps `start` and `outcome`.
    """

    name: str
    field: str
    path: str
    done: str
    todo: str  # what the items are and what is done with them, for the line that gives the address
    static: dict[str, str]

    def __init__(self, items: dict[str, dict], path: str | Path, labeler: str, seed: int = 0) -> None:
        """`items` are {"prompt", "replies", "split"?} by their key_of, `path` is the file of decisions; one clear
        line for a labeler without a plain name. Raises OSError where the file cannot be read and written."""
        if not isinstance(labeler, str) or not re.fullmatch(r"[\w.@+-]+(?: [\w.@+-]+)*", labeler) or len(labeler) > 60:
            fail(f"labeler {labeler!r}: needs a name of 1 to 60 letters, digits, single spaces or . _ @ + -")
        self.items = {key: {"split": "train", **row} for key, row in items.items()}
        self.labeler, self.seed, self.decisions = labeler, seed, Decisions(path, self.field, self.valid)
        self.ended, self.done_at = threading.Event(), math.inf
        with self.decisions.held():
            pass  # what stands in the file is read

    @staticmethod
    def valid(value: object, count: int) -> bool:
        """Whether a row's value says something of so many replies."""
        raise NotImplementedError

    def read(self, value: object, shown: list[int]) -> Any:
        """What a posted value says of the replies by their own numbers; `shown` are those from first to last. Raises
        Refused for a value that is none."""
        raise NotImplementedError

    def start(self, before: Any, shown: list[int]) -> Any:
        """What the item begins with; `before` was decided and taken back, None otherwise."""
        return None

    def outcome(self) -> list[str]:
        """Lines to read once nothing is open."""
        return []

    def shown(self, key: str) -> list[int]:
        """The replies' numbers from first to last, as this labeler sees them."""
        numbers = list(range(len(self.items[key]["replies"])))
        random.Random(f"{self.seed} {self.labeler} {key}").shuffle(numbers)
        return numbers

    def counts(self) -> Counter:
        """How many items are `done`, "skipped" and "open"."""
        mine = self.decisions.of(self.labeler)
        kinds = Counter("skipped" if mine[key][self.field] is None else self.done for key in self.items if key in mine)
        return kinds + Counter(open=len(self.items) - kinds.total())

    def state(self) -> dict:
        """All that the page shows: {"labeler", "total", `done`, "skipped", "last": decision that undo takes back,
        "item": {"id", "prompt", "replies", "start"}, "agreement": lines, once nothing is open}."""
        mine, counts = self.decisions.of(self.labeler), self.counts()
        last = next((row["decision"] for key, row in reversed(mine.items()) if key in self.items), None)
        taken_back = [key for name, key in reversed(self.decisions.retracted) if name == self.labeler]
        key = next((key for key in [*taken_back, *self.items] if key in self.items and key not in mine), None)
        item = None
        if key is not None:
            shown, row = self.shown(key), self.items[key]
            start = self.start(self.decisions.retracted.get((self.labeler, key)), shown)
            replies = [row["replies"][number] for number in shown]
            item = {"id": key, "prompt": row["prompt"], "replies": replies, "start": start}
        return {
            "labeler": self.labeler,
            "total": len(self.items),
            "last": last,
            "item": item,
            "agreement": None if item else self.outcome(),
        } | {name: counts[name] for name in (self.done, "skipped")}

    def change(self, path: str, body: dict) -> dict:
        """Do what was asked for and return the state. Raises Refused, and OSError where it could not be saved."""
        wanted = {
            self.path: {"item", "decision", self.field, "seconds"},
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
        """Append a decision, or a skip where the body has none. The same one sent again changes nothing."""
        key, seconds = body["item"], body["seconds"]
        if not isinstance(key, str) or key not in self.items:
            raise Refused(404, "there is no such prompt")
        if type(seconds) not in (int, float) or not 0 <= seconds <= 1e7:
            raise Refused(400, "seconds needs a number from 0 on")
        item, shown = self.items[key], self.shown(key)
        value = self.read(body[self.field], shown) if self.field in body else None
        standing = self.decisions.of(self.labeler).get(key)
        if standing and standing["decision"] == body["decision"] and standing[self.field] == value:
            return
        if body["decision"] in self.decisions.seen:
            raise Refused(409, "this decision was sent before; what the page shows was out of date")
        if standing:
            raise Refused(409, "this prompt was decided already, in another tab or by a second press")
        row = {name: item[name] for name in ("prompt", "replies")} | {self.field: value, "labeler": self.labeler}
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


def make_server(page: Page, port: int = 0, patience: float = PATIENCE) -> ThreadingHTTPServer:
    """The page's server on 127.0.0.1, not yet serving. Raises OSError for a port that is taken."""
    here = Path(__file__)
    static = {
        path: (here.with_name(name).read_bytes(), KINDS[here.with_name(name).suffix])
        for path, name in page.static.items()
    }

    class Handler(BaseHTTPRequestHandler):
        timeout, server_version, sys_version = patience, page.name, ""

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
                print(f"{page.name}: NOT saved: {error}", flush=True)
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
                raise Refused(408, f"the body did not come within {patience} s") from None
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


def serve(page: Page, port: int = 0, open_browser: bool = False, linger: float = LINGER) -> None:
    """Let the person decide until nothing is open, with `linger` seconds to take the last one back, or until the
    person ends it (the page's button, or Ctrl-C). One clear line for a port that is taken."""
    try:
        server = make_server(page, port)
    except (OSError, OverflowError) as error:
        fail(f"port {port}: cannot be listened on ({error}); name another, or 0 for one that is free")
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    left = f"{page.counts()['open']} of {len(page.items)} {page.todo} as {page.labeler}"
    print(f"{page.name}: {left}: {url} (Ctrl-C ends it)", flush=True)
    if open_browser:
        webbrowser.open(url)
    try:
        while not page.ended.wait(0.1) and time.monotonic() < page.done_at + linger:
            pass
    except KeyboardInterrupt:
        print()
    server.shutdown()
    server.server_close()
