"""Asking an endpoint: nothing is lost, paid twice, or spent beyond the cap, and the key is nowhere to be read."""

import email.utils
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crawl2chat import endpoint as module
from crawl2chat.endpoint import Endpoint, ask
from crawl2chat.recipe import load_recipe
from crawl2chat.recipe_tree import RecipeError
from endpoint_server import KEY, Played, completion, serving

PRICED = {"dollars_per_million_in": 1000.0, "dollars_per_million_out": 1000.0}


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)


def prompts(*texts: str) -> list[list[dict]]:
    return [[{"role": "user", "content": text}] for text in texts]


def echo(number: int, request: dict) -> str:
    return "echo " + request["messages"][-1]["content"]


def ended(answers) -> str:
    """The one line that a run ends with."""
    with pytest.raises(SystemExit) as stop:
        list(answers)
    line = str(stop.value)
    assert line.startswith("error: ") and "\n" not in line
    return line


def test_answers_come_in_the_prompts_order_and_each_is_kept_with_its_prompt(tmp_path):
    with serving(lambda n, request: Played(body=completion(echo(n, request)), seconds=0.05 * (n % 3))) as server:
        answers = list(ask(Endpoint(server.url, "m", at_once=4), prompts(*"abcdefgh"), tmp_path / "cache.jsonl"))
    assert [answer.text for answer in answers] == [f"echo {letter}" for letter in "abcdefgh"]
    rows = [json.loads(line) for line in (tmp_path / "cache.jsonl").read_text().splitlines()]
    assert {row["messages"][0]["content"]: row["text"] for row in rows} == {x: f"echo {x}" for x in "abcdefgh"}
    assert server.requests[0]["model"] == "m" and server.requests[0]["max_tokens"] == 1024


def test_no_more_requests_are_in_flight_than_the_recipe_says(tmp_path):
    with serving(lambda n, request: Played(body=completion("x"), seconds=0.02)) as server:
        list(ask(Endpoint(server.url, "m", at_once=3), prompts(*map(str, range(20))), tmp_path / "c"))
    assert server.most_in_flight == 3


def test_a_rerun_asks_nothing_again_and_another_parameter_asks_anew(tmp_path):
    with serving(echo) as server:
        for expected, knobs in ((3, {}), (3, {}), (6, {"temperature": 0.0}), (9, {"max_tokens": 7})):
            answers = list(ask(Endpoint(server.url, "m", **knobs), prompts("a", "b", "a"), tmp_path / "c"))
            assert [answer.text for answer in answers] == ["echo a", "echo b", "echo a"]
            assert len(server.requests) == expected


@pytest.mark.parametrize(
    "bad",
    [
        Played(429, {"error": "slow down"}),
        Played(500, {"error": "oops"}),
        Played(503),
        Played(200, b"<html>busy</html>"),
        Played(200, {"choices": []}),
        Played(200, completion(None)),
        Played(200, [1, 2]),
        Played(200, b"\xff\xfe"),
        Played(200, completion("half an answer"), send=40),
        Played(200, completion("dropped"), send=0),
    ],
    ids=lambda played: f"{played.status}-{played.body[:12]!r}-{played.send}",
)
def test_a_failure_that_may_pass_is_tried_again(tmp_path, bad):
    with serving(lambda n, request: bad if n < 3 else "good") as server:
        (answer,) = ask(Endpoint(server.url, "m"), prompts("a"), tmp_path / "c")
    assert answer.text == "good" and len(server.requests) == 4


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for(tmp_path, form):
    asked = []

    def play(number, request):
        asked.append(time.time())
        after = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
        return Played(429, headers={"Retry-After": after}) if number == 0 else "good"

    with serving(play) as server:
        (answer,) = ask(Endpoint(server.url, "m"), prompts("a"), tmp_path / "c")
    assert answer.text == "good" and asked[1] - asked[0] >= 0.9


