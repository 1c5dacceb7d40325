"""spaCy's English words and sentences at many times the speed, for datatrove's filters (`language` takes a tokenizer).

spaCy cuts text at blanks and then cuts each piece by rules that look at nothing else, so a piece need be cut only
once. The words are those of datatrove's own tokenizer, and so are the filters' verdicts; a test holds them together.
"""

import re
from functools import lru_cache

from datatrove.utils.word_tokenizers import SpaCyTokenizer, strip_strings

QUIRK = "IS_ALPHA"  # a word that spaCy stumbles over, and datatrove then takes out of the text
MOST = 300_000  # pieces remembered at once: about 100 MB


class English(SpaCyTokenizer):
    """A datatrove word tokenizer that remembers how each piece between blanks is cut."""

    def __init__(self):
        super().__init__("en")
        self.words: dict[str, list[str]] = {}
        # a piece's tokens as (offset, ends a sentence, is punctuation)
        self.marks: dict[str, list[tuple[int, bool, bool]]] = {}

    def __reduce__(self) -> tuple:
        return english, ()  # every step that is sent to a worker shares the worker's one

    def learn(self, pieces: list[str]) -> None:
        """Cut pieces that are new, all in one text."""
        if not pieces:
            return
        if len(self.words) > MOST:
            self.words.clear()
            self.marks.clear()
        ends = self.tokenizer.get_pipe("sentencizer").punct_chars
        with self.tokenizer.memory_zone():
            tokens = iter(self.tokenizer.tokenizer(" ".join(pieces)))
            offset = 0
            for piece in pieces:
                words, marks, inside = [], [], 0
                while inside < len(piece):
                    token = next(tokens)
                    words.append(token.text)
                    marks.append((inside, token.text in ends, token.is_punct))
                    inside = token.idx + len(token.text) - offset
                self.words[piece], self.marks[piece] = strip_strings(words), marks
                offset += len(piece) + 1

    def word_tokenize(self, text: str) -> list[str]:
        if QUIRK in text:
            return super().word_tokenize(text)
        pieces = text.split()
        self.learn([piece for piece in set(pieces) if piece not in self.words])
        return [word for piece in pieces for word in self.words[piece]]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of each sentence; one begins at the first word after marks that end one, as in spaCy."""
        if (
            not text or QUIRK in text or re.search(r"[^\S ]|  |^ | $", text)
        ):  # there, white space is a token of its own
            return super().span_tokenize(text)
        pieces = text.split(" ")
        self.learn([piece for piece in set(pieces) if piece not in self.words])
        starts, ended, offset = [0], False, 0
        for piece in pieces:
            for inside, ends_sentence, is_punctuation in self.marks[piece]:
                if ended and not is_punctuation and not ends_sentence:
                    starts.append(offset + inside)
                    ended = False
                elif ends_sentence:
                    ended = True
            offset += len(piece) + 1
        ends = [start - (text[start - 1] == " ") for start in starts[1:]]
        return list(zip(starts, [*ends, len(text)], strict=True))


@lru_cache(1)
def english() -> English:
    """The tokenizer of this process."""
    return English()
