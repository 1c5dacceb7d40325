"""Public benchmarks run offline from a folder, and an unknown one is one clear line; what ours compare is alike."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from crawl2chat.benchmarks import Benchmarks, evaluate_benchmarks
from tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]


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


@pytest.fixture(scope="module")
def parity():
    """benchmarks/ppo.py, which is a script and no module of the package."""
    spec = importlib.util.spec_from_file_location("benchmark_of_ppo", ROOT / "benchmarks" / "ppo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_curves_of_two_sides_are_compared_in_units_of_what_seeds_differ_by(parity):
    same = parity.distance([[0.0, 1.0], [2.0, 3.0]], [[0.0, 1.0], [2.0, 3.0]])
    apart = parity.distance([[0.0, 1.0], [2.0, 3.0]], [[10.0, 11.0], [12.0, 13.0]])
    assert same == pytest.approx((0 + 2 + 2 + 0) / 4 / 2) and apart == pytest.approx((10 + 12 + 8 + 10) / 4 / 2)


def test_both_sides_of_the_ppo_benchmark_update_on_as_many_rows(parity):
    recipe = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "num_mini_batches": 4}
    recipe |= {"num_ppo_epochs": 3, "kl_coef": 0.1, "problems": [], "attn_implementation": "eager"}
    ours, theirs = (parity.arguments(side, recipe, 7, 5) for side in parity.SIDES)
    assert ours["total_episodes"] == theirs["total_episodes"] == 5 * 16 * 2 * 4
    assert theirs["per_device_train_batch_size"] == 128 and theirs["gradient_accumulation_steps"] == 1
    assert ours["per_device_train_batch_size"] == 16 and ours["logging_steps"] == 12
    alike = "kl_coef num_ppo_epochs num_mini_batches seed max_grad_norm".split()
    assert [ours[key] for key in alike] == [theirs[key] for key in alike] and ours["max_grad_norm"] == 0.0
