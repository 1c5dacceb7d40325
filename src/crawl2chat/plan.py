"""What a recipe is about to do: the inputs it reads and whether they are there, where it writes, its sums."""

import glob
import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

# keys of transformers, TRL and datasets that name an input; our own fields say metadata={"reads": True}
INPUT_KEYS = {"model_name_or_path", "tokenizer", "tokenizer_name_or_path", "dataset_name", "chat_template_path"}
BUILDERS = {"json", "parquet", "csv", "text", "arrow", "webdataset"}  # datasets' names for files on disk
HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?(:[\w.-]+)?$")  # owner/name, owner/name:configuration


@dataclass
class Input:
    """One path that a recipe reads: its dotted key, the path, and `exists`, `missing` or `hub, not checked`."""

    key: str
    path: str
    state: str


def inputs(configs: tuple[Any, ...]) -> list[Input]:
    """Every input that the configs name, in their order; what lies below the stage's own output_dir is its own."""
    own = [os.path.normpath(config.output_dir) for config in configs if getattr(config, "output_dir", None)]
    found: dict[str, Input] = {}
    for config in configs:
        for key, path, is_ours in _named(config, ""):
            normal = os.path.normpath(path)
            if path and not any(normal == folder or normal.startswith(folder + os.sep) for folder in own):
                found.setdefault(f"{key} {path}", Input(key, path, _state(path, is_ours)))
    return list(found.values())


def _named(config: Any, prefix: str) -> Iterator[tuple[str, str, bool]]:
    """(dotted key, path, whether one of our own fields names it) of a dataclass or mapping, nested ones included."""
    known = () if isinstance(config, dict) else fields(config)
    values = config if isinstance(config, dict) else {item.name: getattr(config, item.name) for item in known}
    marked = {item.name for item in known if item.metadata.get("reads")}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name in marked:
            yield from ((inner, path, True) for inner, path in _paths(key, value))
        elif name in INPUT_KEYS:
            yield from ((inner, path, False) for inner, path in _paths(key, value))
        elif name == "path" and prefix.rstrip(".").endswith("]"):
            yield from ((inner, path, False) for inner, path in _paths(key, value) if path not in BUILDERS)
        elif name == "data_files" and values.get("path") in BUILDERS:
            yield from ((inner, path, True) for inner, path in _paths(key, value))
        elif is_dataclass(value):
            yield from _named(value, f"{key}.")
        elif isinstance(value, dict):  # a task's knobs: what lies in a run's folder is what an earlier stage wrote
            yield from ((inner, path, True) for inner, path in _paths(key, value) if path.startswith("output/"))
        elif isinstance(value, list | tuple):
            for i, child in enumerate(value):
                if is_dataclass(child) or isinstance(child, dict):
                    yield from _named(child, f"{key}[{i}].")


def _paths(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str | Path):
        yield key, str(value)
    elif isinstance(value, dict):
        for name, child in value.items():
            yield from _paths(f"{key}.{name}", child)
    elif isinstance(value, list | tuple):
        for i, child in enumerate(value):
            yield from _paths(f"{key}[{i}]", child)


def _state(path: str, is_ours: bool) -> str:
    expanded = os.path.expanduser(path)
    if os.path.exists(expanded) or glob.has_magic(expanded) and next(glob.iglob(expanded, recursive=True), None):
        return "exists"
    looks_local = path.startswith(("output/", "/", ".", "~")) or path.count("/") > 1 or glob.has_magic(path)
    if "://" in path:
        return "remote, not checked"
    if not looks_local and HUB_NAME.match(path) and ("/" in path or not is_ours):
        return "hub, not checked"
    return "missing"


def missing_inputs(configs: tuple[Any, ...], recipe: Path | None, where: dict[str, str]) -> list[str]:
    """One line per input that is not there: the key's place, the path, and the sibling stage that writes it."""
    lines = []
    for item in inputs(configs):
        if item.state == "missing":
            top = re.split(r"[.\[]", item.key)[0]
            place = where.get(item.key) or where.get(top) or str(recipe or "default")
            name = "" if place.startswith("--") else f" {item.key}"
            lines.append(f"{place}:{name} {item.path} is missing; {_maker(item.path, recipe)}")
    return lines


def _maker(path: str, recipe: Path | None) -> str:
    """Which stage writes `path`, read off the output_dir lines of the recipes beside this one."""
    for sibling in sorted(recipe.parent.glob("*.yaml")) if recipe else ():
        text = sibling.read_text(encoding="utf-8", errors="replace")
        match = re.search(r"^output_dir:\s*['\"]?([^\s'\"#]+)", text, re.MULTILINE)
        if match and (path.rstrip("/") + "/").startswith(match[1].rstrip("/") + "/"):
            return f"`python scripts/{sibling.stem}.py {sibling}` writes it"
    return "check the path"


