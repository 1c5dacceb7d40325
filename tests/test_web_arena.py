"""The page on which a person says which of two replies is better, and the report's page about the arena."""

import http.client
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from crawl2chat.ratings import rate
from crawl2chat.runs import Run
from crawl2chat.web import battles as section
from crawl2chat.web.arena import Page, judge
from crawl2chat.web.deciding import make_server

ATTACK = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


def battles(count: int = 3) -> list[dict]:
    """`good` against `bad`; on odd prompts good is b. Each text tells its author, for the test alone."""
    rows = []
    for n in range(count):
        sides = [("good", f"a good reply {n}"), ("bad", f"a bad reply {n}")][:: -1 if n % 2 else 1]
        row = {"prompt": [{"role": "user", "content": f"Question {n}?"}], "task": "x", "a": sides[0][0]}
        row |= {"b": sides[1][0], "replies": [sides[0][1], sides[1][1]], "winner": "a", "judge": "a machine"}
        rows.append(row)
    return rows


class Client:
    """Requests to the page's server, one connection each."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body=None, **headers) -> tuple[int, dict | str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        if content is not None:
            headers.setdefault("Content-Type", "application/json")
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        text, self.headers = answer.read(), answer.headers
        connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(text) if is_json else text.decode()

    def state(self) -> dict:
        return self.ask("GET", "/state")[1]

    def judge(self, item: dict, verdict: object, **other) -> tuple[int, dict]:
        body = {"item": item["id"], "verdict": verdict, "decision": new(), "seconds": 2.5}
        return self.ask("POST", "/judge", body | other)

    def prefer_good(self, item: dict) -> tuple[int, dict]:
        return self.judge(item, "left" if "good" in item["replies"][0] else "right")


def new() -> str:
    return f"{random.getrandbits(128):032x}"


@contextmanager
def serving(rows: list[dict], path: Path, name: str = "ada"):
    page = Page(rows, path, name)
    server = make_server(page)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    client = Client(server.server_port)
    client.page = page
    try:
        yield client
    finally:
        server.shutdown()
        server.server_close()


def winners(rows: list[dict], path: Path, name: str = "ada") -> list[str | None]:
    """Where all is decided, or nothing will be: `judge` without a page."""
    page = Page(rows, path, name)
    with page.decisions.held():
        return [row["winner"] for row in page.settled()[name]]


# ---------------------------------------------------------------- deciding


def test_a_verdict_is_saved_for_the_checkpoint_whichever_side_it_stood_on(tmp_path):
    rows, path = battles(8), tmp_path / "decisions.jsonl"
    with serving(rows, path) as client:
        state, good_left = client.state(), 0
        while item := state["item"]:
            good_left += "good" in item["replies"][0]
            status, state = client.prefer_good(item)
            assert status == 200
        assert state["judged"] == 8 and 0 < good_left < 8, "sides are swapped at random"
    assert winners(rows, path) == ["a", "b"] * 4


def test_ties_both_bad_skips_and_undo(tmp_path):
    rows, path = battles(3), tmp_path / "decisions.jsonl"
    with serving(rows, path) as client:
        _, state = client.judge(client.state()["item"], "tie")
        _, state = client.judge(state["item"], "left")
        second = state["last"]
        _, state = client.ask("POST", "/undo", {"retracts": second, "decision": new()})
        assert state["item"]["start"] == "left", "as it was judged"
        _, state = client.judge(state["item"], "both bad")
        _, state = client.ask("POST", "/skip", {"item": state["item"]["id"], "decision": new(), "seconds": 1})
        assert (state["item"], state["judged"], state["skipped"]) == (None, 2, 1)
    assert set(winners(rows, path)) == {None, "both bad", "tie"}


def test_nothing_that_is_sent_names_a_checkpoint_a_winner_or_the_other_judge(tmp_path):
    with serving(battles(2), tmp_path / "decisions.jsonl") as client:
        state = client.state()
        assert set(state["item"]) == {"id", "prompt", "replies", "start"} and state["agreement"] is None
        rest = {**state, "item": {**state["item"], "replies": None}}
        assert not re.search("good|bad|machine|winner", json.dumps(rest))


def test_two_texts_are_shown_once_and_one_and_the_same_text_never(tmp_path):
    first = battles(1)[0]
    swapped = {**first, "a": "third", "b": "good", "replies": first["replies"][::-1]}
    same = {**first, "b": "fourth", "replies": [first["replies"][0]] * 2}
    rows, path = [first, swapped, same], tmp_path / "decisions.jsonl"
    with serving(rows, path) as client:
        assert client.state()["total"] == 1
        client.prefer_good(client.state()["item"])
    assert winners(rows, path) == ["a", "b", "tie"]


def test_one_and_the_same_text_counts_once_nothing_is_open(tmp_path):
    """Else the ties between equal texts would outweigh the few that a person judged."""
    same = {**battles(1)[0], "replies": ["x", "x"]}
    rows, path = [*battles(2), same], tmp_path / "decisions.jsonl"
    with serving(rows, path) as client:
        client.prefer_good(client.state()["item"])
        assert winners(rows, path)[2] is None
        client.prefer_good(client.state()["item"])
    assert winners(rows, path) == ["a", "b", "tie"]


def test_people_see_how_often_they_agree_once_all_is_decided(tmp_path):
    rows, path = battles(4), tmp_path / "decisions.jsonl"
    with serving(rows, path, "ada") as ada, serving(rows, path, "bob") as bob:
        for client, verdict in ((ada, None), (bob, "tie")):
            state = client.state()
            while item := state["item"]:
                _, state = client.judge(item, verdict) if verdict else client.prefer_good(item)
    assert state["agreement"] == [
        "bob and ada say the same of 0% of 4 pairs of replies",
        "bob and a machine say the same of 0% of 4 pairs of replies",
    ]
    found = judge(rows, path, "ada")
    assert [row["winner"] for row in found] == ["a", "b", "a", "b"] and {row["judge"] for row in found} == {"ada"}


@pytest.mark.parametrize("verdict", ["first", "", "LEFT", None, 0, True, ["left"], {}, "both bad "])
def test_what_is_no_verdict_gets_400(tmp_path, verdict):
    path = tmp_path / "decisions.jsonl"
    with serving(battles(1), path) as client:
        assert client.judge(client.state()["item"], verdict)[0] == 400
        assert client.ask("POST", "/rank", {})[0] == 404
        assert client.ask("POST", "/judge", b"[" * 3000)[0] == 400
        assert client.ask("GET", "/state", Host="evil.example")[0] == 403
    assert not path.read_bytes()


@pytest.mark.parametrize(
    "row, why",
    [("x", "a str"), ({"prompt": []}, "no list of messages"), ({**battles(1)[0], "replies": ["x"]}, "not two texts"),
     ({**battles(1)[0], "replies": ["x", 3]}, "not two texts"), ({**battles(1)[0], "b": "good"}, "not two names")],
)  # fmt: skip
def test_battles_that_cannot_be_judged_stop_with_one_line_that_names_them(tmp_path, row, why):
    with pytest.raises(SystemExit, match=f"battle 3 of 3 cannot be judged, .*{why}"):
        judge([*battles(2), row], tmp_path / "decisions.jsonl", "ada")


def test_foreign_lines_among_the_decisions_are_named_and_left_out(tmp_path, capsys):
    rows, path = battles(1), tmp_path / "decisions.jsonl"
    with serving(rows, path) as client:
        client.prefer_good(client.state()["item"])
    good = json.loads(path.read_text())
    bad = [{**good, "verdict": "left", "decision": new()}, {**good, "replies": ["one"], "decision": new()}, 3]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*bad, good]))
    assert [row["winner"] for row in judge(rows, path, "ada")] == ["a"]
    assert "3 cut or broken lines left out (line 1, 2, 3)" in capsys.readouterr().out


def start(folder: Path, name: str = "ada") -> tuple[subprocess.Popen, Client]:
    """The command, and a client of the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "crawl2chat.web.arena", str(folder), "--judge", name],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # behind a shell's & it is ignored
    )  # fmt: skip
    for line in process.stdout:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
            return process, Client(int(found[1]))
    raise AssertionError(f"the command ended with {process.wait()}")


