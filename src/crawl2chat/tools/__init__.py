"""What a model may call: plain typed functions whose docstrings are the schema it reads.

A tool of one's own is a module here with a function of its name; `python` and `search` are opened first.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from crawl2chat.tools.interpreter import open_interpreter


def open_tools(
    names: Iterable[str], search_index: str | Path | None = None, backend: Literal["monty", "cpython"] = "monty"
) -> list[Callable[[str], str]]:
    """The tools of these names, ready to be called: `python` by `backend`, `search` over the index in `search_index`,
    and any function `name` of a module `crawl2chat.tools.name`.

    Raises ValueError for another name and for a search without an index, FileNotFoundError for an index that is not
    there, RuntimeError where code cannot be isolated.
    """
    tools = []
    modules = {module.name for module in pkgutil.iter_modules(__path__)}
    for name in names:
        if name == "python":
            tools.append(open_interpreter(backend=backend))
        elif name == "search" and search_index is not None:
            from crawl2chat.tools.search import open_index  # brings bm25s along: only those who search need it

            tools.append(open_index(search_index))
        elif name == "search":
            raise ValueError("the search tool needs `search_index`, a folder that scripts/conversations.py wrote")
        else:
            own = getattr(importlib.import_module(f"{__name__}.{name}"), name, None) if name in modules else None
            if own is None:
                raise ValueError(f"no tool {name!r}; there are search and python, and what you put into tools/")
            tools.append(own)
    return tools


def for_one_reply(tools: Iterable[Callable[[str], str]]) -> list[Callable[[str], str]]:
    """The same tools for one reply: those that have a `session()` keep their variables from call to call within it."""
    return [tool.session() if hasattr(tool, "session") else tool for tool in tools]
