"""Every push to the hub goes through a local outbox: staged first, then sent, and kept until the hub lists every byte.

`<root>/outbox/<id>/` is one push that waits: `push.json` (where it goes, and the sha256 of every file) beside
`files/`, written aside and renamed, so a process killed at any moment leaves a whole push or none. Pushes to one
repository are sent in the order they were made; a newer one to the same place takes the place of one that waits. What
the hub refuses (401, 403) is one line and exit 1; any other trouble leaves the push waiting and names the command that
finishes it. No token is ever written: it comes from HF_TOKEN at each sending.

python -m crawl2chat.outbox output/laptop/release                                        send what waits there
python -m crawl2chat.outbox push output/laptop/release owner/name                        a model
python -m crawl2chat.outbox push output/laptop/preferences owner/name --dataset --license apache-2.0
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import psutil
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import get_token, validate_repo_id
from tqdm import tqdm

from crawl2chat.checkpoint_folder import CHUNK, sync
from crawl2chat.dataset_card import ALONGSIDE, dataset_card, row_files
from crawl2chat.hub import Away, Content, Refused, deliver
from crawl2chat.stage import fail, write_text

PUSH, FILES, LOCK, SENT = "push.json", "files", ".lock", "sent.jsonl"
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds between five tries
LONGEST = 60.0  # seconds that a hub may ask us to wait; beyond, the push waits for the command
# a run's own affairs: its arguments and optimizer, its checkpoints and trackers, whatever is hidden or half written
LEFT_OUT = (
    "training_args.bin optimizer* scheduler.pt scaler.pt rng_state* trainer_state.json run.json global_step* "
    "checkpoint-* outbox wandb trackio .* _*"
).split()
SECRET = re.compile(
    r"(?i)(^|_)(token|api_?key|access_key|password|secret)$"
)  # names of variables whose values go nowhere


@dataclass
class Push:
    """push.json: where a push goes and what it holds. `files`: name in the repository -> bytes and sha256."""

    repo_id: str
    repo_type: str
    revision: str
    tag: str | None
    private: bool
    message: str
    files: dict[str, dict]


@dataclass
class Pushed:
    """What came of a push: `state` says whether the hub has it; `why`, where it has not; `commit`, where it has."""

    state: Literal["pushed", "waiting", "refused"]
    id: str
    repo_id: str
    revision: str
    tag: str | None
    files: int
    bytes: int
    commit: str = ""
    why: str = ""

    def __str__(self) -> str:
        place = f"{self.repo_id} ({self.revision}{', ' + self.tag if self.tag else ''})"
        return f"{place}: {self.files} files, {self.bytes / 1e6:.1f} MB"


def push(
    folder: Path | str,
    repo_id: str,
    *,
    repo_type: Literal["model", "dataset"] = "model",
    revision: str | None = None,
    private: bool = False,
    message: str,
    root: Path | str,
    token: str | None = None,
    retry_command: str | None = None,
    license: str = "unknown",
) -> Pushed:
    """Stage a copy of `folder` in `<root>/outbox` and send it, after what waits there for the same repository.

    As a data set, a folder without a card of its own gives its rows and a card under `license` (dataset_card.py).

    Prints one line for what reached the hub and one for what waits, naming `retry_command`
    (default: python -m crawl2chat.outbox ROOT). Exits 1 at once where the hub refuses the token or the content, and
    where a file holds the value of a secret of the environment.
    """
    folder, root, texts = Path(folder), Path(root), {}
    files, left = gather(folder)
    if repo_type == "dataset" and ("README.md" not in files or "config.json" in files):  # config.json: a model's card
        rows = row_files(folder)
        texts["README.md"] = dataset_card(folder, rows, repo_id, license)
        if license == "unknown":
            print("hub: the card says that the licence of the rows is unknown; --license names it", flush=True)
        kept = {path.relative_to(folder).as_posix() for paths in rows.values() for path in paths} | {*ALONGSIDE}
        left = sorted({*left, *(name for name in files if name not in kept)})
        files = {name: path for name, path in files.items() if name in kept}
    if left:
        more = f" and {len(left) - 12} more" if len(left) > 12 else ""
        print(f"hub: not sent from {folder}: {', '.join(left[:12])}{more}", flush=True)
    to = {"repo_id": repo_id, "repo_type": repo_type, "revision": revision, "private": private}
    staged = stage(files, root, **to, message=message, texts=texts)
    results = retry(root, token=token, retry_command=retry_command)
    # not among them: another process that was sending from here has taken it along
    return next((result for result in results if result.id == staged), None) or _sent(root, staged)


def _sent(root: Path, name: str) -> Pushed:
    lines = (root / "outbox" / SENT).read_text(encoding="utf-8").splitlines()
    return next(Pushed(**entry) for entry in map(json.loads, reversed(lines)) if entry["id"] == name)


def gather(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """({name in the repository: file}, names left out) of a folder; exits 1 where there is nothing, and on links."""
    if not folder.is_dir():
        fail(f"hub: {folder}: there is no such folder to push")
    files, left = {}, []
    for path in sorted(folder.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in LEFT_OUT):
            left.append(path.name)
            continue
        for inner in [path, *(sorted(path.rglob("*")) if path.is_dir() and not path.is_symlink() else ())]:
            if inner.is_symlink():
                fail(f"hub: {inner} is a link; push a folder of the files themselves")
            if inner.is_file():
                files[inner.relative_to(folder).as_posix()] = inner
    if not files:
        fail(f"hub: {folder}: there is nothing in it to push")
    return files, left


def stage(
    files: dict[str, Path],
    root: Path,
    *,
    repo_id: str,
    repo_type: str = "model",
    revision: str | None = None,
    tag: str | None = None,
    private: bool = False,
    message: str,
    sums: dict[str, str] | None = None,
    texts: dict[str, str] | None = None,
) -> str:
    """Put files into the outbox under their names in the repository; the id of the push. Nothing is sent.

    Files are copied; those whose sha256 is given in `sums` never change any more and are linked, at once whatever
    their size. `texts` are files that are written here.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        fail(f"hub: {repo_id!r} is no name of a repository; write owner/name")
    name = f"{time.time_ns()}-{os.getpid()}"
    staging = root / "outbox" / f"_staging-{name}"
    entries = {}
    try:
        for at, source in tqdm(files.items(), unit=" files", desc="stage", delay=3, leave=False):
            target = staging / FILES / at
            target.parent.mkdir(parents=True, exist_ok=True)
            digest = (sums or {}).get(at)
            if not digest or not _link(source, target):
                digest = _copy(source, target)
            entries[at] = {"bytes": target.stat().st_size, "sha256": digest}
        for at, text in (texts or {}).items():
            write_text(staging / FILES / at, text)
            entries[at] = {"bytes": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        made = Push(repo_id, repo_type, revision or "main", tag, private, message, entries)
        write_text(staging / PUSH, json.dumps(asdict(made), indent=1))
        os.replace(staging, staging.with_name(name))
        sync(staging.parent)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError):
            fail(f"hub: {root / 'outbox'}: the push could not be staged ({error.strerror}); nothing was sent")
        raise
    return name


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
        return True
    except OSError:  # another file system, or one without links
        return False


