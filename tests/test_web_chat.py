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

from crawl2chat.answering import Desk, Served
from crawl2chat.protocol import END_OF_TEXT, IM_END
from crawl2chat.serving import ServeConfig, make_server
from crawl2chat.tools import open_tools
from crawl2chat.web.chat import page_files
from crawl2chat.web.ranking import HEADERS
from tiny import tiny_model, tiny_tokenizer

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
        self.key = ""
        self.gone = threading.Event()  # a reader has left before the end
        files, here = page_files(), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path in files:
                    return self.answer(200, *files[self.path])
                if not self.known():
                    return
                if self.path == "/api/info":
                    return self.answer(200, json.dumps(here.info).encode())
                self.answer(404, b"{}")

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not self.known():
                    return
                here.requests.append({"path": self.path, **request})
                try:
                    if self.path == "/api/tokens":
                        return self.answer(200, json.dumps({"tokens": here.tokens(request)}).encode())
                    chunks = here.reply(request)
                except Failed as failed:
                    status, message, code = (*failed.args, None)[:3]
                    error = {"error": {"message": message, "type": "server_error", "code": code}}
                    return self.answer(status, json.dumps(error).encode())
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                try:
                    self.stream(chunks)
                except OSError:
                    here.gone.set()

            def known(self) -> bool:
                if here.key and self.headers["Authorization"] != f"Bearer {here.key}":
                    self.answer(401, json.dumps({"error": {"message": "this server wants its key"}}).encode())
                    return False
                return True

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


def test_browser_stop_keeps_what_came_tells_the_server_and_the_conversation_goes_on(chromium):
    with standing_in() as server, opened(chromium, server.address) as tab:
        server.reply = lambda request: [said(content="One, two"), threading.Event()]
        send(tab, "Count.")
        tab.get_by_text("One, two").wait_for()
        tab.keyboard.press("Escape")
        settled(tab)
        assert server.gone.wait(60), "the server may stop, too"
        assert replies(tab) == ["One, two"] and tab.locator(".meta").inner_text().endswith("stopped")
        server.reply = lambda request: words("three.")
        send(tab, "Go on.")
        settled(tab)
        assert server.chats()[-1]["messages"][1] == {"role": "assistant", "content": "One, two"}
        server.reply = lambda request: [call("python", {"code": "while True: pass"}), threading.Event()]
        send(tab, "Run it.")
        tab.locator(".call", has_text="running").wait_for()
        tab.locator("#stop").click()
        settled(tab)
        assert "not run" in tab.locator(".call").inner_text()
        server.reply = lambda request: words("Well.")
        send(tab, "And now?")
        settled(tab)
        assert [m["role"] for m in server.chats()[-1]["messages"]] == ["user", "assistant"] * 2 + ["user"]


def test_browser_thoughts_are_folded_and_calls_and_results_are_cards(chromium):
    with standing_in() as server, opened(chromium, server.address) as tab:
        go_on, result = threading.Event(), said(role="tool", name="search", content="The Nile is in Africa. [page 7]")
        thought = [said(reasoning_content="Where is"), said(reasoning_content=" the Nile?")]
        more = [call("python", {"code": "1/0"}), said(role="tool", name="python", content="error: division by zero")]
        calls = [call("search", {"query": "Nile"}), go_on, result, *more]
        server.reply = lambda request: [*thought, *calls, *words("In Africa.")]
        send(tab, "Where is the Nile?")
        tab.locator(".call", has_text="running").wait_for()
        assert tab.locator(".thoughts").get_attribute("open") is None
        go_on.set()
        settled(tab)
        assert tab.locator(".thoughts summary").inner_text() == "Thoughts, 4 words"
        assert not tab.locator(".thoughts .text").is_visible()
        tab.locator(".thoughts summary").click()
        assert tab.locator(".thoughts .text").inner_text() == "Where is the Nile?"
        first, second = tab.locator(".call").all()
        assert first.locator(".call-top").inner_text().strip() == "search"
        assert first.locator(".given").inner_text() == "Nile"
        assert first.locator(".result").inner_text() == "The Nile is in Africa. [page 7]"
        assert "failed" in second.locator(".result").get_attribute("class")
        assert tab.locator(".body > .text").all_inner_texts() == ["In Africa."]
        server.reply = lambda request: words("Yes.")
        send(tab, "Sure?")
        settled(tab)
        sent = server.chats()[-1]["messages"][1:-1]
        assert [m["role"] for m in sent] == ["assistant", "tool", "assistant", "tool", "assistant"]
        assert sent[0]["reasoning_content"] == "Where is the Nile?"
        assert json.loads(sent[0]["tool_calls"][0]["function"]["arguments"]) == {"query": "Nile"}
        assert sent[1]["tool_call_id"] == sent[0]["tool_calls"][0]["id"]
        assert sent[3]["tool_call_id"] == sent[2]["tool_calls"][0]["id"]


