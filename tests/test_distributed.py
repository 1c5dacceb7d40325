"""Two ranks on a CPU: the training scripts under the repository's own accelerate configs, against one rank."""

import fcntl
import json
import os
import subprocess
import sys
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from crawl2chat.model import check_weights, load_model
from crawl2chat.muon import zero_muon
from crawl2chat.policy_and_value import begin_value_model
from crawl2chat.pretraining import PretrainingArguments
from crawl2chat.reward_model import load_reward_model
from tiny import TEXT, tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]
MODEL = {  # its embedding and MLP are larger than what ZeRO-3 leaves whole (100,000 elements)
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["all-linear"]}
MUON = {"optim": "muon", "muon_learning_rate": 3e-3, "weight_decay": 0.1, "max_grad_norm": 0.0}
JOBS = {
    "cpu": ["pretrain", "sft", "muon", "grpo", "reward", "ppo", "ppo_lora"],
    "ddp": ["pretrain", "sft", "muon", "reward", "ppo"],
    "zero1": ["pretrain", "sft", "muon"],
    "zero2": ["pretrain", "sft", "muon", "bf16", "grpo", "reward", "ppo", "ppo_lora"],
    "zero3": ["pretrain", "sft", "muon", "ungathered", "ppo"],
    "zero3_offload": ["pretrain", "sft", "muon"],
}
SCRIPTS = {"sft": "sft", "grpo": "grpo", "reward": "reward", "ppo": "ppo", "ppo_lora": "ppo"}  # other jobs: pretrain
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
TWO_RANKS = [
    "ddp",
    *(pytest.param(f"zero{stage}", marks=needs_deepspeed) for stage in (1, 2, 3)),
    pytest.param("zero3_offload", marks=[needs_deepspeed, pytest.mark.slow]),  # builds another extension: a minute
]