def _copy(source: Path, target: Path) -> str:
    """Copy a file, synced; its sha256."""
    digest = hashlib.sha256()
    with open(source, "rb") as reader, open(target, "wb") as writer:
        while piece := reader.read(CHUNK):
            digest.update(piece)
            writer.write(piece)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()


def waiting(root: Path | str) -> list[tuple[Path, Push]]:
    """The pushes in the outbox of `root`, oldest first."""
    found = []
    for path in sorted((Path(root) / "outbox").glob("[0-9]*")):
        try:
            found.append((path, Push(**json.loads((path / PUSH).read_text(encoding="utf-8")))))
        except (OSError, ValueError, TypeError):
            print(f"hub: {path / PUSH} cannot be read; delete {path} and push again", flush=True)
    return found


def retry(root: Path | str, *, token: str | None = None, retry_command: str | None = None) -> list[Pushed]:
    """Send what waits in the outbox of `root`, oldest first; a line for each push that the hub has now, and one for
    each repository whose pushes go on waiting. Exits 1 where the hub refuses one.
    """
    root = Path(root)
    command = retry_command or f"python -m crawl2chat.outbox {root}"
    results: list[Pushed] = []
    stopped: dict[tuple[str, str], Pushed] = {}  # the first push of a repository that did not go through
    with _alone(root):
        seen = set()
        while rest := [(path, found) for path, found in waiting(root) if path.name not in seen]:
            path, found = rest[0]
            seen.add(path.name)
            if any(_place(later) == _place(found) for _, later in rest[1:]):
                print(f"hub: a newer push takes the place of the one of {_when(path)} to {found.repo_id}", flush=True)
                _discard(path)
                continue
            first = stopped.get(_place(found)[:2])
            result = _result(path, found, "waiting", why=first.why) if first else _send(path, found, token)
            results.append(result)
            if result.state == "pushed":
                print(f"hub: {result}, every byte as here, commit {result.commit[:12]}", flush=True)
            elif path.exists():
                stopped.setdefault(_place(found)[:2], result)
    for repo, first in stopped.items():
        count = sum(result.state != "pushed" and result.repo_id == repo[1] for result in results)
        line = f"{count} push{'es' * (count > 1)} to {repo[1]} wait{'s' * (count == 1)} in {root / 'outbox'}"
        print(f"hub: {line} ({first.why}); finish with: {command}", flush=True)
    refused = [result for result in results if result.state == "refused"]
    if refused:
        fail(f"hub: {refused[0].repo_id}: {refused[0].why}")
    return results


def _place(push: Push) -> tuple[str, str, str, str | None]:
    return push.repo_type, push.repo_id, push.revision, push.tag


def _when(path: Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(path.name.partition("-")[0]) / 1e9))


