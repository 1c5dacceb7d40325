"""How text becomes ids: the merges learned from it, and an encoder several times as fast as `tokenizers`' own.

BPE works within pre-tokens (words, roughly), and few of them are new. So the encoder splits a text by Python's `re`,
looks the ids of its words up, and gives a new word to the tokenizer itself. The ids are right by construction where
the split is, and the split is made right by asking tokenizers' own regex engine which characters are letters, numbers
and white space to it: Unicode versions and case folding are its, not Python's.
"""

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate, chain

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase

from crawl2chat.protocol import PROTOCOL_TOKENS

# GPT-4's splitting (words with one leading mark, contractions, punctuation, white space), but digits one by one, so
# that a number is its digits and column addition can be learned
SPLIT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# how ByteLevel splits where it is told to (GPT-2's way)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# the two groups in which contractions are written regardless of case, and their bodies; other groups of the kind are
# not understood, because letters together may fold to one character ("ss" to "ß")
CONTRACTIONS = {
    "(?i:[sdmt]|ll|ve|re)": "s|d|m|t|ll|ve|re",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)": "'s|'t|'re|'ve|'m|'ll|'d",
}
DIGIT = "digit"  # stands for what pre_tokenizers.Digits takes for one
LONGEST = 64  # characters of a word worth remembering
REMEMBERED = 400_000  # words, about 100 MB

BASIC_PLANE = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x10000))))
ASTRAL = re.compile("[\U00010000-\U0010ffff]")
_PART = re.compile(
    "|".join(map(re.escape, CONTRACTIONS))
    + r"|\\p\{[A-Z][a-z]?\}|\\[sSrn]|\(\?[:!]|\)|\[\^?|\]|\{\d+(?:,\d*)?\}|[?*+|]|[ '/A-Za-z0-9]"
)


