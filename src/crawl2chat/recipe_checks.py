"""A recipe's values against the type hints, ranges and choices of the dataclasses that a stage reads."""

import json
import types
import warnings
from collections.abc import Collection, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from crawl2chat.recipe_tree import BROKEN, Node, says

# ranges of keys that transformers and TRL take unchecked; a field's own metadata comes first
RANGES: dict[str, dict[str, float]] = {
    **dict.fromkeys(("learning_rate", "weight_decay", "label_smoothing_factor", "min_p"), {"ge": 0, "le": 1}),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "lora_dropout"), {"ge": 0, "lt": 1}),
    **dict.fromkeys(("fraction", "test_split_size", "top_p"), {"gt": 0, "le": 1}),
    **dict.fromkeys(("num_train_epochs", "logging_steps", "eval_steps", "save_steps"), {"gt": 0}),
    **dict.fromkeys(("adam_epsilon", "lora_alpha"), {"gt": 0}),
    **dict.fromkeys(("max_grad_norm", "warmup_steps", "seed", "data_seed", "eval_delay"), {"ge": 0}),
    **dict.fromkeys(("beta", "temperature", "top_k", "neftune_noise_alpha", "dataloader_num_workers"), {"ge": 0}),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), {"ge": 1}),
    **dict.fromkeys(("gradient_accumulation_steps", "max_length", "max_completion_length"), {"ge": 1}),
    **dict.fromkeys(("save_total_limit", "lora_r", "dataset_num_proc"), {"ge": 1}),
    "max_steps": {"ge": -1, "ne": 0},
    "num_generations": {"ge": 2},
}
OUTPUT = ("output_dir", None)  # has a default in TrainingArguments, a folder that no other stage would find
RENAMED = {"torch_dtype": "dtype", "no_cuda": "use_cpu", "group_by_length": "train_sampling_strategy"}
CHOICES = {
    "report_to": "none all wandb trackio tensorboard mlflow comet_ml azure_ml neptune codecarbon clearml dagshub "
    "flyte dvclive swanlab kubeflow".split()
}
BOUNDS = {
    "ge": ("at least", lambda value, bound: value >= bound),
    "gt": ("above", lambda value, bound: value > bound),
    "le": ("at most", lambda value, bound: value <= bound),
    "lt": ("below", lambda value, bound: value < bound),
    "ne": ("other than", lambda value, bound: value != bound),
}


