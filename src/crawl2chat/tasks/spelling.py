"""Spell a word, say every third letter of it, or spell it backwards: a model sees tokens, not letters, so it must have
learned what its tokens are spelled like, or let Python look.
"""

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

OTHER_WORDINGS = {
    "every_third": {
        "train": [
            "What is every third letter of {w}?", "Say every third letter of the word {w}.",
            "Take every third letter of {w}.", "Which letters of {w} are the third, the sixth and so on?",
        ],
        "test": ["Print only every third letter of {w}.", "Give me every third letter in {w}."],
    },
    "reverse": {
        "train": [
            "Spell {w} backwards.", "Reverse the word {w}.", "Say the letters of {w} from last to first.",
            "How is {w} spelled backwards?",
        ],
        "test": ["Write {w} in reverse.", "Could you spell the word {w} backwards?"],
    },
}  # fmt: skip
PYTHON = {
    "train": [" Use Python.", " Use code.", " Look with Python."],
    "test": [" Work it out with Python."],
}
CUT = {"spell": slice(None), "every_third": slice(2, None, 3), "reverse": slice(None, None, -1)}
CODE = {"spell": "", "every_third": "[2::3]", "reverse": "[::-1]"}


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


def draw(split: str, pool: Sequence[str], rng: random.Random, made_up_share: float) -> str:
    """A word of the split, from the pool or made up."""
    while True:
        word = made_up(rng) if rng.random() < made_up_share else rng.choice(pool)
        if split_of(word) == split:
            return word


def examples(
    split: str,
    words: str | Sequence[str],
    count: int = 500,
    seed: int = 0,
    ask: str = "spell",
    manner: str = "direct",
    made_up_share: float = 1 / 3,
) -> Iterator[dict]:
    """Ask: spell, every_third, reverse or any. Manner: direct or python.

    `words` is a file of words, one a line, or a sequence of them. In training `made_up_share` of them are made up.
    """
    if ask not in (*CUT, "any") or manner not in ("direct", "python"):
        raise ValueError(f"spelling: ask is one of {', '.join(CUT)}, any and manner of direct, python")
    rng, ending = random.Random(f"spelling {split} {seed}"), random.Random(f"spelling {manner} {seed}")
    pool = words_of(words, split)
    for _ in range(count):
        word = draw(split, pool, rng, made_up_share if split == "train" else 0)
        kind = rng.choice(list(CUT)) if ask == "any" else ask
        wordings = WORDINGS if kind == "spell" else OTHER_WORDINGS[kind]
        answer = spelled(word[CUT[kind]])
        question = rng.choice(wordings[split]).format(w=word)
        if manner == "python":
            question += ending.choice(PYTHON[split])
        example = {"prompt": [{"role": "user", "content": question}], "answer": answer, "solution": f"{answer}."}
        if manner == "python":
            # a space before the word, as in the question, so that the model copies the same token
            code = f"print('-'.join(' {word}'.strip(){CODE[kind]}))"
            example["calls"] = [{"name": "python", "arguments": {"code": code}}]
        yield example


def grade(completion: str, answer: str) -> float:
    """1 where the single letters set apart by dashes, spaces or commas are the answer's, in order, nothing else is
    spelled and nothing is hedged.
    """
    text = completion.lower()
    runs = re.findall(r"(?<![a-z'])[a-z](?:[-, .]+[a-z](?![a-z']))*(?![a-z'])", text)
    letters = [re.sub(r"[^a-z]", "", run) for run in runs]
    hedged = {"or", "not", "maybe", "perhaps", "either", "probably", "possibly"} & set(re.findall(r"[a-z]+", text))
    wanted = answer.replace("-", "").lower()
    right = [run for run in letters if len(run) > 1] == [wanted] or letters == [wanted]
    return float(right and not hedged and "?" not in text)
