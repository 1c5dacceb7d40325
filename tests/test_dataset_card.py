"""The rows of a stage as a data set: what is pushed, and a card that says what it is and that loads."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from crawl2chat import outbox
from crawl2chat.dataset_card import dataset_card, row_files
from hub_server import hub_server

PAIR = {"prompt": [{"role": "user", "content": "Hi?"}], "chosen": "Hello.", "rank_distance": 2}


def lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def stage(tmp_path) -> Path:
    """Like a stage's folder: splits at the top and in folders, other rows, shards, and what is not rows."""
    folder = tmp_path / "preferences"
    lines(folder / "train.jsonl", [PAIR] * 3)
    lines(folder / "test.jsonl", [PAIR])
    lines(folder / "rollouts.jsonl", [{"text": "````<script>alert(1)</script>"}] * 2)
    lines(folder / "facts" / "train.jsonl", [{"answer": 4.5}] * 5)
    lines(folder / "facts" / "test.jsonl", [])
    lines(folder / "_earlier" / "train.jsonl", [PAIR])
    (folder / "completions").mkdir()
    for shard in (0, 1):
        pq.write_table(pa.table({"reward": [0.5, 1.0]}), folder / "completions" / f"completions_{shard}.parquet")
    (folder / "recipe.yaml").write_text("# Pairs of verses, 15 s\nseed: 0\n")
    (folder / "metrics.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("# the model's own card")
    return folder


def test_the_card_names_licence_splits_columns_and_recipe(stage):
    card = DatasetCard(dataset_card(stage, row_files(stage), "me/verses", "cc-by-sa-4.0"))
    assert card.data.license == "cc-by-sa-4.0" and card.data.size_categories == ["n<1K"]
    for line in [
        "# verses",
        "11 rows. Made by crawl2chat: Pairs of verses, 15 s.",
        "| default | train | 3 | `prompt` (messages), `chosen` (text), `rank_distance` (number) |",
        "| default | test | 1 | `prompt` (messages), `chosen` (text), `rank_distance` (number) |",
        "| rollouts | train | 2 | `text` (text) |",
        "| facts | train | 5 | `answer` (number) |",
        "seed: 0",
    ]:
        assert line in card.text.splitlines(), line


def test_what_was_pushed_loads_as_the_card_says(stage, tmp_path, monkeypatch, capsys):
    with hub_server() as hub:
        hub.known_to(monkeypatch)
        outbox.main(["push", str(stage), "me/verses", "--dataset", "--license", "apache-2.0"])
    files = hub.repos["dataset", "me/verses"].files()
    rows = {"train.jsonl", "test.jsonl", "rollouts.jsonl", "facts/train.jsonl"}
    assert files.keys() == rows | {"README.md", "recipe.yaml", "metrics.json"}
    left = "README.md, _earlier, completions/completions_0.parquet, completions/completions_1.parquet, "
    left += "config.json, facts/test.jsonl, model.safetensors"
    assert f"hub: not sent from {stage}: {left}" in capsys.readouterr().out
    for name, data in files.items():
        (tmp_path / "down" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "down" / name).write_bytes(data)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name, counts in [("default", {"train": 3, "test": 1}), ("facts", {"train": 5}), ("rollouts", {"train": 2})]:
        loaded = load_dataset(str(tmp_path / "down"), name, cache_dir=str(tmp_path / "cache"))
        assert {split: len(part) for split, part in loaded.items()} == counts


def test_parquet_shards_are_one_split(stage):
    for path in stage.rglob("*.jsonl"):
        path.unlink()
    assert "| completions | train | 4 | `reward` (number) |" in dataset_card(stage, row_files(stage), "me/x", "mit")


def test_rows_cannot_leave_the_block_they_are_shown_in(stage):
    for name in ("train.jsonl", "test.jsonl"):
        (stage / name).unlink()
    (stage / "recipe.yaml").write_text("# ````\nseed: 0\n")
    card = dataset_card(stage, row_files(stage), "me/verses", "unknown")
    body = card[card.index("A row of") :]
    assert body.count("````") == 4 and "<script>" in body.split("````")[1] + body.split("````")[3]


def test_a_folder_with_a_card_of_its_own_is_taken_as_it_is(stage, monkeypatch, tmp_path):
    (stage / "config.json").unlink()
    with hub_server() as hub:
        hub.known_to(monkeypatch)
        outbox.push(stage, "me/verses", repo_type="dataset", message="Rows", root=tmp_path)
    assert hub.repos["dataset", "me/verses"].files()["README.md"] == b"# the model's own card"


def test_a_folder_without_rows_or_with_a_broken_one_is_one_line(tmp_path, stage):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "metrics.json").write_text("{}")
    with pytest.raises(SystemExit, match="no rows in it"):
        outbox.push(tmp_path / "none", "me/x", repo_type="dataset", message="Rows", root=tmp_path)
    (stage / "train.jsonl").write_text("{broken\n")
    with pytest.raises(SystemExit, match="train.jsonl: its first line is no JSON object; nothing was sent"):
        outbox.push(stage, "me/x", repo_type="dataset", message="Rows", root=tmp_path)
