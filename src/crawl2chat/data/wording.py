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
# Gopher (Rae et al. 2021, table A1) allows .20/.18/.16 for the most frequent n-gram's share of the characters and
# .15 ... .10 for repeated 5- to 10-grams; these are the same numbers less a tenth
TOP = {2: 0.18, 3: 0.16, 4: 0.144}
REPEATED = {5: 0.135, 6: 0.126, 7: 0.117, 8: 0.108, 9: 0.099, 10: 0.09}
LETTERED = 0.815  # share of tokens with a letter in them; Gopher asks for 0.8
WORDS = 55  # Gopher asks for 50


def reads_as_prose(text: str) -> bool:
    """Whether a text is long enough, wordy enough and varied enough for the filters named above."""
    tokens = TOKEN.findall(text)
    lettered = sum(any(map(str.isalpha, token)) for token in tokens)
    if lettered < WORDS or lettered < LETTERED * len(tokens):
        return False
    for n, share in TOP.items():
        grams = Counter(" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        gram, count = grams.most_common(1)[0]
        if len(gram) * count > share * len(text):
            return False
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
    tries: int = 40,
) -> list[str]:
    """Paragraphs of the first draw of `plan` that reads as prose (the last draw, if none of `tries` does).

    After each quarter of the tries one more sentence of the pool `padding` ends every paragraph: a long name may not
    be too large a part of a short page.
    """
    for attempt in range(tries):
        teller = Teller(rng, words)
        pads = [padding] * (4 * attempt // tries) if padding else []
        paragraphs = [f"{text} {teller.say(*pads)}".rstrip() for text in plan(teller)]
        if reads_as_prose("\n".join(paragraphs)):
            break
    return paragraphs


def and_list(items: list[str]) -> str:
    """"a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def an(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"


def upper(text: str) -> str:
    """The same text with its first letter in upper case."""
    return text[:1].upper() + text[1:]
