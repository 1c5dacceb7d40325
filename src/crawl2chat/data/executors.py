"""Where the ranks of a datatrove pipeline run: processes of this machine, a Ray cluster, or Slurm's job arrays.

Whichever it is, a rank that was finished is not done again, one that was cut off is done anew from its beginning, and
one that fails stops the run with its own line. `logs` holds datatrove's marks of finished ranks and their statistics;
its path must name the recipe (see resume.py), for the marks do not.
"""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import MetricStatsDict, PipelineStats, Stats, TimingStats
from loguru import logger
from tqdm import tqdm

from crawl2chat.data.config import Slurm
from crawl2chat.data.steps import Masks, die_with_parent
from crawl2chat.data.words import english
from crawl2chat.stage import fail, write_text

POLL = 10.0  # seconds between two looks at Slurm's queue
pages_read = None  # in a local worker: the counter it shares with the script


class Rank:
    """Mixed into datatrove's executors: a rank begins without what an earlier attempt left, and leaves its last words.

    leftovers: globs below `work` with {rank:05d}. Memory and failures go to `logs`/memory and `logs`/failures.
    """

    work: Path
    leftovers: tuple[str, ...] = ()

    def _run_for_rank(self, rank: int, *more: int, **knobs: int) -> PipelineStats:
        if self.is_rank_completed(rank):
            return PipelineStats()
        logs = Path(self.logging_dir.path)
        failure = logs / "failures" / f"{rank:05d}.txt"
        failure.unlink(missing_ok=True)
        for pattern in self.leftovers:
            for path in self.work.glob(pattern.format(rank=rank)):
                path.unlink()
        if sys.platform == "linux":  # stage 2 of MinHash opens a file of every rank
            resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        memory = Peak()
        try:
            stats = super()._run_for_rank(rank, *more, **knobs)
        except (Exception, SystemExit) as error:
            said = str(error.code) if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
            write_text(failure, Masks().format(said[:2000]))
            raise RuntimeError(f"rank {rank} failed") from None
        write_text(logs / "memory" / f"{rank:05d}.txt", str(memory.gb()))
        return stats


class Local(Rank, LocalPipelineExecutor):
    pass


class Ray(Rank, RayPipelineExecutor):
    pass


class JobArray(Rank, SlurmPipelineExecutor):
    def launch_merge_stats(self) -> None:
        """Another job of datatrove's, for what Workers.run does itself."""


