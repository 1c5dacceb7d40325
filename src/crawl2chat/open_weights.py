"""Weights others trained: found on the hub or read from a GGUF file, and a tokenizer that speaks our protocol."""

import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from crawl2chat.protocol import CHAT_TEMPLATES, END_OF_TEXT, IM_END, IM_START
from crawl2chat.stage import fail

# how the text of a vocabulary is split before its merges, by the name that a GGUF file gives it, where transformers
# does not know the name and would keep the digits of a number together
SPLITS = {"smollm": lambda: [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]}


def hub_folder(name: str, revision: str = "main") -> Path | None:
    """The folder of a model of the hub, downloaded or already at hand; None where no hub is reached.

    A hub that answers and refuses (no such model or revision, no right to it) is one clear line.
    """
    patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja", "LICENSE*"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, etag_timeout=5))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError):
        return None
    except (HfHubHTTPError, ValueError) as error:
        fail(f"{name}@{revision}: the hub refuses it: {str(error).splitlines()[0]}")


def read_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """(model, tokenizer) of a GGUF file, its weights in float32 and free of the quantization that they came in.

    The library marks such a model as quantized and then refuses to save it; so its weights go into a plain one.
    Stops with one line where the file cannot be read.
    """
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError:
        fail("a GGUF file is read with the package gguf, which is not installed: pip install -r requirements.txt")
    try:
        named = GGUFReader(file).get_field("tokenizer.ggml.pre")
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        fail(f"{file}: not a GGUF file that can be read: {str(error).splitlines()[0]}")
    if named is not None and named.contents() in SPLITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(SPLITS[named.contents()]())
    settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = type(read)(type(read.config).from_dict(settings))
    model.load_state_dict(read.state_dict())
    return model.eval(), tokenizer


def speak_chatml(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Give a tokenizer that knows ChatML's tokens our templates: what bears loss, how a reply is read, where it ends.

    No token is added: the marks of thoughts, tools and searches are then several tokens each. Stops with one line for
    a tokenizer without <|im_start|>, <|im_end|> and <|endoftext|>.
    """
    vocabulary = tokenizer.get_vocab()
    if lacking := [token for token in (IM_START, IM_END, END_OF_TEXT) if token not in vocabulary]:
        fail(f"{name}: the tokenizer lacks {', '.join(lacking)}: take a model whose tokenizer has ChatML's tokens")
    tokenizer.eos_token, tokenizer.pad_token = IM_END, END_OF_TEXT
    tokenizer.chat_template = (CHAT_TEMPLATES / "chatml.jinja").read_text(encoding="utf-8")
    tokenizer.response_template = json.loads((CHAT_TEMPLATES / "chatml.response.json").read_text(encoding="utf-8"))