def test_a_server_that_asks_for_an_hour_ends_the_run_with_one_line(tmp_path):
    with serving(lambda n, request: Played(429, headers={"Retry-After": "3600"})) as server:
        assert "3600 s" in ended(ask(Endpoint(server.url, "m"), prompts("a"), tmp_path / "c"))


@pytest.mark.parametrize("status", [401, 402, 403, 404, 302, 308])
def test_what_no_retry_mends_fails_at_once(tmp_path, status):
    with serving(lambda n, request: Played(status, headers={"Location": "http://127.0.0.1:9/"})) as server:
        line = ended(ask(Endpoint(server.url, "m", at_once=1), prompts("a", "b"), tmp_path / "c"))
        assert f"HTTP {status}" in line and len(server.requests) == 1


def test_a_refused_prompt_is_counted_and_the_others_are_answered(tmp_path, capsys):
    with serving(lambda n, r: Played(400, {"error": "too long"}) if r["messages"][0]["content"] == "b" else "ok") as s:
        answers = list(ask(Endpoint(s.url, "m"), prompts("a", "b", "c"), tmp_path / "c"))
    assert [answer.text for answer in answers] == ["ok", None, "ok"] and "too long" in answers[1].finish
    assert len(s.requests) == 3 and "1 refused" in capsys.readouterr().out


def test_a_storm_ends_the_run_with_one_line_and_the_work_is_kept(tmp_path):
    cache = tmp_path / "c"
    with serving(lambda n, request: echo(n, request) if n < 5 else Played(500)) as server:
        endpoint = Endpoint(server.url, "m", at_once=1, retries=2)
        line = ended(ask(endpoint, prompts(*map(str, range(30))), cache))
        assert "HTTP 500" in line and "5 answers are kept" in line and len(server.requests) == 5 + 3 * 3
        server.play = echo
        assert len(list(ask(endpoint, prompts(*map(str, range(30))), cache))) == 30
        assert len(server.requests) == 14 + 25


def test_an_endpoint_that_is_not_there_is_one_line(tmp_path):
    endpoint = Endpoint("http://127.0.0.1:9/v1", "m", retries=1)
    assert "refused" in ended(ask(endpoint, prompts(*"abcd"), tmp_path / "c"))


def test_a_slow_answer_is_given_up_and_asked_again(tmp_path):
    with serving(lambda n, request: Played(body=completion("late"), seconds=2) if n == 0 else "in time") as server:
        (answer,) = ask(Endpoint(server.url, "m", timeout=0.3), prompts("a"), tmp_path / "c")
    assert answer.text == "in time"


def test_the_cap_stops_before_it_is_exceeded_and_a_higher_one_goes_on(tmp_path):
    # $1000 a million tokens: an answer costs 15 tokens, $0.015; the most it may cost is (17 + 20) tokens, $0.037
    knobs = {**PRICED, "max_tokens": 20, "at_once": 4}
    with serving(echo) as server:
        capped = Endpoint(server.url, "m", max_dollars=0.1, **knobs)
        line = ended(ask(capped, prompts(*"abcdefghij"), tmp_path / "c"))
        rows = [json.loads(row) for row in (tmp_path / "c").read_text().splitlines()]
        assert "raise max_dollars" in line and len(rows) == 5 == len(server.requests)
        assert sum(row["dollars"] for row in rows) <= 0.1
        ended(ask(capped, prompts(*"abcdefghij"), tmp_path / "c"))
        assert len(server.requests) == 5, "what was spent before counts"
        richer = Endpoint(server.url, "m", max_dollars=1.0, **knobs)
        answers = list(ask(richer, prompts(*"abcdefghij"), tmp_path / "c"))
    assert len(answers) == 10 and len(server.requests) == 10


def test_a_broken_reply_may_have_been_billed_and_counts_as_its_most(tmp_path):
    knobs = {**PRICED, "max_tokens": 20, "max_dollars": 0.1, "at_once": 1}
    with serving(lambda n, request: Played(200, b"<html>")) as server:
        assert "raise max_dollars" in ended(ask(Endpoint(server.url, "m", **knobs), prompts("a"), tmp_path / "c"))
        assert len(server.requests) == 2


