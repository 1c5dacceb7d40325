"""Walk a WARC file byte by byte: count its pages without the reader, name the place of damage, salvage what is whole.

A WARC file (ISO 28500) is a row of records, each a header, Content-Length bytes and two line ends; Common Crawl
compresses every record as a gzip member of its own. Where either is broken the usual readers skip records silently.
"""

import mmap
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fastwarc.warc import ArchiveIterator, WarcRecordType
from tqdm import tqdm

from crawl2chat.stage import fail

GZIP = b"\x1f\x8b\x08"
LONGEST_HEADER = 1 << 16
DIGITS = 15  # of a Content-Length: a petabyte
FEW = 1 << 28  # bytes of files that are counted while the workers start; more are counted by them
LARGEST_MEMBER = 1 << 30  # decompressed bytes held at once; Common Crawl's members hold one page


@dataclass
class Record:
    """One record: its byte offset in the file, its type (response if unknown), its bytes, or None and why."""

    offset: int
    type: str
    data: bytes | None
    why: str = ""


@dataclass
class Count:
    """What a file holds: response records, the damaged ones of them, and (byte offset, reason) of each damage."""

    responses: int = 0
    cut: int = 0
    damage: list[tuple[int, str]] = field(default_factory=list)


def warc_files(path: str | Path) -> list[Path]:
    """The WARC files that a file, folder or glob names, in a stable order; empty when there is none."""
    path = Path(path)
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(
            file for file in path.rglob("*") if file.name.endswith((".warc", ".warc.gz")) and file.name[0] != "."
        )
    return sorted(file for file in Path(path.anchor or ".").glob(str(path).lstrip("/")) if file.is_file())


def count(path: Path) -> Count:
    """Count the response records of a file by its bytes alone.

    Where the usual reader then finds another number, that is damage too: its records must be salvaged one by one.
    """
    result = Count()
    for record in walk(path):
        if record.data is None:
            result.damage.append((record.offset, record.why))
        if record.type == "response":
            result.responses += 1
            result.cut += record.data is None
    if not result.damage and (why := unreadable(path, result.responses)):
        result.damage.append((0, why))
    return result


def unreadable(path: Path, responses: int) -> str:
    """What keeps FastWARC from finding all response records of a file, or ""."""
    seen = 0
    try:
        for _ in ArchiveIterator(str(path), record_types=WarcRecordType.response, parse_http=False):
            seen += 1
    except (OSError, ValueError) as error:
        return f"the reader breaks after {seen:,} of {responses:,} records ({error})"
    return "" if seen == responses else f"the reader finds {seen:,} of {responses:,} records"


def count_files(
    files: list[Path], where: str, skip: bool, map: Callable[..., Iterable[Count]] = map
) -> tuple[int, int, set[Path]]:
    """Response records of all files, how many of them are damaged, and which files have damage.

    map: may count several files at once. Stops with one line for no files, an empty file, a file without records, and
    damage unless it is to be skipped.
    """
    if not files:
        fail(f"{where}: no WARC files (*.warc, *.warc.gz) there; correct `warc` in the recipe")
    responses, cut, damaged = 0, 0, set()
    for path, found in zip(files, tqdm(map(count, files), "count", len(files), unit="file", leave=False), strict=True):
        check_count(str(path), path.stat().st_size, found, skip)
        if found.damage:
            damaged.add(path)
        responses, cut = responses + found.responses, cut + found.cut
    return responses, cut, damaged


def check_count(where: str, size: int, found: Count, skip: bool) -> None:
    """Stop with one line for a file without records, and for damage unless it is to be skipped; then it is told."""
    if found.damage and not skip:
        offset, why = found.damage[0]
        more = f" (and {len(found.damage) - 1:,} more places)" if len(found.damage) > 1 else ""
        fail(
            f"{where}: {why} at byte {offset:,}{more}; fetch the file again, "
            "or set `on_damage: skip` to count the damage and go on"
        )
    if not found.responses:
        fail(f"{where}: holds no response records ({size:,} bytes); fetch it again or take it away")
    if found.damage:
        offset, why = found.damage[0]
        tqdm.write(f"{where}: {found.cut} of {found.responses} records damaged; {why} at byte {offset:,}")


