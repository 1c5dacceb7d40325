"""Make of a finished run's model what others can use: a checked folder with its card, GGUF files proven, and the hub.

Reads: a model folder or an adapter's, metrics.json, recipe.yaml and logs of the run's stages
Writes: safetensors, config, generation config, tokenizer, README.md (the card), figures, recipes, gguf/*.gguf,
Modelfile, manifest.json (the sha256 of every file), metrics.json

python scripts/release.py recipes/laptop/release.yaml
python scripts/release.py recipes/laptop/release.yaml --gguf f16 q8_0 --push owner/name
python scripts/release.py recipes/laptop/release.yaml --retry      # finish pushes that wait for the hub
"""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from crawl2chat import gguf, llama_cpp, outbox, release
from crawl2chat.model import count_parameters, load_model
from crawl2chat.model_card import About, draw_curves, write_card
from crawl2chat.recipe import parse_recipe
from crawl2chat.runs import read_run
from crawl2chat.stage import finish, write_text


@dataclass
class Data:
    """Something the model was made from."""

    name: str
    licence: str


@dataclass
class ReleaseConfig:
    """What is released, what is said about it, and where it goes."""

    model_name_or_path: str = field(metadata={"help": "a model's folder, or an adapter's: then it is merged"})
    output_dir: str = field(metadata={"help": "where the release goes"})
    run_dir: str = field(metadata={"help": "the folder that holds a folder for each stage", "reads": True})
    stages: list[str] = field(metadata={"help": "names of the stages, in order; a skipped one is left out"})
    name: str = field(metadata={"help": "what the model is called"})
    about: str = field(metadata={"help": "what it is"})
    license: str = field(metadata={"help": "the hub's name of the weights' licence"})
    data: list[Data] = field(metadata={"help": "what it was made from, each with its licence"})
    limits: list[str] = field(metadata={"help": "what it cannot do and must not be used for"})
    language: list[str] = field(default_factory=lambda: ["en"], metadata={"help": "languages, by code"})
    base_model: str | None = field(default=None, metadata={"help": "others' weights that it started from"})
    checkpoint: str = field(default="", metadata={"help": "eval's name of it; by default the folder's"})
    temperature: float = field(default=0.7, metadata={"help": "by default replies are drawn so; 0: the likeliest"})
    top_p: float = field(default=0.95, metadata={"help": "by default replies are drawn so"})
    max_new_tokens: int = field(default=512, metadata={"help": "longest reply by default", "ge": 1})
    gguf: list[str] = field(default_factory=list, metadata={"help": "weights of GGUF files", "choices": gguf.TYPES})
    push: str | None = field(default=None, metadata={"help": "owner/name of the hub's repository"})
    private: bool = field(default=False, metadata={"help": "whether a new repository is private"})
    retry: bool = field(default=False, metadata={"help": "only send what waits in the run's outboxes"})

    def __post_init__(self):
        self.release_dir = Path(self.output_dir)
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(f"name: {self.name!r} must be letters, digits, '.', '_' and '-': files are called so")
        if self.push:
            validate_repo_id(self.push)
        if self.retry:
            self.output_dir = ""  # the finished release stays as it is


RECIPE = (ReleaseConfig,)


def finish_pushes(root: Path, command: str) -> bool:
    """Send what waits in the outboxes of a run's folder and of its stages; whether the hub has all of it now."""
    places = [path.parent for path in (*root.glob("outbox"), *sorted(root.glob("*/outbox")))]
    sent = [push for place in places if outbox.waiting(place) for push in outbox.retry(place, retry_command=command)]
    pushed = sum(push.state == "pushed" for push in sent)
    print(f"release: {pushed} of {len(sent)} waiting pushes reached the hub", flush=True)
    return pushed == len(sent)


def make_gguf(
    folder: Path, kinds: list[str], name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[Path, dict[str, float]]:
    """Write `folder`/gguf/<name>-<kind>.gguf; of each file what differs from the written model in llama.cpp."""
    compared = {}
    if kinds and (lacking := llama_cpp.lacking() or gguf.lacking()):
        print(f"release: GGUF files are left out: {lacking}", flush=True)
    elif kinds:
        said = llama_cpp.say(load_model(folder, dtype=torch.float32).eval(), tokenizer)
        context = min(model.config.max_position_embeddings, 1024)
        for kind in dict.fromkeys(kinds):
            file = folder / "gguf" / f"{name}-{kind}.gguf"
            gguf.convert(folder, tokenizer, kind, file, name)
            compared[file] = llama_cpp.compare(file, kind, said, tokenizer, context)
            print(f"release: {file.name}: {llama_cpp.summary(compared[file])}", flush=True)
    return compared


def main(config: ReleaseConfig) -> None:
    disable_progress_bar()
    output, source, root = config.release_dir, Path(config.model_name_or_path), Path(config.run_dir)
    command = f"python scripts/release.py {next(iter(sys.argv[1:]), 'RECIPE')} --retry"
    if config.retry:
        sys.exit(not finish_pushes(root, command))

    # model, tokenizer: whole, finite, fitting, without secrets
    release.check_place(output, source)
    model, tokenizer = release.load_source(source)
    run, parameters = read_run(root, config.stages), count_parameters(model)

    # all of it is written aside and gets its name at once
    with release.aside(output) as saving:
        release.write_model(model, tokenizer, saving, config.temperature, config.top_p, config.max_new_tokens)
        compared = make_gguf(saving, config.gguf, config.name, model, tokenizer)
        files = [{"name": path.name, "bytes": path.stat().st_size, **compared[path]} for path in compared]
        if files:
            settings = (config.temperature, config.top_p, model.config.max_position_embeddings)
            write_text(saving / "Modelfile", release.modelfile(tokenizer, f"gguf/{files[0]['name']}", *settings))
        about = About(config.name, config.about, config.license, config.push or ".", config.language,
                      [vars(one) for one in config.data], config.limits, config.base_model,
                      config.checkpoint or source.name, files)  # fmt: skip
        write_card(model, tokenizer, run, about, draw_curves(run, saving / "figures"), saving)
        release.copy_recipes(run, output, saving)
        release.refuse_secrets(saving)
    written = [path for path in output.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in written)
    counts = {"files": len(written), "bytes": size, "parameters": parameters, "gguf_files": len(files)}
    finish(
        output,
        counts | llama_cpp.metrics({path.stem.rpartition("-")[2]: found for path, found in compared.items()}),
        read=f"{source} and {len(run.metrics)} stages of {root}",
        wrote=str(output),
        headline=f"{len(written)} files, {size / 1e6:.1f} MB, {len(files)} of them GGUF",
    )

    # to programs on this machine, and to the hub
    if files:
        folder = f"~/.lmstudio/models/{about.publisher}/{config.name}/"
        print(f"LM Studio: mkdir -p {folder} && cp {output}/gguf/*.gguf {folder}")
        print(f"Ollama:    (cd {output} && ollama create {config.name} -f Modelfile) && ollama run {config.name}")
    if config.push:
        how = {"message": f"Release {config.name}", "root": root, "retry_command": command}
        outbox.push(output, config.push, private=config.private, **how)


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
