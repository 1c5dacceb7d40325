"""Public benchmarks, run by lm-eval on a loaded model; our own tasks: evaluation.py."""

import difflib
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crawl2chat.stage import fail


@dataclass
class Benchmarks:
    """Public benchmarks, as lm-eval names them."""

    tasks: list[str] = field(metadata={"help": "hellaswag, arc_easy, mmlu, gsm8k, ..."})
    num_fewshot: int | None = field(default=None, metadata={"help": "worked examples before a question", "ge": 0})
    limit: float | None = field(
        default=None, metadata={"help": "questions a task at most, or below 1 their share", "gt": 0}
    )
    include_path: str | None = field(default=None, metadata={"help": "a folder of further task files", "reads": True})
    apply_chat_template: bool = field(default=False, metadata={"help": "ask in the checkpoint's chat template"})
    batch_size: int = field(default=16, metadata={"help": "sequences at once", "ge": 1})


def evaluate_benchmarks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, benchmarks: Benchmarks
) -> dict[str, float]:
    """Public benchmarks run by lm-eval on the loaded model.

    Returns <task>/<metric> with lm-eval's names (acc, acc_norm, acc_stderr, exact_match_strict-match, ...); an unknown
    task, or data that is not at hand, is one clear line.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tasks, include_path = benchmarks.tasks, benchmarks.include_path
    manager = TaskManager(include_path=include_path, include_defaults=False) if include_path else None
    if manager is None or not set(tasks) <= set(manager.all_tasks):  # lm-eval's own list takes seconds to read
        manager = TaskManager(include_path=include_path)
    for task in tasks:
        if task not in manager.task_index:
            near = difflib.get_close_matches(task, manager.all_tasks, n=1)
            fail(f"lm_eval: unknown task {task!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    try:
        found = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=benchmarks.batch_size),
            tasks=list(tasks),
            num_fewshot=benchmarks.num_fewshot,
            limit=benchmarks.limit,
            apply_chat_template=benchmarks.apply_chat_template,
            task_manager=manager,
            log_samples=False,
        )
    except (OSError, ValueError, RuntimeError, ImportError, AssertionError) as error:  # the last: a package's version
        what = (str(error) or type(error).__name__).splitlines()[0]
        fail(f"lm_eval: {', '.join(tasks)}: {what}; are the data sets and packages at hand?")
    numbers = {}
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, _, chosen = key.partition(",")
            if chosen and isinstance(value, int | float):
                numbers[f"{task}/{metric}" + (f"_{chosen}" if chosen != "none" else "")] = float(value)
    return numbers
