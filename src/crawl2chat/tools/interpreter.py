"""A Python interpreter for a model: pydantic-monty, a Python written in Rust, in worker processes of its own.

Model-written code sees no network, no files, no environment and no other process, whatever it tries: the interpreter
has no way to them. Time, memory, recursion and output are bounded. What it does not do: third-party packages, most of
the standard library, classes with all of Python's features. Without monty no code runs at all.
"""

import ast
import warnings
import weakref
from collections.abc import Callable

MAX_CODE = 10_000  # characters of code that are looked at


def open_interpreter(
    seconds: float = 2.0, memory_mb: int = 64, max_output: int = 1000, max_processes: int = 2
) -> Callable[[str], str]:
    """The `python` tool: every call runs in a fresh session, bounded in time, memory and characters of output.

    The worker processes live as long as the tool. Raises RuntimeError where code cannot be isolated.
    """
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

    def python(code: str) -> str:
        """Run Python code and return what it prints and the value of its last line.

        Args:
            code: The code to run.
        """
        if len(code) > MAX_CODE:
            return f"ValueError: the code is longer than {MAX_CODE} characters"
        pieces: list[str] = []
        room = max_output

        def collect(_: str, text: str) -> None:
            nonlocal room
            if room > 0:
                pieces.append(text[:room])
            room -= len(text)

        try:
            with pool.checkout(limits=limits) as session:
                session.feed_run(_show_last_value(code), print_callback=collect)
        except (monty.MontyRuntimeError, monty.MontySyntaxError) as error:
            message = error.display("type-msg")
            if message.startswith(("TimeoutError: feed time limit", "MemoryError: memory limit")):
                message = message.split(":")[0] + (
                    f": stopped after {seconds:g} s" if message[0] == "T" else f": over {memory_mb} MB"
                )
            pieces.append(message[:max_output])
        except monty.MontyCrashedError as error:
            pieces.append(
                "TimeoutError: the code was stopped" if error.timed_out else "MemoryError: the interpreter died"
            )
        output = "".join(pieces)
        return output.strip("\n") + (" ... (output cut)" if room < 0 else "")

    # the workers end with the tool, or with the process
    weakref.finalize(python, pool.__exit__, None, None, None)
    return python


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
    return f"{before}__last = (\n{expression}\n)\nif __last is not None:\n    print(repr(__last))"
