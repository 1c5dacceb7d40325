"""`report_to: wandb` or `trackio` in any stage's recipe: one run a stage, and one group a run's folder.

    python scripts/eval.py recipes/laptop/eval.yaml --report_to wandb trackio

logs to the project crawl2chat (or WANDB_PROJECT) the run `eval` of the group `laptop`. A stage with a Trainer logs its
steps as it goes, by transformers' own callbacks. At its end every stage adds what its folder holds: the numbers of
metrics.json, the recipe as the run's config, rows of its *.jsonl as tables, and its figures as an artefact.

A tracker that cannot be reached stops no stage: the run is then kept on this machine, and a line says how to send it.
Secrets come from the environment alone, and nothing here reads them: a recipe that holds one was refused before.
"""

import io
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

PROJECT = "crawl2chat"
ROWS = 100  # of a table: as many, evenly spaced over the file
FIGURES = (".png", ".svg", ".html")
WAIT = 30  # seconds for W&B to answer when a run begins
SEND = 300  # seconds for W&B to take what is left when a run ends


@dataclass
class Tracking:
    """Where a stage without a Trainer is logged to; the others have this key from transformers."""

    report_to: list[str] | str = field(
        default="none",
        metadata={"help": "log the finished stage to wandb, trackio or both", "choices": ("none", "wandb", "trackio")},
    )


@dataclass(frozen=True)
class Logged:
    """A stage as trackers know it."""

    folder: Path
    trackers: tuple[str, ...]
    recipe: dict[str, Any]
    project: str
    group: str
    name: str

    @property
    def id(self) -> str:
        """Its name where names are shared with other lifecycles: `laptop-sft`."""
        return re.sub(r"[^\w.-]+", "-", f"{self.group}-{self.name}")


def tracked(dataclass_types: tuple[type, ...]) -> tuple[type, ...]:
    """A stage's dataclasses, with the key `report_to` where they lack it and there is a folder to log."""
    names = {item.name for cls in dataclass_types for item in fields(cls)}
    return (*dataclass_types, Tracking) if "output_dir" in names and "report_to" not in names else dataclass_types