def test_browser_a_call_that_is_no_call_is_shown_and_never_sent_back(chromium):
    broken = said(tool_calls=[{"index": 0, "function": {"name": "no such tool", "arguments": '{"code": '}}])
    with standing_in() as server, opened(chromium, server.address) as tab:
        result = said(role="tool", name="error", content="error: the call is not JSON")
        server.reply = lambda request: [broken, result, *words("Sorry.")]
        send(tab, "Try.")
        settled(tab)
        assert tab.locator(".call .given").inner_text() == '{"code": '
        send(tab, "Again.")
        settled(tab)
        assert [m["content"] for m in server.chats()[-1]["messages"]] == ["Try.", "Sorry.", "Again."]


def test_browser_an_edited_question_branches_and_both_branches_stay(chromium):
    with standing_in() as server, opened(chromium, server.address) as tab:
        server.reply = lambda request: words(f"to {request['messages'][-1]['content']}")
        for question in ("a", "b", "c"):
            send(tab, question)
            settled(tab)
        tab.locator(".question").nth(1).get_by_label("Edit").click()
        tab.locator(".editor textarea").fill("B")
        tab.keyboard.press("Enter")
        settled(tab)
        assert replies(tab) == ["to a", "to B"]
        assert [m["content"] for m in server.chats()[-1]["messages"]] == ["a", "to a", "B"]
        assert tab.locator(".pager").inner_text() == "2 / 2"
        tab.get_by_label("The version before").click()
        assert replies(tab) == ["to a", "to b", "to c"] and tab.locator(".pager").inner_text() == "1 / 2"
        assert tab.get_by_label("The version before").is_disabled()
        assert tab.locator(".question").nth(2).get_by_label("Edit").is_enabled(), "what was away meanwhile, too"
        tab.locator(".question").nth(0).get_by_label("Edit").click()
        tab.locator(".editor textarea").fill("left")
        tab.keyboard.press("Escape")
        assert tab.locator(".said").all_inner_texts() == ["a", "b", "c"], "Escape leaves the edit"


def test_browser_a_reply_made_again_stands_beside_the_first(chromium):
    with standing_in() as server, opened(chromium, server.address) as tab:
        count = iter(range(9))
        server.reply = lambda request: words(f"reply {next(count)}")
        tab.locator(".pill", has_text="sft").click()
        send(tab, "a")
        settled(tab)
        first = replies(tab)
        tab.get_by_label("Reply again").nth(1).click()
        settled(tab)
        assert replies(tab) == [first[0], "reply 2"], "the other column is as it was"
        assert tab.get_by_text("At temperature 0").is_visible()
        assert server.chats()[-1]["seed"] != server.chats()[0]["seed"]
        assert server.chats()[-1]["messages"] == [{"role": "user", "content": "a"}]
        tab.get_by_label("The version before").click()
        assert replies(tab) == first


