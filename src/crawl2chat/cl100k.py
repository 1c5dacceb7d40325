"""GPT-4's tokenizer, cl100k (100,277 symbols), to set beside ours: its ranks come as data inside a package's wheel."""

import os
from functools import lru_cache
from pathlib import Path

from crawl2chat.data import packages

PACKAGE = {
    "name": "llama-index-core",
    "version": "0.14.25",
    "sha256": "caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1",
}
FOLDER = "llama_index/core/_static/tiktoken_cache"
RANKS = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"  # the name under which tiktoken caches cl100k_base.tiktoken
# GPT-4's splitting without possessive quantifiers: tokenizers' regex engine reads those otherwise and gives other ids
SPLIT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def ranks_file() -> Path | None:
    """The file of cl100k's ranks where it is at hand (in TIKTOKEN_CACHE_DIR or in the package cache), else None."""
    folders = [Path(os.environ[key]) for key in ("TIKTOKEN_CACHE_DIR",) if os.environ.get(key)]
    folders.append(packages.cache_dir() / f"{PACKAGE['name']}-{PACKAGE['version']}" / FOLDER)
    return next((folder / RANKS for folder in folders if (folder / RANKS).is_file()), None)


def fetch() -> str:
    """Bring the ranks to hand. Returns "" when they are, else one line that says why not."""
    if ranks_file() is not None:
        return ""
    try:
        packages.fetch(**PACKAGE, members=f"{FOLDER}/*")
    except SystemExit as error:  # offline: the ladder does without this rung
        return f"cl100k's tokens are left out: {str(error).removeprefix('error: ')}"
    return ""


@lru_cache(maxsize=1)
def _encoding():
    import tiktoken

    os.environ["TIKTOKEN_CACHE_DIR"] = str(ranks_file().parent)
    return tiktoken.get_encoding("cl100k_base")


def encode(text: str) -> list[int]:
    """Ids of `text` by tiktoken; what reads like a control token is text. Needs the ranks at hand (see ranks_file)."""
    return _encoding().encode(text, disallowed_special=())


def count(text: str) -> int:
    """Tokens of `text`, counted by tiktoken and by tokenizers, whose ids must agree. Needs the ranks at hand."""
    ids = encode(text)
    if as_tokenizer().encode(text).ids != ids:
        raise ValueError(
            "tokenizers' and tiktoken's cl100k ids differ: the versions installed do not split text alike"
        )
    return len(ids)


@lru_cache(maxsize=1)
def as_tokenizer():
    """cl100k as a `tokenizers.Tokenizer`: the same ids from the library that our own tokenizer is made with.

    The merges are found from the ranks: a token of rank r is the merge of the two parts it falls into when encoded
    with the ranks below r alone.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    ranks = _encoding()._mergeable_ranks
    unicode = bytes_to_unicode()
    spell = {token: "".join(unicode[byte] for byte in token) for token in ranks}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            left, right = _last_two_parts(token, rank, ranks)
            merges.append((spell[left], spell[right]))
    model = models.BPE({spell[token]: rank for token, rank in ranks.items()}, merges, ignore_merges=False)
    tokenizer = Tokenizer(model)
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _last_two_parts(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [(ranks.get(parts[i] + parts[i + 1], rank), i) for i in range(len(parts) - 1)]
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]
