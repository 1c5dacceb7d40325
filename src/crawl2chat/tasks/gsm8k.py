r"""GSM8K: grade school word problems with worked solutions, from the hub (openai/gsm8k, MIT), in its own splits.

Cobbe et al., 2021, "Training Verifiers to Solve Math Word Problems". The dial is `steps`, the sums that the reference
solution takes.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path

from crawl2chat.verifier import verdict

ASK = " Think step by step, and end with: The answer is N."


def read_rows(path: str, split: str, config: str | None = None) -> list[dict]:
    """A split of a data set: on the hub, or of a folder with <split>.jsonl or <split>.parquet.

    Raises ValueError, in one line, where it cannot be read.
    """
    from datasets import load_dataset

    if Path(path).is_dir():
        files = [str(file) for end in ("jsonl", "parquet") for file in sorted(Path(path).glob(f"{split}*.{end}"))]
        if not files:
            raise ValueError(f"{path}: no {split}.jsonl and no {split}.parquet in this folder")
        kind = "parquet" if files[0].endswith("parquet") else "json"
        arguments = {"path": kind, "data_files": files, "split": "train"}
    else:
        arguments = {"path": path, "name": config, "split": split}
    try:
        return load_dataset(**arguments).to_list()
    except Exception as error:  # of the network, the hub's, pyarrow's: each library has its own
        why = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}: cannot be read ({type(error).__name__}: {why}); connect to the hub once, or give `path` a "
            f"folder with {split}.jsonl"
        ) from error


def key(question: str) -> str:
    """A question as it is compared: words, numbers and signs."""
    return " ".join(re.findall(r"\w+|[^\w\s.,;:?!$'\"]", question.lower()))


def drawn(rows: list[dict], held_out: list[dict], column: str, count: int, seed: int) -> Iterator[dict]:
    """Up to `count` rows in the order of the seed, no question twice and none that is held out."""
    seen = {key(row[column]) for row in held_out}
    rows = random.Random(seed).sample(rows, len(rows))
    for row in rows:
        if count and key(row[column]) not in seen:
            seen.add(key(row[column]))
            count -= 1
            yield row


def examples(
    split: str,
    count: int = 1000,
    seed: int = 0,
    path: str = "openai/gsm8k",
    steps: tuple[int, int] = (1, 99),
) -> Iterator[dict]:
    """Problems whose solution takes from steps[0] to steps[1] sums; each at most once, so there may be fewer.

    Raises ValueError where the set cannot be read or has no such problem.
    """
    test = read_rows(path, "test", "main")
    rows = test if split == "test" else read_rows(path, "train", "main")
    rows = [row for row in rows if steps[0] <= row["answer"].count("<<") <= steps[1]]
    if not rows:
        raise ValueError(f"gsm8k: {path} has no {split} problem of {steps[0]} to {steps[1]} steps")
    for row in drawn(rows, [] if split == "test" else test, "question", count, seed):
        worked, _, answer = row["answer"].rpartition("####")
        answer = answer.strip().replace(",", "")
        worked = re.sub(r"<<.*?>>", "", worked).strip()
        yield {
            "prompt": [{"role": "user", "content": row["question"].strip() + ASK}],
            "answer": answer,
            "solution": f"{worked}\nThe answer is {answer}.",
        }


def grade(completion: str, answer: str) -> float:
    """1 where the number in the answer's place is right (see crawl2chat.verifier, which says what it raises)."""
    return verdict(completion, answer)