def test_browser_checkpoints_answer_side_by_side_each_with_its_own_past(chromium):
    with standing_in() as server, opened(chromium, server.address) as tab:
        for name in ("base", "sft"):
            tab.locator(".pill", has_text=name).click()
        assert tab.locator(".pill[aria-pressed=true]").all_inner_texts() == list(NAMES)
        server.reply = lambda request: words(f"{request['model']} {len(request['messages'])}")
        for question in ("a", "b"):
            send(tab, question)
            settled(tab)
        assert replies(tab) == ["base 1", "sft 1", "grpo 1", "base 3", "sft 3", "grpo 3"]
        for request in server.chats()[3:]:
            assert request["messages"][1]["content"] == f"{request['model']} 1"
        tops = {round(tab.locator(".reply").nth(i).bounding_box()["y"]) for i in (3, 4, 5)}
        assert len(tops) == 1, "columns on a wide page"
        tab.set_viewport_size({"width": 360, "height": 740})
        lefts = {round(tab.locator(".reply").nth(i).bounding_box()["x"]) for i in (3, 4, 5)}
        assert len(lefts) == 1, "one below the other on a phone"
        tab.locator(".pill", has_text="base").click()
        send(tab, "c")
        settled(tab)
        assert replies(tab)[6:] == ["sft 5", "grpo 5"]
        tab.locator(".pill", has_text="base").click()
        tab.get_by_text("Ask base too").click()
        settled(tab)
        assert replies(tab)[6:] == ["sft 5", "grpo 5", "base 5"]


def test_browser_the_tokens_of_any_message_show_their_probability_and_alternatives(chromium):
    with standing_in() as server, opened(chromium, server.address) as tab:
        called = [call("python", {"code": "375 * 708"}), said(role="tool", name="python", content="265500")]
        server.reply = lambda request: [*called, *words("The answer is 265500.")]
        send(tab, "What is 375 times 708?")
        settled(tab)
        tab.locator(".reply").get_by_label("Tokens").click()
        view = tab.locator(".reply .token-view")
        view.locator(".token-card b").wait_for()
        texts = view.locator(".tokens > span").all_text_contents()
        assert texts == ['{"code":', ' "375', " *", ' 708"}', "265500", "The", " answer", " is", " 265500."]
        assert view.locator(".written").count() == 8, "a tool's result bears no loss"
        view.locator(".tokens > span").nth(7).hover()
        assert view.locator(".token-card .of").inner_text().split("\n")[0].startswith("␣is")
        assert view.locator(".token-card b").inner_text() == "33.0 %"
        assert view.locator(".token-card li").count() == 5 and view.locator(".taken").count() == 1
        view.locator(".tokens > span").nth(5).focus()
        assert view.locator(".token-card b").inner_text() == "99.0 %"
        tab.keyboard.press("ArrowRight")
        assert view.locator("[aria-selected=true]").inner_text().strip() == "answer"
        tab.keyboard.press("Home")
        assert view.locator("[tabindex='0']").inner_text() == '{"code":'
        view.get_by_text("The 5 tokens before").click()
        before = view.locator("details .tokens > span")
        before.first.wait_for()
        assert before.all_text_contents() == ["What", " is", " 375", " times", " 708?"]
        before.first.hover()
        assert view.locator(".token-card b").inner_text() == "none"
        view.get_by_label("The checkpoint that reads it").select_option("base")
        view.locator("[aria-busy]").wait_for(state="detached")
        view.locator(".token-card b").wait_for()
        assert [r["model"] for r in server.requests if r["path"] == "/api/tokens"] == ["grpo", "base"]
        assert view.get_by_role("button", name="Probability").get_attribute("aria-pressed") == "false"
        view.get_by_role("button", name="Probability").click()
        grounds = view.locator(".tokens > span").evaluate_all(
            "all => all.map((one) => getComputedStyle(one).backgroundColor)"
        )
        assert grounds[0] != grounds[2] == grounds[3], "rare ones in another colour"
        tab.locator(".question").get_by_label("Tokens").click()
        asked = tab.locator(".question .token-view .tokens > span")
        asked.first.wait_for()
        assert asked.all_text_contents() == ["What", " is", " 375", " times", " 708?"]
        tab.keyboard.press("Escape")
        tab.keyboard.press("Escape")
        assert tab.locator(".token-view").count() == 0


def test_browser_tokens_that_do_not_come_can_be_asked_for_again(chromium):
    with standing_in() as server, opened(chromium, server.address, expected="503") as tab:
        send(tab, "Hi.")
        settled(tab)
        tokens, asked = server.tokens, []

        def busy(request: dict) -> list[dict]:
            asked.append(request)
            if len(asked) == 1:
                raise Failed(503, "the queue is full <b>now</b>")
            return tokens(request)

        server.tokens = busy
        tab.keyboard.press("Tab")
        tab.keyboard.press("t")
        tab.get_by_text("the queue is full <b>now</b>").wait_for()
        tab.locator(".token-view").get_by_text("Try again").click()
        tab.locator(".tokens span").first.wait_for()


