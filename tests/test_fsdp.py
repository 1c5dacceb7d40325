"""FSDP2 on two CPU ranks, where accelerate has to be made to shard, against one rank."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from crawl2chat import launch
from crawl2chat.memory import Launch, Step, memory
from crawl2chat.model import check_weights, load_model
from test_distributed import SCRIPTS, accelerate, ended, losses, recipe, world  # noqa: F401
from test_memory import model_of

pytestmark = pytest.mark.slow  # half a minute and more

ROOT = Path(__file__).parents[1]
JOBS = ["pretrain", "sft", "grpo"]  # the last is refused where it is sharded


@pytest.fixture(scope="module")
def folders(world) -> tuple[Path, Path, str]:  # noqa: F811
    """Outputs of one rank and of two that shard, and what the two printed."""
    printed = {}
    for config, ranks in (("cpu", 1), ("fsdp2", 2)):
        folder, jobs = world / config, []
        folder.mkdir()
        for job in JOBS if ranks > 1 else JOBS[:2]:
            path = folder / f"{job}.yaml"
            keys = recipe(world, job, folder / job, ranks)
            keys |= {"save_strategy": "steps", "save_steps": 2} if job == "sft" else {}
            path.write_text(json.dumps(keys))
            jobs.append({"name": job, "command": [f"scripts/{SCRIPTS.get(job, 'pretrain')}.py", str(path)]})
            jobs[-1]["environment"] = {}
        (folder / "jobs.json").write_text(json.dumps(jobs))
        command = ["tests/fsdp_on_cpu.py"] * (ranks > 1) + ["tests/several_scripts.py", folder / "jobs.json"]
        log = folder / "log.txt"
        printed[config] = ended(accelerate(config, ranks, command, log, {}), log)
    return world / "cpu", world / "fsdp2", printed["fsdp2"]


@pytest.mark.parametrize("stage", JOBS[:2])
def test_two_ranks_that_shard_have_one_ranks_losses_and_weights(folders, stage):
    one, two, printed = folders
    assert losses(two / stage, printed) == pytest.approx(losses(one / stage), abs=1e-4)
    check_weights(two / stage)
    ours, theirs = (load_model(folder / stage).state_dict() for folder in (two, one))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-3, rtol=0, msg=name)


@pytest.mark.slow
def test_a_checkpoint_is_of_shards_and_the_run_goes_on_from_it(folders):
    _, two, printed = folders
    before = losses(two / "sft", printed)
    assert (two / "sft/checkpoint-4/pytorch_model_fsdp.bin").is_file(), "it was DDP"
    for path in [two / "sft/metrics.json", *two.glob("sft/*/finished")]:
        path.unlink()
    for path in two.glob("sft/checkpoint-5/*"):
        path.unlink()
    (job,) = [job for job in json.loads((two / "jobs.json").read_text()) if job["name"] == "sft"]
    (two / "again.json").write_text(json.dumps([job]))
    log, command = two / "again.txt", ["tests/fsdp_on_cpu.py", "tests/several_scripts.py", two / "again.json"]
    assert "going on from" in ended(accelerate("fsdp2", 2, command, log, {}), log)
    assert losses(two / "sft") == pytest.approx(before, abs=1e-6)


def test_what_needs_whole_weights_is_refused_in_one_line(folders):
    assert "grpo: error: what writes replies needs whole weights, which FSDP takes apart; use" in folders[2]


def test_fsdp_on_a_cpu_is_refused_for_it_would_be_ddp(monkeypatch):
    for name, value in {"WORLD_SIZE": "1", "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="on a CPU accelerate trains by DDP"):
        launch.check_launch(SimpleNamespace(world_size=1, device=torch.device("cpu")))


def test_a_dry_run_shares_out_weights_gradients_and_states():
    arguments = ["--config_file", str(ROOT / "accelerate_configs/fsdp2.yaml"), "scripts/sft.py"]
    args = _validate_launch_command(launch_command_parser().parse_args(arguments))[0]
    environment = prepare_multi_gpu_env(args)
    assert environment["FSDP_VERSION"] == "2" and args.num_processes == 8
    spread = Launch.of({**environment, "WORLD_SIZE": "8"})
    assert spread == Launch(8, fsdp=True) and "FSDP2" in str(spread)
    model, step = model_of("llama", device="meta"), Step(rows=1, length=16, bf16=True)
    count, used = sum(p.numel() for p in model.parameters()), memory(model, step, spread)
    assert used.gradients + used.optimizer == 12 * count / 8 and 4 * count / 8 < used.weights < (4 / 8 + 2) * count
    assert memory(model, step, Launch(8)).weights == 4 * count
