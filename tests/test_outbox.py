"""Every push arrives byte for byte, or waits in the outbox: against a hub on this machine that has bad days."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from crawl2chat import hub as sending
from crawl2chat import outbox
from hub_server import DROP, HALF, LOST, Hub, hub_server

CANARIES = {"WANDB_API_KEY": "canary0123456789", "OPENAI_API_KEY": "sk-canary-9876543210"}


@pytest.fixture
def hub(monkeypatch):
    """A hub that this process and its children talk to; nobody waits between tries."""
    with hub_server() as made:
        made.known_to(monkeypatch)
        for name, value in CANARIES.items():
            monkeypatch.setenv(name, value)
        slept = []
        monkeypatch.setattr(time, "sleep", slept.append)
        made.slept, made.retry_after = slept, 7
        yield made


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    (folder / "gguf").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (folder / "empty.txt").write_text("")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 1000)
    (folder / "gguf" / "model.gguf").write_bytes(b"GGUF" * 999)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def send(folder: Path, **keys) -> outbox.Pushed:
    return outbox.push(folder, "me/model", message="A push", root=folder.parent / "run", **keys)


def held(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder.parent / "run" / "outbox").glob("[_0-9]*"))


def once(hub: Hub, kind: str, fault) -> None:
    """One bad answer, to the first request of a kind."""
    left = [fault]
    hub.play = lambda number, request: left.pop() if request.kind == kind and left else None


@pytest.mark.parametrize("fault", [429, 500, 503, DROP, LOST, HALF])
@pytest.mark.parametrize("kind", ["create", "tree", "preupload", "batch", "upload", "verify", "commit"])
def test_after_trouble_at_any_request_the_hub_has_every_byte_in_one_commit(hub, model, capsys, kind, fault):
    once(hub, kind, fault)
    pushed = send(model)
    repo = hub.repos["model", "me/model"]
    assert repo.files() == content(model)
    assert [message for _, message, _ in repo.log] == ["initial commit", "A push"]
    assert (pushed.state, pushed.commit, pushed.files) == ("pushed", repo.branches["main"], 5)
    assert held(model) == [] and not hub.leaked([hub.token, *CANARIES.values()])
    assert capsys.readouterr().out.startswith("hub: me/model (main): 5 files, 0.3 MB, every byte as here, commit ")
    assert 429 != fault or 7.0 in hub.slept


@pytest.mark.parametrize("fault", [429, 503, DROP, LOST, HALF])
@pytest.mark.parametrize("kind", ["create", "upload", "commit"])
def test_after_trouble_without_end_the_push_waits_and_retry_finishes_it(hub, model, capsys, kind, fault):
    hub.play = lambda number, request: fault if request.kind == kind else None
    before = content(model)
    pushed = send(model)
    if kind != "create" and fault in (LOST, HALF):  # it was done, and the next try saw that
        assert pushed.state == "pushed" and len(hub.repos["model", "me/model"].log) == 2
        return
    assert pushed.state == "waiting" and len(held(model)) == 1
    line = capsys.readouterr().out.splitlines()[-1]
    root = model.parent / "run"
    assert line.startswith(f"hub: 1 push to me/model waits in {root / 'outbox'} (") and line.endswith(
        f"finish with: python -m crawl2chat.outbox {root}"
    )
    shutil.rmtree(model)  # the outbox needs nothing else
    hub.play = lambda number, request: None
    (finished,) = outbox.retry(root)
    assert finished.state == "pushed" and hub.repos["model", "me/model"].files() == before
    assert held(model) == [] and outbox.retry(root) == []


@pytest.mark.parametrize(
    "token, words",
    [
        ("hf_" + "nobodyknowsme", "the hub knows no such token (401): set HF_TOKEN to a valid one with write access"),
        ("hf_" + "mayonlyread", "this token may not write there (403): set HF_TOKEN to one with write access to it"),
    ],
)
def test_a_token_without_the_right_is_one_line_at_once_and_nothing_is_lost(hub, model, capsys, token, words):
    hub.tokens["hf_" + "mayonlyread"] = "read"
    with pytest.raises(SystemExit) as stop:
        send(model, token=token)
    assert stop.value.code == f"error: hub: me/model: {words}"
    assert hub.slept == [] and hub.kinds()[0] == "create" and "commit" not in hub.kinds()
    assert token not in capsys.readouterr().out
    for file in (model.parent / "run").rglob("*"):
        assert file.is_dir() or token.encode() not in file.read_bytes()
    assert [result.state for result in outbox.retry(model.parent / "run")] == ["pushed"]
    assert hub.repos["model", "me/model"].files() == content(model)


def test_a_right_that_is_withdrawn_half_way_stops_too(hub, model):
    once(hub, "commit", 403)
    with pytest.raises(SystemExit, match="403"):
        send(model)
    assert hub.slept == []


def test_content_that_the_hub_does_not_take_is_refused_in_its_words(hub, model):
    (model / "README.md").write_text("---\nbase_model: output/laptop/sft\n---\n")
    with pytest.raises(SystemExit) as stop:
        send(model)
    assert "(400)" in stop.value.code and '"base_model" must be the id of a model on the hub' in stop.value.code
    assert "\n" not in stop.value.code and hub.slept == []


@pytest.mark.parametrize("kind", ["upload", "commit"])
def test_a_push_killed_midway_is_finished_by_retry(hub, model, kind):
    waiting_for = []
    hub.play = lambda number, request: waiting_for.append(1) or 30.0 if request.kind == kind else None
    command = [sys.executable, "-m", "crawl2chat.outbox"]
    process = subprocess.Popen([*command, "push", str(model), "me/model"], stdout=subprocess.DEVNULL)
    try:
        while not waiting_for and process.poll() is None:
            hub.http.socket.gettimeout()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert waiting_for and len(outbox.waiting(model)) == 1
    hub.play = lambda number, request: None
    subprocess.run([*command, str(model)], check=True)
    assert outbox.waiting(model) == []
    repo = hub.repos["model", "me/model"]
    shutil.rmtree(model / "outbox")
    assert repo.files() == content(model) and len(repo.log) == 2


def test_what_a_killed_process_staged_by_half_is_never_sent(hub, model):
    gone = subprocess.Popen(["true"])
    gone.wait()
    half = model.parent / "run" / "outbox" / f"_staging-17-{gone.pid}"
    (half / "files").mkdir(parents=True)
    assert send(model).state == "pushed" and held(model) == []


def test_two_retries_at_once_push_once(hub, model):
    hub.play = lambda number, request: 503 if request.kind == "create" else None
    send(model)
    hub.play = lambda number, request: 0.5 if request.kind == "upload" else None
    command = [sys.executable, "-m", "crawl2chat.outbox", str(model.parent / "run")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("every byte as here" in text for text in printed) == 1
    repo = hub.repos["model", "me/model"]
    assert repo.files() == content(model) and len(repo.log) == 2 and held(model) == []


def test_without_a_network_a_push_is_one_line_and_waits(hub, model, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert send(model).state == "waiting"
    captured = capsys.readouterr()
    assert "(HF_HUB_OFFLINE is set)" in captured.out and len(captured.out.splitlines()) == 1 and not captured.err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed}")
    (result,) = outbox.retry(model.parent / "run")
    assert result.state == "waiting" and "Connect" in result.why
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_hub_that_asks_for_an_hour_is_not_waited_for(hub, model):
    hub.retry_after = 3600
    hub.play = lambda number, request: 429
    pushed = send(model)
    assert pushed.why == "it answered 429 and asks to wait 3600 s" and hub.slept == []


def test_a_hub_that_hangs_is_given_up_and_asked_again(hub, model, monkeypatch):
    monkeypatch.setattr(sending.client.__wrapped__, "__defaults__", (0.3,))
    once(hub, "commit", 1.0)
    assert send(model).state == "pushed"
    assert hub.repos["model", "me/model"].files() == content(model)


def test_bytes_that_arrived_wrong_are_seen(hub, model):
    def play(number, request):
        if request.kind == "commit":
            hub.stored.update({name: b"\1" + data[1:] for name, data in hub.stored.items()})

    hub.play = play
    pushed = send(model)
    assert pushed.state == "waiting" and pushed.why.endswith("is not there as it is here, 2 such files")


def test_a_hub_that_lists_nothing_is_read_back(hub, model):
    hub.play = lambda number, request: 404 if request.kind == "tree" else None
    assert send(model).state == "pushed"
    assert hub.kinds().count("resolve") == 5 and hub.repos["model", "me/model"].files() == content(model)


def test_pushes_to_a_repository_keep_their_order_and_a_newer_one_takes_the_place_of_an_older(hub, model, capsys):
    root = model.parent / "run"
    hub.play = lambda number, request: 503
    for step in (2, 4):
        (model / "config.json").write_text(f'{{"step": {step}}}')
        files, _ = outbox.gather(model)
        outbox.stage(files, root, repo_id="me/model", tag=f"checkpoint-{step}", message=f"Step {step}")
    assert send(model).state == "waiting"
    (model / "config.json").write_text('{"step": 6}')
    send(model)
    assert "3 pushes to me/model wait in" in capsys.readouterr().out.splitlines()[-1]
    hub.play = lambda number, request: None
    outbox.retry(root)
    repo = hub.repos["model", "me/model"]
    assert [message for _, message, _ in repo.log[1:]] == ["Step 2", "Step 4", "A push"]
    steps = [json.loads(repo.files(name)["config.json"])["step"] for name in ("checkpoint-2", "checkpoint-4", "main")]
    assert steps == [2, 4, 6]


def test_a_tag_moves_when_its_content_does(hub, model):
    root = model.parent / "run"
    for text in ("{}", "[]"):
        (model / "config.json").write_text(text)
        outbox.stage(outbox.gather(model)[0], root, repo_id="me/model", tag="checkpoint-2", message="Step 2")
        outbox.retry(root)
        outbox.retry(root)
        assert hub.repos["model", "me/model"].files("checkpoint-2")["config.json"] == text.encode()


def test_on_a_hub_without_tags_the_commit_is_named(hub, model, capsys):
    hub.play = lambda number, request: 404 if request.kind == "tag" else None
    root = model.parent / "run"
    outbox.stage(outbox.gather(model)[0], root, repo_id="me/model", tag="checkpoint-2", message="Step 2")
    (pushed,) = outbox.retry(root)
    assert f"this hub has no tags; checkpoint-2 is commit {pushed.commit}" in capsys.readouterr().out


def test_a_branch_a_private_repository_and_a_data_set(hub, model):
    (model / "config.json").unlink()  # so that the card is not a model's
    send(model, revision="try", private=True, repo_type="dataset")
    repo = hub.repos["dataset", "me/model"]
    assert repo.private and repo.files("try") == content(model) and repo.files("main") == {}


def test_weights_of_an_older_push_go_and_the_owners_files_stay(hub, model):
    older = {"model-00001-of-00002.safetensors": b"old", "LICENSE": b"mine", "onnx/model.safetensors": b"else"}
    send(model)
    repo = hub.repos["model", "me/model"]
    repo.add("main", {**repo.commits[repo.branches["main"]], **older}, "by the owner")
    (model / "config.json").write_text("{}")
    send(model)
    older.pop("model-00001-of-00002.safetensors")
    assert repo.files() == {**content(model), **older}


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY"])
def test_a_file_that_holds_a_secret_is_not_sent_and_not_kept(hub, model, capsys, name):
    secret = {"HF_TOKEN": hub.token, **CANARIES}[name]
    (model / "notes.bin").write_bytes(b"x" * (outbox.CHUNK - 5) + secret.encode())  # across two reads
    with pytest.raises(SystemExit) as stop:
        send(model)
    assert stop.value.code.startswith("error: hub: me/model: notes.bin holds the value of")
    assert secret not in stop.value.code + capsys.readouterr().out
    assert hub.requests == [] and held(model) == []


def test_what_was_altered_in_the_outbox_is_not_sent(hub, model):
    hub.play = lambda number, request: 503
    send(model)
    (name,) = held(model)
    path = model.parent / "run" / "outbox" / name / "files" / "config.json"
    path.write_text('{"model_type": "LLAMA"}')
    hub.play, hub.requests = (lambda number, request: None), []
    with pytest.raises(SystemExit, match="config.json is not what was staged; delete .* and push again"):
        outbox.retry(model.parent / "run")
    assert hub.kinds() == []


def test_an_unreadable_push_is_named_and_the_others_go(hub, model, capsys):
    broken = model.parent / "run" / "outbox" / "17-1"
    broken.mkdir(parents=True)
    (broken / "push.json").write_text('{"repo_id": "me/')
    assert send(model).state == "pushed"
    assert f"{broken / 'push.json'} cannot be read" in capsys.readouterr().out


def test_a_runs_own_affairs_are_left_out_and_named(hub, model, capsys):
    for name in ("training_args.bin", "optimizer.pt", ".env", "_saving/model.safetensors", "checkpoint-2/config.json"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("mine")
    expected = {k: v for k, v in content(model).items() if v != b"mine"}
    send(model)
    assert hub.repos["model", "me/model"].files() == expected
    left = ".env, _saving, checkpoint-2, optimizer.pt, training_args.bin"
    assert capsys.readouterr().out.splitlines()[0] == f"hub: not sent from {model}: {left}"


def test_folders_and_names_that_cannot_be_pushed_are_one_line(hub, model, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "config.json").symlink_to(model / "config.json")
    for folder, words in [("none", "no such folder"), ("empty", "nothing in it"), ("links", "is a link")]:
        with pytest.raises(SystemExit, match=words):
            send(tmp_path / folder)
    with pytest.raises(SystemExit, match="'me/my model' is no name of a repository"):
        outbox.push(model, "me/my model", message="A push", root=tmp_path)
    assert hub.requests == []


def test_a_full_disk_leaves_nothing_half_staged(hub, model, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outbox, "_copy", full)
    with pytest.raises(SystemExit, match="could not be staged .No space left on device.; nothing was sent"):
        send(model)
    assert held(model) == [] and hub.requests == []
