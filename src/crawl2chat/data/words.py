"""spaCy's English words and sentences at many times the speed, for datatrove's filters (`language` takes a tokenizer).

spaCy cuts text at blanks and then cuts each piece by rules that look at nothing else, so a piece need be cut only
once. The words are those of datatrove's own tokenizer, and so are the filters' verdicts; a test holds them together.
Two things differ, for spaCy's time grows with the square of a run without blanks, and no signal reaches it there: such
a run is broken up every LONG characters, and a page is gone through AT_ONCE characters at a time.
"""

import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain

from datatrove.utils.word_tokenizers import SpaCyTokenizer, strip_strings

# where a piece's neighbours can matter after all: emoticons and double quotes, which spaCy also finds across blanks,
# and a word that it stumbles over (datatrove then takes it out of the text)
ODD = re.compile(r"[:;=][^\w\s]|[^\w\s][:;=]|8-?\)|\(-?8|['’]\s+['’]|IS_ALPHA")
BLANKS = re.compile(r"[^\S ]|  |^ | $")  # white space that is a token of its own
APART = " word "
LONG = 1000  # characters without a blank between them: no prose
AT_ONCE = 50_000  # characters that take spaCy three seconds at the very worst
MOST = 300_000  # pieces remembered at once: about 100 MB


class English(SpaCyTokenizer):
    """A datatrove word tokenizer that remembers how each piece between blanks is cut."""

    def __init__(self):
        super().__init__("en")
        self.words: dict[str, list[str]] = {}
        # the tokens as (offset, ends a sentence, is punctuation) of a piece that is no plain word
        self.marks: dict[str, list[tuple[int, bool, bool]]] = {}

    def __reduce__(self) -> tuple:
        return english, ()  # every step that is sent to a worker shares the worker's one

    def learn(self, pieces: list[str]) -> None:
        """Cut pieces that are new, all in one text."""
        ends, exceptions = self.tokenizer.get_pipe("sentencizer").punct_chars, self.tokenizer.tokenizer.rules
        for piece in pieces:  # nothing but letters: no rule of spaCy's applies
            if piece.isascii() and piece.isalpha() and piece not in exceptions:
                self.words[piece] = [piece]
        pieces = [piece for piece in pieces if piece not in self.words]
        with self.tokenizer.memory_zone():
            # a plain word between pieces, so that no special case (an emoticon, say) is found across two of them
            tokens = iter(self.tokenizer.tokenizer(APART.join(pieces)))
            offset = 0
            for number, piece in enumerate(pieces):
                if number:
                    next(tokens)
                words, marks, inside = [], [], 0
                while inside < len(piece):
                    token = next(tokens)
                    words.append(token.text)
                    marks.append((inside, token.text in ends, token.is_punct))
                    inside = token.idx + len(token.text) - offset
                self.words[piece], self.marks[piece] = strip_strings(words), marks
                offset += len(piece) + len(APART)

    def wake(self) -> None:
        """Load spaCy now, a second's work: without torch, seconds more, which it looks for and does not need here."""
        if self._tokenizer is None:
            alone = "torch" not in sys.modules
            if alone:
                sys.modules["torch"] = None  # as Python notes a module that is not there
            try:
                self.word_tokenize("Wake up.")
            finally:
                if alone:
                    del sys.modules["torch"]

    def forget(self) -> None:
        self.words.clear()
        self.marks.clear()

    def word_tokenize(self, text: str) -> list[str]:
        return list(chain.from_iterable(self.words_of(part) for _, part in parts(text)))

    def words_of(self, text: str) -> list[str]:
        return super().word_tokenize(text) if ODD.search(text) else list(chain.from_iterable(self.cut(text.split())))

    def cut(self, pieces: list[str]) -> list[list[str]]:
        """The words of each piece."""
        try:
            return [self.words[piece] for piece in pieces]
        except KeyError:
            if len(self.words) > MOST:
                self.forget()
            self.learn([piece for piece in set(pieces) if piece not in self.words])
            return [self.words[piece] for piece in pieces]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of each sentence; one begins at the first word after marks that end one, as in spaCy."""
        return [(at + start, at + end) for at, part in parts(text) for start, end in self.spans_of(part)]

    def spans_of(self, text: str) -> list[tuple[int, int]]:
        if not text or ODD.search(text) or BLANKS.search(text):
            return super().span_tokenize(text)
        pieces = text.split(" ")
        self.cut(pieces)
        starts, ended, offset = [0], False, 0
        for piece in pieces:
            marks = self.marks.get(piece)
            if marks is not None:
                for inside, ends_sentence, is_punctuation in marks:
                    if ends_sentence:
                        ended = True
                    elif ended and not is_punctuation:
                        starts.append(offset + inside)
                        ended = False
            elif ended:
                starts.append(offset)
                ended = False
            offset += len(piece) + 1
        ends = [start - (text[start - 1] == " ") for start in starts[1:]]
        return list(zip(starts, [*ends, len(text)], strict=True))


def parts(text: str) -> Iterator[tuple[int, str]]:
    """(offset, part): an ordinary page is one part, itself."""
    if max(map(len, text.split()), default=0) > LONG:
        text = re.sub(r"\S+", lambda run: re.sub(rf"(.{{{LONG}}}).", r"\1 ", run[0]), text)
    start = 0
    while len(text) - start > AT_ONCE:
        blank = max(text.rfind(" ", start, start + AT_ONCE), text.rfind("\n", start, start + AT_ONCE))
        end = blank + 1 if blank > start else start + AT_ONCE
        yield start, text[start:end]
        start = end
    yield start, text[start:]


@lru_cache(1)
def english() -> English:
    """The tokenizer of this process."""
    return English()
