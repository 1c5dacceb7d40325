"""Spell a word letter by letter: what a model that sees tokens, not letters, must have learned."""

import random
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

WORDINGS = {
    "train": [
        "Spell the word {w}.", "How do you spell {w}?", "Please spell {w}.", "Spell {w} letter by letter.",
        "Spell {w}.", "Can you spell {w}?", "What letters are in {w}?", "How is {w} spelled?",
        "Tell me the letters of {w}.", "I want to know how to spell {w}.", "Spell out {w} for me.",
        "Which letters make the word {w}?",
    ],
    "test": ["Write the letters of {w}.", "Could you spell {w} for me?"],
}  # fmt: skip


def spelled(word: str) -> str:
    return "-".join(word)


def split_of(word: str) -> str:
    return "test" if zlib.crc32(word.encode()) % 8 == 0 else "train"


def made_up(rng: random.Random) -> str:
    """A pronounceable word that is in no list."""
    return "".join(
        rng.choice("bcdfghklmnprstvw") + rng.choice("aeiou") + rng.choice(["", "", "n", "r", "s", "t"])
        for _ in range(rng.randint(2, 3))
    )


def read_words(path: str, length: tuple[int, int] = (3, 9), most: int = 3000) -> list[str]:
    """Lower-case words of a text file, one a line, most frequent first."""
    words = Path(path).read_text(encoding="utf-8").split()
    return [word for word in words if word.isascii() and word.islower() and length[0] <= len(word) <= length[1]][:most]


def words_of(words: str | Sequence[str], split: str) -> list[str]:
    """The words of one split, from a file or a sequence. Raises ValueError where none is left."""
    found = [word for word in (read_words(words) if isinstance(words, str) else words) if split_of(word) == split]
    if not found:
        raise ValueError(f"{words if isinstance(words, str) else 'words'}: no word of the {split} split; give more")
    return found


def examples(split: str, words: str | Sequence[str], count: int = 500, seed: int = 0) -> Iterator[dict]:
    """`words` is a file of words, one a line, or a sequence of them. In training a third of the words are made up."""
    rng = random.Random(f"spelling {split} {seed}")
    pool, done = words_of(words, split), 0
    while done < count:
        word = made_up(rng) if split == "train" and rng.random() < 1 / 3 else rng.choice(pool)
        if split_of(word) != split:
            continue
        question = rng.choice(WORDINGS[split]).format(w=word)
        yield {"prompt": [{"role": "user", "content": question}], "answer": word, "solution": f"{spelled(word)}."}
        done += 1


def grade(completion: str, answer: str) -> float:
    """1 where the single letters set apart by dashes, spaces or commas are the word's, in order, and nothing else is
    spelled.
    """
    runs = re.findall(r"(?<![a-z])[a-z](?:[-, .]+[a-z](?![a-z]))*", completion.lower())
    spelled_out = [re.sub(r"[^a-z]", "", run) for run in runs]
    return float([run for run in spelled_out if len(run) > 1] == [answer] or spelled_out == [answer])
