"""The page on which a person orders replies: by plain HTTP, and in a headless browser where one is installed."""

import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from crawl2chat.web import decisions as saved
from crawl2chat.web import ranking
from crawl2chat.web.decisions import Decisions, agreement, key_of, tau
from crawl2chat.web.ranking import Page, make_server, rank

ATTACK = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


def prompts(count: int = 3, replies: int = 5) -> list[dict]:
    """Prompts whose replies tell their number."""
    return [
        {
            "prompt": [{"role": "user", "content": f"Write two lines about animal {n}."}],
            "replies": [f"animal {n}\nreply number {i}" for i in range(replies)],
            "split": "test" if n % 3 == 2 else "train",
        }
        for n in range(count)
    ]


class Client:
    """Requests to the page's server, one connection each."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body=None, **headers) -> tuple[int, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
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

    def order(self, item: dict, best_first=None, **other) -> tuple[int, dict]:
        """Submit an order by replies' texts; without one, the texts sorted, which is by their number."""
        wanted = sorted(item["replies"]) if best_first is None else best_first
        order = [item["replies"].index(text) for text in wanted]
        return self.ask(
            "POST", "/rank", {"item": item["id"], "order": order, "decision": new(), "seconds": 2.5} | other
        )

    def skip(self, item: dict) -> tuple[int, dict]:
        return self.ask("POST", "/skip", {"item": item["id"], "decision": new(), "seconds": 1})

    def undo(self, last: str) -> tuple[int, dict]:
        return self.ask("POST", "/undo", {"retracts": last, "decision": new()})


def new() -> str:
    return f"{random.getrandbits(128):032x}"


@contextmanager
def serving(rows: list[dict], path: Path, labeler: str = "ada", seed: int = 0):
    page = Page(rows, path, labeler, seed)
    server = make_server(page)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    client = Client(server.server_port)
    client.page = page
    try:
        yield client
    finally:
        server.shutdown()
        server.server_close()


def file_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def dataset(path: Path) -> list[dict]:
    held = Decisions(path)
    with held.held():
        return held.dataset()


# ---------------------------------------------------------------- deciding


def test_orders_are_saved_by_the_replies_own_numbers_best_first(tmp_path):
    rows = prompts()
    with serving(rows, tmp_path / "rankings.jsonl") as client:
        for n in range(3):
            item = client.state()["item"]
            best_first = [rows[n]["replies"][i] for i in (3, 1, 4, 0, 2)]
            status, state = client.order(item, best_first)
            assert (status, state["ordered"], state["total"]) == (200, n + 1, 3)
            # on the disk before the answer
            assert len(file_rows(tmp_path / "rankings.jsonl")) == n + 1
        assert state["item"] is None
        assert client.ask("GET", "/dataset.jsonl")[1].count("\n") == 3
    found = dataset(tmp_path / "rankings.jsonl")
    assert [row["order"] for row in found] == [[3, 1, 4, 0, 2]] * 3
    assert [set(row) for row in found] == [{"prompt", "replies", "order", "labeler", "split"}] * 3
    assert [row["split"] for row in found] == ["train", "train", "test"]
    assert [row["prompt"] for row in found] == [row["prompt"] for row in rows]


def test_the_order_is_blind_shuffled_by_seed_prompt_and_labeler(tmp_path):
    rows = prompts(40)

    def seen(labeler: str, seed: int) -> list[list[int]]:
        page = Page(rows, tmp_path / f"{labeler}.jsonl", labeler, seed)
        return [page.shown(key) for key in page.items]

    ada = seen("ada", 0)
    assert ada == seen("ada", 0)
    assert ada != seen("bob", 0) and ada != seen("ada", 1)
    assert len(set(map(tuple, ada))) > 25, "prompts differ in their order"
    first = [shown[0] for shown in ada]
    assert all(first.count(number) >= 2 for number in range(5)), "no reply is always on top"


