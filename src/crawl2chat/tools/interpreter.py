"""A Python interpreter for a model, isolated in one of two ways; without isolation no code runs at all.

"monty", the default, is pydantic-monty: a Python written in Rust, in worker processes of its own. Model-written code
sees no network, no files, no environment and no other process, whatever it tries: the interpreter has no way to them.
Time, memory, recursion and output are bounded. What it does not do: third-party packages, most of the standard
library, classes with all of Python's features. "cpython" is the real one under bubblewrap (see bubblewrap.py): the
whole standard library, Linux only, and some 25 ms a call instead of a tenth of one.

`python(code)` keeps nothing from call to call. `python.session()` gives the same tool for one reply: its calls share
their variables, and whatever is left of them goes with it.
"""

import ast
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Literal

from crawl2chat.tools.bubblewrap import open_sandbox
from crawl2chat.tools.limit import MAX_RESULT, shown

MAX_CODE = 10_000  # characters of code that are looked at
MAX_STATE = 1_000_000  # bytes of variables kept from one call of a reply to the next
Run = Callable[[str, object], tuple[str, str, object]]  # code, state -> what it wrote, what stopped it, the new state


def open_interpreter(
    seconds: float = 2.0,
    memory_mb: int = 64,
    max_processes: int = 2,
    backend: Literal["monty", "cpython"] = "monty",
) -> Callable[[str], str]:
    """The `python` tool: every call is bounded in seconds, memory and output (MAX_RESULT of limit.py), and at
    most `max_processes` run at a time.

    The tool's `session()` is the tool of one reply, whose calls share variables; a call that was stopped for time or
    memory leaves them as they were. Raises RuntimeError where code cannot be isolated, ValueError for another backend.
    """
    if backend == "monty":
        run = _open_monty(seconds, memory_mb, max_processes)
    elif backend == "cpython":
        run = _open_cpython(seconds, memory_mb, max_processes)
    else:
        raise ValueError(f"no python backend {backend!r}; there are monty and cpython")

    def session(keep: bool = True) -> Callable[[str], str]:
        state = None

        def python(code: str) -> str:
            """Run Python code and return what it prints and the value of its last line.

            Args:
                code: The code to run.
            """
            nonlocal state
            if len(code) > MAX_CODE:
                return f"ValueError: the code is longer than {MAX_CODE} characters"
            output, error, after = run(_show_last_value(code), state)
            state = after if keep else None
            output = output.strip("\n") if len(output) <= MAX_RESULT else output
            return shown(output, f"\n{error}" if output and error else error)

        return python

    python = session(keep=False)
    python.session = session
    return python


def _open_cpython(seconds: float, memory_mb: int, max_processes: int) -> Run:
    sandbox = open_sandbox(seconds, memory_mb, MAX_RESULT + 1, max_processes)

    def run(code: str, earlier: list[str] | None) -> tuple[str, str, list[str]]:
        earlier = earlier or []
        if not _encodes(code):
            return "", "SyntaxError: the code is not valid Unicode", earlier
        outcome = sandbox(code, earlier)
        error = outcome.error
        if outcome.timed_out:
            error = f"TimeoutError: stopped after {seconds:g} s"
        elif outcome.died and not outcome.cut:
            error = "RuntimeError: the interpreter died"
        return outcome.output, error, earlier if outcome.died else [*earlier, code]

    return run


def _open_monty(seconds: float, memory_mb: int, max_processes: int) -> Run:
    try:
        import pydantic_monty as monty

        pool = monty.Monty(max_processes=max_processes, request_timeout=seconds + 5).__enter__()
    except Exception as error:  # not installed, or no worker binary for this platform
        raise RuntimeError(
            f"the python tool cannot isolate code here ({type(error).__name__}: {error}); "
            "install pydantic-monty, or leave the python tool out"
        ) from error
    limits = monty.ResourceLimits(
        max_feed_duration_secs=seconds,
        max_memory=memory_mb * 1_000_000,
        max_recursion_depth=200,
        max_total_sleep_secs=0.0,
    )

    def run(code: str, state: bytes | None) -> tuple[str, str, bytes | None]:
        pieces: list[str] = []
        room, stopped_by = MAX_RESULT + 1, ""  # one more than is shown: then it shows as cut

        def collect(_: str, text: str) -> None:
            nonlocal room
            if room > 0:
                pieces.append(text[:room])
            room -= len(text)

        try:
            with pool.checkout(limits=limits) as session:
                if state:
                    session.load_session(state)
                stopped = False
                try:
                    session.feed_run(code, print_callback=collect)
                except (monty.MontyRuntimeError, monty.MontySyntaxError) as error:
                    stopped_by = error.display("type-msg")
                    stopped = stopped_by.startswith(("TimeoutError: feed time limit", "MemoryError: memory limit"))
                    if stopped:
                        kind = stopped_by.split(":")[0]
                        limit = f"stopped after {seconds:g} s" if kind == "TimeoutError" else f"over {memory_mb} MB"
                        stopped_by = f"{kind}: {limit}"
                if not stopped:
                    after = session.dump()
                    if len(after) > MAX_STATE:
                        large = f"(variables are not kept: they take more than {MAX_STATE // 1000:,} kB)"
                        stopped_by = f"{stopped_by}\n{large}" if stopped_by else large
                    else:
                        state = after
        except monty.MontyCrashedError as error:
            stopped_by = (
                "TimeoutError: the code was stopped" if error.timed_out else "MemoryError: the interpreter died"
            )
        return "".join(pieces), stopped_by, state

    # the workers end with the last tool that uses them, or with the process
    weakref.finalize(run, partial(pool.__exit__, None, None, None))
    return run


def _encodes(code: str) -> bool:
    try:
        code.encode()
    except UnicodeEncodeError:
        return False
    return True


def _show_last_value(code: str) -> str:
    """The code, with its last expression printed as a notebook does; what does not parse is left as it is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return code
    if not tree.body or not isinstance(tree.body[-1], ast.Expr):
        return code
    last = tree.body[-1]
    lines = code.encode().split(b"\n")
    before = b"\n".join([*lines[: last.lineno - 1], lines[last.lineno - 1][: last.col_offset]]).decode()
    expression = ast.get_source_segment(code, last.value)
    return f"{before}__last = (\n{expression}\n)\nif __last is not None:\n    print(repr(__last))\n__last = None"