def practice_rows(configs: tuple[Any, ...], args: Any, a_step: int) -> list[tuple[str, str]]:
    """What reinforcement learning tries, earns and minds: (name, text) each; `a_step` tries a step on this launch."""
    (ours,) = (config for config in configs if hasattr(config, "rewards"))
    families = ", ".join(f"{entry.train:,} of {entry.name} ({entry.test} held out)" for entry in ours.problems)
    rows = [("asks", families + (f"; tools: {', '.join(ours.tools)}" if ours.tools else ""))]
    problems, tries = a_step / args.num_generations, f"{args.max_steps * a_step:,}" if args.max_steps > 0 else "all"
    where = f"vLLM, {args.vllm_mode}" if args.use_vllm else "the engine"
    line = f"{problems:g} problems x {args.num_generations} = {a_step:,} a step, {tries} in all, at most "
    rows += [("tries", f"{line}{args.max_completion_length} tokens at temperature {args.temperature:g}, by {where}")]
    paid = " + ".join(f"{entry.weight:g} {entry.name}" for entry in ours.rewards)
    clipped = f"clipped at {args.epsilon:g} and {args.epsilon_high or args.epsilon:g}"
    leash = f"KL coefficient {args.beta:g}" if args.beta else "no KL, so no reference model"
    rows += [("reward", f"{paid}; loss {args.loss_type}, {clipped}; {leash}")]
    return rows + [("guards", f"the run ends on {', '.join(ours.stop_on)}" if ours.stop_on else "alarms are printed")]


def policy_rows(configs: tuple[Any, ...], args: Any, a_step: int) -> list[tuple[str, str]]:
    """What PPO asks, learns from, earns and minds: (name, text) each; `a_step` replies a step on this launch."""
    (ours,) = (config for config in configs if hasattr(config, "reward_models"))
    prompts = [(entry.train, entry.name, entry.test) for entry in ours.problems]
    prompts += [(entry.train, entry.path, entry.test) for entry in ours.conversations]
    asked = ", ".join(f"{train:,} of {name} ({test} held out)" for train, name, test in prompts)
    rows = [("asks", asked + (f"; tools: {', '.join(ours.tools)}" if ours.tools else ""))]
    a_batch, steps = a_step * args.num_mini_batches, args.num_ppo_epochs * args.num_mini_batches
    episodes = args.total_episodes or math.ceil(args.num_train_epochs * sum(train for train, *_ in prompts))
    batches = args.max_steps // steps if args.max_steps > 0 else math.ceil(episodes / a_batch)
    line = f"{a_batch:,} a batch, {args.num_ppo_epochs} passes x {args.num_mini_batches} minibatches = {steps} steps; "
    line += f"{batches:,} batches = {batches * a_batch:,} replies, {batches * steps:,} steps; at most "
    rows += [("replies", f"{line}{args.response_length} tokens at temperature {args.temperature:g}")]
    weights = args.reward_weights or [1.0] * len(ours.reward_models)
    paid = [f"{weight:g} {name}" for weight, name in zip(weights, ours.reward_models, strict=False)]
    paid += [f"{entry.weight:g} {entry.name}" for entry in ours.rewards]
    penalty = f"; {args.missing_eos_penalty:g} less without an end" if args.missing_eos_penalty else ""
    rows += [("reward", " + ".join(paid) + penalty)]
    held = f"adapted to hold {args.kl_target:g} nats a reply" if args.kl_target else "fixed"
    rows += [("leash", f"KL coefficient {args.kl_coef:g} ({args.kl_estimator}), {held}" if args.kl_coef else "none")]
    return rows + [("guards", f"the run ends on {', '.join(ours.stop_on)}" if ours.stop_on else "alarms are printed")]


def plan(configs: tuple[Any, ...], recipe: Path | None, flags: list[str]) -> str:
    """The text of `--dry_run`: stage, recipe, inputs, output, and the sums of a training stage."""
    rows = [("stage", Path(sys.argv[0]).stem), ("recipe", " ".join([str(recipe or "none"), *flags]))]
    rows += [("reads", f"{item.key}: {item.path} ({item.state})") for item in inputs(configs)]
    rows += [("writes", config.output_dir) for config in configs if getattr(config, "output_dir", None)][:1]
    for config in configs:
        if hasattr(config, "gradient_accumulation_steps"):
            from crawl2chat.budget import budget_rows, read_run  # these need torch, which other stages never load
            from crawl2chat.waste import warnings

            run = read_run(configs, config, recipe, flags)
            rows += budget_rows(run) + [("warning", line) for line in warnings(run)]
            rows += practice_rows(configs, config, run.sequences) if hasattr(config, "max_completion_length") else []
            rows += policy_rows(configs, config, run.sequences) if hasattr(config, "num_ppo_epochs") else []
    return "\n".join(f"{name:8}{text}" for name, text in rows)
