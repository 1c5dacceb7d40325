"""scripts/launch.slurm: what it asks of Slurm, starts on every machine, and how it is requeued; submit.sh's chains."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

ROOT = Path(__file__).parents[1]
FILE = ROOT / "scripts/launch.slurm"
DIRECTIVES = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", FILE.read_text(), re.MULTILINE))
STUBS = {  # Slurm of two machines; every task's environment says which it is
    "srun": 'echo "$*" >>srun.txt; shift; SLURM_NODEID=0 "$@" & SLURM_NODEID=1 "$@"; code=$?; wait $! && exit $code',
    "scontrol": 'echo "$*" >>scontrol.txt; [ "$1 $2" != "show hostnames" ] || printf "node7\\nnode8\\n"',
    "sbatch": 'echo "$*" >>sbatch.txt; [ "${3#*-}" != "$REFUSED" ] && echo "$((100 + $(wc -l <sbatch.txt)));here"',
    "python": 'echo "$SLURM_NODEID $*" >>python.txt; until [ -f go ]; do sleep 0.02; done; exit $(cat go)',
}


@pytest.fixture
def job(tmp_path):
    """A checkout in which Slurm and Python only write down how they were called, and end when `go` says how."""
    for folder in ("scripts", "recipes", ".venv/bin", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copytree(ROOT / "accelerate_configs", tmp_path / "accelerate_configs")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes", dirs_exist_ok=True)
    for path in ROOT.glob("scripts/*.*"):
        shutil.copy(path, tmp_path / "scripts")
    for name, text in STUBS.items():
        path = tmp_path / (".venv/bin" if name == "python" else "bin") / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    return tmp_path


def submit(job: Path, *words: str, **environment: str) -> subprocess.Popen:
    """As Slurm starts it: a copy of the file in another folder, with the job's environment."""
    copy = job / "spool"
    shutil.copy(FILE, copy)
    slurm = {"SLURM_SUBMIT_DIR": str(job), "SLURM_JOB_ID": "123", "SLURM_JOB_NODELIST": "node[7-8]"}
    slurm |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8", "PATH": f"{job}/bin:{os.environ['PATH']}"}
    return subprocess.Popen(
        ["bash", copy, *words], cwd="/", env={**os.environ, **slurm, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def lines(path: Path, count: int) -> list[str]:
    """The lines of a stub's notes, as soon as there are `count`."""
    for _ in range(1000):
        found = path.read_text().splitlines() if path.exists() else []
        if len(found) >= count:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{path.name}: {found}")


def test_the_file_is_sound_and_asks_for_what_a_requeue_needs():
    assert subprocess.run(["bash", "-n", FILE]).returncode == 0
    for key in ("job-name", "nodes", "gpus-per-node", "time", "output"):
        assert DIRECTIVES[key], key
    assert DIRECTIVES["ntasks-per-node"] == "1" and DIRECTIVES["signal"].startswith("B:USR1@")
    assert int(DIRECTIVES["signal"].partition("@")[2]) >= 60 and "requeue" in DIRECTIVES
    assert DIRECTIVES["open-mode"] == "append", "the log of the first start would be lost"


def test_every_command_in_it_names_real_files():
    commands = re.findall(r"^# (sbatch .*)$", FILE.read_text(), re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        files = [w.rpartition("=")[2] for w in shlex.split(command) if re.search("(scripts|recipes|configs)/", w)]
        assert len(files) >= 3 and all((ROOT / file).is_file() for file in files), command
    assert (ROOT / re.search(r"config=(accelerate_configs/.*)$", FILE.read_text(), re.MULTILINE)[1]).is_file()


def test_every_machine_starts_its_ranks_and_knows_its_number(job):
    process = submit(job, "scripts/pretrain.py", "recipes/pretrain.yaml", "--seed", "1", "--model", '{"a b": 1}')
    calls = dict(line.split(" ", 1) for line in lines(job / "python.txt", 2))
    (job / "go").write_text("0")
    assert process.wait(20) == 0 and set(calls) == {"0", "1"}
    for rank, call in calls.items():
        module, arguments = call.split()[:2], call.split()[2:]
        assert module == ["-m", "accelerate.commands.launch"]
        args = launch_command_parser().parse_args(arguments)
        assert (args.machine_rank, args.num_machines, args.num_processes) == (int(rank), 2, 16)
        assert (args.main_process_ip, args.main_process_port) == ("node7", 20123)
        assert args.config_file == "accelerate_configs/ddp.yaml", "the recipe's second line names it"
        assert [args.training_script, *args.training_script_args[:3]] == [
            "scripts/pretrain.py", "recipes/pretrain.yaml", "--seed", "1",
        ]  # fmt: skip
        assert call.endswith('--model {"a b": 1}')
    assert not re.search("requeue", (job / "scontrol.txt").read_text())


def test_another_config_is_named_in_the_environment_and_no_gpus_are_one_process_a_machine(job):
    (job / "go").write_text("0")
    environment = {"CONFIG": "accelerate_configs/zero2.yaml", "SLURM_GPUS_ON_NODE": ""}
    process = submit(job, "scripts/pretrain.py", "recipes/pretrain.yaml", **environment)
    printed = process.communicate(timeout=20)[0]
    for call in lines(job / "python.txt", 2):
        assert "--config_file accelerate_configs/zero2.yaml" in call and "--num_processes 2 " in call
    assert "2 machines of 1 processes, the first is node7" in printed


@pytest.mark.parametrize("stage, environment", [("eval", ""), ("laptop/sft", "true cpu")])
def test_a_stage_that_is_one_process_runs_once_on_the_first_machine(job, stage, environment):
    (job / "go").write_text("0")
    stub = job / ".venv/bin/python"
    stub.write_text(stub.read_text().replace("until", "echo $ACCELERATE_USE_CPU $DS_ACCELERATOR >env.txt; until"))
    (job / "bin/srun").write_text('#!/usr/bin/env bash\necho "$*" >>srun.txt; shift 3; SLURM_NODEID=0 "$@"\n')
    script = f"scripts/{stage.rpartition('/')[2]}.py"
    assert submit(job, script, f"recipes/{stage}.yaml", "--seed", "1").wait(20) == 0
    assert lines(job / "python.txt", 1) == [f"0 {script} recipes/{stage}.yaml --seed 1"]
    assert lines(job / "srun.txt", 1)[0].startswith("--kill-on-bad-exit=1 --nodes=1 --ntasks=1 ")
    assert (job / "env.txt").read_text().strip() == environment


def test_what_a_recipe_does_not_name_is_ddp_on_all_machines(job):
    (job / "go").write_text("0")
    recipe = job / "recipes/plain.yaml"
    recipe.write_text("# plain\n# accelerate launch scripts/sft.py recipes/plain.yaml\n")
    assert submit(job, "scripts/sft.py", "recipes/plain.yaml").wait(20) == 0
    assert all("--config_file accelerate_configs/multi_node.yaml" in call for call in lines(job / "python.txt", 2))


def test_when_the_time_is_nearly_up_the_job_goes_back_into_the_queue_while_it_trains(job):
    process = submit(job, "scripts/pretrain.py", "recipes/pretrain.yaml")
    lines(job / "python.txt", 2)
    process.send_signal(signal.SIGUSR1)
    assert lines(job / "scontrol.txt", 2)[1] == "requeue 123"
    assert process.poll() is None, "the launch goes on until Slurm ends it"
    (job / "go").write_text("0")
    assert process.wait(20) == 0


@pytest.mark.parametrize("code", [0, 1, 7])
def test_the_job_ends_as_its_stage_does_and_a_failed_one_is_not_begun_again(job, code):
    (job / "go").write_text(str(code))
    process = submit(job, "scripts/pretrain.py", "recipes/pretrain.yaml")
    assert process.wait(20) == code
    assert lines(job / "scontrol.txt", 1) == ["show hostnames node[7-8]"]


@pytest.mark.parametrize(
    "words, environment, complaint",
    [
        (["scripts/pretrain.py"], {}, "usage: sbatch scripts/launch.slurm SCRIPT RECIPE"),
        (["scripts/pretrain.py", "recipes/nowhere.yaml"], {}, "recipes/nowhere.yaml: no such file"),
        (["scripts/pretrain.py", "recipes/pretrain.yaml"], {"CONFIG": "none.yaml"}, "none.yaml: no such file"),
    ],
)
def test_what_cannot_be_started_is_one_line(job, words, environment, complaint):
    process = submit(job, *words, **environment)
    printed = process.communicate(timeout=20)[0]
    assert process.returncode == 2 and complaint in printed and printed.count("\n") == 1
    assert not (job / "srun.txt").exists()


def test_slurm_takes_the_file():
    if not shutil.which("sbatch") or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("no Slurm here")
    command = ["sbatch", "--test-only", "--gpus-per-node=0", "--nodes=1", FILE, "script", "recipe"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "to start at" in done.stderr, done.stderr


def chain(job: Path, *words: str, **environment: str) -> tuple[list[list[str]], subprocess.CompletedProcess]:
    """submit.sh's calls of sbatch, and how it ended."""
    environment = {**os.environ, "PATH": f"{job}/bin:{os.environ['PATH']}", "REFUSED": "none", **environment}
    command = ["bash", "scripts/submit.sh", *words]
    done = subprocess.run(command, cwd=job, env=environment, capture_output=True, text=True, timeout=60)
    notes = job / "sbatch.txt"
    return [line.split() for line in notes.read_text().splitlines()] if notes.exists() else [], done


@pytest.mark.parametrize(
    "folder", ["recipes", *sorted(str(p.parent.relative_to(ROOT)) for p in ROOT.glob("recipes/*/report.yaml"))]
)
def test_a_folder_is_a_chain_of_its_stages_in_the_lifecycles_order(job, folder):
    calls, done = chain(job, folder)
    assert done.returncode == 0, done.stderr
    order = re.findall(r"^    stage (\w+)", (ROOT / "scripts/lifecycle.sh").read_text(), re.MULTILINE)
    stages = [Path(call[-1]).stem.partition("-")[0] for call in calls]
    assert stages == sorted(stages, key=order.index)
    written = {path.name for path in (ROOT / folder).glob("*.yaml")} - {"chat.yaml"}
    assert {Path(call[-1]).name for call in calls} == {
        name for name in written if name.partition(".")[0].partition("-")[0] in order
    }
    for number, call in enumerate(calls):
        assert call[:2] == ["--parsable", "--job-name"] and call[-3] == "scripts/launch.slurm"
        assert call[-2] == f"scripts/{stages[number]}.py" and (ROOT / call[-1]).is_file()
        after = f"--dependency afterok:{100 + number} --kill-on-invalid-dep=yes"
        assert (after in " ".join(call)) == (number > 0) and ("--dependency" in call) == (number > 0)
    assert done.stdout.count("submit: ") == len(calls)


def test_what_accelerate_spreads_gets_the_machines_and_the_rest_one_gpu(job):
    calls, done = chain(job, "recipes", "--from", "interrogate", "--to", "sft", "--nodes", "4", "--partition", "gpu")
    assert done.returncode == 0 and [call[2] for call in calls] == ["recipes-interrogate", "recipes-sft"]
    assert " ".join(calls[0][3:-3]) == "--nodes 1 --gpus-per-node 1 --partition gpu"
    assert " ".join(calls[1][3:-3]) == "--nodes 4 --dependency afterok:101 --kill-on-invalid-dep=yes --partition gpu"
    (job / "sbatch.txt").unlink()
    calls, done = chain(job, "recipes/laptop/", "--to", "pretrain")
    assert all(call[3:7] == ["--nodes", "1", "--gpus-per-node", "1"] for call in calls)


@pytest.mark.parametrize(
    "words, complaint, sent",
    [
        ([], "usage: bash scripts/submit.sh RECIPE_FOLDER", 0),
        (["--nodes", "2"], "usage: bash scripts/submit.sh RECIPE_FOLDER", 0),
        (["recipes/nowhere"], "recipes/nowhere: no recipes there", 0),
        (["recipes", "--from", "stf"], "stf: no such stage; there are: data tokenizer", 0),
        (["recipes", "--from"], "--from takes a value", 0),
        (["recipes/laptop", "--to", "merge"], "recipes/laptop/merge.yaml: this folder has no recipe for merge", 0),
        (["recipes", "--from", "sft", "--to", "data"], "nothing to submit: --to data comes before --from sft", 0),
        (["recipes"], "sbatch refused recipes-pretrain; the jobs before it stand", 3),
    ],
)
def test_what_cannot_be_submitted_is_one_line(job, words, complaint, sent):
    calls, done = chain(job, *words, REFUSED="pretrain")
    assert done.returncode == 2 and complaint in done.stderr and done.stderr.count("\n") == 1
    assert len(calls) == sent