def members(hint: Any) -> list[Any]:
    """The alternatives of a type hint: `int | None` has two."""
    if get_origin(hint) is Annotated:
        return members(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [member for part in get_args(hint) for member in members(part)]
    return [hint]


def takes_list(hint: Any) -> bool:
    """Whether a list is one of the hint's alternatives."""
    return any((get_origin(kind) or kind) in (list, tuple, Sequence) for kind in members(hint))


def element(hint: Any) -> Any:
    """The hint of a list's elements, Any where the hint does not say."""
    lists = [kind for kind in members(hint) if get_origin(kind) in (list, tuple, Sequence)]
    return next((get_args(kind)[0] for kind in lists), Any)


def hint_below(hint: Any, part: str) -> Any:
    """The type hint one dotted step below a key: a field, a mapping's value or a list's element."""
    for kind in members(hint):
        if is_dataclass(kind):
            return get_type_hints(kind, include_extras=True).get(part, Any)
        if get_origin(kind) is dict:
            return get_args(kind)[1]
    return element(hint)


def unknown(where: str, name: str, known: Collection[str]) -> str:
    """The complaint about a key that no dataclass has, with the nearest right one."""
    parent, _, last = name.rpartition(".")
    near = [RENAMED[last]] if RENAMED.get(last) in known else []
    near = near or get_close_matches(last.lower().replace("-", "_"), known, 1, 0.6)
    if where.startswith("--"):
        right = f"--{parent + '.' if parent else ''}{near[0]}" if near else ""
        return f"{where}: unknown flag; " + (f"did you mean {right}?" if near else "see --help")
    return says(where, name, "is unknown" + (f"; did you mean '{near[0]}'?" if near else "; see --help"))


def describe(hint: Any) -> str:
    """A type hint in a reader's words."""
    words = []
    for kind in members(hint):
        origin = get_origin(kind) or kind
        if origin is Literal or (isinstance(kind, type) and issubclass(kind, Enum)):
            words.append("one of " + ", ".join(options(kind, {}) or []))
        elif is_dataclass(kind):
            words.append("a mapping with " + ", ".join(f.name for f in fields(kind)))
        else:
            names = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
            names |= {dict: "a mapping", list: "a list", tuple: "a list", Sequence: "a list", Any: "anything"}
            words.append(names.get(origin, "text"))
    return " or ".join(dict.fromkeys(words))


def options(hint: Any, metadata: Any) -> list[Any] | None:
    """The only values allowed: `choices` metadata, an Enum's (transformers writes `SomeEnum | str`) or a Literal's."""
    if metadata.get("choices"):
        return list(metadata["choices"])
    for kind in members(hint):
        if get_origin(kind) is Literal and str not in members(hint):
            return [choice for choice in get_args(kind) if isinstance(choice, str)]
        if isinstance(kind, type) and issubclass(kind, Enum):
            return [member.value for member in kind]
    return None


def read_fields(cls: type, node: Node, name: str, errors: list[str]) -> dict[str, Any]:
    """The checked values of a dataclass's fields that `node`, a mapping, gives; names the required ones it lacks."""
    hints, chosen = get_type_hints(cls, include_extras=True), {}
    for item in (item for item in fields(cls) if item.init):
        inner = f"{name}.{item.name}" if name else item.name
        if item.name in node.value:
            chosen[item.name] = check(hints[item.name], rules(item), node.value[item.name], inner, errors)
        elif item.default_factory is MISSING and (item.default is MISSING or (item.name, item.default) == OUTPUT):
            about = f" ({item.metadata['help']})" if item.metadata.get("help") else ""
            errors.append(says(node.where, inner, f"is missing{about}"))
    return chosen


def rules(item: Field) -> dict[str, Any]:
    """A field's ranges and choices: its metadata's, else those known for the name."""
    own = {key: item.metadata[key] for key in (*BOUNDS, "choices") if item.metadata.get(key) is not None}
    return own or {**RANGES.get(item.name, {}), "choices": CHOICES.get(item.name)}


def check(hint: Any, limits: dict[str, Any], node: Node, name: str, errors: list[str]) -> Any:
    """`node` as the hint's type, dataclasses, lists and mappings down to their leaves; complaints go to `errors`."""
    kinds = members(hint)
    if node.value is BROKEN:
        return None
    if isinstance(node.value, dict):
        for kind in kinds:
            if is_dataclass(kind):
                return _nested(kind, node, name, errors)
            if get_origin(kind) is dict:
                inner = get_args(kind)[1]
                return {key: check(inner, {}, child, f"{name}.{key}", errors) for key, child in node.value.items()}
    if isinstance(node.value, list):
        for kind in kinds:
            sizes = get_args(kind)
            if get_origin(kind) in (list, Sequence) or (get_origin(kind) is tuple and sizes[-1] is Ellipsis):
                values = [check(sizes[0], limits, child, f"{name}[{i}]", errors) for i, child in enumerate(node.value)]
                return tuple(values) if get_origin(kind) is tuple else values
    return _leaf(hint, limits, node, name, errors)


def _nested(cls: type, node: Node, name: str, errors: list[str]) -> Any:
    before = len(errors)
    known = [item.name for item in fields(cls) if item.init]
    errors += [unknown(child.where, f"{name}.{key}", known) for key, child in node.value.items() if key not in known]
    chosen = read_fields(cls, node, name, errors)
    return construct(cls, chosen, node.where, name, errors) if len(errors) == before else None


def _leaf(hint: Any, limits: dict[str, Any], node: Node, name: str, errors: list[str]) -> Any:
    kinds, value = members(hint), node.plain()
    if isinstance(value, str) and bool in kinds and str not in kinds:
        value = {"yes": True, "on": True, "no": False, "off": False}.get(value.lower(), value)
    allowed = options(hint, limits)
    if allowed and value is not None and not isinstance(value, dict | list) and value not in allowed:
        near = get_close_matches(str(value), [str(choice) for choice in allowed], 1, 0.5)
        listed = "one of --help's list" if near and len(allowed) > 8 else f"one of {', '.join(map(str, allowed))}"
        guess = f"; did you mean '{near[0]}'?" if near else ""
        errors.append(says(node.where, name, f"must be {listed}, got {_short(value)}{guess}"))
        return None
    try:
        # JSON mode is strict about numbers, text and truth, yet reads paths, enums and tuples from what YAML can write
        value = TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except ValidationError:
        quotes = "; write it in quotes" if str in kinds and isinstance(value, int | float) else ""
        errors.append(says(node.where, name, f"must be {describe(hint)}, got {_short(value)}{quotes}"))
        return None
    except PydanticUserError:
        errors.append(says(node.where, name, "cannot be set in a recipe"))
        return None
    for bound, (words, holds) in BOUNDS.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if bound in limits and is_number and not holds(value, limits[bound]):
            errors.append(says(node.where, name, f"must be {words} {limits[bound]}, got {_short(value)}"))
    return value


def construct(cls: type, chosen: dict[str, Any], where: str, name: str, errors: list[str]) -> Any:
    """The dataclass itself; what its own checks say becomes one line in `errors`."""
    try:
        with warnings.catch_warnings():  # about TRL's own defaults, which no recipe chose
            warnings.simplefilter("ignore", FutureWarning)
            return cls(**chosen)
    except Exception as error:  # a library's __post_init__ may raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        errors.append(says(where, name, f"{'is ' if name else ''}refused by {cls.__name__}: {reason}"))
        return None


def _short(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
