"""The price of ids: our encoder against tokenizers' encode_batch, our training against its plain train_from_iterator.

python benchmarks/tokenizer.py
python benchmarks/tokenizer.py --megabytes 40 --rounds 8

Prints a table and, last, one JSON line: {"encode_vs_hf", "train_vs_hf"}. One thread; the sides take turns (A B B A);
a figure is the median over rounds of megabytes of UTF-8 a second of processor time, a ratio the median over rounds of
the ratio within a round, with its lowest and highest. The ids and the merges of both sides are compared.
"encode_vs_hf" is ours from cold, on the project's own tokenizer: a new encoder, which knows no word yet, for every
measurement. "Warm" is the same encoder's second pass, which a source of many gigabytes comes near.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shards", default="output/laptop/data/shards", help="folder of shards to read text from")
parser.add_argument("--megabytes", type=float, default=10, help="millions of characters of text")
parser.add_argument("--rounds", type=int, default=4, help="measurements of each side")
options = parser.parse_args()
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers  # noqa: E402

from crawl2chat import cl100k  # noqa: E402
from crawl2chat.data.encoding import GPT2, SPLIT, Encoder, train_bpe  # noqa: E402
from crawl2chat.data.facts import load_articles  # noqa: E402
from crawl2chat.data.shards import documents  # noqa: E402
from crawl2chat.protocol import PROTOCOL_TOKENS  # noqa: E402


def read_text() -> tuple[list[str], str]:
    """Documents, and what they are: shards of the laptop's run, the packaged Wikipedia, or words made up."""
    limit = int(options.megabytes * 1e6)
    if Path(options.shards).is_dir():
        texts = [row["text"] for row in documents(options.shards)]
        origin = options.shards
    else:
        try:
            texts = [article["extract"] for article in load_articles()]
            origin = "packaged Wikipedia"
        except SystemExit as error:
            print(f"made-up words, because the packaged Wikipedia is not at hand ({error})")
            rng = random.Random(0)
            words = ["".join(rng.choices("aeioutnshrdl", k=rng.randint(1, 9))) for _ in range(60_000)]
            often = [1 / (i + 1) for i in range(60_000)]
            texts = [" ".join(rng.choices(words, often, k=300)) for _ in range(limit // 1500)]
            origin = "made-up words"
    random.Random(0).shuffle(texts)
    texts, left = iter(texts), limit
    chosen = []
    while left > 0 and (text := next(texts, None)) is not None:
        chosen.append(text)
        left -= len(text)
    return chosen, origin


def plain_training(texts: list[str], vocab_size: int, split: str = SPLIT) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=PROTOCOL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(iter(texts), trainer)
    return tokenizer


def in_turns(sides: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of processor time of each side in each round, the order of the sides turned round every other round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            start = time.process_time()
            sides[name]()
            seconds[name].append(time.process_time() - start)
    return seconds


def show(what: str, size: int, seconds: dict[str, list[float]]) -> dict[str, float]:
    """Print a line a side; the ratio of each to the first."""
    base, ratios = next(iter(seconds.values())), {}
    for name, measured in seconds.items():
        each = [a / b for a, b in zip(base, measured, strict=True)]
        ratios[name] = median(each)
        speed = size / 1e6 / median(measured)
        print(f"{what:<26}{name:<28}{speed:>7.1f} MB/s{ratios[name]:>8.2f}   {min(each):.2f} to {max(each):.2f}")
    return ratios


def encoding(what: str, tokenizer: Tokenizer, texts: list[str], size: int) -> float:
    tokenizer.encode_special_tokens = True
    batches = [texts[i : i + 512] for i in range(0, len(texts), 512)]
    warm = Encoder(tokenizer)

    def theirs(method: str) -> list[list[int]]:
        encode = getattr(tokenizer, method)
        return [e.ids for batch in batches for e in encode(batch, add_special_tokens=False)]

    def ours(encoder: Encoder) -> list:
        return [ids for batch in batches for ids in encoder.encode_batch(batch)]

    assert [ids.tolist() for ids in ours(warm)] == theirs("encode_batch"), f"{what}: the ids differ"
    seconds = in_turns(
        {
            "tokenizers' encode_batch": lambda: theirs("encode_batch"),
            "its encode_batch_fast": lambda: theirs("encode_batch_fast"),
            "ours from cold": lambda: ours(Encoder(tokenizer)),
            "ours warm": lambda: ours(warm),
        }
    )
    return show(what, size, seconds)["ours from cold"]


def main() -> None:
    texts, origin = read_text()
    size = sum(len(text.encode()) for text in texts)
    print(f"{len(texts):,} documents, {size:,} bytes: {origin}\n")
    print(f"{'':<26}{'side':<28}{'speed':>12}{'ratio':>8}   lowest to highest")

    tokenizer = train_bpe(iter(texts), 4096)
    ratio = encoding("encode, 4,096 tokens", tokenizer, texts, size)
    large = train_bpe(iter(texts), 50_304)
    encoding(f"encode, {large.get_vocab_size():,} tokens", large, texts, size)
    encoding("encode, split as GPT-2", plain_training(texts, 4096, GPT2), texts, size)
    if cl100k.ranks_file() is not None:
        encoding("encode, cl100k", cl100k.as_tokenizer(), texts, size)

    assert plain_training(texts, 4096).model.__getstate__() == tokenizer.model.__getstate__(), "the merges differ"
    sides = {
        "tokenizers' plain training": lambda: plain_training(texts, 4096),
        "ours": lambda: train_bpe(iter(texts), 4096),
    }
    trained = show("train, 4,096 tokens", size, in_turns(sides))["ours"]
    print(json.dumps({"encode_vs_hf": round(ratio, 3), "train_vs_hf": round(trained, 3)}))


if __name__ == "__main__":
    main()
