"""W&B and trackio without a network: what a stage logs is read back, in one run of one group, and holds no secret."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from crawl2chat import tracking

ROOT = Path(__file__).parents[1]
SECRETS = {
    "HF_TOKEN": "hf_planted_in_the_environment",
    "WANDB_API_KEY": "0123456789" * 4,
    "OPENAI_API_KEY": "sk-planted-for-a-teacher",
}
ARGUMENT = "hf_planted_as_an_argument"
KEYS = {"train/loss", "train/tokens", "train/flops", "eval/bits_per_byte", "eval/heldout_acc_norm"}
BLOCK = 32_768  # bytes: W&B's file is a log of LevelDB's kind, a record's pieces lie within blocks

RUN = """
import json, sys
sys.path.insert(0, {root!r})
from pathlib import Path
import numpy as np
from tests.tiny import tiny_model, tiny_tokenizer
from crawl2chat import tracking
from crawl2chat.choices import Question
from crawl2chat.data.tokens import PackedRows, Tokens
from crawl2chat.pretraining import PretrainingArguments, PretrainingTrainer

pretrain, evaluation = Path("output/laptop/pretrain"), Path("output/laptop/eval")
for folder in (pretrain, evaluation):
    folder.mkdir(parents=True)
    folder.joinpath("recipe.yaml").write_text("report_to: [wandb, trackio]\\nseed: 3\\nmodel: {{layers: 2}}\\n")
tokenizer = tiny_tokenizer()
pages = Tokens("pages", np.arange(4000, dtype=np.uint16) % 400, 4000, 1, ["Paris is in France."])
args = PretrainingArguments(
    output_dir=str(pretrain), report_to=["wandb", "trackio"], hub_token={argument!r}, max_steps=3, logging_steps=1,
    save_steps=2, per_device_train_batch_size=2, use_cpu=True,
)
tracking.begin(pretrain, args)
trainer = PretrainingTrainer(
    model=tiny_model(tokenizer), args=args, processing_class=tokenizer, prompts=["The capital of"],
    train_dataset=PackedRows([pages], [1.0], 16, 6, 0), shares={{"pages": 1.0}},
    eval_dataset=[{{"text": "Paris is in France.", "source": "pages"}}],
    questions={{"heldout": [Question("The capital of France is", ("Paris.", "Tokyo."), 0)]}},
)
trainer.train()
trainer.evaluate()  # as scripts/pretrain.py does, after the trackers were told that training is over
trainer.save_model()
pretrain.joinpath("samples.jsonl").write_text(json.dumps({{"step": 3, "text": "Paris is"}}))
tracking.end(pretrain, {{"tokens": 96, "bits_per_byte": 1.5}})

messages = [{{"role": "user"}}]
rows = [{{"task": "sums", "reply": f"no. {{i}}", "messages": messages, "right": i % 2}} for i in range(250)]
evaluation.joinpath("replies.jsonl").write_text("\\n".join(map(json.dumps, rows)))
evaluation.joinpath("sums").mkdir()
evaluation.joinpath("sums/train.jsonl").write_text('{{"question": "1 + 1", "odd": 1}}\\n{{"question": 2}}')
evaluation.joinpath("bars.svg").write_text("<svg/>")
tracking.end(evaluation, {{"sft/sums/accuracy": 0.75}})
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder that is home and working folder of a run's two stages, one with a Trainer, tracked by both."""
    folder = tmp_path_factory.mktemp("world")
    code = RUN.format(root=str(ROOT), argument=ARGUMENT)
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(folder), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    (folder / "printed").write_text(ran.stdout + ran.stderr, encoding="utf-8")
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Of a process whose home is `folder`, and which has secrets."""
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "WANDB_", "TRACKIO_"))}
    places = {"HOME": str(folder / "home"), "TRACKIO_DIR": str(folder / "trackio"), "WANDB_MODE": "offline"}
    return outside | places | {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / "cache")} | SECRETS


def wandb_run(folder: Path, name: str) -> dict:
    """The offline run of this name, read back: {"run", "config", "logged": the rows of its history, "artifacts"}."""
    found = []
    for path in folder.glob("wandb/offline-run-*/run-*.wandb"):
        run = {"config": {}, "logged": [], "artifacts": {}, "folder": path.parent}
        for record in records(path.read_bytes()):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run["run"] = record.run
            if kind in ("run", "config"):
                changed = record.run.config if kind == "run" else record.config
                run["config"] |= {item.key: json.loads(item.value_json) for item in changed.update}
            if kind == "history":
                items = record.history.item
                run["logged"].append(
                    {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
                )
            if kind == "artifact":
                run["artifacts"][record.artifact.name] = {
                    entry.path: entry.local_path for entry in record.artifact.manifest.contents
                }
        found += [run] if run["run"].display_name == name else []
    (run,) = found
    return run


def records(data: bytes) -> Iterator:
    """The records of a .wandb file: 7 bytes of header, then pieces of checksum (4), length (2), kind (1), bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, whole = 7, b""
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole in one piece, or the last piece of several
            yield Record.FromString(whole)
            whole = b""


