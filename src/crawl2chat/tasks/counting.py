"""Count a letter in a word, the letters of a word, or dots in a row: at once, by counting along, or with Python."""

import random
import zlib
from collections.abc import Iterator, Sequence

from crawl2chat.tasks.apples import MANNERS
from crawl2chat.tasks.apples import grade as grade
from crawl2chat.tasks.spelling import draw, spelled, words_of

WORDINGS = {
    "train": [
        "How many times is the letter {l} in {w}?", "Count the letter {l} in {w}.",
        "How often does {w} have the letter {l}?", "How many {l} are in {w}?",
        "How many letters {l} does the word {w} have?", "In the word {w}, how many {l} are there?",
        "Count the {l}'s in {w}.", "Tell me the number of {l} in {w}.", "How often is {l} in the word {w}?",
    ],
    "test": ["How many {l}'s are in the word {w}?", "Tell me how many letters {l} there are in {w}."],
}  # fmt: skip
OTHER_WORDINGS = {
    "letters": {
        "train": [
            "How many letters has the word {w}?", "Count the letters of {w}.", "How long is the word {w}?",
            "Tell me how many letters are in {w}.",
        ],
        "test": ["What number of letters does {w} have?", "How many letters long is {w}?"],
    },
    "dots": {
        "train": ["How many dots are in {w} here?", "Count the dots in {w} for me.", "The dots {w} are how many?"],
        "test": ["How many dots does the row {w} have?", "Tell me how many dots {w} makes."],
    },
}  # fmt: skip
MOST_DOTS = 40


def worked(word: str, letter: str) -> str:
    """Spell, then count along: the count so far after every hit."""
    marks, seen = [], 0
    for character in word:
        seen += character == letter
        marks.append(f"{character}{seen}" if character == letter else character)
    return f"{spelled(word)}. {' '.join(marks)}. The answer is {seen}."


def counted(text: str) -> str:
    """Every character with its number."""
    return f"{' '.join(f'{character}{i}' for i, character in enumerate(text, 1))}. The answer is {len(text)}."


def dots(split: str, rng: random.Random) -> str:
    """A row of dots; one length in five is held out."""
    lengths = [n for n in range(1, MOST_DOTS + 1) if (zlib.crc32(b"." * n) % 5 == 0) == (split == "test")]
    return "." * rng.choice(lengths)


def examples(
    split: str,
    words: str | Sequence[str] = (),
    count: int = 500,
    seed: int = 0,
    ask: str = "letter",
    manner: str = "steps",
) -> Iterator[dict]:
    """Ask: letter (one letter in a word), letters (of a word), dots, or any. Manner: direct, steps or python."""
    if ask not in ("letter", *OTHER_WORDINGS, "any") or manner not in MANNERS:
        raise ValueError(f"counting: ask is one of letter, letters, dots, any and manner of {', '.join(MANNERS)}")
    rng, ending = random.Random(f"counting {split} {seed}"), random.Random(f"counting {manner} {seed}")
    pool = () if ask == "dots" else words_of(words, split)
    for _ in range(count):
        kind = rng.choice(["letter", *OTHER_WORDINGS]) if ask == "any" else ask
        word = dots(split, rng) if kind == "dots" else draw(split, pool, rng, 1 / 3 if split == "train" else 0)
        letter = rng.choice(word) if rng.random() < 0.85 else rng.choice("aeionrst")
        wordings = WORDINGS if kind == "letter" else OTHER_WORDINGS[kind]
        question = rng.choice(wordings[split]).format(w=word, l=letter)
        if manner != "steps":
            question += " " + ending.choice(MANNERS[manner][split])
        answer = str(word.count(letter) if kind == "letter" else len(word))
        # a space before the word, as in the question, so that the model copies the same token
        code = f"' {word}'.count('{letter}')" if kind == "letter" else f"len(' {word} '.strip())"
        solution = {
            "direct": f"{answer}.",
            "steps": worked(word, letter) if kind == "letter" else counted(word),
            "python": f"The answer is {answer}.",
        }[manner]
        example = {"prompt": [{"role": "user", "content": question}], "answer": answer, "solution": solution}
        if manner == "python":
            example["calls"] = [{"name": "python", "arguments": {"code": code}}]
        yield example
