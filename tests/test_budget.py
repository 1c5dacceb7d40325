"""The sums of a training stage before it runs: parameters and FLOPs against torch's own counts, what a plan prints."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from crawl2chat import budget, hardware
from crawl2chat.budget import Run, budget_rows, count_embeddings, count_scaling, duration, optimizer_flops, read_run
from crawl2chat.data.tokens import Source
from crawl2chat.hardware import Device
from crawl2chat.memory import Launch
from crawl2chat.model import count_parameters, flops_per_token
from crawl2chat.muon import hidden_matrices, orthogonalise
from crawl2chat.pretraining import PretrainingArguments
from crawl2chat.recipe import load_recipe
from tiny import tiny_tokenizer

ROOT = Path(__file__).parents[1]
TINY = "{model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 2}"
CPU = Device("this CPU", 1e11, 8e9, 1e10, 0.0, 0.5)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(budget, "this_cpu", lambda bf16, memory: CPU)
    for name in ("WORLD_SIZE", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)


def run_of(recipe: Path, *flags: str, launch: Launch = Launch()) -> Run:  # noqa: B008
    from pretrain import RECIPE

    configs = load_recipe(*RECIPE, args=[str(recipe), *flags], plan_only=True).configs
    run = read_run(configs, configs[1], recipe, list(flags))
    run.launch = launch
    return run


def recipe_in(folder: Path, more: str = "", model: str = TINY) -> Path:
    text = "# A tiny model\n# accelerate launch --config_file accelerate_configs/ddp.yaml scripts/pretrain.py x\n"
    text += f"model: {model}\ntokenizer: {folder}/tokenizer\noutput_dir: {folder}/out\nmax_steps: 1000\n"
    text += "datasets: [{name: pages, path: owner/name}]\nmax_length: 128\nper_device_train_batch_size: 4\n" + more
    (folder / "pretrain.yaml").write_text(text)
    return folder / "pretrain.yaml"


def rows_of(recipe: Path, *flags: str, launch: Launch = Launch()) -> dict[str, str]:  # noqa: B008
    rows: dict[str, str] = {}
    for name, text in budget_rows(run_of(recipe, *flags, launch=launch)):
        rows[name] = f"{rows[name]}\n{text}" if name in rows else text
    return rows


# published: Radford et al. 2019, and the checkpoints on the hub
@pytest.mark.parametrize(
    "name, parameters", [("124m", 124_439_808), ("350m", 354_823_168), ("774m", 774_030_080), ("1.6b", 1_557_611_200)]
)
def test_a_gpt2_recipe_has_the_published_parameters_and_47_rows_of_padding(name, parameters):
    run = run_of(Path(f"recipes/gpt2/{name}.yaml"))
    width = run.model.config.hidden_size
    assert count_parameters(run.model) == parameters + (50_304 - 50_257) * width
    assert all(p.is_meta for p in run.model.parameters())
    assert f"= {parameters:,}" in Path(f"recipes/gpt2/{name}.yaml").read_text()


def test_the_reference_recipes_comment_counts_its_parameters():
    run = run_of(Path("recipes/pretrain.yaml"))
    assert f"= {count_parameters(run.model):,} parameters" in Path("recipes/pretrain.yaml").read_text()
    assert run.vocabulary == "as recipes/tokenizer.yaml asks"


@pytest.mark.parametrize("recipe", ["pretrain", "gpt2/124m", "gpt2/350m", "gpt2/774m", "gpt2/1.6b"])
def test_a_recipes_sum_is_its_tokens_on_eight_devices(recipe):
    path = Path(f"recipes/{recipe}.yaml")
    run = run_of(path, launch=Launch(8))
    assert f"8 GPUs = {run.tokens // run.args.max_steps:,} tokens a step, x {run.args.max_steps:,} steps" in " ".join(
        path.read_text().replace("\n#", "").split()
    )


@pytest.mark.parametrize("recipe", ["pretrain", "gpt2/124m", "gpt2/350m", "gpt2/774m", "gpt2/1.6b"])
def test_a_recipes_first_line_says_the_planned_time(recipe):
    path = Path(f"recipes/{recipe}.yaml")
    run = run_of(path, launch=Launch(8))
    amount, unit = re.search(r"eight H100, ([\d.]+) (minutes|hours|days)", path.read_text()).groups()
    seconds = float(amount) * {"minutes": 60, "hours": 3600, "days": 86400}[unit]
    assert budget.seconds_of(run, hardware.find_device("H100")) == pytest.approx(seconds, rel=0.03)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen3"])
def test_a_tokens_flops_are_those_that_torch_counts(model_type):
    """With eager attention: the counter does not know the CPU's fused kernel."""
    spec = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4, "num_key_value_heads": 4}
    spec = {"n_embd": 256, "n_head": 4} if model_type == "gpt2" else spec | {"head_dim": 64}
    config = AutoConfig.for_model(
        model_type, vocab_size=1024, num_hidden_layers=2, bos_token_id=0, eos_token_id=0, **spec
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    ids = torch.zeros((2, 128), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    assert flops_per_token(model, 128) == pytest.approx(counter.get_total_flops() / ids.numel(), rel=0.02)


def test_muons_flops_are_those_that_torch_counts(tmp_path):
    run = run_of(recipe_in(tmp_path, "optim: muon\n"))
    with FlopCounterMode(display=False) as counter:
        for matrix in hidden_matrices(run.model):
            orthogonalise(torch.randn(1, *matrix.shape))
    assert optimizer_flops(run) == counter.get_total_flops()


@pytest.mark.parametrize("tied", ["true", "false"])
def test_embeddings_and_blocks_are_told_apart(tmp_path, tied):
    run = run_of(recipe_in(tmp_path, model=TINY[:-1] + f", tie_word_embeddings: {tied}" + "}"))
    rows, blocks = 50_304 * 64, 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert count_embeddings(run.model) == rows * (1 if tied == "true" else 2)
    assert count_scaling(run.model) == rows + blocks
    assert count_parameters(run.model) == count_embeddings(run.model) + blocks + 5 * 64


def test_the_plan_of_eight_processes(tmp_path):
    rows = rows_of(recipe_in(tmp_path, "bf16: true\ntorch_compile: true\n"), launch=Launch(8))
    assert rows["launch"].partition(";")[0] == "8 processes, each with the whole model (DDP)"
    assert "= 32 sequences a step, x 128 tokens = at most 4,096 tokens a step" in rows["batch"]
    assert "1,000 steps, at most 4,096,000 tokens" in rows["length"]
    assert "vocabulary 50,304 (assumed, GPT-2's" in rows["model"]
    assert "(Chinchilla: 20)" in rows["tokens"] and "(nanochat: 10.5)" in rows["tokens"]
    assert rows["time"].startswith("8 x H100: ") and len(rows["time"].splitlines()) == len(hardware.DEVICES)
    assert all("TFLOP/s, $" in line and " of 80 GB" in line for line in rows["time"].splitlines()[:1])


def test_without_a_launcher_the_plan_names_the_recipes_own_launch(tmp_path):
    hint = "1 process; `accelerate launch --config_file accelerate_configs/ddp.yaml ... --dry_run` plans for its 8"
    assert rows_of(recipe_in(tmp_path))["launch"] == hint


def test_zero_shrinks_what_is_planned_for_a_process():
    run = run_of(Path("recipes/gpt2/1.6b.yaml"))
    whole, *shared = (run.memory(run.step, Launch(8, stage)).total for stage in range(4))
    assert shared == sorted(shared, reverse=True) and shared[0] < 0.7 * whole


def test_the_launch_is_the_environments(tmp_path, monkeypatch):
    run = run_of(recipe_in(tmp_path))
    environment = {"WORLD_SIZE": "8", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    again = read_run((run.args,), run.args, tmp_path / "pretrain.yaml", [])
    assert (again.launch, again.hint) == (Launch(8, 3), "")


def test_a_step_that_does_not_fit_is_shown_with_the_change_that_makes_it_fit():
    rows = rows_of(Path("recipes/gpt2/124m.yaml"), "--per_device_train_batch_size", "256")
    h100, l4 = (next(line for line in rows["time"].splitlines() if f"x {name}:" in line) for name in ("H100", "L4"))
    assert "fits with per_device_train_batch_size: 64, gradient_accumulation_steps: 4" in h100
    assert "fits with per_device_train_batch_size: 32, gradient_accumulation_steps: 8" in l4


def test_what_fits_nowhere_is_said():
    run = run_of(Path("recipes/gpt2/1.6b.yaml"))
    assert budget.what_fits(run, 2e9).startswith("does not fit")
    assert "zero3_offload.yaml" in budget.what_fits(run, 24e9)


def test_a_cpus_recipe_is_planned_for_this_cpu_alone(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    rows = rows_of(recipe_in(tmp_path, "use_cpu: true\n"))
    assert rows["time"].startswith("this CPU: ") and "\n" not in rows["time"]
    assert f"vocabulary 448 ({tmp_path}/tokenizer)" in rows["model"]


def test_measured_speed_is_shown_from_the_runs_folder_or_a_siblings(tmp_path):
    recipe = recipe_in(tmp_path)
    assert "ran" not in rows_of(recipe)
    sibling = tmp_path / "pretrain"
    sibling.mkdir()
    (sibling / "metrics.json").write_text('{"rows": 3}')
    assert "ran" not in rows_of(recipe)
    flops = flops_per_token(run_of(recipe).model, 128) * 512_000 / 300
    metrics = {"tokens_per_second": 2000, "flops_per_second": flops, "peak_memory_gb": 1.25}
    (sibling / "metrics.json").write_text(json.dumps(metrics))
    assert "2,000 tokens a second" in rows_of(recipe)["ran"]
    assert "this plan at that speed: 5.0 minutes" in rows_of(recipe)["ran"]


def test_epochs_are_read_off_the_token_files(tmp_path):
    (tmp_path / "out/tokens").mkdir(parents=True)
    (tmp_path / "out/tokens/pages-0123456789abcdef.bin").write_bytes(bytes(2 * 256_000))
    assert "pages 2.00" in rows_of(recipe_in(tmp_path))["epochs"]


def test_epochs_follow_the_mixtures_weights(tmp_path):
    run = run_of(recipe_in(tmp_path))
    run.sources = [Source("a", "a", weight=3.0), Source("b", "b", weight=1.0)]
    (tmp_path / "out/tokens").mkdir(parents=True)
    for name in "ab":
        (tmp_path / f"out/tokens/{name}-0123456789abcdef.bin").write_bytes(bytes(2 * 128_000))
    assert budget.epochs_read(run) == {"a": 3.0, "b": 1.0}


def test_a_model_that_cannot_be_built_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="model: .*divisible"):
        run_of(recipe_in(tmp_path, model="{model_type: gpt2, n_embd: 65, n_head: 2, n_layer: 1}"))


def test_finetuning_is_planned_from_the_models_config(tmp_path):
    from sft import RECIPE

    config = AutoConfig.for_model("llama", vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=2)
    config.save_pretrained(tmp_path / "base")
    recipe = tmp_path / "sft.yaml"
    recipe.write_text(
        f"model_name_or_path: {tmp_path}/base\noutput_dir: {tmp_path}/out\nmax_length: 64\ndatasets: [{{path: a/b}}]\n"
    )
    configs = load_recipe(*RECIPE, args=[str(recipe)], plan_only=True).configs
    rows = dict(budget_rows(read_run(configs, configs[1], recipe, [])))
    assert "epochs: 3" in rows["length"] and f"({tmp_path}/base's)" in rows["model"] and "GB" in rows["memory"]
    assert "tokens" not in rows and "compute" not in rows
    (tmp_path / "base/config.json").write_text("{")
    with pytest.raises(SystemExit, match="cannot read its config.json"):
        read_run(configs, configs[1], recipe, [])


def test_a_model_on_the_hub_leaves_the_sums_of_the_batch(tmp_path):
    args = PretrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_steps=3)
    assert [name for name, _ in budget_rows(read_run((args,), args, None, []))] == [
        "launch",
        "batch",
        "length",
        "rate",
    ]


@pytest.mark.parametrize(
    "seconds, text", [(30, "0.5 minutes"), (5400, "90.0 minutes"), (7200, "2.0 hours"), (259_200, "3.0 days")]
)
def test_a_duration_is_in_the_unit_one_would_say(seconds, text):
    assert duration(seconds) == text