def trackio_rows(folder: Path, name: str) -> list[dict]:
    with closing(sqlite3.connect(folder / "trackio" / "crawl2chat.db")) as database:
        rows = database.execute("select metrics from metrics where run_name = ?", (name,)).fetchall()
    return [json.loads(metrics) for (metrics,) in rows]


def test_wandb_has_the_steps_and_the_end_of_a_trainer_in_one_run(world):
    run = wandb_run(world, "pretrain")
    logged = run["logged"]
    assert set().union(*logged) >= KEYS | {"tokens", "bits_per_byte", "tables/samples.path"}
    assert [row["train/global_step"] for row in logged if "train/loss" in row] == [1, 2, 3]
    assert run["config"]["seed"] == 3 and run["config"]["max_steps"] == 3  # the recipe, and what transformers adds
    assert (run["run"].project, run["run"].run_group) == ("crawl2chat", "laptop")


def test_wandb_has_a_stage_without_a_trainer_in_the_same_group(world):
    run = wandb_run(world, "eval")
    assert (run["run"].project, run["run"].run_group) == ("crawl2chat", "laptop")
    assert run["config"]["model"] == {"layers": 2}
    assert {"sft/sums/accuracy": 0.75}.items() <= {k: v for row in run["logged"] for k, v in row.items()}.items()
    assert list(run["artifacts"]["laptop-eval"]) == ["bars.svg"]
    assert Path(run["artifacts"]["laptop-eval"]["bars.svg"]).read_text() == "<svg/>"


def test_wandb_tables_hold_rows_of_the_whole_file(world):
    run = wandb_run(world, "eval")
    (path,) = [row["tables/replies.path"] for row in run["logged"] if "tables/replies.path" in row]
    table = json.loads((run["folder"] / "files" / path).read_text())
    assert table["columns"] == ["task", "reply", "messages", "right"]
    assert 50 < len(table["data"]) <= tracking.ROWS
    assert table["data"][0] == ["sums", "no. 0", '[{"role": "user"}]', 0] and table["data"][-1][1] > "no. 24"
    assert any("tables/sums/train.path" in row for row in run["logged"]), "a file whose columns are mixed"


def test_trackio_has_the_steps_and_the_end_of_a_trainer_in_one_run(world):
    logged = trackio_rows(world, "laptop-pretrain")
    assert set().union(*logged) >= KEYS | {"tokens", "bits_per_byte", "tables/samples"}
    assert [row["train/global_step"] for row in logged if "train/loss" in row] == [1, 2, 3]
    with closing(sqlite3.connect(world / "trackio" / "crawl2chat.db")) as database:
        runs = database.execute("select run_name, config from configs").fetchall()
    assert {name for name, _ in runs} == {"laptop-pretrain", "laptop-eval"}
    assert {json.loads(config)["_Group"] for _, config in runs} == {"laptop"}


def test_trackio_has_a_stages_numbers_tables_and_figures(world):
    logged = {key: value for row in trackio_rows(world, "laptop-eval") for key, value in row.items()}
    assert logged["sft/sums/accuracy"] == 0.75
    replies = logged["tables/replies"]["_value"]
    assert 50 < len(replies) <= tracking.ROWS and replies[0]["reply"] == "no. 0"
    kept = [file for file in (world / "trackio").rglob("*") if file.is_file() and file.read_bytes() == b"<svg/>"]
    assert len(kept) == 1


def test_no_secret_is_in_any_file_of_a_tracked_run(world):
    files = [file for file in world.rglob("*") if file.is_file()]
    names = {file.name for file in files}
    assert {"crawl2chat.db", "training_args.bin", "model.safetensors", "debug-internal.log", "printed"} <= names
    for file in files:
        content = file.read_bytes()
        for secret in (*SECRETS.values(), ARGUMENT):
            assert secret.encode() not in content, f"{file.relative_to(world)} holds {secret}"


