"""A Trainer's push_to_hub: every checkpoint a revision, training untouched by the hub, against a hub with bad days."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback, set_seed

from crawl2chat import outbox
from crawl2chat.checkpoint_folder import damage
from crawl2chat.checkpoints import Token
from crawl2chat.data.tokens import PackedRows, Tokens
from crawl2chat.finetuning import FinetuningTrainer, SFTArguments
from crawl2chat.pretraining import PretrainingArguments, PretrainingTrainer
from hub_server import LOST, hub_server
from tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow  # half a minute and more

TOKENIZER = tiny_tokenizer()
FIXED = {"max_steps": 6, "save_steps": 2, "logging_steps": 1, "report_to": "none", "use_cpu": True}
FIXED |= {"per_device_train_batch_size": 2, "disable_tqdm": True, "push_to_hub": True, "hub_model_id": "me/model"}
KEPT = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
KEPT |= {"chat_template.jinja", "README.md"}


@pytest.fixture
def hub(monkeypatch):
    with hub_server() as made:
        made.known_to(monkeypatch)
        yield made


class Killed(BaseException):
    pass


class KillAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


def pretraining(output: Path, **keys) -> PretrainingTrainer:
    set_seed(0)
    pages = Tokens("pages", np.arange(4000, dtype=np.uint16) % 400, 4000, 1, ["Paris is in France."])
    return PretrainingTrainer(
        model=tiny_model(TOKENIZER, layers=1),
        args=PretrainingArguments(output_dir=str(output), **FIXED | keys),
        processing_class=TOKENIZER,
        train_dataset=PackedRows([pages], [1.0], 16, 12, 0),
        shares={"pages": 1.0},
    )


def finetuning(output: Path, **keys) -> FinetuningTrainer:
    set_seed(0)
    rows = [{"input_ids": [(7 * i + j) % 300 for j in range(8)]} for i in range(12)]
    return FinetuningTrainer(
        model=tiny_model(TOKENIZER, layers=1),
        args=SFTArguments(output_dir=str(output), bf16=False, **FIXED | keys),
        processing_class=TOKENIZER,
        train_dataset=Dataset.from_list([{**row, "labels": row["input_ids"]} for row in rows]),
    )


def train(made) -> list[float]:
    made.run()
    made.save_model()
    made.finish_pushes()
    return [row["loss"] for row in made.state.log_history if "loss" in row]


@pytest.mark.parametrize("trainer", [pretraining, finetuning])
def test_every_checkpoint_is_a_revision_and_the_finished_model_is_main(hub, tmp_path, capfd, trainer):
    train(trainer(tmp_path))
    repo = hub.repos["model", "me/model"]
    assert sorted(repo.tags) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert [message for _, message, _ in repo.log[1:]] == [
        *(f"Step {step} of 6" for step in (2, 4, 6)),
        "The finished model, after 6 steps",
    ]
    for revision, folder in [*((tag, tmp_path / tag) for tag in repo.tags), ("main", tmp_path)]:
        files = repo.files(revision)
        assert files.keys() == KEPT
        assert all(files[name] == (folder / name).read_bytes() for name in KEPT - {"README.md"})
    assert outbox.waiting(tmp_path) == []
    assert capfd.readouterr().out.splitlines()[-1] == "hub: me/model has 4 of this run's 4 pushes"


def test_a_revision_loads_by_its_name(hub, tmp_path):
    train(pretraining(tmp_path / "run"))
    theirs = AutoModelForCausalLM.from_pretrained("me/model", revision="checkpoint-2", cache_dir=tmp_path / "cache")
    mine = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-2")
    assert all((a == b).all() for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))


def test_a_hub_that_is_down_changes_no_loss_and_retry_finishes(hub, tmp_path, capfd, monkeypatch):
    losses = train(pretraining(tmp_path / "up"))
    hub.repos.clear()
    hub.retry_after, hub.play = 3600, lambda number, request: 429
    capfd.readouterr()
    assert train(pretraining(tmp_path / "down")) == losses
    lines = capfd.readouterr().out.splitlines()
    root = tmp_path / "down"
    assert any("hub: me/model: not now (it answered 429 and asks to wait 3600 s)" in line for line in lines)
    finish = f"finish with: python -m crawl2chat.outbox {root}"
    assert lines[-1] == f"hub: me/model has 0 of this run's 4 pushes, 4 wait; {finish}"
    assert len(outbox.waiting(root)) == 4 and hub.repos == {}
    hub.play = lambda number, request: None
    assert [result.state for result in outbox.retry(root)] == ["pushed"] * 4
    repo = hub.repos["model", "me/model"]
    for tag in ("checkpoint-2", "checkpoint-4", "checkpoint-6"):
        assert repo.files(tag)["model.safetensors"] == (root / tag / "model.safetensors").read_bytes()
    assert repo.files()["model.safetensors"] == (root / "model.safetensors").read_bytes()


def test_lost_answers_during_training_double_no_commit(hub, tmp_path):
    lost = []
    hub.play = lambda number, request: lost.append(1) or LOST if request.kind == "commit" and not lost else None
    train(finetuning(tmp_path))
    assert lost and len(hub.repos["model", "me/model"].log) == 5 and outbox.waiting(tmp_path) == []


@pytest.mark.parametrize("right, status", [(None, 401), ("read", 403)])
def test_a_token_that_may_not_write_is_refused_before_training(hub, tmp_path, monkeypatch, right, status):
    pretraining(tmp_path / "before").finish_pushes()  # the repository is there already
    token = "hf_" + "mayonlyread"
    if right:
        hub.tokens[token] = right
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SystemExit) as stop:
        pretraining(tmp_path / "run")
    assert f"({status}): set HF_TOKEN" in stop.value.code and stop.value.code.endswith("; nothing was trained")
    assert "\n" not in stop.value.code and token not in stop.value.code


def test_a_right_that_is_withdrawn_during_training_stops_nothing(hub, tmp_path, capfd):
    made = pretraining(tmp_path)
    hub.tokens.clear()
    train(made)
    captured = capfd.readouterr()
    assert "error: hub: me/model: the hub knows no such token (401): set HF_TOKEN" in captured.err
    assert captured.out.splitlines()[-1].startswith("hub: me/model has 0 of this run's 4 pushes, 4 wait; finish with")


def test_a_killed_runs_pushes_go_with_the_run_that_goes_on(hub, tmp_path):
    hub.retry_after, hub.play = 3600, lambda number, request: 429
    made = pretraining(tmp_path)
    made.add_callback(KillAt(3))
    with pytest.raises(Killed):
        made.run()
    made.finish_pushes()
    assert len(outbox.waiting(tmp_path)) == 1
    hub.play = lambda number, request: None
    train(pretraining(tmp_path))
    assert sorted(hub.repos["model", "me/model"].tags) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert len(hub.repos["model", "me/model"].log) == 5


def test_no_secret_is_in_a_file_a_line_or_a_request_of_a_run_that_pushes(hub, tmp_path, capfd, monkeypatch):
    given = "hf_" + "givenasanargument"
    hub.tokens = {given: "write"}
    secrets = {"HF_TOKEN": "hf_" + "fromtheenvironment", "WANDB_API_KEY": "0123456789" * 4}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    made = pretraining(tmp_path, hub_token=given)
    assert isinstance(made.args.hub_token, Token)
    hub.retry_after = 3600
    hub.play = lambda number, request: 429 if request.kind == "commit" else None
    train(made)
    assert len(outbox.waiting(tmp_path)) == 4
    captured = capfd.readouterr()
    for secret in [given, *secrets.values()]:
        assert secret not in captured.out + captured.err and hub.leaked([secret]) == []
        for path in tmp_path.rglob("*"):
            assert path.is_dir() or secret.encode() not in path.read_bytes(), path
    assert all(secrets["HF_TOKEN"] not in request.headers.get("authorization", "") for request in hub.requests)


@pytest.mark.parametrize("strategy, below", [("all_checkpoints", "checkpoint-4"), ("checkpoint", "last-checkpoint")])
def test_a_strategy_that_asks_for_it_sends_what_a_run_goes_on_from(hub, tmp_path, strategy, below):
    train(pretraining(tmp_path / "run", hub_strategy=strategy, max_steps=4))
    files = hub.repos["model", "me/model"].files()
    assert not any(name.endswith("training_args.bin") for name in files)
    for name, data in files.items():
        if name.startswith(f"{below}/"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(data)
    assert damage(tmp_path / below) is None and (tmp_path / below / "optimizer.pt").exists()
    resumed = pretraining(
        tmp_path / "on", resume_from_checkpoint=str(tmp_path / below), max_steps=4, push_to_hub=False
    )
    assert resumed.find_start() == 4


def test_the_end_alone_is_pushed_where_the_recipe_says_so(hub, tmp_path):
    train(pretraining(tmp_path, hub_strategy="end", hub_revision="try", hub_private_repo=True))
    repo = hub.repos["model", "me/model"]
    assert repo.private and repo.tags == {} and repo.files("try").keys() == KEPT and repo.files("main") == {}


def test_a_disk_without_room_passes_over_a_checkpoint_and_says_so(hub, tmp_path, capfd, monkeypatch):
    made = pretraining(tmp_path)
    monkeypatch.setattr("crawl2chat.pushing.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr("crawl2chat.checkpoints.check_disk", lambda trainer: None)
    train(made)
    printed = capfd.readouterr().out
    assert "hub: checkpoint-2 is not pushed: 0" in printed and hub.repos["model", "me/model"].tags == {}
    assert "hub: me/model has 1 of this run's 1 pushes" in printed
