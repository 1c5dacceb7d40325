"""What a model may call: plain typed functions whose docstrings are the schema it reads."""

from collections.abc import Callable, Iterable
from pathlib import Path

from crawl2chat.tools.interpreter import open_interpreter
from crawl2chat.tools.search import open_index


def open_tools(names: Iterable[str], search_index: str | Path | None = None) -> list[Callable[[str], str]]:
    """The tools of these names, ready to be called: `python`, and `search` over the index in `search_index`.

    Raises ValueError for another name and for a search without an index, FileNotFoundError for an index that is not
    there, RuntimeError where code cannot be isolated.
    """
    tools = []
    for name in names:
        if name == "python":
            tools.append(open_interpreter())
        elif name == "search" and search_index is not None:
            tools.append(open_index(search_index))
        elif name == "search":
            raise ValueError("the search tool needs `search_index`, a folder that scripts/conversations.py wrote")
        else:
            raise ValueError(f"no tool {name!r}; there are search and python")
    return tools