def test_a_stage_says_in_one_line_a_tracker_where_it_went(world):
    printed = [line for line in (world / "printed").read_text().splitlines() if line.startswith("tracking: ")]
    assert [line.split(":")[1].strip() for line in printed] == ["wandb", "trackio"] * 2
    assert "`wandb sync wandb/offline-run-" in printed[0] and "`trackio show --project crawl2chat`" in printed[1]


@pytest.mark.parametrize("key", [{"WANDB_API_KEY": ""}, {"WANDB_BASE_URL": "http://127.0.0.1:9"}])
def test_a_stage_ends_well_where_wandb_cannot_be_reached_and_its_run_is_kept(tmp_path, key):
    finished(tmp_path, "report_to: wandb\n")
    code = "from crawl2chat import tracking; tracking.WAIT = 1; tracking.end('output/laptop/data', {'kept': 5})"
    env = environment(tmp_path) | {"WANDB_MODE": "online"} | key
    env = {name: value for name, value in env.items() if value}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert ran.returncode == 0 and "Traceback" not in ran.stderr
    cannot, kept = [line for line in ran.stdout.splitlines() if line.startswith("tracking: ")]
    assert cannot.startswith("tracking: wandb: cannot be reached (") and "`wandb sync wandb/offline-run-" in kept
    assert {"kept": 5}.items() <= wandb_run(tmp_path, "data")["logged"][0].items()


def test_a_stage_ends_well_where_a_space_cannot_be_reached_and_its_run_is_kept(tmp_path):
    finished(tmp_path, "report_to: trackio\n")
    code = "from crawl2chat import tracking; tracking.end('output/laptop/data', {'kept': 5})"
    env = environment(tmp_path) | {"TRACKIO_SERVER_URL": "http://127.0.0.1:9"}  # without its write token
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ran.returncode == 0 and "tracking: trackio: cannot be reached (" in ran.stderr
    assert trackio_rows(tmp_path, "laptop-data") == [{"kept": 5}]


@pytest.mark.parametrize("broken", ["wandb", "trackio"])
def test_no_trackers_error_reaches_the_stage(tmp_path, monkeypatch, capsys, broken):
    monkeypatch.setitem(sys.modules, broken, None)  # not installed
    tracking.end(finished(tmp_path, f"report_to: {broken}\n"), {"kept": 5})
    printed = capsys.readouterr().out
    assert printed.startswith(f"tracking: {broken}: not logged (") and printed.count("\n") == 1
    (tmp_path / "output/laptop/data/recipe.yaml").write_text("report_to: [")
    tracking.end(tmp_path / "output/laptop/data", {"kept": 5})
    assert capsys.readouterr().out.startswith("tracking: not logged (")


def test_a_tracker_that_does_not_open_is_taken_from_the_trainer(tmp_path, monkeypatch, capsys):
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    args = SimpleNamespace(report_to=["tensorboard", "wandb", "trackio"], trackio_space_id=None)
    tracking.begin(finished(tmp_path, "report_to: [tensorboard, wandb, trackio]\n"), args)
    assert args.report_to == ["tensorboard"] and capsys.readouterr().out.count("the stage goes on without it") == 2
    tracking.begin(finished(tmp_path, "report_to: none\n"), args := SimpleNamespace(run_name=None))
    assert args.run_name is None


@pytest.mark.parametrize("recipe", [None, "", "seed: 0\n", "report_to: none\n", "report_to: [none]\n"])
def test_nothing_is_logged_unasked(tmp_path, monkeypatch, capsys, recipe):
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    folder = finished(tmp_path, recipe)
    tracking.end(folder, {"kept": 5})
    assert capsys.readouterr().out == "" and tracking.read(folder).trackers == ()


def test_the_project_is_the_recipes_or_the_environments(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert tracking.read(finished(tmp_path, "report_to: wandb\n")).project == "mine"
    run = tracking.read(finished(tmp_path, "report_to: [trackio]\nproject: ours\nrun_name: second try\n"))
    assert (run.project, run.group, run.name, run.id) == ("ours", "laptop", "second try", "laptop-second-try")


def finished(folder: Path, recipe: str | None) -> Path:
    stage = folder / "output/laptop/data"
    stage.mkdir(parents=True, exist_ok=True)
    if recipe is not None:
        (stage / "recipe.yaml").write_text(recipe)
    return stage
