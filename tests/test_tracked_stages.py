"""`report_to` in the recipe of every stage, by the scripts themselves: what is logged, and that no secret is."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from crawl2chat.recipe import parse_recipe
from test_distributed import recipe, world  # noqa: F401
from test_tracking import ARGUMENT, SECRETS, environment, trackio_rows, wandb_run

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if path.stem != "chat")
OUTPUT = "output/laptop"
MODEL = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_stages_recipe_takes_report_to(script, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    types = importlib.import_module(script).RECIPE
    with pytest.raises(SystemExit):
        parse_recipe(*types, args=["--help"])
    assert capsys.readouterr().out.count("--report_to ") == 1
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("report_to: wandbb\n")
    with pytest.raises(SystemExit):
        parse_recipe(*types, args=[str(recipe)])
    assert f"{recipe}:1: key 'report_to' must be one of" in (said := capsys.readouterr().err) and "'wandb'?" in said


def stage(folder: Path, script: str, recipe: str, *flags: str, **more: str) -> subprocess.CompletedProcess:
    """A script of the repository's, run in `folder` with a recipe."""
    path = folder / f"{script}.yaml"
    path.write_text(recipe)
    command = [sys.executable, str(ROOT / f"scripts/{script}.py"), path.name, *flags]
    env = environment(folder) | more
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def lifecycle(tmp_path_factory):
    """A stage without and one with a Trainer, each by its script and recipe, tracked by both."""
    folder = tmp_path_factory.mktemp("lifecycle")
    text = "The capital of France is Paris. Two and three are five. " * 40
    rows = [json.dumps({"text": text, "id": str(i)}) for i in range(60)]
    folder.joinpath("pages.jsonl").write_text("\n".join(rows))
    both = "report_to: [wandb, trackio]\n"
    tokenizer = f"datasets: [{{path: pages.jsonl}}]\nvocab_size: 320\noutput_dir: {OUTPUT}/tokenizer\n"
    pretrain = f"tokenizer: {OUTPUT}/tokenizer\noutput_dir: {OUTPUT}/pretrain\nmodel: {json.dumps(MODEL)}\n"
    pretrain += "datasets: [{name: pages, path: pages.jsonl}]\nheld_out_share: 0.2\nmax_length: 16\nmax_steps: 3\n"
    pretrain += "per_device_train_batch_size: 2\nuse_cpu: true\nlogging_steps: 1\nsave_steps: 2\n"
    flags = ["--report_to", "wandb", "trackio"]
    ran = {
        "tokenizer": stage(folder, "tokenizer", tokenizer + both),
        "pretrain": stage(folder, "pretrain", pretrain, *flags),
    }
    for name, done in ran.items():
        folder.joinpath(f"{name}.txt").write_text(done.stdout + done.stderr)
    return folder, ran


@pytest.mark.parametrize("name", ["tokenizer", "pretrain"])
def test_a_recipes_stage_is_logged_by_both_trackers_in_the_runs_group(lifecycle, name):
    folder, ran = lifecycle
    assert ran[name].returncode == 0, ran[name].stderr[-3000:]
    assert [line.split(":")[1] for line in ran[name].stdout.splitlines() if line.startswith("tracking:")] == [
        " wandb", " trackio",
    ]  # fmt: skip
    run, metrics = wandb_run(folder, name), json.loads((folder / OUTPUT / name / "metrics.json").read_text())
    assert (run["run"].run_group, run["run"].job_type) == ("laptop", name)
    assert run["config"]["output_dir"] == f"{OUTPUT}/{name}"
    assert metrics.items() <= {key: value for row in run["logged"] for key, value in row.items()}.items()
    rows = trackio_rows(folder, f"laptop-{name}")
    assert metrics.items() <= {key: value for row in rows for key, value in row.items()}.items()
    if name == "pretrain":
        for logged in (run["logged"], rows):
            assert [row["train/global_step"] for row in logged if "train/loss" in row] == [1, 2, 3]


def test_no_secret_of_the_environment_is_in_any_file_of_a_lifecycle(lifecycle):
    folder, _ = lifecycle
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {"crawl2chat.db", "training_args.bin", "recipe.yaml", "pretrain.txt"} <= {file.name for file in files}
    held = [(file, name) for file in files for name, secret in SECRETS.items() if secret.encode() in file.read_bytes()]
    assert held == []


@pytest.mark.parametrize(
    "recipe, flags",
    [
        (f"hub_token: {ARGUMENT}\n", []),
        (f"model: {{api_key: {ARGUMENT}}}\n", []),
        (f"env: {{HF_TOKEN: {ARGUMENT}}}\n", []),
        ("", ["--hub_token", ARGUMENT]),
        ("", [f"--hub_token={ARGUMENT}"]),
    ],
)
def test_a_secret_in_a_recipe_or_a_flag_is_refused_unsaid_and_unwritten(tmp_path, monkeypatch, capsys, recipe, flags):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    path, output = tmp_path / "pretrain.yaml", tmp_path / "output"
    path.write_text(f"report_to: wandb\noutput_dir: {output}\n{recipe}")
    with pytest.raises(SystemExit) as stop:
        parse_recipe(*importlib.import_module("pretrain").RECIPE, args=[str(path), *flags])
    said = "".join(capsys.readouterr())
    assert stop.value.code == 2 and ("is a secret" in said or "is not allowed in a recipe" in said)
    assert ARGUMENT not in said and not output.exists()


@pytest.mark.slow
def test_training_goes_on_where_wandb_cannot_be_reached(lifecycle):
    folder, _ = lifecycle
    recipe = (folder / OUTPUT / "pretrain/recipe.yaml").read_text().replace(f"{OUTPUT}/pretrain", f"{OUTPUT}/again")
    done = stage(folder, "pretrain", recipe, "--report_to", "wandb", WANDB_MODE="online", WANDB_API_KEY="too short")
    assert done.returncode == 0 and "tracking: wandb: cannot be reached (" in done.stdout, done.stderr[-3000:]
    assert [row["train/global_step"] for row in wandb_run(folder, "again")["logged"] if "train/loss" in row] == [
        1,
        2,
        3,
    ]


@pytest.mark.slow
def test_practice_whose_replies_differ_in_shape_is_logged_to_its_end(world, tmp_path):  # noqa: F811
    keys = recipe(world, "grpo", tmp_path / OUTPUT / "grpo", 1) | {"log_completions": True}
    done = stage(tmp_path, "grpo", json.dumps(keys | {"report_to": ["wandb", "trackio"]}))
    assert done.returncode == 0, done.stderr[-3000:]
    logged = wandb_run(tmp_path, "grpo")["logged"]
    for rows in (logged, trackio_rows(tmp_path, "laptop-grpo")):
        assert len([row for row in rows if "train/loss" in row]) == 5
        assert {"pass_at_1_after"} < set().union(*rows)
    assert any("tables/completions.path" in row for row in logged)
