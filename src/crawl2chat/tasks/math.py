r"""MATH: competition problems with worked solutions. Training from its train split (EleutherAI/hendrycks_math, MIT),
the test is MATH-500 (HuggingFaceH4/MATH-500), 500 problems of its test split. The dial is `levels`, 1 to 5.

Hendrycks et al., 2021, "Measuring Mathematical Problem Solving With the MATH Dataset"; Lightman et al., 2023, "Let's
Verify Step by Step".
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from crawl2chat.tasks.gsm8k import drawn, read_rows
from crawl2chat.verifier import verdict

ASK = " Think step by step, and put your final answer in \\boxed{}."
TRAIN, TEST = "EleutherAI/hendrycks_math", "HuggingFaceH4/MATH-500"
BOX = "\\boxed"  # the answer's place is the last line
SUBJECTS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
            "precalculus")  # fmt: skip


def boxed(solution: str) -> str:
    """What the last box of a reference solution holds; "" where there is none or it has no end."""
    inside = re.sub(r"\\(?:boxed|fbox) ([^{}$\s]+)", r"\\boxed{\1}", solution).rpartition("\\boxed{")[2]
    depth = 1
    for at, character in enumerate(inside):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return inside[:at].strip() if "boxed" in solution else ""
    return ""


def examples(
    split: str,
    count: int = 1000,
    seed: int = 0,
    path: str | None = None,
    levels: Sequence[int] = (1, 2, 3, 4, 5),
    subjects: Sequence[str] = SUBJECTS,
) -> Iterator[dict]:
    """Problems of these levels and, in training, subjects. `path`: a folder with train.jsonl and test.jsonl in place
    of the hub. Each problem at most once, so there may be fewer than `count`.

    Raises ValueError for other subjects, and where a set cannot be read or has no such problem.
    """
    if not set(subjects) <= set(SUBJECTS):
        raise ValueError(f"math: subjects are {', '.join(SUBJECTS)}, not {', '.join(subjects)}")
    test = read_rows(path or TEST, "test")
    if split == "test":
        rows = test
    elif path is not None and Path(path).is_dir():
        rows = read_rows(path, "train")
    else:
        rows = [row for subject in subjects for row in read_rows(path or TRAIN, "train", subject)]
    rows = [row for row in rows if re.sub("[^0-9]", "", str(row["level"])) in map(str, levels)]
    rows = [{**row, "answer": row.get("answer") or boxed(row["solution"])} for row in rows]
    unread = sum(not row["answer"] for row in rows)
    if unread:
        print(f"math: {unread} of {len(rows)} {split} problems dropped: no boxed answer", flush=True)
    rows = [row for row in rows if row["answer"]]
    if not rows:
        raise ValueError(f"math: no {split} problem of levels {', '.join(map(str, levels))}")
    for row in drawn(rows, [] if split == "test" else test, "problem", count, seed):
        yield {
            "prompt": [{"role": "user", "content": row["problem"].strip() + ASK}],
            "answer": row["answer"],
            "solution": f"{row['solution'].strip().replace(BOX, '')}\nThe answer is $\\boxed{{{row['answer']}}}$.",
        }


def grade(completion: str, answer: str) -> float:
    """1 where the formula in the answer's place is equal (see crawl2chat.verifier, which says what it raises)."""
    return verdict(completion, answer)
