"""Train a byte-level BPE tokenizer on the clean shards, with the protocol's tokens reserved at the front.

Reads: shards of scripts/data.py, or a dataset on the hub
Writes: tokenizer.json, tokenizer_config.json, ladder.json, metrics.json

python scripts/tokenizer.py recipes/laptop/tokenizer.yaml
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from crawl2chat import cl100k
from crawl2chat.data.encoding import train_bpe
from crawl2chat.data.shards import documents
from crawl2chat.protocol import FAMILIES, dress, ladder
from crawl2chat.recipe import parse_recipe
from crawl2chat.stage import fail, finish, write_text


@dataclass
class TextSource:
    """Text to learn merges from."""

    path: str = field(metadata={"help": "a folder of shards, or owner/name:configuration on the hub", "reads": True})
    characters: int = field(default=10_000_000, metadata={"help": "read at most this many", "gt": 0})


@dataclass
class TokenizerConfig:
    """What the tokenizer is trained on and how large it gets."""

    datasets: list[TextSource] = field(metadata={"help": "sources of text"})
    output_dir: str = field(metadata={"help": "where the tokenizer goes"})
    vocab_size: int = field(default=50_304, metadata={"help": "tokens in all, the protocol's included", "ge": 300})
    chat_template: str = field(
        default="chatml",
        metadata={"help": "how turns are marked: chat_templates/<name>.jinja", "choices": [*FAMILIES]},
    )
    model_max_length: int = field(default=1024, metadata={"help": "longest input the tokenizer announces", "gt": 0})


RECIPE = (TokenizerConfig,)


def texts(sources: list[TextSource]) -> Iterator[str]:
    for source in sources:
        left = source.characters
        for row in documents(source.path):
            yield row["text"][:left]
            left -= len(row["text"])
            if left <= 0:
                break


def main(config: TokenizerConfig) -> None:
    # train
    tokenizer = train_bpe(texts(config.datasets), config.vocab_size)

    # BPE stops without a word where no pair is left that occurs twice
    if tokenizer.get_vocab_size() < config.vocab_size:
        fail(
            f"tokenizer: {config.vocab_size} tokens were asked for but the text gave {tokenizer.get_vocab_size()}; "
            "give it more text or ask for a smaller vocab_size"
        )

    # dress it for the libraries: end and padding tokens, chat template, response template
    tokenizer = dress(tokenizer, family=config.chat_template)
    tokenizer.model_max_length = config.model_max_length
    tokenizer.save_pretrained(config.output_dir)

    # the ladder on the beginning of every source, and what a token holds
    sample = "\n".join(next(documents(source.path))["text"] for source in config.datasets)
    bytes_read = tokens = 0
    for source in config.datasets:
        batch = [row["text"] for row in documents(source.path, limit=500)]
        bytes_read += sum(len(text.encode()) for text in batch)
        tokens += sum(len(ids) for ids in tokenizer(batch, add_special_tokens=False)["input_ids"])
    if note := cl100k.fetch():
        print(f"tokenizer: {note}")
    steps = ladder(sample[:5000], tokenizer)
    write_text(Path(config.output_dir) / "ladder.json", json.dumps({"text": sample[:5000], **steps}, indent=1))
    finish(
        config.output_dir,
        {
            "vocab_size": len(tokenizer),
            "bytes_per_token": bytes_read / tokens,
            **{f"ladder/{k}": v for k, v in steps.items()},
        },
        read=", ".join(source.path for source in config.datasets),
        wrote=config.output_dir,
        headline=f"{len(tokenizer):,} tokens, {bytes_read / tokens:.2f} bytes a token",
    )


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
