"""docs/scaling.md: its numbers are those that `--dry_run` works out, its commands name what is there."""

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from crawl2chat.budget import Run, gigabytes, read_run
from crawl2chat.memory import Launch
from crawl2chat.model import count_parameters
from crawl2chat.recipe import load_recipe
from test_house import check_command

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/scaling.md"
QWEN = {"model_type": "qwen2", "num_hidden_layers": 28, "max_position_embeddings": 32_768}
MODELS = {  # name: the recipe that is planned, and the config.json that its model_name_or_path has
    "GPT-2 124M": ("pretrain", "gpt2/124m", None),
    "GPT-2 1.6B": ("pretrain", "gpt2/1.6b", None),
    "Qwen2.5 1.5B": (
        "sft", "qwen2.5-1.5b/sft",
        QWEN | {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2}
        | {"vocab_size": 151_936, "tie_word_embeddings": True},
    ),
    "Qwen2.5 7B": (
        "sft", "qwen2.5-1.5b/sft",
        QWEN | {"hidden_size": 3584, "intermediate_size": 18_944, "num_attention_heads": 28, "num_key_value_heads": 4}
        | {"vocab_size": 152_064, "tie_word_embeddings": False},
    ),
}  # fmt: skip
LAUNCHES = {
    "ddp": Launch(8), "zero1": Launch(8, 1), "zero2": Launch(8, 2), "zero3": Launch(8, 3),
    "zero3_offload": Launch(8, 3, True, True),
}  # fmt: skip


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    for name in ("WORLD_SIZE", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """Every model of the page as its recipe's dry run sees it; a folder with a config.json is enough."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.syspath_prepend(str(ROOT / "scripts"))
        for name, (script, recipe, config) in MODELS.items():
            flags, path = [], Path(f"recipes/{recipe}.yaml")
            if config:
                folder = tmp_path_factory.mktemp("model")
                (folder / "config.json").write_text(json.dumps(config))
                flags = ["--model_name_or_path", str(folder)]
            types = importlib.import_module(script).RECIPE
            configs = load_recipe(*types, args=[str(path), *flags], plan_only=True).configs
            args = next(config for config in configs if hasattr(config, "gradient_accumulation_steps"))
            found[name] = read_run(configs, args, path, flags)
    return found


def states(runs: dict[str, Run]) -> list[str]:
    """Rows of the first table: weights, gradients and optimizer states, GB a GPU; and in the host's memory."""
    rows = []
    for name, run in runs.items():
        used = [run.memory(run.step, launch) for launch in LAUNCHES.values()]
        sizes = [gigabytes(one.weights + one.gradients + one.optimizer)[:-3] for one in used]
        count = f"{count_parameters(run.model) / 1e9:.2f} billion"
        rows.append(f"| {name} | {count} | {' | '.join(sizes)} | {gigabytes(used[-1].host)[:-3]} |")
    return rows


def steps(runs: dict[str, Run]) -> list[str]:
    """Rows of the second table: activations and loss of the recipe's micro-batch, then all a GPU holds."""
    rows = []
    for name, run in runs.items():
        batch = f"{run.step.rows} x {run.length:,}"
        used = [run.memory(replace(run.step, checkpointing=again), Launch(8)) for again in (False, True)]
        kept = [gigabytes(one.activations + one.loss)[:-3] for one in used]
        checkpointing = "yes" if run.step.checkpointing else "no"
        totals = [gigabytes(run.memory(run.step, launch).total + run.beside)[:-3] for launch in LAUNCHES.values()]
        rows.append(f"| {name} | {batch} | {' | '.join(kept)} | {checkpointing} | {' | '.join(totals)} |")
    return rows


@pytest.mark.parametrize("table", [states, steps])
def test_the_pages_tables_are_what_a_dry_run_works_out(runs, table):
    text = PAGE.read_text(encoding="utf-8")
    missing = [row for row in table(runs) if row not in text]
    assert not missing, "\n".join(["docs/scaling.md lacks:", *table(runs)])


def test_every_launch_of_the_page_is_an_accelerate_config():
    text = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"accelerate_configs/\w+\.yaml", text))
    assert all((ROOT / path).is_file() for path in named)
    assert {f"accelerate_configs/{name}.yaml" for name in LAUNCHES} <= named


def test_every_command_of_the_page_names_real_files_and_flags():
    text = PAGE.read_text(encoding="utf-8")
    commands = [line for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]
    assert len(commands) >= 4
    for command in commands:
        if command.startswith("sbatch"):
            files = [word for word in command.split() if re.match("(scripts|recipes)/", word)]
            assert files and all((ROOT / file).exists() for file in files), command
        else:
            check_command(command)