def test_the_key_is_sent_and_stands_in_no_file_and_no_message(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("LABEL_KEY", KEY)

    def play(number, request):  # a server that repeats the key wherever it can
        if number == 0:
            return Played(500, {"error": f"Bearer {KEY} had a bad time"})
        if request["messages"][0]["content"] == "b":
            return Played(400, {"error": f"key {KEY} is not for this"})
        return f"your key is {KEY}"

    with serving(play) as server:
        endpoint = Endpoint(server.url, "m", api_key_variable="LABEL_KEY", at_once=1)
        answers = list(ask(endpoint, prompts("a", "b"), tmp_path / "c"))
        assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)
        server.play = lambda n, request: Played(401, {"error": f"Incorrect key {KEY}"})
        line = ended(ask(endpoint, prompts("new"), tmp_path / "c"))
    seen = capfd.readouterr()
    assert KEY not in repr(endpoint) + repr(answers) + line + seen.out + seen.err
    assert all(KEY not in path.read_text() for path in tmp_path.iterdir())


def test_a_missing_or_broken_key_is_one_line_that_names_the_variable_alone(tmp_path, monkeypatch):
    endpoint = Endpoint("http://127.0.0.1:9/v1", "m", api_key_variable="LABEL_KEY")
    monkeypatch.delenv("LABEL_KEY", raising=False)
    assert "LABEL_KEY is not set" in ended(ask(endpoint, prompts("a"), tmp_path / "c"))
    monkeypatch.setenv("LABEL_KEY", f"{KEY}\nX-Injected: 1")
    line = ended(ask(endpoint, prompts("a"), tmp_path / "c"))
    assert "LABEL_KEY" in line and KEY not in line


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_key_variable": KEY},
        {"base_url": f"https://user:{KEY}@host/v1"},
        {"base_url": f"https://host/v1?key={KEY}"},
        {"base_url": "localhost:8000/v1"},
        {"max_dollars": 1.0},
        {"dollars_per_million_out": 1.0},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_recipe_that_holds_a_key_or_half_a_cap_is_refused_without_repeating_it(wrong):
    flags = [f"--{name}={value}" for name, value in {"base_url": "http://host/v1", "model": "m", **wrong}.items()]
    with pytest.raises(RecipeError) as stop:
        load_recipe(Endpoint, args=flags)
    assert KEY not in str(stop.value) and "Endpoint" in str(stop.value)


def test_a_killed_run_goes_on_from_what_it_was_told(tmp_path, capsys):
    cache = tmp_path / "c"
    code = (
        "import sys; from pathlib import Path; from crawl2chat.endpoint import Endpoint, ask\n"
        "prompts = [[{'role': 'user', 'content': str(i)}] for i in range(40)]\n"
        "list(ask(Endpoint(sys.argv[1], 'm', at_once=2), prompts, Path(sys.argv[2])))\n"
    )
    with serving(lambda n, request: Played(body=completion(echo(n, request)), seconds=0.02)) as server:
        process = subprocess.Popen([sys.executable, "-c", code, server.url, str(cache)], env=os.environ.copy())
        while not (cache.exists() and cache.read_bytes().count(b"\n") >= 5):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with open(cache, "ab") as file:
            file.write(b'{"key": "half a li')  # a power cut in mid-write
        kept, asked = cache.read_bytes().count(b"\n"), len(server.requests)
        answers = list(ask(Endpoint(server.url, "m", at_once=2), prompts(*map(str, range(40))), cache))
    assert [answer.text for answer in answers] == [f"echo {i}" for i in range(40)]
    assert sum(not answer.cached for answer in answers) == 40 - kept <= 35
    # the two in flight when it was killed may have reached the server after they were counted
    assert len(server.requests) - asked <= 40 - kept + 2
    assert "1 lines" in capsys.readouterr().out
    assert len(list(ask(Endpoint("http://127.0.0.1:9/v1", "m"), prompts(*map(str, range(40))), Path(cache)))) == 40
