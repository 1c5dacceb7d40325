"""Public benchmarks run offline from a folder, and an unknown one is one clear line."""

import json

import pytest
import yaml

from crawl2chat.benchmarks import Benchmarks, evaluate_benchmarks
from tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model(tokenizer)


@pytest.fixture
def local_benchmark(tmp_path):
    """An lm-eval task of three questions in a folder: what `include_path` names."""
    rows = [
        {"question": f"The capital of {c} is", "choices": ["Paris", "Tokyo"], "label": i % 2}
        for i, c in enumerate("abc")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "local_capitals",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "local_capitals.yaml").write_text(yaml.safe_dump(task))
    return tmp_path


def test_lm_eval_runs_a_local_task_offline(model, tokenizer, local_benchmark, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", local_benchmark / "cache")
    found = evaluate_benchmarks(model, tokenizer, Benchmarks(["local_capitals"], include_path=str(local_benchmark)))
    assert 0 <= found["local_capitals/acc"] <= 1 and "local_capitals/acc_stderr" in found


def test_an_unknown_benchmark_names_the_nearest(model, tokenizer, local_benchmark):
    with pytest.raises(SystemExit, match="unknown task 'local_capital'; did you mean 'local_capitals'"):
        evaluate_benchmarks(model, tokenizer, Benchmarks(["local_capital"], include_path=str(local_benchmark)))


def test_a_package_that_a_benchmark_lacks_is_one_clear_line(model, tokenizer, local_benchmark, monkeypatch):
    def lacking(**_arguments):
        raise AssertionError("`antlr4-python3-runtime==4.11` is required\nand more")

    monkeypatch.setattr("lm_eval.simple_evaluate", lacking)
    with pytest.raises(SystemExit) as stop:
        evaluate_benchmarks(model, tokenizer, Benchmarks(["local_capitals"], include_path=str(local_benchmark)))
    assert "local_capitals: `antlr4-python3-runtime==4.11` is required; are" in stop.value.code
    assert "\n" not in stop.value.code
