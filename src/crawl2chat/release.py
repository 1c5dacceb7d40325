"""A model folder as others get it: whole, finite, fitting its config and tokenizer, and free of secrets.

Nothing of the source folder is copied: weights, config and tokenizer are loaded and written anew, so optimizer states,
training arguments, checkpoints and what ZeRO leaves behind never reach a release.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.utils import get_token
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from crawl2chat.checkpoint_folder import CHUNK, MANIFEST, damage, seal
from crawl2chat.disk import is_full
from crawl2chat.model import check_fit, check_weights, load_model
from crawl2chat.outbox import SECRET
from crawl2chat.protocol import end_tokens, load_tokenizer
from crawl2chat.runs import Run, read_json
from crawl2chat.stage import fail

# what a token of a well-known service looks like; it must not stand inside a longer word
TOKENS = re.compile(
    rb"hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{20,}|gh[opsu]_[A-Za-z0-9]{36}|github_pat_\w{22,}|AKIA[0-9A-Z]{16}|"
    rb"xox[abp]-[0-9A-Za-z-]{20,}"
)
WORD = re.compile(rb"[A-Za-z0-9_-]")
LONGEST = 512  # bytes of a secret that may lie across two pieces of a file
OWN = {"recipe.yaml", "metrics.json", MANIFEST}  # what a release's folder holds beside what its manifest lists


def load_source(source: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model (an adapter merged into its base) and the tokenizer of a folder that may be released.

    Stops with one line where the folder is a damaged checkpoint, lacks weights, has shapes that its config does not
    ask for, numbers that are none, more tokens than the embedding has rows, or a secret in one of its files.
    """
    if not source.is_dir():
        fail(f"{source}: no such folder; run the stage that writes it first")
    if (source / MANIFEST).is_file() and (wrong := damage(source)):
        fail(f"{source}: a damaged checkpoint is not released: {wrong}; take another, or run its stage again")
    refuse_secrets(source, within=False)
    check_weights(source)
    tokenizer, model = load_tokenizer(source), load_model(source).eval()
    check_fit(model, tokenizer, source)
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            fail(f"{source}: {name} holds {count} numbers that are NaN or infinite; take an earlier checkpoint")
    return model, tokenizer


def write_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    temperature: float,
    top_p: float,
    max_new: int,
) -> None:
    """Safetensors, config, generation config and tokenizer, with its templates, into an empty folder."""
    ends = sorted(end_tokens(tokenizer), key=lambda token: (token != tokenizer.eos_token_id, token))
    drawn = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature else {"do_sample": False}
    model.config.use_cache, model.config.eos_token_id = True, tokenizer.eos_token_id
    model.generation_config = GenerationConfig(
        eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, max_new_tokens=max_new, **drawn
    )
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except Exception as error:  # torch's, safetensors' and the system's own kinds
        if not is_full(error):
            raise
        fail(f"{folder}: the model could not be written ({str(error).splitlines()[0]}); make room and start again")
    check_weights(folder)


def refuse_secrets(folder: Path, within: bool = True) -> None:
    """Stop with one line, which names the file and the variable and never the value, where a file of a folder (and of
    the folders `within`) holds a secret.
    """
    known = secrets()
    for path in sorted(folder.rglob("*") if within else folder.iterdir()):
        if path.is_file() and (found := secret_in(path, known)):
            fail(f"{path.relative_to(folder)} of {folder} holds {found}; take it out of what wrote it, and revoke it")


def secrets() -> dict[bytes, str]:
    """The environment's secrets and the hub's stored token: {value: name}."""
    stored = {get_token().encode(): "the hub's token"} if get_token() else {}
    named = {value.encode(): name for name, value in os.environ.items() if SECRET.search(name) and len(value) >= 8}
    return stored | named


