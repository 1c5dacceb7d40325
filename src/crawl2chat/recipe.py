"""From a recipe and flags to dataclasses: the one place that reads argv, and it refuses what it does not know.

`python scripts/sft.py recipes/sft.yaml --max_steps 3`: the recipe first, then flags that override it;
`--datasets.0.fraction 0.5` and `--model '{"hidden_size": 64}'` reach into nested keys; `--dry_run` checks the inputs
and prints the plan; `--help` lists the keys. Types are checked before anything is constructed; every complaint is one
line with its place, and the exit code is 2.
"""

import os
import re
import sys
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from io import StringIO
from pathlib import Path
from typing import Any, get_type_hints

from ruamel.yaml import YAML

from crawl2chat.plan import missing_inputs, plan
from crawl2chat.recipe_checks import (
    construct,
    describe,
    element,
    hint_below,
    members,
    options,
    read_fields,
    takes_list,
    unknown,
)
from crawl2chat.recipe_tree import SECRET, SECRET_ADVICE, Node, RecipeError, read_text, read_yaml, refuse, says
from crawl2chat.stage import fail, write_text
from crawl2chat.tracking import begin, tracked

# what `env:` may set: names that load no code, hold no secret, and are read late enough to still count
ENVIRONMENT = (
    "OMP_NUM_THREADS TOKENIZERS_PARALLELISM CUDA_VISIBLE_DEVICES PYTORCH_ALLOC_CONF "
    "WANDB_PROJECT WANDB_ENTITY WANDB_MODE WANDB_DIR TRACKIO_DIR "
    "NCCL_DEBUG NCCL_IB_DISABLE NCCL_P2P_DISABLE NCCL_SOCKET_IFNAME"
).split()
COMMAND_LINE = "command line"
# what a launcher sets: left out of a dry run, which is one process and starts no group of them
LAUNCH = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT ACCELERATE_USE_DEEPSPEED".split()


@dataclass
class Recipe:
    """What was read: an instance per dataclass, the file (None with flags alone), flags, the resolved text, places."""

    configs: tuple[Any, ...]
    path: Path | None
    flags: list[str]
    text: str
    where: dict[str, str] = field(default_factory=dict)


def parse_recipe(*dataclass_types: type, args: list[str] | None = None) -> tuple[Any, ...]:
    """Read `args` (argv by default): an optional recipe, then flags. Returns one instance of each dataclass, in order.

    A run that goes on leaves `<output_dir>/recipe.yaml`, the recipe with its flags, and removes an older metrics.json,
    for the stage is not complete any more. Exits 2 on a recipe that cannot be used, 1 on an input that is not there,
    and 0 after `--help` and `--dry_run`.
    """
    args = sys.argv[1:] if args is None else args
    stage_types, dataclass_types = dataclass_types, tracked(dataclass_types)
    main_process = os.environ.get("RANK", "0") == "0"
    if "--help" in args or "-h" in args:
        print(describe_keys(*dataclass_types))
        raise SystemExit(0)
    dry_run = "--dry_run" in args
    if dry_run and not main_process:
        raise SystemExit(0)
    try:
        recipe = load_recipe(*dataclass_types, args=[arg for arg in args if arg != "--dry_run"], plan_only=dry_run)
    except RecipeError as error:
        if main_process:
            print(error, file=sys.stderr)
        raise
    missing = missing_inputs(recipe.configs, recipe.path, recipe.where)
    if dry_run and main_process:
        print(plan(recipe.configs, recipe.path, recipe.flags))
    if missing:
        if main_process:
            print(*missing, sep="\n", file=sys.stderr)
        raise SystemExit(1)
    if dry_run:
        raise SystemExit(0)
    output_dir = next((config.output_dir for config in recipe.configs if getattr(config, "output_dir", None)), None)
    if output_dir and main_process:
        try:
            Path(output_dir, "metrics.json").unlink(missing_ok=True)
            write_text(Path(output_dir, "recipe.yaml"), recipe.text)
        except OSError as error:
            fail(f"{output_dir}: cannot be written ({error.strerror}); output_dir must be a folder, with room in it")
        for training_args in (config for config in recipe.configs if hasattr(config, "gradient_accumulation_steps")):
            begin(output_dir, training_args)
    return recipe.configs[: len(stage_types)]