def walk(path: Path) -> Iterator[Record]:
    """Every record of a .warc or .warc.gz file in order. A damaged stretch is one record without data.

    After damage the walk goes on at the next gzip member, or at the next line that opens a record.
    """
    if path.stat().st_size == 0:
        return
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        if raw[:3] != GZIP:
            yield from records(raw, 0)
            return
        for offset, data, why in members(raw):
            found = list(records(data, offset)) or [Record(offset, "response", None, why)] * bool(why)
            if why and found[-1].data is not None:  # it looks whole, but the member's checksum never came
                found[-1] = Record(offset, found[-1].type, None, why)
            yield from found


def members(raw: mmap.mmap) -> Iterator[tuple[int, bytes, str]]:
    """(offset, decompressed bytes, what is wrong with it or "") of each gzip member."""
    offset, searching = 0, False
    while offset < len(raw):
        data, end, why = inflate(raw, offset)
        if searching and why and not data:  # the magic number stood inside compressed bytes
            offset = find(raw, GZIP, offset + 1)
            continue
        yield offset, data, why
        searching = bool(why)
        offset = find(raw, GZIP, offset + 1) if why else end
        if not why and offset < len(raw) and raw[offset : offset + 3] != GZIP:
            following = find(raw, GZIP, offset)
            if raw[offset:following].strip(b"\0"):  # zero padding behind a member is legal
                yield offset, b"", "bytes that are no gzip member"
            offset, searching = following, True


def inflate(raw: mmap.mmap, offset: int) -> tuple[bytes, int, str]:
    """Decompress one member: its bytes, the offset behind it, and what is wrong or ""."""
    decompressor, pieces, size, position = zlib.decompressobj(31), [], 0, offset
    while not decompressor.eof:
        chunk = raw[position : position + 65536]
        if not chunk:
            return b"".join(pieces), position, "the gzip stream is cut"
        try:
            pieces.append(decompressor.decompress(chunk))
        except zlib.error:
            return b"".join(pieces), position, "the gzip stream is damaged"
        size, position = size + len(pieces[-1]), position + len(chunk)
        if size > LARGEST_MEMBER:
            return b"", position, f"one gzip member holds over {LARGEST_MEMBER:,} bytes (compress record by record)"
    return b"".join(pieces), position - len(decompressor.unused_data), ""


def records(data: bytes | mmap.mmap, base: int) -> Iterator[Record]:
    """The records of decompressed bytes; `base` is the offset in the file that damage is reported at."""
    plain = isinstance(data, mmap.mmap)
    position = 0
    while position < len(data):
        offset = position if plain else base
        if data[position : position + 5] != b"WARC/":
            following = next_record(data, position)
            if data[position:following].strip():
                yield Record(offset, "response", None, "bytes between records (a wrong Content-Length?)")
            position = following
            continue
        end = data.find(b"\r\n\r\n", position, position + LONGEST_HEADER)
        fields = header_fields(data[position:end]) if end > 0 else {}
        length = fields.get(b"content-length", b"")
        if not length.isdigit() or len(length) > DIGITS:
            yield Record(offset, "response", None, "a record header without its end or its Content-Length")
            position = next_record(data, position + 5)
            continue
        stop = end + 4 + int(length)
        kind = fields.get(b"warc-type", b"").decode("ascii", "replace").lower()
        if stop > len(data) or data[stop : stop + 4] not in (b"\r\n\r\n", b"\r\n", b""):
            why = "the record is cut" if stop > len(data) else "the record's Content-Length is wrong"
            yield Record(offset, kind or "response", None, why)
            position = next_record(data, position + 5)
            continue
        yield Record(offset, kind, data[position:stop] + b"\r\n\r\n")
        position = stop + 4


def header_fields(header: bytes) -> dict[bytes, bytes]:
    lines = (line.partition(b":") for line in header.split(b"\r\n")[1:])
    return {name.strip().lower(): value.strip() for name, _, value in lines}


def next_record(data: bytes | mmap.mmap, start: int) -> int:
    found = find(data, b"\nWARC/1.", max(start - 1, 0))
    return found + 1 if found < len(data) else found


def find(data: bytes | mmap.mmap, pattern: bytes, start: int) -> int:
    """The offset of the next `pattern`, or the end."""
    found = data.find(pattern, start)
    return len(data) if found < 0 else found
