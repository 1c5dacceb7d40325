"""Common Crawl's files by name: read a list of paths, fetch one file at a time, try again when the net fails.

A crawl is a file warc.paths.gz with a path a line, below https://data.commoncrawl.org/ (or s3://commoncrawl/, which
needs s3fs and an account). A dump has 90,000 files of 1 GB: a task fetches one, reads it and takes it away again.
"""

import gzip
import random
import re
import time
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
from datatrove.data import DocumentsPipeline
from tqdm import tqdm

from crawl2chat.data import warc
from crawl2chat.data.readers import Pages
from crawl2chat.data.steps import Rejected
from crawl2chat.stage import fail

TRIES = 6
PAUSE = 2.0  # seconds before the second try, then twice as many: about a minute in all
HOPELESS = (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, NotImplementedError)


class Crawl(Pages):
    """This rank's files of a crawl: each is fetched into `cache`, its records counted, its pages read."""

    name = "Pages of a crawl"

    def __init__(self, urls: list[str], cache: Path, skip: bool, rejected: Rejected, dump: str | None, largest: int):
        super().__init__([], set(), rejected, dump, largest)
        self.urls, self.cache, self.skip = urls, cache, skip

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        with self.rejected as rejected:
            for url in self.urls[rank::world_size]:
                with self.track_time("file"):
                    path = fetch(url, self.cache / f"{rank:05d}")
                    found = warc.count(path)
                warc.check_count(url, path.stat().st_size, found, self.skip)
                self.stat_update("counted", value=found.responses)
                self.stat_update("cut", value=found.cut)
                for record in self.records(path, salvage=bool(found.damage)):
                    yield from self.take(record, url, rank, rejected)
                path.unlink()


def read_paths(paths: str, prefix: str, limit: int | None) -> list[str]:
    """The addresses of a crawl's files: every line of `paths` (a file or a URL, gzip or not) below `prefix`."""
    with TemporaryDirectory() as folder:
        raw = (fetch(paths, Path(folder)) if "://" in paths else Path(paths)).read_bytes()
    try:
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        fail(f"{paths}: not a list of paths ({error}); fetch it again")
    lines = [line.strip() for line in text.splitlines() if line.strip()][:limit]
    if not lines:
        fail(f"{paths}: names no file; it should hold the path of a WARC file in each line")
    if wrong := [line for line in lines if not re.search(r"\.warc(\.gz)?$", line) or ".." in line.split("/")]:
        fail(f"{paths}: {wrong[0][:120]!r} is no path of a WARC file")
    if len(set(lines)) < len(lines):
        fail(f"{paths}: names {len(lines) - len(set(lines))} files twice; take the second ones out")
    return [f"{prefix.rstrip('/')}/{line.lstrip('/')}" for line in lines]


def fetch_all(urls: list[str], folder: Path) -> list[Path]:
    """Fetch a few files into `folder`; those that are there already are not fetched again."""
    paths = []
    for number, url in enumerate(tqdm(urls, desc="fetch", unit="file", leave=False)):
        path = folder / f"{number:05d}" / name_of(url)
        paths.append(path if path.exists() else fetch(url, path.parent))
    return paths


def fetch(url: str, folder: Path) -> Path:
    """Copy the file at `url` into `folder`, whole or not at all. Stops with one line where it cannot be had."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / name_of(url)
    temporary = final.with_name(f".{final.name}.tmp")
    for number in range(1, TRIES + 1):
        try:
            filesystem, inner = fsspec.core.url_to_fs(url, use_listings_cache=False)
            filesystem.get_file(inner, str(temporary))
            size, wanted = temporary.stat().st_size, filesystem.info(inner).get("size")
            if wanted is not None and size != wanted:
                raise OSError(f"{size:,} of {wanted:,} bytes came")
            return temporary.replace(final)
        except HOPELESS as error:
            needs = "; s3:// needs `pip install s3fs`" if isinstance(error, ImportError) else ""
            fail(f"{url}: cannot be fetched ({type(error).__name__}: {error}){needs}")
        except Exception as error:  # every kind of address has errors of its own
            if number == TRIES:
                fail(
                    f"{url}: {TRIES} tries failed, the last with {type(error).__name__}: {error}; start it again later"
                )
            time.sleep(PAUSE * 2 ** (number - 1) * (0.5 + random.random()))


def name_of(url: str) -> str:
    return url.partition("?")[0].rstrip("/").rpartition("/")[2]
