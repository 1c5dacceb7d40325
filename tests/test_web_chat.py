"""The chat page in a headless browser: against a small stand-in of the server that says what a test tells it to."""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from crawl2chat.web.chat import page_files
from crawl2chat.web.ranking import HEADERS

WEB = Path(__file__).parents[1] / "src/crawl2chat/web"
ATTACK = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>[go](javascript:window.hacked=1)"
NAMES = ("base", "sft", "grpo")
DEFAULTS = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 192, "system": ""}


class Failed(Exception):
    """What the stand-in answers with its status instead of a stream."""


def said(**delta) -> dict:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def call(name: str, arguments: dict, index: int = 0) -> dict:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return said(tool_calls=[{"index": index, "id": f"{name}_{index}", "type": "function", "function": function}])


def words(*texts: str) -> list[dict]:
    return [said(content=text) for text in texts] + [end()]


def end(reason: str = "stop") -> dict:
    usage = {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16}
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}], "usage": usage}


class StandIn:
    """A server with the API of scripts/chat.py --serve; `reply` gives a request's chunks: dicts, an Event to wait for,
    a string that goes out as it is, or None where the connection breaks off."""

    def __init__(self, names: tuple[str, ...] = NAMES) -> None:
        self.info = {"models": [{"id": name, "base": name == "base", "parameters": 4_262_000} for name in names]}
        self.info |= {"tools": ["search", "python"], "defaults": dict(DEFAULTS)}
        self.requests: list[dict] = []
        self.reply: Callable[[dict], object] = lambda request: words(f"{request['model']} ", "says hello.")
        self.gone = threading.Event()  # a reader has left before the end
        files, here = page_files(), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path in files:
                    return self.answer(200, *files[self.path])
                if self.path == "/api/info":
                    return self.answer(200, json.dumps(here.info).encode())
                self.answer(404, b"{}")

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                here.requests.append({"path": self.path, **request})
                try:
                    if self.path == "/api/tokens":
                        return self.answer(200, json.dumps({"tokens": here.tokens(request)}).encode())
                    chunks = here.reply(request)
                except Failed as failed:
                    status, message = failed.args
                    error = {"error": {"message": message, "type": "server_error", "code": None}}
                    return self.answer(status, json.dumps(error).encode())
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                try:
                    self.stream(chunks)
                except OSError:
                    here.gone.set()

            def stream(self, chunks: object) -> None:
                for chunk in chunks:
                    if chunk is None:
                        return
                    if isinstance(chunk, threading.Event):
                        while not chunk.wait(0.05):
                            self.send(": nothing new\n\n")
                        continue
                    self.send(chunk if isinstance(chunk, str) else f"data: {json.dumps(chunk)}\n\n")
                self.send("data: [DONE]\n\n")

            def send(self, text: str) -> None:
                self.wfile.write(text.encode())
                self.wfile.flush()

            def answer(self, status: int, content: bytes, headers: dict | None = None) -> None:
                self.send_response(status)
                for name, value in (headers or {"Content-Type": "application/json"}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                with suppress(OSError):
                    self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                """Requests are not worth a line."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/"

    def tokens(self, request: dict) -> list[dict]:
        """A token a word; the probability falls from word to word."""
        found = []
        for message in request["messages"]:
            text = message["content"] + "".join(c["function"]["arguments"] for c in message.get("tool_calls", ()))
            for n, word in enumerate(re.findall(r"\s*\S+", text)):
                token = {
                    "id": len(found),
                    "text": word,
                    "role": message["role"],
                    "written": message["role"] == "assistant",
                }
                token["probability"] = None if not found else round(0.99 / (n + 1), 4)
                others = [{"id": 900 + i, "text": f" other{i}", "probability": 0.2 - i / 50} for i in range(4)]
                token["alternatives"] = [{k: token[k] for k in ("id", "text")} | {"probability": 0.5}, *others]
                found.append(token)
        return found

    def chats(self) -> list[dict]:
        return [request for request in self.requests if request["path"] == "/v1/chat/completions"]


@contextmanager
def standing_in(*names: str) -> Iterator[StandIn]:
    stand_in = StandIn(names or NAMES)
    threading.Thread(target=stand_in.server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield stand_in
    finally:
        stand_in.server.shutdown()
        stand_in.server.server_close()


# ---------------------------------------------------------------- without a browser


def test_every_file_of_the_page_goes_out_with_headers_that_allow_its_own_scripts_alone():
    files = page_files()
    imported = set(re.findall(r'from "\./(.+?)"', "".join(path.read_text() for path in WEB.glob("chat*.js"))))
    named = set(re.findall(r'(?:src|href)="([^#"]+\.(?:js|css))"', (WEB / "chat.html").read_text()))
    assert {f"/{name}" for name in imported | named} == set(files) - {"/"}
    for content, headers in files.values():
        assert content and headers["Content-Type"].endswith("; charset=utf-8")
        assert set(HEADERS.items()) < set(headers.items())
    assert "script-src 'self'" in HEADERS["Content-Security-Policy"]


def test_the_page_holds_no_inline_script_style_or_foreign_address():
    page = (WEB / "chat.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", page)
    for name in ("chat.html", "chat.css", *(path.name for path in WEB.glob("chat*.js"))):
        text = (WEB / name).read_text()
        addresses = set(re.findall(r"https?://[^\s\"']+", text)) - {"http://www.w3.org/2000/svg"}
        assert not addresses and "innerHTML" not in text and "insertAdjacentHTML" not in text, name


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_text_colour_stands_out_from_every_ground_it_is_written_on(scheme):
    blocks = re.findall(r":root \{(.*?)\}", (WEB / "chat.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", blocks[scheme]))
    pairs = [("ink", ground) for ground in ("page", "card", "user", "tool")]
    pairs += [("ink", f"{kind}{n}") for kind, count in (("c", 6), ("p", 5)) for n in range(count)]
    pairs += [
        ("quiet", "page"),
        ("quiet", "card"),
        ("quiet", "tool"),
        ("accent", "page"),
        ("accent", "card"),
        ("on", "accent"),
    ]
    pairs += [("warn", "card"), ("warn", "page"), ("warn", "tool")]
    pairs += [(f"hue{n}", ground) for n in range(5) for ground in ("page", "card", "tool")]
    for text, ground in pairs:
        light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{text} on {ground}"


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium, the system's own."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium is installed: the chat page was not tried in a browser")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: no browser was driven"
    )
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"] if os.getuid() == 0 else [])
        yield browser
        browser.close()


@contextmanager
def opened(chromium, address: str, expected: str = "", **context):
    """A tab with the page; an error in its console but `expected`, or a request to elsewhere, fails the test."""
    tab = chromium.new_context(**{"viewport": {"width": 1100, "height": 800}} | context).new_page()
    tab.set_default_timeout(60_000)  # for a state that never comes; a machine may be held up for long
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on(
        "request",
        lambda request: None if request.url.startswith((address, "data:", "blob:")) else errors.append(request.url),
    )
    tab.goto(address)
    tab.locator("#models button, #notice button:visible").first.wait_for()
    yield tab
    tab.context.close()
    assert not [error for error in errors if not expected or expected not in error], errors


def send(tab, text: str) -> None:
    tab.locator("#draft").fill(text)
    tab.keyboard.press("Enter")


def settled(tab) -> None:
    tab.locator("#send").wait_for()


def replies(tab) -> list[str]:
    return [text.strip() for text in tab.locator(".reply .body").all_inner_texts()]


def test_browser_a_reply_streams_in_and_the_conversation_goes_on(chromium):
    with standing_in() as server, opened(chromium, server.address) as tab:
        go_on = threading.Event()
        server.reply = lambda request: [said(role="assistant"), said(content="Hel"), go_on, *words("lo, Ada.")]
        send(tab, "I am Ada.")
        tab.locator(".reply .text", has_text=re.compile("^Hel$")).wait_for()
        assert tab.locator("#stop").is_visible() and tab.locator("#draft").input_value() == ""
        assert tab.locator("#talk").get_attribute("aria-busy") == "true"
        go_on.set()
        settled(tab)
        assert replies(tab) == ["Hello, Ada."]
        assert tab.locator("#spoken").inner_text() == "grpo says: Hello, Ada."
        assert re.match(r"7 tokens · \d+\.\d s", tab.locator(".meta").inner_text())
        send(tab, "Who am I?")
        settled(tab)
        sent = server.chats()[1]
        assert sent["messages"] == [
            {"role": "user", "content": "I am Ada."},
            {"role": "assistant", "content": "Hello, Ada."},
            {"role": "user", "content": "Who am I?"},
        ]
        assert (sent["model"], sent["stream"], sent["run_tools"]) == ("grpo", True, True)
        assert {key: sent[key] for key in ("temperature", "top_p", "max_tokens")} == {
            key: DEFAULTS[key] for key in ("temperature", "top_p", "max_tokens")
        }