class Workers:
    """What runs passes: a name, a pipeline and a number of ranks each. Use as a context.

    executor: local, ray or slurm. count: ranks at once. work: the folder that passes write below.
    """

    def __init__(
        self,
        count: int,
        logs: Path,
        executor: str = "local",
        work: Path | None = None,
        memory_gb: float = 2.0,
        slurm: Slurm | None = None,
    ):
        logs.mkdir(parents=True, exist_ok=True)
        logger.remove()  # datatrove's default sink in this process is the terminal
        os.environ["LOGURU_DIAGNOSE"] = "NO"  # else a traceback in a log shows the page, unmasked
        self.logs, self.count, self.executor, self.work = logs, count, executor, work or logs
        self.memory_gb, self.slurm, self.pool = memory_gb, slurm or Slurm(), None
        if executor == "local":
            context = multiprocessing.get_context("spawn")
            self.pages = context.Value("q", 0)
            log = logs / "workers.log"
            self.pool = ProcessPoolExecutor(count, context, initializer=begin, initargs=(log, self.pages))
        elif executor == "ray":
            start_ray(count)
        elif not shutil.which("sbatch"):
            fail("executor: slurm: there is no sbatch here; start this where jobs are submitted, or use `local`")
        elif "SLURM_ARRAY_TASK_ID" in os.environ:
            fail("executor: slurm: this is a job array's task already; start it from the machine you log in to")

    def wake(self) -> None:
        """Start the processes now, while there is other work to do: they take two seconds to import what they need."""
        for _ in range(self.count if self.pool else 0):
            self.pool.submit(os.getpid)

    def map(self, function: Callable, items: Iterable) -> Iterator:
        """`function` of each item, on this machine's processes where there are any."""
        return self.pool.map(function, items) if self.pool else map(function, items)

    def run(
        self,
        name: str,
        pipeline: list[PipelineStep],
        tasks: int,
        total: int | None = None,
        leftovers: tuple[str, ...] = (),
    ) -> PipelineStats:
        """Run the ranks of `pipeline` that are not finished; the sum of all ranks' statistics, earlier runs' too.

        total: documents that the first tally will tell of, for the bar. Stops with one line when a rank fails.
        """
        shutil.rmtree(self.logs / name / "failures", ignore_errors=True)
        executor = self.make(name, pipeline, tasks)
        executor.work, executor.leftovers = self.work, leftovers
        if waiting := executor.get_incomplete_ranks():
            if len(waiting) < tasks:
                done = tasks - len(waiting)
                print(f"{name}: {done} of {tasks} tasks were finished by an earlier start of this recipe", flush=True)
            {"local": self.here, "ray": self.on_ray, "slurm": self.on_slurm}[self.executor](executor, waiting, total)
        if missing := executor.get_incomplete_ranks():
            self.give_up(name, f"{len(missing)} of {tasks} tasks did not finish")
        return read_stats(self.logs / name / "stats", tasks)

    def make(self, name: str, pipeline: list[PipelineStep], tasks: int) -> PipelineExecutor:
        logs = str((self.logs / name).absolute())
        if self.executor == "local":
            return Local(pipeline, tasks=tasks, workers=1, logging_dir=logs)
        if self.executor == "ray":
            return Ray(pipeline, tasks=tasks, workers=self.count, logging_dir=logs, mem_per_cpu_gb=self.memory_gb)
        asked = {name: value for name, value in vars(self.slurm).items() if name != "setup"}
        return JobArray(
            pipeline, tasks, **asked, workers=self.count, job_name=f"crawl2chat-{self.work.name}-{name}",
            env_command=self.slurm.setup or "true", logging_dir=logs, sbatch_args={"signal": "USR1@60"},
        )  # fmt: skip

    def here(self, executor: Local, waiting: list[int], total: int | None) -> None:
        name = Path(executor.logging_dir.path).name
        ranks = [self.pool.submit(executor._run_for_rank, rank, 1) for rank in waiting]
        pending = set(ranks)
        with tqdm(total=total, desc=name, unit="page", leave=False, disable=name != "filter") as bar:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                bar.update(self.pages.value - bar.n)
                for rank in done:
                    if isinstance(rank.exception(), BrokenProcessPool):
                        self.give_up(name, "a worker was killed (out of memory?): use fewer workers")
                    elif rank.exception() is not None:
                        self.give_up(name, repr(rank.exception()))

    def on_ray(self, executor: Ray, waiting: list[int], total: int | None) -> None:
        print(f"{Path(executor.logging_dir.path).name}: {len(waiting)} tasks on Ray", flush=True)
        executor.run()

    def on_slurm(self, executor: JobArray, waiting: list[int], total: int | None) -> None:
        """Submit the array, unless an earlier start did and it is still in the queue, and wait for its end."""
        there = queued(executor.job_name)
        if there:
            print(f"{executor.job_name}: waiting for the jobs of an earlier start", flush=True)
        else:
            try:
                executor.run()
            except (subprocess.CalledProcessError, OSError) as error:
                fail(f"sbatch refused {executor.job_name} ({error}); see `slurm` in the recipe")
        with tqdm(total=len(waiting), desc=executor.job_name, unit="task", leave=False) as bar:
            while True:
                there = queued(executor.job_name)  # asked first: what has left the queue has left its mark
                left = len(executor.get_incomplete_ranks(waiting))
                bar.update(len(waiting) - left - bar.n)
                if not left or not there:
                    return
                time.sleep(POLL)

    def give_up(self, name: str, why: str) -> None:
        """Stop with one line: a rank's own where there is one. What is finished stays for the next start."""
        if self.pool:
            self.pool.shutdown(wait=False, cancel_futures=True)
        said = next((file.read_text(encoding="utf-8") for file in (self.logs / name / "failures").glob("*.txt")), "")
        if said.startswith("error: "):  # fail() in a reader: the line is for the user
            sys.exit(said)
        again = "the same command goes on where it stopped"
        fail(f"the pass {name!r} broke: {said or why}; log: {self.logs / name}; {again}")

    def memory(self, name: str) -> float:
        """Peak resident memory of a rank of the pass `name`, in GB."""
        return max((float(file.read_text()) for file in (self.logs / name / "memory").glob("*.txt")), default=0.0)

    def wait(self) -> None:
        """Wait until the processes are gone: only then does the system count their memory."""
        if self.pool:
            self.pool.shutdown()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_error: object) -> None:
        if self.pool:
            self.pool.shutdown(wait=False, cancel_futures=True)


class Peak:
    """Peak resident memory of this process from here on; on other systems than Linux, of its whole life."""

    def __init__(self):
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the kernel begins to measure anew
        except OSError:
            pass

    def gb(self) -> float:
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9
        except (OSError, StopIteration):
            scale = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9


def read_stats(folder: Path, tasks: int) -> PipelineStats:
    """The statistics that each rank left when it finished, summed; of none, none."""
    total = PipelineStats()
    for rank in range(tasks):
        steps = []
        for row in json.loads((folder / f"{rank:05d}.json").read_text(encoding="utf-8")):
            step = Stats(row["name"])
            step.time_stats = TimingStats.from_dict(row["time_stats"])
            step.stats = MetricStatsDict.from_dict(row["stats"])
            steps.append(step)
        total += PipelineStats(steps)
    return total


def start_ray(count: int) -> None:
    """Join the cluster that RAY_ADDRESS names, else begin one of `count` CPUs on this machine."""
    try:
        import ray
    except ImportError:
        fail("executor: ray: Ray is not installed; `pip install ray` (requirements-optional.txt), or use `local`")
    if ray.is_initialized():
        return
    ours = {"LOGURU_DIAGNOSE": "NO", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    address = os.environ.get("RAY_ADDRESS")
    alone = {} if address else {"num_cpus": count, "include_dashboard": False}
    ray.init(address=address, runtime_env={"env_vars": ours}, log_to_driver=False, logging_level="ERROR", **alone)


def queued(job_name: str) -> bool:
    """Whether Slurm still has jobs of this name waiting or running; a queue that does not answer counts as yes."""
    command = ["squeue", "--noheader", "--name", job_name, "--format", "%i"]
    answer = subprocess.run(command, capture_output=True, text=True)
    return answer.returncode != 0 or bool(answer.stdout.strip())


def begin(log: Path, pages: object) -> None:
    """First words of a local worker: standard error into the log, and no ear for Ctrl-C."""
    global pages_read
    pages_read = pages
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    warnings.simplefilter("ignore", DeprecationWarning)
    english().wake()


def tick() -> None:
    """Tell the script of a page, from a worker of this machine."""
    if pages_read is not None:
        with pages_read.get_lock():
            pages_read.value += 1
