"""A checkpoint on disk: whole or not there, and sealed by a manifest, so that damage is seen before it is trained on.

A save fills `<output_dir>/_saving/checkpoint-N`; `seal` writes manifest.json (the sha256 of every file) as its last
file, syncs everything and renames the folder to `<output_dir>/checkpoint-N`. A rename is one step of the file system,
so a process killed at any moment leaves the last whole checkpoint and, at most, a `_saving` folder that nothing reads.
Names that begin with "_" are left out of every upload to the hub.
"""

import hashlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

SAVING = "_saving"  # a checkpoint that is being written
EARLIER = "_earlier"  # checkpoints that the run does not go on from
MANIFEST = "manifest.json"
FINISHED = "finished"  # an empty file in the checkpoints of a run that has ended: nothing goes on from them by itself
CHUNK = 1 << 22  # bytes read at a time


def checkpoints(output_dir: Path) -> list[Path]:
    """The folders checkpoint-N below `output_dir`, newest first."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in output_dir.glob("checkpoint-*")]
    return [path for _, path in sorted(((int(m[1]), p) for m, p in found if m and p.is_dir()), reverse=True)]


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(folder: Path, names: list[str]) -> dict[str, str]:
    """The sha256 of files below `folder`, read by several threads; a progress bar where it takes long."""
    total = sum((folder / name).stat().st_size for name in names)
    with tqdm(total=total, unit="B", unit_scale=True, desc=f"check {folder.name}", delay=3, leave=False) as bar:

        def digest(name: str) -> str:
            sum_ = hashlib.sha256()
            with open(folder / name, "rb") as handle:
                while chunk := handle.read(CHUNK):
                    sum_.update(chunk)
                    bar.update(len(chunk))
            return sum_.hexdigest()

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return dict(zip(names, pool.map(digest, names), strict=True))


def seal(saving: Path, final: Path) -> None:
    """Give a written folder its manifest, sync all of it, and only then its final name."""
    names = sorted(path.relative_to(saving).as_posix() for path in saving.rglob("*") if path.is_file())
    for name in names:
        sync(saving / name)
    sizes = {name: (saving / name).stat().st_size for name in names}
    files = {name: {"sha256": digest, "bytes": sizes[name]} for name, digest in sha256(saving, names).items()}
    with open(saving / MANIFEST, "w", encoding="utf-8") as handle:
        json.dump({"files": files}, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
    for folder in [*(path for path in saving.rglob("*") if path.is_dir()), saving]:
        sync(folder)
    if final.exists():
        os.replace(final, saving.with_name(f"replaced-{final.name}"))
    os.replace(saving, final)
    sync(final.parent)


def publish(written: Path, folder: Path) -> None:
    """Move every file and folder of `written` into `folder`, synced, over those of the same names; weights that are
    left of an older model go.
    """
    for path in written.rglob("*"):
        sync(path)
    for pattern in ("*.safetensors", "*.safetensors.index.json", "pytorch_model*"):
        for stale in folder.glob(pattern):
            if not (written / stale.name).exists():
                stale.unlink()
    for path in written.iterdir():
        if path.is_dir():
            shutil.rmtree(folder / path.name, ignore_errors=True)
        os.replace(path, folder / path.name)
    sync(folder)


def mark_finished(output_dir: Path) -> None:
    """The run has ended: the same command begins anew from now on."""
    for checkpoint in checkpoints(output_dir):
        (checkpoint / FINISHED).touch()


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file is there and has the bytes that were written."""
    if not checkpoint.is_dir():
        return "there is no such folder"
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        wanted = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"incomplete, it has no {MANIFEST}"
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} cannot be read"
    for name, (length, _) in wanted.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if (checkpoint / name).stat().st_size != length:
            return f"{name} has {(checkpoint / name).stat().st_size} bytes instead of {length}"
    try:
        digests = sha256(checkpoint, list(wanted))
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    changed = [name for name, digest in digests.items() if digest != wanted[name][1]]
    return f"{changed[0]} is not what was written" if changed else None


def set_aside(output_dir: Path, which: list[Path]) -> str | None:
    """Move checkpoints to `_earlier`, over those of the same names; a line that says so, or None."""
    if not which:
        return None
    (output_dir / EARLIER).mkdir(exist_ok=True)
    for checkpoint in which:
        target = output_dir / EARLIER / checkpoint.name
        shutil.rmtree(target, ignore_errors=True)
        os.replace(checkpoint, target)
    names = ", ".join(path.name for path in which)
    return f"{names} moved to {output_dir / EARLIER}; delete that folder when it is not needed"


def rotate(output_dir: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints beyond `limit`, never the newest nor the best; called when the newest is whole."""
    if not limit or limit < 1:
        return
    found = checkpoints(output_dir)
    kept = {path for path in found if best and path.name == Path(best).name} | set(found[:1])
    for path in found:
        if len(kept) < limit:
            kept.add(path)
    for path in found:
        if path not in kept:
            (output_dir / SAVING).mkdir(exist_ok=True)
            doomed = output_dir / SAVING / path.name
            os.replace(path, doomed)  # out of sight first: a half deleted checkpoint never has a checkpoint's name
            shutil.rmtree(doomed)