def test_nothing_that_is_sent_tells_the_models_order_or_another_labelers(tmp_path):
    rows = [{**row, "order": [4, 2, 0, 1, 3], "labeler": "simulated"} for row in prompts()]
    with serving(rows, tmp_path / "a.jsonl") as client:
        state = client.state()
        assert set(state["item"]) == {"id", "prompt", "replies", "start"}
        assert state["agreement"] is None and state["item"]["start"] == [0, 1, 2, 3, 4]
        assert "simulated" not in json.dumps(state)


def test_a_skipped_prompt_is_done_and_in_no_dataset(tmp_path):
    with serving(prompts(2), tmp_path / "a.jsonl") as client:
        status, state = client.skip(client.state()["item"])
        assert (status, state["skipped"], state["ordered"]) == (200, 1, 0)
        status, state = client.order(state["item"])
        assert state["item"] is None and (state["ordered"], state["skipped"]) == (1, 1)
    assert len(dataset(tmp_path / "a.jsonl")) == 1


def test_undo_goes_back_to_the_last_submitted_as_it_was_ordered_by_a_row_that_retracts(tmp_path):
    path = tmp_path / "a.jsonl"
    with serving(prompts(3), path) as client:
        first, second = client.state()["item"], None
        _, state = client.order(first)
        second = state["item"]
        wanted = sorted(second["replies"], reverse=True)
        _, state = client.order(second, wanted)
        status, state = client.undo(state["last"])
        assert status == 200 and state["item"]["id"] == second["id"]
        assert [state["item"]["replies"][place] for place in state["item"]["start"]] == wanted
        status, state = client.undo(state["last"])
        assert state["item"]["id"] == first["id"] and state["last"] is None
        assert len(file_rows(path)) == 4 and not dataset(path), "nothing was taken out of the file"
        assert client.undo(new())[0] == 409
        client.order(first, sorted(first["replies"], reverse=True))
    assert [row["order"] for row in dataset(path)] == [[4, 3, 2, 1, 0]]


# ---------------------------------------------------------------- crashes


def test_a_restart_goes_on_after_the_last_saved_decision(tmp_path):
    path, rows = tmp_path / "a.jsonl", prompts(4)
    with serving(rows, path) as client:
        _, state = client.order(client.state()["item"])
    with serving(rows, path) as client:
        again = client.state()
        assert again["item"]["id"] == state["item"]["id"] and again["ordered"] == 1
        assert client.undo(again["last"])[1]["ordered"] == 0, "undo reaches back before the restart"


@pytest.mark.parametrize("kept", [1, 40, 200, -1, -2])
def test_a_cut_last_line_is_counted_left_out_and_never_written_on(tmp_path, kept):
    path, rows = tmp_path / "a.jsonl", prompts(3)
    with serving(rows, path) as client:
        _, state = client.order(client.state()["item"])
        _, state = client.order(state["item"])
    whole, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(whole + last[:kept])
    with serving(rows, path) as client:
        complete = kept == -1  # the end of the line alone is missing
        assert client.page.decisions.unreadable == ([] if complete else [2])
        state = client.state()
        assert state["ordered"] == 1 + complete
        while state["item"]:
            _, state = client.order(state["item"])
    assert len(dataset(path)) == 3
    again = Decisions(path)
    with again.held():
        assert again.unreadable == ([] if complete else [2])


def test_broken_lines_in_the_middle_are_named_by_number_and_left_out(tmp_path, capsys):
    path, rows = tmp_path / "a.jsonl", prompts(2)
    with serving(rows, path) as client:
        _, state = client.order(client.state()["item"])
        client.order(state["item"])
    good = path.read_bytes().splitlines(keepends=True)
    other = {**json.loads(good[0]), "order": [0, 1, 2, 3, 3], "decision": new()}
    bad = [b"\xff\xfe\x00\n", b"[" * 5000 + b"\n", b'{"decision": 3}\n', b"null\n", json.dumps(other).encode() + b"\n"]
    path.write_bytes(good[0] + b"".join(bad) + good[1])
    found = rank(rows, path, "ada")  # all is done: nothing is served
    assert [row["order"] for row in found] == [[0, 1, 2, 3, 4]] * 2
    assert "5 cut or broken lines left out (line 2, 3, 4, 5, 6)" in capsys.readouterr().out


