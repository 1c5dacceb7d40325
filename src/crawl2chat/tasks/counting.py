"""Count a letter in a word by spelling it first, or dots in a row."""

import random
import re
from collections.abc import Iterator, Sequence

from crawl2chat.tasks.spelling import made_up, spelled, split_of, words_of

WORDINGS = {
    "train": [
        "How many times is the letter {l} in {w}?", "Count the letter {l} in {w}.",
        "How often does {w} have the letter {l}?", "How many {l} are in {w}?",
        "How many letters {l} does the word {w} have?", "In the word {w}, how many {l} are there?",
        "Count the {l}'s in {w}.", "Tell me the number of {l} in {w}.", "How often is {l} in the word {w}?",
    ],
    "test": ["How many {l}'s are in the word {w}?", "Tell me how many letters {l} there are in {w}."],
}  # fmt: skip


def worked(word: str, letter: str) -> str:
    """Spell, then count along: the count so far after every hit."""
    marks, seen = [], 0
    for character in word:
        seen += character == letter
        marks.append(f"{character}{seen}" if character == letter else character)
    return f"{spelled(word)}. {' '.join(marks)}. The answer is {seen}."


def examples(split: str, words: str | Sequence[str], count: int = 500, seed: int = 0) -> Iterator[dict]:
    rng = random.Random(f"counting {split} {seed}")
    pool, done = words_of(words, split), 0
    while done < count:
        word = made_up(rng) if split == "train" and rng.random() < 1 / 3 else rng.choice(pool)
        if split_of(word) != split:
            continue
        letter = rng.choice(word) if rng.random() < 0.85 else rng.choice("aeionrst")
        question = rng.choice(WORDINGS[split]).format(w=word, l=letter)
        answer = str(word.count(letter))
        yield {"prompt": [{"role": "user", "content": question}], "answer": answer, "solution": worked(word, letter)}
        done += 1


def grade(completion: str, answer: str) -> float:
    """1 where the only number after "The answer is" (or the only number of all) is right."""
    numbers = re.findall(r"\d+", re.split("[Tt]he answer is", completion, maxsplit=1)[-1])
    return float(len(set(numbers)) == 1 and numbers[0] == answer)
