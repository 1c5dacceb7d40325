"""W&B and trackio without a network: what a run logs arrives, in one run, and no secret is in what they write."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECRETS = {"HF_TOKEN": "hf_planted_in_the_environment", "WANDB_API_KEY": "0123456789" * 4}
ARGUMENT = "hf_planted_as_an_argument"
KEYS = {"train/loss", "train/tokens", "train/flops", "eval/bits_per_byte", "eval/heldout_acc_norm"}

RUN = """
import sys
sys.path.insert(0, {root!r})
import numpy as np
from tests.tiny import tiny_model, tiny_tokenizer
from crawl2chat.choices import Question
from crawl2chat.data.tokens import PackedRows, Tokens
from crawl2chat.pretraining import PretrainingArguments, PretrainingTrainer
tokenizer = tiny_tokenizer()
pages = Tokens("pages", np.arange(4000, dtype=np.uint16) % 400, 4000, 1, ["Paris is in France."])
args = PretrainingArguments(
    output_dir="pretrain", run_name="tiny", project="crawl2chat", report_to=["trackio", "wandb"],
    trackio_static_space_id=False, hub_token={argument!r}, max_steps=3, logging_steps=1, save_steps=2,
    per_device_train_batch_size=2, use_cpu=True,
)
trainer = PretrainingTrainer(
    model=tiny_model(tokenizer), args=args, processing_class=tokenizer, prompts=["The capital of"],
    train_dataset=PackedRows([pages], [1.0], 16, 6, 0), shares={{"pages": 1.0}},
    eval_dataset=[{{"text": "Paris is in France.", "source": "pages"}}],
    questions={{"heldout": [Question("The capital of France is", ("Paris.", "Tokyo."), 0)]}},
)
trainer.train()
trainer.evaluate()  # as scripts/pretrain.py does, after the trackers were told that training is over
trainer.save_model()
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder that is home and working folder of a run of three steps, tracked by both."""
    folder = tmp_path_factory.mktemp("world")
    places = {"HOME": str(folder / "home"), "TRACKIO_DIR": "pretrain/trackio", "WANDB_DIR": "pretrain"}
    places |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "WANDB_", "TRACKIO_"))}
    code = RUN.format(root=str(ROOT), argument=ARGUMENT)
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=outside | places | SECRETS, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    (folder / "printed").write_text(ran.stdout + ran.stderr, encoding="utf-8")
    return folder


def test_trackio_keeps_everything_logged_in_one_run_of_the_output_dir(world):
    with closing(sqlite3.connect(world / "pretrain" / "trackio" / "crawl2chat.db")) as database:
        rows = database.execute("select run_name, metrics from metrics").fetchall()
    logged = [json.loads(metrics) for _, metrics in rows]
    assert {name for name, _ in rows} == {"tiny"}
    assert set().union(*logged) >= KEYS
    assert [row["train/global_step"] for row in logged if "train/loss" in row] == [1, 2, 3]
    assert logged[-1]["eval/heldout_acc_norm"] in (0.0, 1.0) and logged[-1]["train/global_step"] == 3


def test_wandb_offline_keeps_everything_logged(world):
    (file,) = world.glob("pretrain/wandb/offline-run-*/run-*.wandb")  # its records are not compressed
    content = file.read_bytes()
    assert [key for key in KEYS if key.encode() not in content] == []


def test_no_secret_is_in_any_file_of_a_tracked_run(world):
    files = [file for file in world.rglob("*") if file.is_file()]
    names = {file.name for file in files}
    assert {"crawl2chat.db", "training_args.bin", "model.safetensors", "debug.log", "printed"} <= names
    for file in files:
        content = file.read_bytes()
        for secret in (*SECRETS.values(), ARGUMENT):
            assert secret.encode() not in content, f"{file.relative_to(world)} holds {secret}"