def load_recipe(*dataclass_types: type, args: list[str], plan_only: bool = False) -> Recipe:
    """Read, check, set `env:` and build; writes no file and prints nothing. Raises RecipeError with every complaint.

    `plan_only` builds TrainingArguments as for the CPU where there is no GPU: a GPU recipe can be checked anywhere.
    """
    path = Path(args[0]) if args and not args[0].startswith("-") else None
    flags, source, errors = args[1:] if path else args, str(path or COMMAND_LINE), []
    text = read_text(path) if path else ""
    root = read_yaml(text, source, errors) if path else Node({}, source)
    if root.value is None or root.value == {} and path:
        refuse(f"{path}: is empty; a recipe is lines of `key: value`")
    if not isinstance(root.value, dict):
        refuse(f"{root.where}: is not a mapping; a recipe is lines of `key: value`")
    root.where = source
    known = {}
    for cls in dataclass_types:
        hints = get_type_hints(cls, include_extras=True)
        known |= {item.name: hints[item.name] for item in fields(cls) if item.init and item.name not in known}
    lay_flags(root, flags, known, errors)
    environment = read_environment(root, errors) if "env" not in known else {}
    errors += [unknown(node.where, key, known) for key, node in root.value.items() if key not in known]
    chosen = [read_fields(cls, root, "", errors) for cls in dataclass_types]
    if not errors:
        os.environ.update(environment)
        if "OMP_NUM_THREADS" in environment and "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(int(environment["OMP_NUM_THREADS"]))
        as_on_cpu = plan_only and "use_cpu" in known and not sys.modules["torch"].cuda.is_available()
        hidden = {name: os.environ.pop(name) for name in LAUNCH if plan_only and name in os.environ}
        configs = []
        for cls, values in zip(dataclass_types, chosen, strict=True):
            extra = {"use_cpu": True} if as_on_cpu and hasattr(cls, "use_cpu") else {}
            configs.append(construct(cls, values | extra, source, "", errors))
        os.environ.update(hidden)
    if errors:
        raise RecipeError(list(dict.fromkeys(errors)))
    return Recipe(tuple(configs), path, flags, resolved(text, root, flags), root.places())


def read_environment(root: Node, errors: list[str]) -> dict[str, str]:
    """Take the `env:` block out of the recipe: names on the allowlist alone."""
    block = root.value.pop("env", None)
    if block is None or not isinstance(block.value, dict):
        if block is not None:
            errors.append(says(block.where, "env", "must be a mapping of environment variables"))
        return {}
    chosen, allowed = {}, ", ".join(ENVIRONMENT)
    for name, node in block.value.items():
        value = str(node.value).lower() if isinstance(node.value, bool) else str(node.value)
        if name not in ENVIRONMENT:
            complaint = f"is not allowed in a recipe (only {allowed}); set it in the shell"
            errors.append(says(node.where, f"env.{name}", complaint))
        elif isinstance(node.value, dict | list) or node.value is None or "\0" in value:
            errors.append(says(node.where, f"env.{name}", "must be text or a number"))
        elif name == "OMP_NUM_THREADS" and not re.fullmatch("[1-9][0-9]{0,3}", value):
            errors.append(says(node.where, f"env.{name}", f"must be a number of threads, got {value[:40]}"))
        else:
            chosen[name] = value
    return chosen