def secret_in(path: Path, known: dict[bytes, str]) -> str:
    """What secret a file holds, "" for none: a value of `known` ({value: name}), or what looks like a token."""
    with open(path, "rb") as handle:
        tail = b""
        while piece := handle.read(CHUNK):
            window = tail + piece
            for value, name in known.items():
                if value in window:
                    return f"the value of {name}"
            for match in TOKENS.finditer(window):
                before = window[match.start() - 1 : match.start()]
                if not WORD.match(before):
                    return f"what looks like a token ({match[0][:5].decode()}...)"
            tail = piece[-LONGEST:]
    return ""


def check_place(output: Path, source: Path) -> None:
    """Refuse to release over the source, into a folder that holds anything but an earlier release, or by a recipe that
    holds a secret: its copy goes.
    """
    if (output / "recipe.yaml").is_file() and (found := secret_in(output / "recipe.yaml", secrets())):
        (output / "recipe.yaml").unlink()
        fail(f"the recipe or its flags hold {found}; take it out, and revoke it: secrets belong in the environment")
    if output.resolve() == source.resolve() or output.resolve() in source.resolve().parents:
        fail(f"{output}: the model is there; a release needs an output_dir of its own")
    if not output.is_dir():
        return
    manifest = read_json(output / MANIFEST) if (output / MANIFEST).is_file() else {}
    listed = manifest.get("files") or {} if isinstance(manifest, dict) else {}
    files = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    if strange := sorted(name for name in files - set(listed) - OWN if not name.startswith("outbox/")):
        fail(f"{output}: holds {strange[0]}, which no release wrote; give the release a folder of its own")


@contextmanager
def aside(output: Path) -> Iterator[Path]:
    """An empty folder beside `output` to write a release into. At the end it is sealed with its manifest and put in
    the place of an earlier release, in one step; after a failure nothing of it is left.
    """
    saving = output.with_name(f"_{output.name}")
    earlier = saving.with_name(f"replaced-{output.name}")
    shutil.rmtree(saving, ignore_errors=True)
    try:
        saving.mkdir(parents=True)
        yield saving
        seal(saving, output)
        if (earlier / "outbox").is_dir():  # pushes that wait
            os.replace(earlier / "outbox", output / "outbox")
    except OSError as error:
        if not is_full(error):
            raise
        fail(f"{output}: the release could not be written ({error.strerror}); make room and start again")
    finally:
        shutil.rmtree(saving, ignore_errors=True)
        shutil.rmtree(earlier, ignore_errors=True)


def copy_recipes(run: Run, output: Path, folder: Path) -> None:
    """The release's own recipe, which already lies in `output`, and the recipe of every stage of the run."""
    shutil.copyfile(output / "recipe.yaml", folder / "recipe.yaml")
    for stage in run.metrics:
        if (recipe := run.folder / stage / "recipe.yaml").is_file():
            (folder / "recipes").mkdir(exist_ok=True)
            shutil.copyfile(recipe, folder / "recipes" / f"{stage}.yaml")


def modelfile(tokenizer: PreTrainedTokenizerBase, file: str, temperature: float, top_p: float, context: int) -> str:
    """Ollama's recipe of the GGUF `file`: how a turn is written (out of our own template), where it ends, defaults."""
    lines = [f"FROM ./{file}"]
    if tokenizer.chat_template:
        turns = {
            tokenizer.apply_chat_template([{"role": role, "content": "WORDS"}], tokenize=False).replace(role, "ROLE")
            for role in ("system", "user", "assistant")
        }
        if len(turns) == 1:
            turn, user = turns.pop(), [{"role": "user", "content": "WORDS"}]
            whole = tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
            opening = whole.removeprefix(turn.replace("ROLE", "user"))
            turn = turn.replace("ROLE", "{{ .Role }}").replace("WORDS", "{{ .Content }}")
            lines.append(f'TEMPLATE """{{{{- range .Messages }}}}{turn}{{{{ end }}}}{opening}"""')
    lines += [f'PARAMETER stop "{token}"' for token in tokenizer.convert_ids_to_tokens(sorted(end_tokens(tokenizer)))]
    lines += [f"PARAMETER temperature {temperature:g}", f"PARAMETER top_p {top_p:g}", f"PARAMETER num_ctx {context}"]
    return "\n".join(lines) + "\n"
