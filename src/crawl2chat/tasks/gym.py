"""Families of reasoning-gym by name (letter_counting, spell_backward, chain_sum, gsm_symbolic, ...), Apache-2.0.

For families whose answer is one short line; the answer's place is after "the answer is", or the whole reply.
"""

import difflib
import re
import zlib
from collections.abc import Iterator

from crawl2chat.verifier import stated

LONGEST = 40  # characters of an answer


def split_of(question: str) -> str:
    """One question in five is held out, whatever the seed that brought it."""
    return "test" if zlib.crc32(question.encode()) % 5 == 0 else "train"


def examples(
    split: str, family: str = "letter_counting", config: dict | None = None, count: int = 500, seed: int = 0
) -> Iterator[dict]:
    """Questions of one family with its own `config` (its difficulty); the solution states the answer alone.

    Raises ValueError for an unknown family, with the nearest right one, for one whose answers are no short line, and
    where reasoning-gym is not installed.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ValueError("gym: reasoning-gym is not installed (requirements-optional.txt)") from error
    if family not in DATASETS:
        near = difflib.get_close_matches(family, DATASETS, n=1)
        raise ValueError(f"gym: no family {family!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    drawn, seen = 0, set()
    for entry in reasoning_gym.create_dataset(family, size=8 * count + 100, seed=seed, **(config or {})):
        question, answer = entry["question"].strip(), str(entry["answer"])
        if not answer or "\n" in answer or len(answer) > LONGEST:
            raise ValueError(f"gym: answers of {family} are no short line ({answer[:LONGEST]!r}); take another family")
        if drawn == count:
            return
        if split_of(question) != split or question in seen:
            continue
        seen.add(question)
        drawn += 1
        prompt = [{"role": "user", "content": question}]
        yield {"prompt": prompt, "answer": answer, "solution": f"The answer is {answer}."}


def plain(text: str) -> str:
    """Without quotes, a final stop and the case of letters; of numbers without thousands' commas."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.strip().strip("\"'`*").rstrip(".!").strip("\"'`*"))
    return " ".join(text.lower().split())


def grade(completion: str, answer: str) -> float:
    """1 where all that the reply states in an answer's place (see verifier.stated) is the answer."""
    said = stated(completion, set(answer.lower().split()))
    return float(bool(plain(answer)) and bool(said) and {plain(text) for text in said} == {plain(answer)})