def test_the_command_goes_on_after_a_kill_and_writes_the_battles_of_all_judges(tmp_path):
    (tmp_path / "battles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in battles(6)))
    process, client = start(tmp_path)
    try:
        for _ in range(4):
            _, state = client.prefer_good(client.state()["item"])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    process, client = start(tmp_path)
    try:
        assert client.state()["judged"] == 4 and client.state()["item"]["id"] == state["item"]["id"]
        client.judge(client.state()["item"], "tie")
        process.send_signal(signal.SIGINT)
        out = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == 0 and "5 judged, 0 skipped, 1 open" in out and "Traceback" not in out
    assert "95 % interval" in out and "5 battles judged by ada" in out
    rows = [json.loads(line) for line in (tmp_path / "people/battles.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and {row["judge"] for row in rows} == {"ada"} and rate(rows).players[0] == "good"
    missing = [sys.executable, "-m", "crawl2chat.web.arena", str(tmp_path / "none"), "--judge", "ada"]
    done = subprocess.run(missing, capture_output=True, text=True)
    assert done.returncode == 1 and re.fullmatch(r"error: .*battles\.jsonl: cannot be read.*\n", done.stderr)


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium, the system's own."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium is installed: the arena's page was not tried in a browser")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"] if os.getuid() == 0 else [])
        yield browser
        browser.close()


@contextmanager
def opened(chromium, client: Client, **context):
    """A tab with the page; an error in its console fails the test."""
    context = {"viewport": {"width": 980, "height": 620}, **context}
    tab = chromium.new_context(**context).new_page()
    tab.set_default_timeout(120_000)  # for a state that never comes; a machine may be held up for long
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.goto(f"http://127.0.0.1:{client.port}/")
    tab.locator("#work").wait_for()
    yield tab
    tab.context.close()
    assert not errors, errors


def counted(tab, text: str) -> None:
    tab.locator("#counts", has_text=re.compile(f"^{re.escape(text)}$")).wait_for()


def texts(tab) -> list[str]:
    return tab.locator(".side .text").all_inner_texts()


def test_browser_keys_alone_judge_skip_and_go_back(tmp_path, chromium):
    rows, path = battles(5), tmp_path / "decisions.jsonl"
    with serving(rows, path) as client, opened(chromium, client) as tab:
        press = tab.keyboard.press
        press("ArrowLeft" if "good" in texts(tab)[0] else "ArrowRight")
        counted(tab, "1 of 5")
        press("t")
        counted(tab, "2 of 5")
        press("b")
        counted(tab, "3 of 5")
        press("u")
        counted(tab, "2 of 5")
        assert "before" in tab.locator("#both-bad").get_attribute("class")
        press("Control+z")
        counted(tab, "1 of 5")
        assert "before" in tab.locator("#tie").get_attribute("class")
        press("s")
        counted(tab, "2 of 5, 1 skipped")
        for done in (3, 4, 5):
            press("ArrowLeft" if "good" in texts(tab)[0] else "ArrowRight")
            counted(tab, f"{done} of 5, 1 skipped")
        tab.locator("#end").wait_for()
        assert "a machine say the same" in tab.locator("#agreement").inner_text()
        tab.locator("#stop").click()
        tab.get_by_text("This page may be closed").wait_for()
        assert client.page.ended.wait(120)
    found = winners(rows, path)
    assert found.count(None) == 1 and all(
        who in (None, "ab"[row["replies"].index(f"a good reply {n}")])
        for n, (row, who) in enumerate(zip(rows, found, strict=True))
    )


def test_browser_buttons_judge_and_a_double_click_judges_one_battle(tmp_path, chromium):
    rows, path = battles(4), tmp_path / "decisions.jsonl"
    rows[0]["replies"] = [
        "The silver pelican sang and played by the sea,\nit spun in the snow like a bird that is free.",
        "The pelican was old and it was on the ground.",
    ]
    rows[0]["prompt"] = [{"role": "user", "content": "Write two lines about a pelican."}]
    with serving(rows[:1], tmp_path / "shown.jsonl") as client, opened(chromium, client) as tab:
        tab.screenshot(path=tmp_path / "arena.png")
        assert (tmp_path / "arena.png").stat().st_size < 250_000
    with serving(rows, path) as client, opened(chromium, client) as tab:
        tab.locator("#left").dblclick()
        counted(tab, "1 of 4")
        for done, button in ((2, "#right"), (3, "#tie"), (4, "#both-bad")):
            tab.locator(button).click()
            counted(tab, f"{done} of 4")
    verdicts = [json.loads(line)["verdict"] for line in path.read_text().splitlines()]
    assert len(verdicts) == 4 and verdicts[2:] == ["tie", "both bad"]


def test_browser_what_a_model_wrote_is_text_and_never_runs_on_a_dark_phone_too(tmp_path, chromium):
    row = {**battles(1)[0], "prompt": [{"role": ATTACK, "content": [ATTACK]}, {"role": "user", "content": ATTACK}]}
    row["replies"] = [ATTACK, ""]
    phone = {"has_touch": True, "is_mobile": True, "color_scheme": "dark", "viewport": {"width": 360, "height": 740}}
    with serving([row], tmp_path / "a.jsonl") as client, opened(chromium, client, **phone) as tab:
        assert set(texts(tab)) == {ATTACK, "(nothing)"} and ATTACK in tab.locator("#prompt").inner_text()
        assert tab.locator("img, #prompt script, #sides script").count() == 0
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        for name in ("#left", "#right", "#tie", "#both-bad", "#skip", "#undo"):
            assert tab.locator(name).bounding_box()["height"] >= 44, "high enough for a finger"
        tab.locator("#both-bad").tap()
        counted(tab, "1 of 1")
        assert tab.evaluate("window.hacked") is None
        policy = client.ask("GET", "/") and client.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
    for name in ("arena.js", "deciding.js"):
        code = Path(section.__file__).with_name(name).read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|http", code)


# ---------------------------------------------------------------- the report's page


def a_run(folder: Path, rows: list[dict], people: list[dict] = (), stage: str = "arena") -> Run:
    for name, content in (("battles.jsonl", rows), ("people/battles.jsonl", people)):
        path = folder / stage / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return Run(folder, {stage: {**rate(rows).metrics(), "prompts": len(rows), "tie_share": 0.1}})


def test_the_report_shows_ratings_matrix_battles_and_what_people_say(tmp_path):
    rows = battles(6)
    rows[0] |= {"replies": [ATTACK, "plain"], "judge": ATTACK}
    run = a_run(tmp_path, rows, [{**row, "judge": "ada"} for row in rows])
    html = section.arena(run)
    assert html.count("<svg") == 2 and "row beats column" in html and "95&nbsp;% intervals" in html
    for name in ("good", "bad"):
        assert f"<b>{name}</b>" in html
    assert "ada" in html and "100&nbsp;% of 6" in html and "good wins" in html
    assert "<script" not in html and "<img" not in html and "&lt;script&gt;" in html
    assert "<svg" in section.svg(run.metrics["arena"])


def test_the_report_says_nothing_without_an_arena_and_takes_several_and_partial_ones(tmp_path):
    assert section.arena(Run(tmp_path, {"sft": {"seconds": 1}})) == ""
    assert section.arena(Run(tmp_path, {"arena": {"battles": 0}})) == ""
    run = a_run(tmp_path, battles(4), stage="arena-verse")
    assert "Arena: verse" in section.arena(run)
    odd = [3, {"a": "x"}, {**battles(1)[0], "winner": "x"}, {**battles(1)[0], "winner": None, "judge": "eve"}]
    for name in ("battles.jsonl", "people/battles.jsonl"):
        (tmp_path / "arena-verse" / name).write_text("".join(json.dumps(row) + "\n" for row in odd))
    assert "Arena: verse" in section.arena(run)
    bare = Run(tmp_path / "none", {"arena": {"rating/x": 1000.0, "rating/<b>": 900.0}})
    html = section.arena(bare)
    assert "<b>x</b>" in html and "&lt;b&gt;" in html
