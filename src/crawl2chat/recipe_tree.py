"""YAML to a tree of values that know their line, so that every complaint about a recipe can name its place."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode
from ruamel.yaml.nodes import Node as YamlNode

SECRET = re.compile(r"(?i)^(.*_)?(hub_token|hf_token|auth_token|access_token|api_key|password|secret)$|^token$")
PLAIN = ("null", "bool", "int", "float", "str", "timestamp", "merge", "value")  # YAML's kinds of plain scalars
SECRET_ADVICE = "is a secret; set it in the environment (HF_TOKEN, WANDB_API_KEY), never in a recipe or a flag"


BROKEN = object()  # a value that has its complaint already


class RecipeError(SystemExit):
    """A recipe or a flag that cannot be used: `lines` are the complaints, the exit code is 2."""

    def __init__(self, lines: list[str]):
        super().__init__(2)
        self.lines = [" ".join(line.split()) for line in lines]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def refuse(line: str) -> NoReturn:
    """Give up at once with one complaint."""
    raise RecipeError([line])


@dataclass
class Node:
    """A value and its place: a scalar, a list of nodes or a dict of nodes; `where` is `file:line` or `--flag`."""

    value: Any
    where: str

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return None if self.value is BROKEN else self.value

    def places(self, name: str = "") -> dict[str, str]:
        """Every dotted key below with its place."""
        found = {name: self.where} if name else {}
        if isinstance(self.value, dict):
            for key, child in self.value.items():
                found |= child.places(f"{name}.{key}" if name else key)
        elif isinstance(self.value, list):
            for i, child in enumerate(self.value):
                found |= child.places(f"{name}[{i}]")
        return found


def says(where: str, name: str, complaint: str) -> str:
    """One line: `file:12: key 'a.b' must be ...`, or `--a.b: must be ...`, where the place already names the key."""
    return f"{where}: {complaint}" if where.startswith("--") or not name else f"{where}: key '{name}' {complaint}"


def read_text(path: Path) -> str:
    """The file's text. Raises RecipeError for a file that is not there or not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        refuse(f"{path}: cannot be read ({reason}); the first argument names the recipe")


def read_yaml(text: str, source: str, errors: list[str]) -> Node:
    """YAML 1.2 to nodes: `no` is text and `2e-5` a number.

    `source` is the file, or the flag whose value this is. Duplicate keys, aliases, tags, secrets and numbers that are
    not finite go to `errors`; raises RecipeError for text that is no YAML at all.
    """
    try:
        tree = YAML(typ="safe", pure=True).compose(text)
        return Node(None, source) if tree is None else _node(tree, source, "", errors, set())
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark and not source.startswith("--") else ""
        refuse(f"{source}{line}: is not valid YAML: {error.problem or error.context}")
    except RecursionError:
        refuse(f"{source}: is nested too deeply")
    except YAMLError as error:
        refuse(f"{source}: is not valid YAML: {str(error)[:200]}")


def _place(tree: YamlNode, source: str) -> str:
    return source if source.startswith("--") else f"{source}:{tree.start_mark.line + 1}"


def _node(tree: YamlNode, source: str, name: str, errors: list[str], seen: set[int]) -> Node:
    where = _place(tree, source)
    if id(tree) in seen or tree.anchor:
        errors.append(says(where, name, "uses an anchor or alias; write the value out"))
        return Node(BROKEN, where)
    seen.add(id(tree))
    if isinstance(tree, ScalarNode):
        return Node(_scalar(tree, where, name, errors), where)
    if not isinstance(tree, MappingNode):
        return Node([_node(child, source, f"{name}[{i}]", errors, seen) for i, child in enumerate(tree.value)], where)
    children: dict[str, Node] = {}
    for key, child in tree.value:
        line = _place(key, source)
        if not isinstance(key, ScalarNode):
            errors.append(says(line, name, "has a key that is not text"))
            continue
        inner = f"{name}.{key.value}" if name else key.value
        if key.value in children:
            errors.append(says(line, inner, f"is given twice (first at {children[key.value].where})"))
        elif SECRET.search(key.value):
            errors.append(says(line, inner, SECRET_ADVICE))
        else:
            children[key.value] = _node(child, source, inner, errors, seen)
            children[key.value].where = line
    return Node(children, where)


def _scalar(tree: ScalarNode, where: str, name: str, errors: list[str]) -> Any:
    """The Python value of a YAML scalar; dates stay text."""
    prefix, _, kind = str(tree.tag).rpartition(":")
    text = tree.value
    if prefix != "tag:yaml.org,2002" or kind not in PLAIN:
        errors.append(says(where, name, f"has the tag {tree.tag}; recipes hold plain values"))
        return BROKEN
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind in ("int", "float"):
        digits = text.replace("_", "").lower()
        try:
            if kind == "int":
                return int(digits, 0 if re.match(r"[-+]?0[xob]", digits) else 10)
            number = float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", digits))
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
        errors.append(says(where, name, f"must be a finite number, got {text[:40]}"))
        return BROKEN
    return text