def train_bpe(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with the protocol's tokens at its front; bytes are its alphabet, so that no text is unknown.

    May return fewer than `vocab_size` tokens: BPE stops where no pair is left that occurs twice.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=PROTOCOL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class NotUnderstood(Exception):
    """Why a tokenizer's pre-tokenizer cannot be done here."""


def asked(atom: str, characters: str) -> set[str]:
    """Which of these characters match `atom` (\\p{L}, \\s, (?i:s), DIGIT, ...) in tokenizers' own reading."""
    if atom == DIGIT:  # a digit stands alone, anything else goes with the letter behind it
        pieces = pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str("".join(c + "a" for c in characters))
        return {piece for piece, (start, end) in pieces if end - start == 1 and start % 2 == 0}
    return set(characters).difference(_without(atom).normalize_str(characters))


@lru_cache(maxsize=64)
def _without(atom: str) -> normalizers.Normalizer:
    return normalizers.Replace(Regex(atom), "")


@lru_cache(maxsize=64)
def members(atom: str) -> frozenset[str]:
    """The characters of the basic plane that match `atom`."""
    return frozenset(asked(atom, BASIC_PLANE))


@lru_cache(maxsize=64)
def ranges(atom: str) -> str:
    """`members(atom)` as the inside of a character class."""
    codes = np.array(sorted(map(ord, members(atom))))
    if not len(codes):
        raise NotUnderstood(f"{atom}, which no character of the basic plane is")
    runs = np.split(codes, np.flatnonzero(np.diff(codes) > 1) + 1)
    return "".join(f"\\u{run[0]:04x}-\\u{run[-1]:04x}" for run in runs)


def translate(pattern: str) -> tuple[str, set[str]]:
    """A splitting regex of tokenizers in Python's, every class spelt out for the basic plane; and its atoms.

    Raises NotUnderstood for syntax that the two engines might read differently (possessive or lazy quantifiers,
    other escapes, ranges).
    """
    out, atoms, inside, place, part = [], set(), False, 0, ""
    while place < len(pattern):
        match, previous = _PART.match(pattern, place), part
        part = match[0] if match else pattern[place]
        twice = part[0] in "?*+{" and previous[:1] in "?*+{"
        if not match or twice or (inside and (part[0] in "?*+{|([)" or part == "\\S")) or (part == "]" and not inside):
            raise NotUnderstood(f"{part!r} at {place} of the regex {pattern!r}")
        if part in CONTRACTIONS:
            atoms |= {f"(?i:{letter})" for letter in re.findall("[a-z]", part[4:])}
            out.append("(?:" + re.sub("[a-z]", lambda m: "[" + ranges(f"(?i:{m[0]})") + "]", CONTRACTIONS[part]) + ")")
        elif part == "\\S":
            atoms.add("\\s")
            out.append("[^" + ranges("\\s") + "]")
        elif part == "\\s" or part.startswith("\\p"):
            atoms.add(part)
            out.append(ranges(part) if inside else f"[{ranges(part)}]")
        else:
            inside = part[0] == "[" or (inside and part != "]")
            out.append(part)
        place = match.end()
    return "".join(out), atoms


def stages(pre_tokenizer: pre_tokenizers.PreTokenizer | None) -> tuple[list[str], pre_tokenizers.ByteLevel | None]:
    """What a pre-tokenizer does, one regex after the other within the pieces, and how it spells the words at last
    (ByteLevel, or nothing). DIGIT stands for Digits. Raises NotUnderstood for any other kind.
    """
    if pre_tokenizer is None:
        raise NotUnderstood("text that is not split into words")
    state = json.loads(pre_tokenizer.__getstate__())
    splits, spelling = [], None
    for step in state.get("pretokenizers", [state]):
        kind = step["type"]
        if spelling is not None:
            raise NotUnderstood(f"{kind} after ByteLevel")
        if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
            splits.append(step["pattern"]["Regex"])
        elif kind == "Digits":
            splits.append(DIGIT if step["individual_digits"] else DIGIT + "+")
        elif kind == "ByteLevel" and not step["add_prefix_space"]:
            splits += [GPT2] if step["use_regex"] else []
            spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        else:
            raise NotUnderstood(kind if kind != "Split" else f"Split by {step['pattern']}, {step['behavior']}")
    if not splits:
        raise NotUnderstood("text that is not split into words")
    return splits, spelling


class Splitter:
    """Text to words, as this pre-tokenizer splits it."""

    def __init__(self, pre_tokenizer: pre_tokenizers.PreTokenizer | None):
        splits, self.spelling = stages(pre_tokenizer)
        self.patterns: list[re.Pattern] = []
        self.stand_ins: dict[str, str] = {}
        self.alike: dict[tuple[bool, ...], str] = {}
        atoms: set[str] = set()
        for split in splits:
            if split.startswith(DIGIT):
                self.patterns.append(re.compile(f"[{ranges(DIGIT)}]{split.removeprefix(DIGIT)}|[^{ranges(DIGIT)}]+"))
                atoms.add(DIGIT)
            else:
                translated, new = translate(split)
                atoms |= new
                if re.match(translated, "") is not None:
                    raise NotUnderstood(f"the regex {split!r}, which matches nothing at all")
                # what the regex does not match is a word too
                self.patterns.append(re.compile(f"{translated}|(?:(?!{translated})[\\s\\S])+"))
        self.atoms = tuple(sorted(atoms))

    def _stand_in(self, match: re.Match) -> str:
        """A character of the basic plane that every atom takes like the matched one beyond it: Python's classes are
        tables up to there and slow lists of ranges beyond. Raises NotUnderstood where there is none.
        """
        if (character := match[0]) not in self.stand_ins:
            self.stand_ins[character] = self._alike(tuple(bool(asked(atom, character)) for atom in self.atoms))
        return self.stand_ins[character]

    def _alike(self, taken: tuple[bool, ...]) -> str:
        if taken not in self.alike:
            alike = set(BASIC_PLANE[128:])  # beyond the characters that a regex names itself
            for atom, is_taken in zip(self.atoms, taken, strict=True):
                alike = alike & members(atom) if is_taken else alike - members(atom)
            if not alike:
                raise NotUnderstood(f"no character of the basic plane is {taken} in {self.atoms}")
            self.alike[taken] = min(alike)
        return self.alike[taken]

    def split(self, text: str) -> list[str]:
        basic = text.isascii() or ASTRAL.search(text) is None
        pieces = self.patterns[0].findall(text if basic else ASTRAL.sub(self._stand_in, text))
        for pattern in self.patterns[1:]:
            pieces = list(chain.from_iterable(map(pattern.findall, pieces)))
        if basic:
            return pieces
        ends = list(accumulate(map(len, pieces)))
        return list(map(text.__getitem__, map(slice, [0, *ends], ends)))


class _Words(dict):
    """word -> its ids as bytes, encoded by the tokenizer when first asked for; forgets all when it is full."""

    def __init__(self, tokenizer: Tokenizer, typecode: str):
        self.tokenizer, self.typecode = tokenizer, typecode

    def __missing__(self, word: str) -> bytes:
        ids = array(self.typecode, self.tokenizer.encode(word, add_special_tokens=False).ids).tobytes()
        if len(word) <= LONGEST:
            if len(self) >= REMEMBERED:
                self.clear()
            self[word] = ids
        return ids


def state_of(tokenizer: PreTrainedTokenizerBase | Tokenizer) -> str:
    """The JSON of all that a document's ids depend on: truncation and padding, which calls leave behind, do not."""
    backend = tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer.backend_tokenizer
    return json.dumps({**json.loads(backend.to_str()), "truncation": None, "padding": None})


class Encoder:
    """Documents to ids: equal to `backend_tokenizer.encode_batch(texts, add_special_tokens=False)` with
    `encode_special_tokens` set and no truncation.

    That is: a control token spelt out in a document stays text, a mark such as <think> (an added token that is not
    special) becomes its token. Texts with such marks go to the tokenizer whole; so does everything, with a printed
    line, where the pre-tokenizer is not one that is understood here.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | Tokenizer):
        self.backend = tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer.backend_tokenizer
        added = self.backend.get_added_tokens_decoder().values()
        self.marks = [token.content for token in added if not token.special]
        self.dtype = np.dtype(np.uint16 if max(self.backend.get_vocab().values()) < 2**16 else np.uint32)
        self.splitter = None
        try:
            if self.backend.normalizer is not None:
                raise NotUnderstood(f"the normalizer {type(self.backend.normalizer).__name__}")
            if getattr(self.backend.model, "dropout", None):
                raise NotUnderstood("BPE dropout")
            self.splitter = Splitter(self.backend.pre_tokenizer)
            of_words = Tokenizer(self.backend.model)  # nothing but BPE: no splitting, no added tokens
            if self.splitter.spelling is not None:
                of_words.pre_tokenizer = self.splitter.spelling
            self.words = _Words(of_words, self.dtype.char)
        except NotUnderstood as reason:
            print(f"encoding: at tokenizers' own speed, some five times slower, because of {reason}", flush=True)

    @cached_property
    def whole(self) -> Tokenizer:
        """The tokenizer itself, told to leave control tokens text; made when first needed."""
        tokenizer = Tokenizer.from_str(state_of(self.backend))
        tokenizer.encode_special_tokens = True
        return tokenizer

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text: (tokens,) of `dtype`, uint16 where the vocabulary allows it."""
        if self.splitter is None:
            return [self._ids(e) for e in self.whole.encode_batch_fast(list(texts), add_special_tokens=False)]
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        if not any(mark in text for mark in self.marks):
            try:
                return np.frombuffer(b"".join(map(self.words.__getitem__, self.splitter.split(text))), self.dtype)
            except NotUnderstood:  # a rare character that only the tokenizer itself can place
                pass
        return self._ids(self.whole.encode(text, add_special_tokens=False))

    def _ids(self, encoding) -> np.ndarray:
        return np.array(encoding.ids, self.dtype)
