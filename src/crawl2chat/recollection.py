"""Vague recollection against working memory: accuracy by how often a fact stood in the training text."""

from collections import defaultdict
from collections.abc import Iterable

from crawl2chat.evaluation import tools_called
from crawl2chat.interrogation import reply_text
from crawl2chat.metrics import accuracy
from crawl2chat.tasks.invented import refuses

CLOSED, SEARCH = "recollection_closed", "recollection_search"  # eval's tasks: from memory, and by search


def by_seen(rows: Iterable[dict]) -> dict[int, dict[str, float]]:
    """{times seen: accuracy, stderr, n, refused, searched} of eval's rows that have `seen`, in rising order.

    refused and searched are shares of the replies: those that refuse, and those that call search. Times whose every
    reply is ungraded are left out.
    """
    groups = defaultdict(list)
    for row in rows:
        if "seen" in row:
            groups[row["seen"]].append(row)
    found = {}
    for seen, of_it in sorted(groups.items()):
        if all(row["score"] is None for row in of_it):
            continue
        refused = sum(refuses(reply_text(row["reply"])) for row in of_it) / len(of_it)
        searched = sum("search" in tools_called(row["reply"]) for row in of_it) / len(of_it)
        found[seen] = {**accuracy([row["score"] for row in of_it]), "refused": refused, "searched": searched}
    return found


def curves(rows: Iterable[dict]) -> dict[str, dict[str, dict[int, dict[str, float]]]]:
    """{checkpoint: {CLOSED or SEARCH: by_seen}} of eval's rows, checkpoints in their order."""
    groups: dict[str, dict[str, list[dict]]] = {}
    for row in rows:
        if row["task"] in (CLOSED, SEARCH):
            groups.setdefault(row["checkpoint"], {}).setdefault(row["task"], []).append(row)
    found = {name: {task: by_seen(of_it) for task, of_it in tasks.items()} for name, tasks in groups.items()}
    return {name: tasks for name, tasks in found.items() if any(tasks.values())}


def numbers(rows: Iterable[dict]) -> dict[str, float]:
    """recollection/closed_<seen>, search_<seen> (accuracies), refused_<seen>, unasked_<seen> (shares of the replies
    from memory that refuse, and that search although not asked to) of the last checkpoint.
    """
    found = list(curves(rows).values())
    if not found:
        return {}
    closed, search = (found[-1].get(task, {}) for task in (CLOSED, SEARCH))
    keys = {"closed": (closed, "accuracy"), "search": (search, "accuracy"), "refused": (closed, "refused")}
    keys["unasked"] = (closed, "searched")
    return {
        f"recollection/{name}_{seen}": values[key]
        for name, (by, key) in keys.items()
        for seen, values in by.items()
    }  # fmt: skip
