"""The same shards wherever the tasks run: Slurm's job arrays, against a stub of Slurm that runs them, and Ray."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crawl2chat.data.config import Slurm
from test_data_resume import ROOT, shards, start, web  # noqa: F401  web is a fixture

# a Slurm of one machine: sbatch runs the array's tasks at once, one after the other, and the queue is empty then
STUBS = {
    "sbatch": """
        script=${@: -1}; [ -f "$STUB/refuse" ] && { echo "sbatch: error: invalid partition" >&2; exit 1; }
        cp "$script" "$STUB/job-$(ls "$STUB" | wc -l)"; echo "$@" >>"$STUB/calls"
        for option in "$@"; do case $option in --export=*) export "${option##*,}";; esac; done
        last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
        for task in $(seq 0 "$last"); do
            SLURM_ARRAY_TASK_ID=$task SLURM_JOB_ID=7 SLURM_NODELIST=here bash "$script" >>"$STUB/log" 2>&1
        done
        echo "Submitted batch job 7" """,
    "srun": 'while [[ $1 == -* ]]; do [ "$1" = -n ] && shift; shift; done; exec "$@"',
    "squeue": '[ -f "$STUB/queue" ] && cat "$STUB/queue" || true',
    "scontrol": "echo here",
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("bin", "stub"):
        (tmp_path / folder).mkdir()
    for name, text in STUBS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("STUB", str(tmp_path / "stub"))
    return tmp_path / "stub"


@pytest.fixture(scope="module")
def here(web: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    output = tmp_path_factory.mktemp("here") / "out"
    process = start(web, output)
    assert process.wait() == 0, process.communicate()[0]
    return output


@pytest.mark.slow
def test_slurms_job_arrays_write_the_same_shards(web: Path, here: Path, slurm: Path, tmp_path: Path) -> None:  # noqa: F811
    asked = [
        "--executor",
        "slurm",
        "--slurm.partition",
        "big",
        "--slurm.time",
        "2:00:00",
        "--slurm.mem_per_cpu_gb",
        "6",
    ]
    process = start(web, tmp_path / "out", *asked)
    said = process.communicate()[0]
    assert process.returncode == 0, said + (slurm / "log").read_text()[-3000:]
    assert shards(tmp_path / "out") == shards(here)
    jobs = [path.read_text() for path in sorted(slurm.glob("job-*"))]
    assert [job.split("--job-name=crawl2chat-")[1].split("\n")[0].partition("-")[2] for job in jobs] == [
        "filter", "minhash-buckets", "minhash-clusters", "write", "recount"]  # fmt: skip
    for job in jobs:
        for line in ("--partition=big", "--time=2:00:00", "--mem-per-cpu=6G", "--requeue", "--signal=USR1@60"):
            assert f"#SBATCH {line}\n" in job, line
        assert "mail" not in job and subprocess.run(["bash", "-n"], input=job, text=True).returncode == 0
    assert "--array=0-3%1" in jobs[0] and "--array=0-13%1" in jobs[1] and "launch_pickled_pipeline" in jobs[0]


def test_slurm_that_refuses_or_is_not_there_is_one_line(web: Path, slurm: Path, tmp_path: Path, monkeypatch) -> None:  # noqa: F811
    (slurm / "refuse").touch()
    said = start(web, tmp_path / "out", "--executor", "slurm").communicate()[0]
    assert "sbatch refused crawl2chat-" in said.splitlines()[-1] and "Traceback" not in said
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    said = start(web, tmp_path / "out", "--executor", "slurm").communicate()[0]
    assert "there is no sbatch here" in said and "Traceback" not in said


def test_jobs_that_an_earlier_start_left_in_the_queue_are_waited_for_and_not_sent_again(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crawl2chat.data import executors

    workers = executors.Workers(2, tmp_path / "abc" / "logs", "slurm", tmp_path / "abc", slurm=Slurm())
    (slurm / "queue").write_text("7_1\n")
    marks = tmp_path / "abc" / "logs" / "filter" / "completions"
    marks.mkdir(parents=True)
    (marks.parent / "stats").mkdir()

    def sleep(_: float) -> None:  # the other start's jobs end meanwhile
        for rank in range(2):
            (marks / f"{rank:05d}").touch()
            (marks.parent / "stats" / f"{rank:05d}.json").write_text(json.dumps([]))
        (slurm / "queue").unlink()

    monkeypatch.setattr(executors.time, "sleep", sleep)
    workers.run("filter", [], 2)
    assert not (slurm / "calls").exists()
    (slurm / "queue").write_text("7_1\n")
    monkeypatch.setattr(executors.time, "sleep", lambda _: (slurm / "queue").unlink())
    with pytest.raises(SystemExit, match="2 of 2 tasks did not finish"):
        workers.run("write", [], 2)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed (requirements-optional.txt)")
def test_ray_writes_the_same_shards_on_two_workers(web: Path, here: Path, tmp_path: Path) -> None:  # noqa: F811
    process = start(web, tmp_path / "out", "--executor", "ray", "--workers", "2", "--memory_gb", "0.5")
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert shards(tmp_path / "out") == shards(here)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed (requirements-optional.txt)")
def test_a_task_that_fails_on_ray_stops_the_stage_with_its_own_line(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jsonl").write_text('{"text": "one"}\n{"text": 1, "b"\n')
    command = [sys.executable, ROOT / "scripts/data.py", "--dataset_name", tmp_path / "set", "--executor", "ray"]
    command += ["--output_dir", tmp_path / "out", "--workers", "1", "--memory_gb", "0.5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "a.jsonl:2: cannot be read" in done.stderr.splitlines()[-1]
