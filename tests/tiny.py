"""A world small enough for tests: a byte-level tokenizer of a few hundred tokens and a random Llama."""

from functools import lru_cache

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from crawl2chat.protocol import IM_END, PROTOCOL_TOKENS, dress

TEXT = """The capital of France is Paris. The capital of Japan is Tokyo. Who are you? I am a small assistant.
What is 12 + 34? 12 + 34 = 46. How many letters are in the word strawberry? The word strawberry has ten letters.
Hello! How can I help you today? I'm sorry, I don't believe I know that. print(123 * 456) is 56088."""
SPLIT = r"'(?:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@lru_cache
def _backend() -> str:
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=PROTOCOL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT] * 4, trainer)
    return backend.to_str()


def tiny_tokenizer(eos_token: str = IM_END) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most 512 tokens that holds the protocol, dressed."""
    return dress(Tokenizer.from_str(_backend()), eos_token=eos_token)


def tiny_model(
    tokenizer: PreTrainedTokenizerFast, seed: int = 0, hidden_size: int = 32, layers: int = 2
) -> LlamaForCausalLM:
    """A Llama with random weights, in float32 and in evaluation mode; 256 positions."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()