def test_a_decision_that_cannot_be_saved_is_not_half_saved_and_is_said(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    with serving(prompts(2), path) as client:
        item = client.state()["item"]
        client.order(item)
        before = path.read_bytes()

        def full(fd):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(saved.os, "fsync", full)
            status, answer = client.order(client.state()["item"])
        assert status == 507 and "No space left" in answer["error"]
        assert path.read_bytes() == before and client.state()["ordered"] == 1
        assert client.order(client.state()["item"])[0] == 200


def test_killed_at_any_moment_nothing_that_was_acknowledged_is_lost(tmp_path):
    folder, rows = tmp_path / "run", prompts(60)
    folder.mkdir()
    (folder / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    acknowledged = 0
    for kill_after in (0, 3, 11):
        process, client = start(folder)
        try:
            state = client.state()
            assert state["ordered"] >= acknowledged
            acknowledged = state["ordered"]
            for _ in range(kill_after):
                acknowledged = client.order(client.state()["item"])[1]["ordered"]
            # one more is on its way when the process dies
            threading.Thread(target=ignoring, args=(client, client.state()["item"]), daemon=True).start()
            process.kill()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    process, client = start(folder)
    try:
        assert client.state()["ordered"] >= acknowledged >= 14
        acknowledged = client.state()["ordered"]
        assert client.ask("POST", "/end", {}) == (200, {"ended": True})
        out = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == 0 and f"{acknowledged} ordered" in out
    assert len(file_rows(folder / "people/dataset.jsonl")) == acknowledged


def ignoring(client: Client, item: dict) -> None:
    with suppress(OSError, http.client.HTTPException):
        client.order(item)


def start(folder: Path, labeler: str = "ada") -> tuple[subprocess.Popen, Client]:
    """The command, and a client of the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "crawl2chat.web.ranking", str(folder), "--labeler", labeler],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # behind a shell's & it is ignored
    )
    for line in process.stdout:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
            return process, Client(int(found[1]))
    raise AssertionError(f"the command ended with {process.wait()}")


# ---------------------------------------------------------------- at the same time


def test_two_posts_of_one_prompt_at_once_make_one_decision(tmp_path):
    path = tmp_path / "a.jsonl"
    with serving(prompts(6), path) as client:
        for _ in range(6):
            item = client.state()["item"]
            with ThreadPoolExecutor(8) as pool:
                statuses = list(pool.map(lambda _: client.order(item)[0], range(8)))  # noqa: B023
            assert sorted(statuses) == [200] + [409] * 7
    assert len(file_rows(path)) == 6


def test_the_same_decision_sent_again_is_saved_once_and_acknowledged_each_time(tmp_path):
    path, decision = tmp_path / "a.jsonl", new()
    with serving(prompts(2), path) as client:
        item = client.state()["item"]
        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(lambda _: client.order(item, decision=decision)[0], range(8)))
        assert statuses == [200] * 8 and len(file_rows(path)) == 1
        # under the same id another order is another decision: refused, not swallowed
        assert client.order(item, sorted(item["replies"], reverse=True), decision=decision)[0] == 409
        last = client.state()["last"]
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: client.undo(last)[0], range(8))) == {200}
        assert len(file_rows(path)) == 2, "one undo, not eight"
        # late: the order comes again after it was taken back
        assert client.order(item, decision=decision)[0] == 409 and client.state()["ordered"] == 0


def test_two_servers_of_one_labeler_and_one_file_lose_and_double_nothing(tmp_path):
    path, rows = tmp_path / "a.jsonl", prompts(20)
    with serving(rows, path) as one, serving(rows, path) as two:

        def work(client: Client) -> int:
            mine = 0
            while item := client.state()["item"]:
                mine += client.order(item)[0] == 200
            return mine

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(work, [one, two, one, two])) == 20
    assert len(file_rows(path)) == 20 and len({key_of(row) for row in dataset(path)}) == 20


def test_several_labelers_share_a_file_and_their_agreement_is_computed(tmp_path):
    path, rows = tmp_path / "a.jsonl", prompts(4)
    rows = [{**row, "order": [0, 1, 2, 3, 4], "labeler": "simulated"} for row in rows]
    with serving(rows, path, "ada") as ada, serving(rows, path, "bob") as bob:
        for client, backwards in ((ada, False), (bob, True)):
            state = client.state()
            while state["item"]:
                _, state = client.order(state["item"], sorted(state["item"]["replies"], reverse=backwards))
    assert state["agreement"] == [
        "ada and bob: Kendall's tau -1.00 on 4 prompts",
        "bob and simulated: Kendall's tau -1.00 on 4 prompts",
    ]
    assert agreement(dataset(path)) == [{"labelers": ["ada", "bob"], "prompts": 4, "tau": -1.0}]
    assert [row["order"] for row in rank(rows, path, "ada")] == [[0, 1, 2, 3, 4]] * 4


def test_tau_counts_pairs_that_agree_less_those_that_do_not():
    assert tau([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]) == 1
    assert tau([4, 3, 2, 1, 0], [0, 1, 2, 3, 4]) == tau([1, 0], [0, 1]) == -1
    assert tau([0, 1, 2], [0, 2, 1]) == pytest.approx(1 / 3)  # 2 pairs of 3 agree


def test_agreement_is_the_mean_over_prompts_that_two_labelers_ordered():
    one, two, three = prompts(3, replies=3)
    rows = [{**one, "order": [0, 1, 2], "labeler": "ada"}, {**two, "order": [0, 1, 2], "labeler": "ada"}]
    rows += [{**one, "order": [0, 2, 1], "labeler": "bob"}, {**two, "order": [2, 1, 0], "labeler": "bob"}]
    rows += [{**three, "order": [0, 1, 2], "labeler": "eve"}, {**one, "order": None, "labeler": "eve"}]
    # 2 pairs of 3 agree, then none
    assert agreement(rows) == [{"labelers": ["ada", "bob"], "prompts": 2, "tau": round((1 / 3 - 1) / 2, 4)}]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "order",
    [[0, 1, 2, 3], [0, 1, 2, 3, 3], [1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [-1, 0, 1, 2, 3], [0, 1, 2, 3, 4.0],
     [False, True, 2, 3, 4], ["0", "1", "2", "3", "4"], "01234", None, {}, [[0], 1, 2, 3, 4], []],
)  # fmt: skip
def test_an_order_that_is_no_permutation_gets_400(tmp_path, order):
    with serving(prompts(1), tmp_path / "a.jsonl") as client:
        status, answer = client.order(client.state()["item"], order=order)
        assert status == 400 and "0 to 4 once" in answer["error"]
    assert not (tmp_path / "a.jsonl").read_bytes()


def test_broken_oversized_and_foreign_bodies_get_4xx_and_change_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    with serving(prompts(1), path) as client:
        item = client.state()["item"]
        good = {"item": item["id"], "order": [0, 1, 2, 3, 4], "decision": new(), "seconds": 1}

        def post(body, where="/rank", **headers) -> int:
            return client.ask("POST", where, body, **headers)[0]

        for body in (b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 60_000, b'"x"', b"9" * 5000, b'{"order": NaN}'):
            assert post(body) == 400, body
        assert post(b" " * (ranking.LARGEST + 1)) == 413
        assert post(b" " * 3_000_000) == 413
        assert post(good, Content_Type="text/plain") == 415
        assert post(good, Content_Type="application/x-www-form-urlencoded") == 415
        assert post(good, Transfer_Encoding="chunked") == 411
        assert post({**good, "labeler": "eve"}) == 400, "who labels is not the body's to say"
        assert post({name: good[name] for name in ("item", "order", "decision")}) == 400
        for seconds in (-1, True, "1", None, 1e30):
            assert post({**good, "seconds": seconds}) == 400
        assert post(json.dumps(good).replace('"seconds": 1', '"seconds": NaN').encode()) == 400
        for decision in ("", "x" * 32, 7, None, "0" * 33, "0" * 31 + "\n"):
            assert post({**good, "decision": decision}) == 400
        for which in ("nothing", "", 3, None, ["a"], {}):
            assert post({**good, "item": which}) == 404
        assert post({}, "/nothing") == post({}, "/state") == 404
        assert post({"x": 1}, "/end") == 400
        for where in ("/../ranking.py", "/ranking.py", "/%2e%2e/ranking.py", "/?x", "/etc/passwd"):
            assert client.ask("GET", where)[0] == 404
    assert not path.read_bytes()


def test_a_length_that_lies_and_a_body_that_never_comes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ranking, "PATIENCE", 0.3)
    with serving(prompts(1), tmp_path / "a.jsonl") as client:

        def raw(request: bytes, then_close: bool = False) -> bytes:
            with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
                connection.sendall(request)
                if then_close:
                    connection.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: connection.recv(4096), b""))

        head = b"POST /end HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        assert b" 408 " in raw(head + b"Content-Length: 50\r\n\r\n{").splitlines()[0]
        assert b" 400 " in raw(head + b"Content-Length: 50\r\n\r\n{}", then_close=True).splitlines()[0]
        assert b" 411 " in raw(head + b"\r\n").splitlines()[0]
        for length in (b"-5", b"1e3", b"0x10", b"9" * 30, b"5, 5"):
            assert b" 400 " in raw(head + b"Content-Length: " + length + b"\r\n\r\n{}").splitlines()[0]
        assert b" 403 " in raw(b"GET /state HTTP/1.1\r\n\r\n").splitlines()[0]
        assert b" 403 " in raw(b"GET /state HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n").splitlines()[0]
        assert not client.page.ended.is_set() and client.state()["ordered"] == 0


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::]:80"]
)
def test_a_page_that_points_its_own_name_here_is_refused(tmp_path, host):
    with serving(prompts(1), tmp_path / "a.jsonl") as client:
        assert client.ask("GET", "/state", Host=host)[0] == 403
        assert client.ask("POST", "/end", {}, Host=host)[0] == 403
        assert not client.page.ended.is_set()


def test_another_sites_page_cannot_post_and_reads_nothing(tmp_path):
    with serving(prompts(1), tmp_path / "a.jsonl") as client:
        for origin in ("http://evil.example", "null", "https://127.0.0.1", f"http://localhost:{client.port + 1}"):
            assert client.ask("POST", "/end", {}, Origin=origin)[0] == 403
        client.ask("GET", "/state")
        assert "Access-Control-Allow-Origin" not in client.headers
        here = f"http://127.0.0.1:{client.port}"
        assert not client.page.ended.is_set()
        assert client.ask("POST", "/end", {}, Origin=here)[0] == 200 and client.page.ended.wait(120)


def test_the_page_loads_nothing_from_elsewhere_and_runs_no_inline_script(tmp_path):
    with serving(prompts(1), tmp_path / "a.jsonl") as client:
        status, html = client.ask("GET", "/")
        policy = client.headers["Content-Security-Policy"]
        assert status == 200 and "default-src 'none'" in policy and "unsafe" not in policy
        assert not re.findall(r"<script(?![^>]*\ssrc=)", html) and not re.search(r"\s(style|on\w+)=", html)
        code, style = client.ask("GET", "/ranking.js")[1], client.ask("GET", "/ranking.css")[1]
        assert "//" not in re.sub(r"^\s*//.*$|\s// .*$", "", code, flags=re.MULTILINE), "no address of another host"
        for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert sink not in code
        assert "http" not in html + style + code


@pytest.mark.parametrize(
    "row, why",
    [({"prompt": [], "replies": ["a", "b"]}, "no list of messages"), ("x", "a str"),
     ({"prompt": [{"role": "user", "content": "x"}], "replies": ["a"]}, "1 replies"),
     ({"prompt": [{"role": "user", "content": "x"}], "replies": ["a", None]}, "no list of texts"),
     ({"prompt": [{"role": "user", "content": "x"}], "replies": ["a", "b"], "order": [1, 2]}, "no order of 2")],
)  # fmt: skip
def test_prompts_that_cannot_be_ordered_stop_with_one_line_that_names_them(tmp_path, row, why):
    with pytest.raises(SystemExit, match=f"prompt 3 of 3.*{why}"):
        rank([*prompts(2), row], tmp_path / "a.jsonl", "ada")
    with pytest.raises(SystemExit, match="nothing to order"):
        rank([], tmp_path / "a.jsonl", "ada")


@pytest.mark.parametrize("labeler", ["", " ", "a" * 61, "a\nb", "<b>", 3])
def test_a_labeler_needs_a_plain_name(tmp_path, labeler):
    with pytest.raises(SystemExit, match="needs a name"):
        rank(prompts(1), tmp_path / "a.jsonl", labeler)


def test_a_file_or_a_port_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(SystemExit, match="folder.jsonl: cannot be read and written"):
        rank(prompts(1), tmp_path / "folder.jsonl", "ada")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SystemExit, match="cannot be listened on"):
            rank(prompts(1), tmp_path / "a.jsonl", "ada", port=taken.getsockname()[1])
    missing = [sys.executable, "-m", "crawl2chat.web.ranking", str(tmp_path / "none"), "--labeler", "ada"]
    done = subprocess.run(missing, capture_output=True, text=True)
    assert done.returncode == 1 and re.fullmatch(r"error: .*rankings\.jsonl: cannot be read.*\n", done.stderr)
    assert not (tmp_path / "none").exists()


def test_rank_serves_until_all_are_done_and_ctrl_c_keeps_what_is_decided(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ranking, "LINGER", 0.3)
    rows, path = prompts(2), tmp_path / "a.jsonl"

    def person() -> None:
        while not (found := re.search(r"127\.0\.0\.1:(\d+)", said := capsys.readouterr().out)):
            assert time.time() < deadline, said
            time.sleep(0.02)
        client = Client(int(found[1]))
        state = client.state()
        while state["item"]:
            _, state = client.order(state["item"])

    deadline = time.time() + 120
    thread = threading.Thread(target=person)
    thread.start()
    found = rank(rows + rows[:1], path, "ada")
    thread.join()
    assert [row["order"] for row in found] == [[0, 1, 2, 3, 4]] * 2
    assert "2 ordered, 0 skipped, 0 open" in capsys.readouterr().out
    # and Ctrl-C in the command
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    process, client = start(folder)
    client.order(client.state()["item"])
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "1 ordered, 0 skipped, 1 open" in out and "Traceback" not in out
    assert len(file_rows(folder / "people/dataset.jsonl")) == 1


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium, the system's own."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium is installed: the ranking page was not tried in a browser")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: no browser was driven"
    )
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"] if os.getuid() == 0 else [])
        yield browser
        browser.close()


@contextmanager
def opened(chromium, client: Client, **context):
    """A tab with the page; an error in its console fails the test."""
    tab = chromium.new_context(viewport={"width": 900, "height": 800}, **context).new_page()
    tab.set_default_timeout(120_000)  # for a state that never comes; a machine may be held up for long
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.goto(f"http://127.0.0.1:{client.port}/")
    tab.locator(".card").first.wait_for()
    yield tab
    tab.context.close()
    assert not [error for error in errors if "409" not in error], errors


def texts(tab) -> list[str]:
    return tab.locator(".card .text").all_inner_texts()


def counted(tab, text: str) -> None:
    tab.locator("#counts", has_text=re.compile(f"^{re.escape(text)}$")).wait_for()


def drag(tab, card: int, to: int) -> None:
    """By its middle, over the other card's far edge, in steps as a hand moves; when all cards lie still, for one that
    glides to its place is measured on its way."""
    tab.evaluate("Promise.allSettled(document.getAnimations().map((one) => one.finished))")
    start, end = (tab.locator(".card .text").nth(i).bounding_box() for i in (card, to))
    tab.mouse.move(start["x"] + 30, start["y"] + start["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(end["x"] + 30, end["y"] + end["height"] * (0.9 if to > card else 0.1), steps=12)
    tab.mouse.up()


def test_browser_answers_are_dragged_into_order_and_submitted(tmp_path, chromium):
    rows = prompts(2)
    with serving(rows, tmp_path / "a.jsonl") as client, opened(chromium, client) as tab:
        before = texts(tab)
        drag(tab, 4, 0)
        assert texts(tab) == [before[4], *before[:4]]
        drag(tab, 0, 2)
        assert texts(tab) == [before[0], before[1], before[4], before[2], before[3]]
        assert tab.locator(".rank").all_inner_texts() == ["1", "2", "3", "4", "5"]
        wanted = texts(tab)
        tab.locator("#submit").click()
        counted(tab, "1 of 2")
        assert [rows[0]["replies"][i] for i in dataset(tmp_path / "a.jsonl")[0]["order"]] == wanted
        before = texts(tab)
        box = tab.locator(".card").nth(3).bounding_box()
        tab.mouse.move(box["x"] + 60, box["y"] + 10)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 60, box["y"] - 200, steps=5)
        assert texts(tab) != before
        tab.keyboard.press("Escape")
        tab.mouse.up()
        assert texts(tab) == before, "Escape puts it back"


def test_browser_keys_alone_order_submit_skip_and_go_back(tmp_path, chromium):
    rows = prompts(3)
    with serving(rows, tmp_path / "a.jsonl") as client, opened(chromium, client) as tab:
        before, press = texts(tab), tab.keyboard.press
        press("ArrowDown")  # the first answer has the focus
        press("ArrowDown")
        assert texts(tab) == [before[1], before[2], before[0], before[3], before[4]]
        press("ArrowUp")
        assert texts(tab) == [before[1], before[0], before[2], before[3], before[4]]
        press("5")
        assert texts(tab) == [before[1], before[2], before[3], before[4], before[0]]
        press("9")  # no such rank
        press("Shift+Tab")
        press("1")
        wanted = [before[4], before[1], before[2], before[3], before[0]]
        assert texts(tab) == wanted
        assert tab.locator("#spoken").inner_text() == "Rank 1 of 5"
        press("Enter")
        counted(tab, "1 of 3")
        press("s")
        counted(tab, "2 of 3, 1 skipped")
        press("u")
        counted(tab, "1 of 3")
        press("Control+z")
        counted(tab, "0 of 3")
        assert texts(tab) == wanted, "as it was ordered"
        for done in ("1 of 3", "2 of 3", "3 of 3"):
            press("Enter")
            counted(tab, done)
        tab.locator("#end").wait_for()
        assert tab.locator("#progress").evaluate("bar => bar.value / bar.max") == 1
        press("u")
        counted(tab, "2 of 3")
        press("Enter")
        counted(tab, "3 of 3")
        tab.locator("#stop").click()
        tab.get_by_text("This page may be closed").wait_for()
        assert client.page.ended.wait(120)
    found = dataset(tmp_path / "a.jsonl")
    assert [rows[0]["replies"][i] for i in found[0]["order"]] == wanted and len(found) == 3


def test_browser_what_a_model_wrote_is_text_and_never_runs(tmp_path, chromium):
    row = {"prompt": [{"role": "user", "content": ATTACK}, {"role": ATTACK, "content": [ATTACK]}]}
    row["replies"] = [ATTACK, "javascript:hacked=1", "", "\ud800 <b>bold</b>", "word" * 3000]
    with serving([row], tmp_path / "a.jsonl") as client, opened(chromium, client) as tab:
        assert ATTACK in texts(tab) and "(nothing)" in texts(tab)
        assert ATTACK in tab.locator("#prompt").inner_text()
        assert tab.locator("img, #prompt script, #answers script, #answers b").count() == 0
        tab.keyboard.press("2")
        tab.keyboard.press("Enter")
        counted(tab, "1 of 1")
        assert tab.evaluate("window.hacked") is None
    assert dataset(tmp_path / "a.jsonl")[0]["replies"] == row["replies"]


def test_browser_a_finger_drags_by_the_rank_on_a_dark_phone(tmp_path, chromium):
    phone = {"has_touch": True, "is_mobile": True, "color_scheme": "dark", "reduced_motion": "reduce"}
    rows = prompts(1)
    rows[0]["replies"][2] += " and so on" * 20
    with serving(rows, tmp_path / "a.jsonl") as client, opened(chromium, client, **phone) as tab:
        tab.set_viewport_size({"width": 360, "height": 740})
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        dark = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert sum(map(int, re.findall(r"\d+", dark))) < 150
        assert not tab.locator("#keys").is_visible()
        before, touch = texts(tab), tab.context.new_cdp_session(tab)
        tab.locator(".card").nth(1).get_by_label("Move up").tap()
        before = [before[1], before[0], *before[2:]]
        tab.locator(".card .text", has_text=before[0]).and_(tab.locator(".card:first-child .text")).wait_for()
        start, end = (tab.locator(".rank").nth(i).bounding_box() for i in (0, 2))
        x, y = start["x"] + 20, start["y"] + 20
        to = y + end["y"] + end["height"] / 2 - (start["y"] + start["height"]) + 6  # its foot below the other's middle

        def send(kind: str, *points: float) -> None:
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": at} for at in points]})

        send("touchStart", y)
        for step in range(1, 13):
            send("touchMove", y + (to - y) * step / 12)
        send("touchEnd")
        assert texts(tab) == [before[1], before[2], before[0], before[3], before[4]]
        for i in range(5):
            assert tab.locator(".rank").nth(i).bounding_box()["width"] >= 44, "wide enough for a finger"
        tab.locator("#submit").tap()
        counted(tab, "1 of 1")


def test_browser_two_tabs_make_one_decision_a_prompt(tmp_path, chromium):
    path = tmp_path / "a.jsonl"
    with serving(prompts(3), path) as client, opened(chromium, client) as one, opened(chromium, client) as two:
        one.locator("#submit").click()
        counted(one, "1 of 3")
        first = texts(two)
        two.locator("#submit").click()
        two.get_by_text("decided already").wait_for()
        counted(two, "1 of 3")
        assert texts(two) != first and texts(two) == texts(one), "it moves on to what is open"
        two.locator("#submit").dblclick()  # not the next one, too
        counted(two, "2 of 3")
        two.keyboard.press("u")
        counted(two, "1 of 3")
        one.keyboard.press("Enter")  # in the other tab this prompt never was away
        counted(one, "2 of 3")
    assert len(dataset(path)) == 2 and len(file_rows(path)) == 4


def test_browser_an_order_is_kept_while_the_server_is_away_and_sent_again_once(tmp_path, chromium):
    path, rows = tmp_path / "a.jsonl", prompts(2)
    with serving(rows, path) as client:
        tab = chromium.new_page()
        tab.set_default_timeout(120_000)
        tab.goto(f"http://127.0.0.1:{client.port}/")
        tab.locator(".card").first.wait_for()
        tab.keyboard.press("4")
        wanted = texts(tab)
        # the server gets it, its answer is lost on the way
        tab.route("**/rank", lambda route: (route.fetch(), route.abort()))
        tab.keyboard.press("Enter")
        tab.get_by_text("does not answer").wait_for()
        assert texts(tab) == wanted
        tab.unroute("**/rank")
        tab.keyboard.press("Enter")
        counted(tab, "1 of 2")
        assert len(file_rows(path)) == 1
        tab.close()