HOSTILE = {
    "markup": ATTACK,
    "terminal": "\x1b[31mred\x1b[0m \x07\x00 \x9b2J",
    "turned": "a\u202egnp.exe\u2066b\u2069c",
    "half": "\ud83d alone \ude00",
    "line": "word" * 25_000,
    "url": "javascript:window.hacked=1 data:text/html,<script>window.hacked=1</script>",
}


def test_browser_what_a_model_wrote_is_text_and_never_runs(chromium):
    with standing_in() as server, opened(chromium, server.address) as tab:
        for text in HOSTILE.values():
            spoken = [
                said(reasoning_content=text),
                call("python", {"code": text}),
                said(role="tool", name=text, content=text),
            ]
            spoken += [call(text, {text: [text]}, 1), said(role="tool", name="python", content=text), *words(text)]
            server.reply = lambda request, spoken=spoken: spoken
            send(tab, "Write.")
            settled(tab)
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
            main = tab.locator("#scroll")
            assert main.evaluate("one => one.scrollWidth <= one.clientWidth"), "no line is wider than the page"
        for summary in tab.locator(".thoughts summary").all():
            summary.click()
        shown = tab.locator("#talk").evaluate("one => one.textContent")
        assert ATTACK in shown and "␛[31mred␛[0m ␇␀ ⟨U+009B⟩2J" in shown and HOSTILE["line"] in shown
        assert "a⟨U+202E⟩gnp.exe⟨U+2066⟩b⟨U+2069⟩c" in shown
        assert "\ufffd alone \ufffd" in shown
        tags = tab.locator("#talk").evaluate(
            "one => [...new Set([...one.querySelectorAll('*')].map((e) => e.tagName))]"
        )
        assert not {"SCRIPT", "IMG", "A", "IFRAME", "STYLE"} & set(tags)
        assert tab.evaluate("window.hacked") is None
        sent = server.chats()[-1]["messages"]
        assert all(m["content"] == m["content"].encode("utf-8", "replace").decode() for m in sent), (
            "no half characters"
        )


def test_browser_a_pair_that_is_cut_between_two_chunks_is_one_character(chromium):
    with standing_in() as server, opened(chromium, server.address) as tab:
        go_on = threading.Event()
        server.reply = lambda request: [said(content="\ud83e"), go_on, *words("\udd94 ", "\u00e9")]
        send(tab, "A pelican?")
        tab.get_by_text("\ufffd").wait_for()
        go_on.set()
        settled(tab)
        assert replies(tab) == ["\U0001f994 \u00e9"]


def test_browser_names_errors_and_tokens_of_the_server_are_text_too(chromium):
    with standing_in(ATTACK, "__proto__") as server, opened(chromium, server.address, expected="500") as tab:
        tab.locator(".pill").first.click()
        server.info["tools"] = [ATTACK]

        def failing(request: dict) -> list[dict]:
            if request["model"] == ATTACK:
                raise Failed(500, ATTACK)
            return words(ATTACK)

        server.reply = failing
        send(tab, ATTACK)
        settled(tab)
        assert ATTACK in tab.locator("p.failed:visible").inner_text()
        tab.locator(".question").get_by_label("Tokens").click()
        tab.locator(".tokens span").first.wait_for()
        assert tab.evaluate("window.hacked") is None and tab.locator("main img, main a, main script").count() == 0


