r"""AIME 2024, for evaluation only: thirty problems (HuggingFaceH4/aime_2024) whose answers are whole numbers from 0 to
999. So few that one sample of each says little: draw several and name their number.
"""

from collections.abc import Iterator

from crawl2chat.tasks.gsm8k import drawn, read_rows
from crawl2chat.tasks.math import ASK
from crawl2chat.verifier import verdict


def examples(split: str, count: int = 30, seed: int = 0, path: str = "HuggingFaceH4/aime_2024") -> Iterator[dict]:
    """The problems, in the order of the seed. `path`: the hub's set, or a folder with train.jsonl as the hub has it.

    Raises ValueError for another split than test, and where the set cannot be read.
    """
    if split != "test":
        raise ValueError(f"aime: AIME 2024 is for evaluation only and has no {split} split; train on math")
    for row in drawn(read_rows(path, "train"), [], "problem", count, seed):  # the hub calls its only split train
        answer = str(int(row["answer"]))
        yield {
            "prompt": [{"role": "user", "content": row["problem"].strip() + ASK}],
            "answer": answer,
            "solution": f"{row.get('solution', '').strip()}\nThe answer is $\\boxed{{{answer}}}$.".strip(),
        }


def grade(completion: str, answer: str) -> float:
    """1 where the number in the answer's place is right (see crawl2chat.verifier, which says what it raises)."""
    return verdict(completion, answer)