def read(output_dir: str | Path) -> Logged:
    """What the recipe that `output_dir` was made from says; without trackers where there is none."""
    folder = Path(output_dir).resolve()
    path = folder / "recipe.yaml"
    recipe = (YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")) if path.is_file() else None) or {}
    asked = recipe.get("report_to") or []
    asked = [asked] if isinstance(asked, str) else asked
    trackers = tuple(name for name in ("wandb", "trackio") if name in asked or "all" in asked)
    project = recipe.get("project") or os.environ.get("WANDB_PROJECT") or PROJECT
    return Logged(folder, trackers, recipe, project, folder.parent.name, recipe.get("run_name") or folder.name)


def begin(output_dir: str | Path, training_args: Any) -> None:
    """Before a Trainer is made, on the main rank: open what its callbacks will log into.

    A tracker that does not open at all is taken out of `training_args.report_to`.
    """
    run = read(output_dir)
    if not run.trackers:
        return
    training_args.project, training_args.run_name = run.project, run.id  # trackio's names, which are one a project
    for tracker in run.trackers:
        try:
            if tracker == "wandb":
                open_wandb(run)
            else:
                opened = open_trackio(run, training_args.trackio_space_id)  # the callback closes it and opens it again
                training_args.trackio_space_id = training_args.trackio_space_id if opened.url else None
        except Exception as error:  # whatever it is, training goes on
            say(f"{tracker}: cannot be used ({first_line(error)}); the stage goes on without it")
            training_args.report_to = [name for name in training_args.report_to if name != tracker]


def end(output_dir: str | Path, metrics: dict[str, float]) -> None:
    """Log a finished stage; a line for each tracker, and never an error."""
    try:
        run = read(output_dir)
        for tracker in run.trackers:
            try:
                to_wandb(run, metrics) if tracker == "wandb" else to_trackio(run, metrics)
            except Exception as error:  # the stage is complete whatever a tracker thinks of it
                say(f"{tracker}: not logged ({first_line(error)}); the stage itself is complete")
    except Exception as error:
        say(f"not logged ({first_line(error)}); the stage itself is complete")


def to_wandb(run: Logged, metrics: dict[str, float]) -> None:
    """Add the folder to the run that is open, or to a new one, and close it."""
    import wandb

    opened = open_wandb(run)
    try:
        opened.config.update(run.recipe, allow_val_change=True)
        opened.log(metrics)
        for name, columns, rows in tables(run.folder):
            opened.log({f"tables/{name}": wandb.Table(columns=columns, data=rows, allow_mixed_types=True)})
        if figures(run.folder):
            artifact = wandb.Artifact(run.id, type="figures")
            for path in figures(run.folder):
                artifact.add_file(str(path))
            opened.log_artifact(artifact)
        kept = Path(opened.dir).parent
        where = f"kept in {shown(kept)}; `wandb sync {shown(kept)}` sends it"
        where = where if opened.settings.mode == "offline" else opened.url
    finally:
        opened.finish()
    say(f"wandb: {run.project}, group {run.group}, run {run.name}: {where}")


def open_wandb(run: Logged) -> Any:
    """W&B's run of this stage: the one that is open, else a new one, offline where W&B cannot be reached."""
    import wandb

    if wandb.run is not None:
        if (wandb.run.group, wandb.run.name) == (run.group, run.name):
            return wandb.run
        wandb.run.finish(exit_code=1)  # of a stage that ended early
    # of the machine and the checkout nothing is sent: a remote's address or a change may hold a secret
    quiet = {"silent": True, "disable_git": True, "disable_code": True, "init_timeout": WAIT, "login_timeout": WAIT}
    settings = wandb.Settings(**quiet, finish_timeout=SEND)
    keys = {"project": run.project, "group": run.group, "name": run.name, "job_type": Path(sys.argv[0]).stem}
    try:
        return wandb.init(**keys, config=run.recipe, settings=settings)
    except Exception as error:
        if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
            raise
        say(f"wandb: cannot be reached ({first_line(error)}); the run is kept offline")
        return wandb.init(**keys, config=run.recipe, settings=settings, mode="offline")


def to_trackio(run: Logged, metrics: dict[str, float]) -> None:
    """Add the folder to the run that the Trainer's callback closed, or to a new one."""
    import trackio

    opened = open_trackio(run, run.recipe.get("trackio_space_id"))
    with redirect_stdout(io.StringIO()):
        try:
            trackio.log(metrics)
            for name, columns, rows in tables(run.folder):
                trackio.log({f"tables/{name}": trackio.Table(columns=columns, data=rows)})
            if figures(run.folder):
                artifact = trackio.Artifact(run.id, type="figures")
                for path in figures(run.folder):
                    artifact.add_file(str(path))
                trackio.log_artifact(artifact)
        finally:
            trackio.finish()
    say(f"trackio: {run.project}, group {run.group}, run {opened.name}: `trackio show --project {run.project}`")


def open_trackio(run: Logged, space_id: str | None) -> Any:
    """trackio's run of this stage, a new one or the one begun before; on this machine where no Space answers."""
    with redirect_stdout(io.StringIO()):
        import trackio

        keys = {"project": run.project, "name": run.id, "group": run.group, "config": run.recipe, "resume": "allow"}
        try:
            return trackio.init(**keys, space_id=space_id)
        except Exception as error:
            remote = [name for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL") if os.environ.pop(name, None)]
            if not remote and not space_id:
                raise
            print(f"tracking: trackio: cannot be reached ({first_line(error)}); kept on this machine", file=sys.stderr)
            return trackio.init(**keys)


def figures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in FIGURES)


def tables(folder: Path) -> Iterator[tuple[str, list[str], list[list[Any]]]]:
    """(name, columns, rows) of every file of rows in a stage's folder: what models wrote, and what was written."""
    for path in sorted([*folder.glob("*.jsonl"), *folder.glob("*/train.jsonl")]):
        with open(path, encoding="utf-8") as handle:
            count = sum(1 for line in handle if line.strip())
            handle.seek(0)
            lines = islice((line for line in handle if line.strip()), 0, None, max(1, -(-count // ROWS)))
            rows = [json.loads(line) for line in lines]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        name = str(path.relative_to(folder).with_suffix(""))
        if rows:
            yield name, columns, [[cell(row.get(column)) for column in columns] for row in rows]


def cell(value: Any) -> Any:
    """Numbers and text as they are, messages and mappings as JSON."""
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)


def shown(path: Path) -> Path:
    """Relative to where the command runs, if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def say(line: str) -> None:
    print(f"tracking: {line}", flush=True)