def _send(path: Path, found: Push, token: str | None) -> Pushed:
    """Deliver one push with five tries, and take it out of the outbox when the hub has all of it."""
    what = (found.repo_id, found.repo_type, found.revision, found.tag, found.private, found.message)
    try:
        contents = _inspect(path, found, token)
    except Refused as error:
        return _result(path, found, "refused", why=str(error))
    for wait in (*WAITS, None):
        try:
            repo, commit = deliver(contents, *what, token)
        except Refused as error:
            return _result(path, found, "refused", why=str(error))
        except Away as error:
            if wait is None or error.hopeless or error.after > LONGEST:
                return _result(path, found, "waiting", why=str(error))
            pause = max(wait, error.after)
            print(f"hub: {found.repo_id}: {error}; again in {pause:g} s", file=sys.stderr, flush=True)
            time.sleep(pause)
        else:
            result = _result(path, found, "pushed", commit=commit, repo_id=repo)
            with open(path.parent / SENT, "a", encoding="utf-8") as log:
                log.write(json.dumps(asdict(result)) + "\n")
            _discard(path)
            return result


def _result(path: Path, found: Push, state: str, **more: str) -> Pushed:
    size = sum(entry["bytes"] for entry in found.files.values())
    facts = {"repo_id": found.repo_id, "revision": found.revision, "tag": found.tag, **more}
    return Pushed(state, path.name, files=len(found.files), bytes=size, **facts)


def _inspect(path: Path, found: Push, token: str | None) -> dict[str, Content]:
    """Read every staged file once: is it what was staged, what is git's name for it, does it hold a secret? Refused
    otherwise, and with a secret in it the push leaves the outbox.
    """
    secrets = {value.encode(): name for name, value in os.environ.items() if SECRET.search(name) and len(value) >= 8}
    secrets |= {own.encode(): "the hub's token" for own in (token, get_token()) if own}
    longest = max(map(len, secrets), default=1)
    altered = f"is not what was staged; delete {path} and push again"
    contents, total = {}, sum(entry["bytes"] for entry in found.files.values())
    bar = tqdm(total=total, unit="B", unit_scale=True, desc=f"check {found.repo_id}", delay=3, leave=False)
    for name, entry in found.files.items():
        file, tail = path / FILES / name, b""
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise Refused(f"{name} {altered}")
        digest, blob = hashlib.sha256(), hashlib.sha1(f"blob {entry['bytes']}\0".encode(), usedforsecurity=False)
        with open(file, "rb") as handle:
            while piece := handle.read(CHUNK):
                digest.update(piece)
                blob.update(piece)
                window = tail + piece
                for value, variable in secrets.items():
                    if value in window:
                        _discard(path)
                        raise Refused(f"{name} holds the value of {variable}; nothing was sent")
                tail = piece[-longest:]
                bar.update(len(piece))
        if digest.hexdigest() != entry["sha256"]:
            raise Refused(f"{name} {altered}")
        contents[name] = Content(file, entry["bytes"], entry["sha256"], blob.hexdigest())
    bar.close()
    return contents


def _discard(path: Path) -> None:
    """Out of sight first: a half deleted push is never taken for one."""
    gone = path.with_name(f"_staging-{path.name}")
    os.replace(path, gone)
    shutil.rmtree(gone)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One process at a time sends from an outbox; a killed one holds no lock."""
    box = root / "outbox"
    if not box.is_dir():
        yield
        return
    with open(box / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"hub: another process is sending from {box}; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in box.glob("_staging-*"):  # of processes that were killed
            pid = left.name.rpartition("-")[2]
            if not pid.isdigit() or not psutil.pid_exists(int(pid)):
                shutil.rmtree(left, ignore_errors=True)
        yield


def main(argv: list[str] | None = None) -> None:
    """`push FOLDER owner/name` or `ROOT`, as the module's first lines show."""
    words = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser("python -m crawl2chat.outbox", description=__doc__.splitlines()[0])
    if words[:1] == ["push"]:
        parser.add_argument("push")
        parser.add_argument("folder", type=Path, help="of a stage; its outbox goes there too")
        parser.add_argument("repo_id", help="owner/name")
        parser.add_argument("--dataset", action="store_true", help="rows rather than a model")
        parser.add_argument("--license", default="unknown", help="of the rows, by the hub's name for it: cc-by-sa-4.0")
        parser.add_argument("--private", action="store_true")
        parser.add_argument("--revision", help="a branch; default: main")
        parser.add_argument("--message", default="Push by crawl2chat")
        args = parser.parse_args(words)
        kind = "dataset" if args.dataset else "model"
        to = {"repo_type": kind, "revision": args.revision, "private": args.private, "message": args.message}
        push(args.folder, args.repo_id, root=args.folder, license=args.license, **to)
        return
    parser.add_argument("root", type=Path, help="the folder whose outbox is to be sent")
    parser.add_argument("--behind", action="store_true", help="give way to other processes, as a training run's")
    args = parser.parse_args(words)
    if args.behind:
        os.nice(10)
    if not retry(args.root) and not args.behind:
        print(f"hub: nothing waits in {args.root / 'outbox'}", flush=True)


if __name__ == "__main__":
    main()