@pytest.fixture(scope="module")
def extensions(request) -> Path:
    """A folder of our own for the extension that DeepSpeed builds at its first use: a minute, once in a checkout."""
    import deepspeed

    versions = f"{deepspeed.__version__}-{torch.__version__}-{sys.version_info[0]}.{sys.version_info[1]}"
    folder = request.config.cache.mkdir(f"torch_extensions-{versions}")
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(folder)}
    build = "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as Builder; Builder().load()"
    with open(folder / "in_use", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for lock in folder.glob("*/lock"):  # of a build that was killed: the next would wait for it forever
            lock.unlink()
        done = subprocess.run([sys.executable, "-c", build], env=environment, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"DeepSpeed cannot build its extension here: {done.stderr.strip().splitlines()[-1]}")
    return folder


def accelerate(config: str, ranks: int, command: list, log: Path, environment: dict) -> subprocess.Popen:
    """`accelerate launch` by one of the repository's configs; what is printed goes to `log`."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}.yaml"]
    launch += ["--num_processes", str(ranks), "--mixed_precision", "no", "--main_process_port", "0"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "TORCH_COMPILE_DISABLE": "1", **environment}
    with open(log, "w") as handle:
        return subprocess.Popen([*launch, *command], cwd=ROOT, env=environment, stdout=handle, stderr=handle)


def kill(process: subprocess.Popen) -> None:
    """The launcher and its ranks, each of which leads a session of its own."""
    launcher = psutil.Process(process.pid)
    for one in [launcher, *launcher.children(recursive=True)]:
        one.kill()
    process.wait()


def ended(process: subprocess.Popen, log: Path, seconds: int = 600) -> str:
    """What was printed by a launch that ends well."""
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        kill(process)
        code = f"killed after {seconds} s"
    assert code == 0, f"{code}: {log.read_text()[-6000:]}"
    return log.read_text()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    pages = [{"text": f"{TEXT} Page {i}.", "id": str(i)} for i in range(40)]
    hello = {"role": "user", "content": "Hi!"}
    talk = [[hello, {"role": "assistant", "content": TEXT[i : i + 60]}] for i in range(40)]
    (folder / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pages))
    (folder / "talk.jsonl").write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in talk))
    for split, count in (("train", 40), ("test", 10)):
        better, worse = ([{"role": "assistant", "content": text}] for text in ("Paris.", "Tokyo, Tokyo."))
        asked = [[{"role": "user", "content": f"Hi, {split} {i}!"}] for i in range(count)]
        pairs = [{"prompt": turns, "chosen": better, "rejected": worse, "rank_distance": 1} for turns in asked]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    tokenizer = tiny_tokenizer("<|endoftext|>")
    for name in ("tokenizer", "base", "judge"):
        tokenizer.save_pretrained(folder / name)
    model = tiny_model(tokenizer, hidden_size=256, layers=1)
    model.save_pretrained(folder / "base")
    judge = begin_value_model(model, [])
    torch.nn.init.normal_(judge.score.weight, generator=torch.Generator().manual_seed(0))
    judge.save_pretrained(folder / "judge")
    return folder


def recipe(world: Path, job: str, output: Path, ranks: int) -> dict:
    """The same rows in the same micro-batches on one rank as on two: accumulation makes up for the ranks."""
    keys = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4 // ranks, "max_steps": 5,
        "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "max_grad_norm": 1.0, "bf16": job == "bf16",
        "use_cpu": True, "logging_steps": 1, "report_to": "none", "save_strategy": "no", "output_dir": str(output),
    }  # fmt: skip
    if job == "sft":
        data = [{"path": str(world / "talk.jsonl")}]
        return {"model_name_or_path": str(world / "base"), "datasets": data, "max_length": 64, **keys}
    if job == "reward":
        own = {"preferences": str(world), "max_length": 64, "gradient_checkpointing": False}
        return {"model_name_or_path": str(world / "base"), **own, **keys}
    if job in ("grpo", "ppo", "ppo_lora"):
        problems = [{"name": "sums", "task": "sums", "train": 20, "test": 3}]
        keys |= {"samples": 2, "along_the_way": 2, "temperature": 16.0}
        if job == "grpo":
            keys |= {"num_generations": 4, "max_completion_length": 8}
        else:
            keys |= {"reward_models": [str(world / "judge")], "num_ppo_epochs": 2, "max_steps": 8}
            keys |= {"response_length": 32, "kl_target": 0.1, "missing_eos_penalty": 1.0}
            keys |= LORA if job == "ppo_lora" else {}
        rewards = [{"name": "language"}]
        return {"model_name_or_path": str(world / "base"), "problems": problems, "rewards": rewards, **keys}
    source = {"name": "pages", "path": str(world / "pages.jsonl")}
    keys |= {"model": MODEL, "tokenizer": str(world / "tokenizer"), "datasets": [source], "max_length": 32}
    return {**keys, "held_out_share": 0.2, "prompts": ["The capital of"], **(MUON if job == "muon" else {})}


@pytest.fixture(scope="module")
def launched(world, request):
    """config -> (folder of its jobs' outputs, what was printed); every config is launched once for all its jobs."""

    @cache
    def launch(config: str) -> tuple[Path, str]:
        ranks, folder = 1 if config == "cpu" else 2, world / config
        folder.mkdir()
        jobs = []
        for job in JOBS[config]:
            path = folder / f"{job}.yaml"
            path.write_text(json.dumps(recipe(world, job, folder / job, ranks)))
            gather = "false" if job == "ungathered" else "true"
            script = SCRIPTS.get(job, "pretrain")
            environment = {"ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": gather} if config.startswith("zero3") else {}
            jobs.append({"name": job, "command": [f"scripts/{script}.py", str(path)], "environment": environment})
        (folder / "jobs.json").write_text(json.dumps(jobs))
        zero = config.startswith("zero")
        environment = {"TORCH_EXTENSIONS_DIR": str(request.getfixturevalue("extensions"))} if zero else {}
        command, log = ["tests/several_scripts.py", folder / "jobs.json"], folder / "log.txt"
        return folder, ended(accelerate(config, ranks, command, log, environment), log)

    return launch


def losses(folder: Path, printed: str = "") -> list[float]:
    assert (folder / "metrics.json").is_file(), printed[-6000:]
    return [row["loss"] for row in json.loads((folder / "log_history.json").read_text()) if "loss" in row]


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("config", TWO_RANKS)
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_two_ranks_have_one_ranks_losses_and_weights(launched, config, stage):
    (one, _), (two, printed) = launched("cpu"), launched(config)
    expected = losses(one / stage)
    assert len(expected) == 5 and expected[-1] < expected[0] - 0.3
    assert losses(two / stage, printed) == pytest.approx(expected, abs=1e-4)
    ours, theirs = metrics(two / stage), metrics(one / stage)
    for key in {"tokens", "parameters", "trained_parameters", "steps", "eval_bits_per_byte"} & set(theirs):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key
    check_weights(two / stage)
    ours, theirs = load_model(two / stage).state_dict(), load_model(one / stage).state_dict()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-3, rtol=0, msg=name)


@pytest.mark.parametrize("config", ["ddp", *(pytest.param(f"zero{s}", marks=needs_deepspeed) for s in (1, 2))])
def test_muon_takes_one_ranks_steps_on_two(launched, config):
    (one, _), (two, printed) = launched("cpu"), launched(config)
    expected = losses(one / "muon")
    assert expected[0] == losses(one / "pretrain")[0] and abs(expected[-1] - losses(one / "pretrain")[-1]) > 0.02
    assert losses(two / "muon", printed) == pytest.approx(expected, abs=2e-3)  # its iteration is in bf16


@needs_deepspeed
def test_two_ranks_practise_as_one_does(launched):
    (one, _), (two, printed) = launched("cpu"), launched("zero2")
    assert (two / "grpo" / "metrics.json").is_file(), printed[-6000:]
    for key in ("reward", "grad_norm", "entropy"):  # the loss on-policy is near 0 always
        logs = [json.loads((folder / "grpo" / "log_history.json").read_text()) for folder in (one, two)]
        expected, found = ([row[key] for row in log if key in row] for log in logs)
        assert len(expected) == 5 and len(set(expected)) > 1 and found == pytest.approx(expected, rel=2e-3), key
    ours, theirs = metrics(two / "grpo"), metrics(one / "grpo")
    assert ours["mean_length_before"] == theirs["mean_length_before"] and ours["rollouts"] == theirs["rollouts"] == 40
    check_weights(two / "grpo")


@pytest.mark.parametrize("config", ["ddp", pytest.param("zero2", marks=needs_deepspeed)])
def test_two_ranks_have_one_ranks_reward_model(launched, config):
    (one, _), (two, printed) = launched("cpu"), launched(config)
    expected = losses(one / "reward")
    assert len(expected) == 5 and expected[-1] < expected[0] - 0.1
    assert losses(two / "reward", printed) == pytest.approx(expected, abs=1e-4)
    weights = [load_reward_model(folder / "reward")[0].state_dict() for folder in (one, two)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-3, rtol=0, msg=name)


@needs_deepspeed
@pytest.mark.parametrize("config, job", [("ddp", "ppo"), ("zero2", "ppo"), ("zero2", "ppo_lora"), ("zero3", "ppo")])
def test_two_ranks_optimize_a_policy_as_one_does(launched, config, job):
    (one, _), (two, printed) = launched("cpu"), launched(config)
    assert (two / job / "metrics.json").is_file(), printed[-6000:]
    logs = [json.loads((folder / job / "log_history.json").read_text()) for folder in (one, two)]
    for key in ("loss", "grad_norm", "loss/value_avg", "policy/approxkl_avg", "objective/kl", "objective/kl_coef",
                "objective/scores", "val/num_eos_tokens", "completions/mean_length"):  # fmt: skip
        expected, found = ([row[key] for row in log if key in row] for log in logs)
        assert len(expected) in (4, 8) and len(set(expected)) > 1, key
        assert found == pytest.approx(expected, rel=2e-3, abs=1e-4), key
    ours, theirs = metrics(two / job), metrics(one / job)
    for key in ("episodes", "proxy_before", "proxy_after", "kl", "length_before", "length_after"):
        assert ours[key] == pytest.approx(theirs[key], rel=2e-3), key
    check_weights(two / job)
    if job == "ppo":
        for part in (load_model, load_value_model):
            weights = [part(folder / job).state_dict() for folder in (one, two)]
            for name, weight in weights[0].items():
                torch.testing.assert_close(weights[1][name], weight, atol=1e-3, rtol=0, msg=name)


def load_value_model(folder: Path) -> torch.nn.Module:
    return AutoModelForSequenceClassification.from_pretrained(folder / "value_model")


@needs_deepspeed
def test_muon_is_refused_in_one_line_where_zero_would_make_other_steps(launched):
    assert "muon: error: optim: muon needs whole matrices" in launched("zero3")[1]
    with pytest.raises(SystemExit, match="which ZeRO-3 and offloading take apart; launch with"):
        zero_muon(None, SimpleNamespace(max_grad_norm=0), stage=2, offload=True)
    with pytest.raises(SystemExit, match="set max_grad_norm: 0"):
        zero_muon(None, PretrainingArguments("unused", optim="muon"), stage=2, offload=False)


@needs_deepspeed
def test_bf16_is_within_its_noise_of_fp32(launched):
    (one, _), (two, printed) = launched("cpu"), launched("zero2")
    assert losses(two / "bf16", printed) == pytest.approx(losses(one / "pretrain"), rel=5e-3)
    assert load_model(two / "bf16").dtype == torch.bfloat16


@needs_deepspeed
def test_a_model_that_zero_3_did_not_gather_is_refused(launched):
    folder, printed = launched("zero3")
    assert f"ungathered: error: {folder / 'ungathered'}: no weights (*.safetensors); under ZeRO-3" in printed
    assert not (folder / "ungathered" / "metrics.json").exists()


@pytest.mark.parametrize("config", TWO_RANKS)
def test_rank_0_alone_prints(launched, config):
    folder, printed = launched(config)
    assert printed.count(f"wrote {folder / 'pretrain'} |") == 1


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("config, job", [("zero2", "muon"), ("zero3", "pretrain")])
def test_two_ranks_that_were_killed_go_on_with_the_same_losses(world, extensions, tmp_path, config, job):
    log = tmp_path / "log.txt"

    def start(name: str) -> subprocess.Popen:
        path = tmp_path / f"{name}.yaml"
        saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 30}
        path.write_text(json.dumps(recipe(world, job, tmp_path / name, ranks=2) | saving))
        return accelerate(config, 2, ["scripts/pretrain.py", path], log, {"TORCH_EXTENSIONS_DIR": str(extensions)})

    ended(start("alone"), log)
    for _ in range(2):
        there, killed = set(tmp_path.glob("killed/checkpoint-*")), start("killed")
        while not set(tmp_path.glob("killed/checkpoint-*")) - there:
            assert killed.poll() is None, log.read_text()[-6000:]
            time.sleep(0.01)
        kill(killed)
        assert not (tmp_path / "killed" / "metrics.json").exists()
    printed = ended(start("killed"), log)
    assert "going on from" in printed
    assert losses(tmp_path / "killed", printed) == losses(tmp_path / "alone")