def lay_flags(root: Node, flags: list[str], known: dict[str, Any], errors: list[str]) -> None:
    """Lay `--key value`, `--key=value`, `--key.inner value` and, for lists, `--key a b` over the recipe's tree."""
    index, given = 0, set()
    while index < len(flags):
        flag, equals, attached = flags[index].partition("=")
        index += 1
        if not flag.startswith("--"):
            errors.append(f"{flag}: unexpected; the recipe comes first, then flags such as --max_steps 3")
            continue
        start = index
        while not equals and index < len(flags) and not flags[index].startswith("--"):
            index += 1
        words = [attached] if equals else flags[start:index]
        parts = flag[2:].split(".")
        if parts[0] not in known:
            errors.append(unknown(flag, parts[0], known))
            continue
        hint = known[parts[0]]
        for part in parts[1:]:
            hint = hint_below(hint, part)
        if SECRET.search(parts[-1]):
            errors.append(f"{flag}: {SECRET_ADVICE}")
        elif flag in given and not takes_list(hint):
            errors.append(f"{flag}: is given twice")
        else:
            _place(root, parts, _flag_node(flag, words, hint, errors), flag in given, errors)
        given.add(flag)


def _flag_node(flag: str, words: list[str], hint: Any, errors: list[str]) -> Node:
    """A flag's words to a node: text stays as typed where the key is text, else it is read as a YAML value."""
    kinds = members(hint)
    bracketed = len(words) == 1 and words[0].startswith(("[", "{"))
    if takes_list(hint) and not bracketed and (len(words) > 1 or str not in kinds):
        return Node([_flag_node(flag, [word], element(hint), errors) for word in words], flag)
    if not words and bool in kinds:
        return Node(True, flag)
    if len(words) != 1:
        errors.append(f"{flag}: takes one value, got {' '.join(words) or 'none'}")
        return Node(None, flag)
    textual = any(kind is str or isinstance(kind, type) and issubclass(kind, Enum | Path) for kind in kinds)
    if textual and not {int, float, bool} & set(kinds) and not (bracketed and kinds != [str]):
        return Node(None if words[0] == "null" and type(None) in kinds else words[0], flag)
    return read_yaml(words[0], flag, errors)


def _place(root: Node, parts: list[str], node: Node, append: bool, errors: list[str]) -> None:
    """Put a flag's node at its dotted path, making mappings on the way; a repeated flag of a list key appends."""
    here = root
    for depth, part in enumerate(parts):
        if here.value is None:
            here.value = {}
        is_index = isinstance(here.value, list) and part.isdigit() and int(part) < len(here.value)
        if not is_index and not isinstance(here.value, dict):
            errors.append(f"{node.where}: there is no {'.'.join(parts[: depth + 1])} to set")
            return
        key = int(part) if is_index else part
        if depth < len(parts) - 1:
            here = here.value[key] if is_index else here.value.setdefault(key, Node({}, node.where))
        elif append and isinstance(here.value[key].value, list) and isinstance(node.value, list):
            here.value[key].value += node.value
        else:
            here.value[key] = node


def resolved(text: str, root: Node, flags: list[str]) -> str:
    """The recipe as it ran: its own text without flags, else with the flagged keys set and the comments kept."""
    if not flags:
        return text
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 4096, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(text) or {}
    for key, node in root.value.items():
        if any(flag[2:].partition("=")[0].partition(".")[0] == key for flag in flags):
            document[key] = node.plain()
    buffer = StringIO()
    yaml.dump(document, buffer)
    return buffer.getvalue()


def describe_keys(*dataclass_types: type) -> str:
    """The text of `--help`: every key with its type, default and meaning."""
    lines = [f"python {sys.argv[0]} [RECIPE.yaml] [--dry_run] [--key value ...]"]
    for cls in dataclass_types:
        lines.append(f"\n{cls.__name__}")
        hints = get_type_hints(cls, include_extras=True)
        for item in (item for item in fields(cls) if item.init):
            default = "required" if item.default is MISSING else repr(item.default)
            if item.default_factory is not MISSING:
                default = repr(item.default_factory())
            about = " ".join(str(item.metadata.get("help", "")).split())
            allowed = options(hints[item.name], item.metadata)
            kind = f"one of {', '.join(map(str, allowed))}" if allowed else describe(hints[item.name])
            lines.append(f"  --{item.name} ({kind}; default {default}) {about}".rstrip())
    return "\n".join(lines)
