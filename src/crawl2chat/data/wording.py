"""How a page made from data is worded: pools of phrasings, drawn without repeating one inside a page.

A pool is a tuple of format strings; a page's plan is a list of paragraphs, each a list of pools. `write` draws and
fills them until the text reads as prose by the measures that published web filters use (Gopher, FineWeb), with a
margin: a page of facts repeats its subject's name by nature, and a draw that overdoes it is thrown away.
"""

import random
import re
from collections import Counter
from collections.abc import Callable

TOKEN = re.compile(r"[^\W_]+(?:'\w+)?|[^\w\s]")
LETTERLESS = re.compile(r"\b\d+\b|[^\w\s]")
# Gopher (Rae et al. 2021, table A1) allows .20/.18/.16 for the most frequent n-gram's share of the characters and
# .15 ... .10 for repeated 5- to 10-grams; these are the same numbers less a tenth
TOP = {2: 0.18, 3: 0.16, 4: 0.144}
REPEATED = {5: 0.135, 6: 0.126, 7: 0.117, 8: 0.108, 9: 0.099, 10: 0.09}
LETTERED = 0.815  # share of tokens with a letter in them; Gopher asks for 0.8
WORDS = 55  # Gopher asks for 50


def lettered(text: str) -> float:
    """Share of a text's tokens that hold a letter: the rest is punctuation and numbers."""
    return 1 - len(LETTERLESS.findall(text)) / max(1, len(TOKEN.findall(text)))


def reads_as_prose(text: str) -> bool:
    """Whether a text is long enough, wordy enough and varied enough for the filters named above."""
    tokens = TOKEN.findall(text)
    words = len(tokens) - len(LETTERLESS.findall(text))
    if words < WORDS or words < LETTERED * len(tokens):
        return False
    for n, share in TOP.items():
        (gram, count), *_ = Counter(zip(*(tokens[i:] for i in range(n)), strict=False)).most_common(1)
        if len(" ".join(gram)) * count > share * len(text):
            return False
    if len(set(zip(*(tokens[i:] for i in range(5)), strict=False))) == len(tokens) - 4:
        return True  # no five words come twice, so no more than five do
    for n, share in REPEATED.items():
        seen, repeated, i = set(), 0, 0
        while i <= len(tokens) - n:
            gram = tuple(tokens[i : i + n])
            if gram in seen:
                repeated += sum(map(len, gram))
                i += n
            else:
                seen.add(gram)
                i += 1
        if repeated > share * len(text):
            return False
    return True


class Teller:
    """Draws phrasings for one page and fills in its words; no phrasing twice in a page while the pool lasts."""

    def __init__(self, rng: random.Random, words: dict[str, str]):
        self.rng = rng
        self.words = words
        self.used: set[str] = set()

    def say(self, *pools: tuple[str, ...], **more: str) -> str:
        """One sentence from each pool, in order, filled in and joined by spaces."""
        sentences = []
        for pool in pools:
            fresh = [text for text in pool if text not in self.used] or list(pool)
            text = self.rng.choice(fresh)
            self.used.add(text)
            sentences.append(text.format(**{**self.words, **more}))
        return " ".join(sentences)


def write(
    plan: Callable[[Teller], list[str]],
    rng: random.Random,
    words: dict[str, str],
    padding: tuple[str, ...] = (),
    tries: int = 48,
) -> list[str]:
    """Paragraphs of the first draw of `plan` that reads as prose (the last draw, if none of `tries` does).

    After each sixth of the tries one more sentence of `padding` ends every paragraph, as long as there are any: a
    long name may not be too large a part of a short page.
    """
    for attempt in range(tries):
        paragraphs = plan(Teller(rng, words))
        more = iter(rng.sample(padding, len(padding)))
        for _ in range(6 * attempt // tries):
            paragraphs = [f"{text} {next(more, '')}".rstrip() for text in paragraphs]
        if reads_as_prose("\n".join(paragraphs)):
            break
    return paragraphs


def and_list(items: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def an(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"


def upper(text: str) -> str:
    """The same text with its first letter in upper case."""
    return text[:1].upper() + text[1:]