FAILURES = {
    "busy": (Failed(503, "The queue is full: 8 replies wait."), "The queue is full: 8 replies wait."),
    "slow down": (Failed(429, "Too many at once."), "Too many at once."),
    "broken off": ([said(content="Half a"), None], "broke off"),
    "no JSON": ([said(content="Half a"), "data: {oops\n\n"], "broke off"),
    "said so": ([said(content="Half a"), {"error": {"message": "out of time"}}, None], "out of time"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_browser_what_fails_is_said_and_can_be_tried_again(chromium, failure):
    what, expected = FAILURES[failure]
    with standing_in() as server, opened(chromium, server.address, expected="status of") as tab:

        def failing(request: dict) -> list:
            if isinstance(what, Failed):
                raise what
            return what

        server.reply = failing
        send(tab, "Hi.")
        settled(tab)
        assert expected in tab.locator("p.failed[role=alert]").inner_text()
        kept = [] if isinstance(what, Failed) else ["Half a"]
        assert [text for text in replies(tab) if text] == kept, "what came stays"
        server.reply = lambda request: words("Here I am.")
        tab.locator("p.failed button").click()
        settled(tab)
        assert replies(tab) == ["Here I am."] and tab.locator("p.failed:visible").count() == 0
        assert tab.locator(".pager").count() == len(kept), "what came is a version back"


def test_browser_a_server_that_is_away_is_said_at_the_start_and_later(chromium):
    with standing_in() as server, opened(chromium, server.address, expected="ERR_") as tab:
        tab.route("**/api/info", lambda route: route.abort())
        tab.reload()
        tab.get_by_text("The server does not answer").wait_for()
        tab.unroute("**/api/info")
        tab.locator("#notice button").click()
        tab.locator(".pill").first.wait_for()
        tab.route("**/v1/**", lambda route: route.abort())
        send(tab, "Hi.")
        settled(tab)
        assert "The server does not answer" in tab.locator("p.failed").inner_text()


def test_browser_a_server_with_a_key_is_given_it_and_the_key_is_kept_nowhere(chromium):
    with standing_in() as server, opened(chromium, server.address, expected="401") as tab:
        server.key = "sesame"
        tab.reload()
        tab.get_by_text("wants its key").wait_for()
        tab.locator("#key input").fill("sesame")
        tab.keyboard.press("Enter")
        tab.locator(".pill").first.wait_for()
        assert not tab.locator("#key").is_visible() and not tab.locator("#notice").is_visible()
        send(tab, "Hi.")
        settled(tab)
        assert replies(tab) == ["grpo says hello."]
        kept = tab.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
        assert "sesame" not in kept


def test_browser_a_full_context_is_said_before_and_when_it_is_full(chromium):
    with standing_in() as server, opened(chromium, server.address, expected="400") as tab:
        server.info["models"][2]["context"] = 20
        tab.reload()
        send(tab, "Hi.")
        settled(tab)
        assert "16 of 20 tokens of context are full" in tab.locator(".meta").inner_text()

        def full(request: dict) -> list[dict]:
            raise Failed(400, "the messages are 21 tokens", "context_length_exceeded")

        server.reply = full
        send(tab, "More.")
        settled(tab)
        assert "Begin a new conversation, or edit" in tab.locator("p.failed:visible").inner_text()


def test_browser_keys_alone_do_everything(chromium):
    with standing_in() as server, opened(chromium, server.address) as tab:
        press = tab.keyboard.press
        focused = "document.activeElement.id"
        assert tab.evaluate(focused) == "draft"
        tab.keyboard.type("one")
        press("Shift+Enter")
        tab.keyboard.type("two / ?")
        tab.evaluate(
            "draft.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true}))"
        )
        assert not server.chats(), "an input method's Enter sends nothing"
        press("Enter")
        settled(tab)
        assert server.chats()[0]["messages"][0]["content"] == "one\ntwo / ?"
        press("Enter")
        press("Space")
        press("Enter")
        assert len(server.chats()) == 1, "an empty message is none"
        tab.locator("#draft").fill("")
        press("ArrowUp")
        assert tab.locator(".editor textarea").input_value() == "one\ntwo / ?"
        press("Escape")
        assert tab.evaluate(focused) == "draft"
        tab.evaluate("document.activeElement.blur()")
        press("r")
        settled(tab)
        tab.locator(".pager", has_text="2 / 2").wait_for()
        tab.evaluate("document.activeElement.blur()")
        press("t")
        tab.locator(".reply .tokens").wait_for()
        press("Escape")
        assert tab.locator(".token-view").count() == 0
        tab.evaluate("document.activeElement.blur()")
        press("1")
        assert tab.locator(".pill[aria-pressed=true]").all_inner_texts() == ["base", "grpo"]
        press("?")
        assert tab.locator("#keys").is_visible()
        rows = tab.locator("#keys dt").all_inner_texts()
        assert {"Enter", "Shift Enter", "Esc", "/", "R", "T", "?"} <= set(rows)
        press("Escape")
        assert not tab.locator("#keys").is_visible()
        tab.locator("#open-keys").click()
        tab.locator("#keys").get_by_label("Close").click()
        assert not tab.locator("#keys").is_visible()
        tab.evaluate("document.activeElement.blur()")
        press("/")
        assert tab.evaluate(focused) == "draft" and tab.locator("#draft").input_value() == ""


def test_browser_the_settings_are_sent_and_the_system_message_stands_first(chromium):
    with standing_in() as server:
        server.info["defaults"] = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 64, "system": "You are Pelican."}
        with opened(chromium, server.address) as tab:
            tab.locator("#open-settings").click()
            assert tab.locator("#system").input_value() == "You are Pelican."
            assert tab.locator("#temperature-said").inner_text() == "0.70"
            send(tab, "a")
            settled(tab)
            sent = server.chats()[0]
            assert (sent["temperature"], sent["top_p"], sent["max_tokens"]) == (0.7, 0.9, 64)
            assert sent["messages"][0] == {"role": "system", "content": "You are Pelican."}
            tab.locator("#system").fill("")
            tab.locator("#temperature").fill("1.2")
            tab.locator("#top_p").fill("0.5")
            tab.locator("#max_tokens").fill("")
            tab.locator("#run_tools").uncheck()
            send(tab, "b")
            settled(tab)
            sent = server.chats()[1]
            assert (sent["temperature"], sent["top_p"]) == (1.2, 0.5)
            assert "max_tokens" not in sent or sent["max_tokens"] == 64
            assert "run_tools" not in sent and sent["messages"][0]["role"] == "user"


def test_browser_the_conversation_is_kept_in_this_browser_until_it_is_cleared(chromium):
    with standing_in() as server, opened(chromium, server.address) as tab:
        server.reply = lambda request: [said(content="One"), threading.Event()]
        send(tab, "a")
        tab.locator(".reply .text").wait_for()
        tab.reload()
        settled(tab)
        assert replies(tab) == ["One"] and tab.locator(".meta").inner_text().endswith("stopped")
        tab.locator("#clear").click()
        assert tab.locator(".round").count() == 0 and tab.evaluate("localStorage.length") == 0
        tab.get_by_text("Undo").click()
        assert replies(tab) == ["One"] and tab.evaluate("localStorage.length") == 1
        tab.locator("#clear").click()
        tab.reload()
        assert tab.locator("#empty").is_visible()
        for damaged in (
            "{",
            "[]",
            '{"rounds": [{"id": 1}]}',
            '{"rounds": [{"id": 1, "parent": 1, "text": "", "replies": []}]}',
        ):
            tab.evaluate("text => localStorage.setItem('crawl2chat.chat', text)", damaged)
            tab.reload()
            tab.get_by_text("could not be read").wait_for()
            assert tab.locator("#empty").is_visible()


def test_browser_a_full_storage_is_said_and_the_conversation_goes_on(chromium):
    with standing_in() as server, opened(chromium, server.address) as tab:
        tab.evaluate(
            "() => { Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }; }"
        )
        send(tab, "a")
        settled(tab)
        assert replies(tab) == ["grpo says hello."]
        assert "too long for the browser to keep" in tab.locator("#notice").inner_text()


def test_browser_replies_are_copied_and_the_conversation_is_exported_as_messages(chromium):
    granted = {"permissions": ["clipboard-read", "clipboard-write"], "accept_downloads": True}
    with standing_in() as server, opened(chromium, server.address, **granted) as tab:
        result = said(role="tool", name="python", content="4")
        server.reply = lambda request: [call("python", {"code": "2+2"}), result, *words("It is ", "4.")]
        send(tab, "2+2?")
        settled(tab)
        tab.locator(".reply").get_by_label("Copy").click()
        tab.locator(".done").wait_for()
        assert tab.evaluate("navigator.clipboard.readText()") == "It is 4."

        def exported() -> object:
            with tab.expect_download() as download:
                tab.locator("#export").click()
            return json.loads(Path(download.value.path()).read_text())

        messages = exported()
        assert [m["role"] for m in messages] == ["user", "assistant", "tool", "assistant"]
        assert messages[1]["tool_calls"][0]["function"] == {"name": "python", "arguments": '{"code": "2+2"}'}
        tab.locator(".pill", has_text="sft").click()
        tab.get_by_text("Ask sft too").click()
        settled(tab)
        assert exported() == {"grpo": messages, "sft": messages}


def test_browser_a_dark_phone_shows_all_of_it_within_360_pixels(tmp_path, chromium):
    phone = {"has_touch": True, "is_mobile": True, "color_scheme": "dark", "reduced_motion": "reduce"}
    phone["viewport"] = {"width": 360, "height": 740}
    with standing_in("pretrain-checkpoint-2400", *NAMES) as server, opened(chromium, server.address, **phone) as tab:
        ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert sum(map(int, re.findall(r"\d+", ground))) < 150

        def fits() -> None:
            assert tab.evaluate("document.documentElement.scrollWidth") <= 360
            assert tab.locator("#scroll").evaluate("one => one.scrollWidth <= one.clientWidth")

        fits()
        tab.locator("#open-settings").tap()
        fits()
        tab.locator("#open-settings").tap()
        for i in range(3):
            tab.locator(".pill").nth(i).tap()
        code = call("python", {"code": "print(" + "'x' * " * 40 + "3)"})
        result = said(role="tool", name="python", content="x" * 500)
        server.reply = lambda request: [said(reasoning_content="hm " * 90), code, result, *words("It is so. " * 9)]
        tab.locator("#draft").fill("Is it so?")
        tab.locator("#send").tap()
        settled(tab)
        fits()
        tab.locator(".reply .open-tokens").last.tap()
        tab.locator(".tokens span").nth(3).tap()
        assert tab.locator(".token-card b").inner_text()
        fits()
        for button in tab.locator(".reply").last.locator(".actions .icon").all():
            assert min(button.bounding_box()["width"], button.bounding_box()["height"]) >= 40, (
                "wide enough for a finger"
            )
        tab.screenshot(path=tmp_path / "chat-phone.png")
        tab.locator("#open-keys").tap()
        fits()


# ---------------------------------------------------------------- with the server itself


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of the server itself, with a base model and a chat model of random weights and the tool python."""
    folder = tmp_path_factory.mktemp("models")
    for name, eos in (("base", END_OF_TEXT), ("chat", IM_END)):
        tokenizer = tiny_tokenizer(eos)
        tokenizer.save_pretrained(folder / name)
        tiny_model(tokenizer).save_pretrained(folder / name)
    checkpoints = [Served(name, str(folder / name)) for name in ("base", "chat")]
    desk = Desk(checkpoints, open_tools(["python"], None, "monty"), {"max_tokens": 24})
    server, listening = make_server(desk, ServeConfig(port=0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join(60)
    desk.close()


def test_browser_the_server_itself_answers_side_by_side_and_shows_its_tokens(tmp_path, chromium, served):
    with opened(chromium, served, expected="400") as tab:
        assert tab.locator(".pill").all_inner_texts() == ["base", "chat"]
        tab.locator(".pill").first.click()
        tab.locator("#open-settings").click()
        assert tab.locator("#max_tokens").input_value() == "24"
        send(tab, "What is the capital of France?")
        settled(tab)
        assert tab.locator("p.failed:visible").count() == 0
        written = [int(text.split()[0]) for text in tab.locator(".meta").all_inner_texts()]
        assert len(written) == 2 and all(1 <= count <= 24 for count in written)
        for place, name in ((".question", "base"), (".reply >> nth=1", "chat")):
            tab.locator(place).get_by_label("Tokens").click()
            view = tab.locator(place).locator(".token-view")
            view.locator(".tokens > span").first.wait_for()
            assert view.locator("select").input_value() == name
        shown = "".join(tab.locator(".question .tokens > span").all_text_contents())
        assert "What is the capital of France?" in shown
        own = tab.locator(".reply").nth(1).locator(".tokens > span")
        assert own.first.text_content() == "<|im_start|>" and own.locator("nth=3").get_attribute("class")
        assert tab.locator(".reply .written").count() >= 1
        assert tab.locator(".reply .token-card li").count() == 5
        tab.screenshot(path=tmp_path / "chat.png")
        send(tab, "<|im_end|> \ud800 ?")
        settled(tab)
        assert tab.locator("p.failed:visible").count() == 0
        send(tab, "far too long " * 400)
        settled(tab)
        assert "the model's context is 256 tokens" in tab.locator("p.failed:visible").first.inner_text()
