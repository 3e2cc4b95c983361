"""Reading rows as plain dicts: JSON (also gzip) by hand, everything else through `datasets`.

JSON lines are read strictly and streamed, because a lenient reader hides damage: bytes that are not UTF-8,
keys given twice, NaN, a line that breaks off. A line that cannot be read becomes a RowFault in its place,
so that the caller can list all of them; a file that cannot be read at all ends the run at once. A file named
.json may be an array as well; one named .jsonl may not, because its name promises lines to other tools.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import BufferedIOBase
from itertools import islice
from pathlib import Path

from alignctl.config.paths import local_path
from alignctl.data.bad_rows import RowFault
from alignctl.data.json_array import read_json_array
from alignctl.data.through_datasets import directory_rows, hub_rows, table_rows
from alignctl.errors import DataError, SetupError

MAX_ROW = 2**20
"""Bytes of one row."""
MAX_INFLATED = 8 * 2**30
"""Bytes that a gzip file may inflate to."""
TABLES = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".arrow": "arrow"}
"""Endings of local files that `datasets` reads, and its name for them."""

MAGIC = {
    b"PAR1": "is a parquet file: rename it to end in .parquet",
    b"ARROW1": "is an Arrow file: rename it to end in .arrow",
    b"PK\x03\x04": "is a zip archive: unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd: unpack it, or use gzip",
}
"""How files start that are not JSON lines, and the way on."""
CSV_HEADER = re.compile(rb'"?[\w .-]+"?(?:[,;\t]"?[\w .-]+"?)+')

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?")
"""OWNER/NAME, or OWNER/NAME:CONFIG for one of several configurations."""
FILE_ENDING = re.compile(r"\.(jsonl?|ndjson|parquet|csv|tsv|arrow|txt|gz|zst)$")

Record = Mapping[str, object] | RowFault


def read_records(path: str, *, key: str, split: str, limit: int | None) -> Iterator[tuple[int, Record]]:
    """Yield (line number from 1, fields or fault) of the first `limit` rows.

    A file's number is its physical line, or the element of an array; through `datasets` it is the row's
    number. `split` is read only for hub ids and directories; `key` is the setting that named the path. Raises
    SetupError when the source is missing or unreadable, DataError when the file as a whole is not what it
    should be, UsageError for a split that does not exist.
    """
    source = local_path(path)
    name = f"{key}={path}"
    if source.is_file():
        records = _read_file(source, name)
    elif source.is_dir():
        records = directory_rows(source, split, name)
    elif names_hub(path):
        print(f"data: {path}, split {split}, from the Hugging Face hub or its cache", file=sys.stderr)
        records = hub_rows(path, split, name)
    else:
        raise SetupError(
            f"{key}: there is no file {path}", "a hub data set is named owner/name, a file by its path"
        )
    return islice(records, limit)


def names_hub(path: str) -> bool:
    """Whether a path that is not there can be the id of a hub data set."""
    return bool(HUB_ID.fullmatch(path)) and not path.startswith(".") and not FILE_ENDING.search(path)


def _read_file(path: Path, name: str) -> Iterator[tuple[int, Record]]:
    if builder := TABLES.get(path.suffix):
        return table_rows(path, builder, name)
    if path.name.lower().removesuffix(".gz").endswith(".json") and _is_array(path):
        return _read_array(path)
    return read_json_lines(path)


def _is_array(path: Path) -> bool:
    with suppress(OSError, EOFError, zlib.error), _open(path) as handle:
        return handle.read(MAX_ROW).lstrip().startswith(b"[")
    # Reading the lines says what is wrong with the file.
    return False


def _read_array(path: Path) -> Iterator[tuple[int, Record]]:
    try:
        with _open(path) as handle:
            yield from read_json_array(handle, path, max_row=MAX_ROW)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the gzip data is damaged ({error})") from error
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}") from error


def read_json_lines(path: Path, *, max_inflated: int = MAX_INFLATED) -> Iterator[tuple[int, Record]]:
    """Yield (physical line from 1, object or fault) for every line that is not blank."""
    number = 0
    try:
        with _open(path) as handle:
            for number, offset, raw in _lines(handle, path, max_inflated):
                if raw.strip():
                    yield number, _parse(raw, number, offset)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the gzip data is damaged after line {number} ({error})") from error
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}") from error


def _open(path: Path) -> BufferedIOBase:
    with path.open("rb") as handle:
        compressed = handle.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if compressed else path.open("rb")


def _lines(handle: BufferedIOBase, path: Path, cap: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number, byte offset, bytes); a line over MAX_ROW comes cut to MAX_ROW + 1 bytes.

    Reading in bounded pieces keeps memory flat even when a hostile gzip is one endless line.
    """
    number = offset = 0
    unfinished = False
    while piece := handle.readline(MAX_ROW + 1):
        if not unfinished:
            number += 1
            if number == 1:
                _check_start(piece, path)
            yield number, offset, piece
        unfinished = not piece.endswith(b"\n")
        offset += len(piece)
        if offset > cap:
            raise DataError(f"{path} is over {cap} bytes when inflated", "split it into smaller files")


def _check_start(line: bytes, path: Path) -> None:
    """Refuse a file that is no JSON lines at all; raises DataError."""
    line = line.lstrip()
    if line.startswith(b"["):
        raise DataError(
            f"{path} is a JSON array, not JSON lines (one object per line)",
            f"rename it to end in .json, or convert it: jq -c '.[]' {path} > rows.jsonl",
        )
    if line.strip() == b"{":
        raise DataError(f"{path} has JSON over several lines, not one object per line")
    if CSV_HEADER.fullmatch(line.strip()):
        ending = ".tsv" if b"\t" in line else ".csv"
        raise DataError(
            f"{path} looks like {ending[1:].upper()}, not JSON lines: it starts with {line[:40].decode()!r}",
            f"rename it to end in {ending}",
        )
    for magic, said in MAGIC.items():
        if line.startswith(magic):
            raise DataError(f"{path} {said}")


def _parse(raw: bytes, number: int, offset: int) -> Record:
    try:
        return parse_line(raw, first=number == 1, offset=offset)
    except RowFault as fault:
        return fault


def parse_line(raw: bytes, *, first: bool, offset: int) -> dict[str, object]:
    """One JSON object out of one line of a file; raises RowFault."""
    if len(raw.rstrip(b"\n")) > MAX_ROW:
        raise RowFault("row", "longer than 1 MiB")
    if first and raw.startswith(b"\xef\xbb\xbf"):
        raise RowFault("row", "starts with a byte order mark", "save the file as UTF-8 without BOM")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowFault("row", "not UTF-8", f"byte {offset + error.start} of the file") from error
    if not text.lstrip().startswith("{"):
        raise RowFault("row", "not a JSON object", f"starts with {text.lstrip()[:24]!r}")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or "Unterminated" in error.msg:
            raise RowFault("row", "the line breaks off inside the JSON") from error
        raise RowFault("row", "not JSON", f"{error.msg}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise RowFault("row", "not usable JSON", str(error)[:80]) from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowFault("row", "a key is given twice", repr(twice)[:40])
    return fields


def _no_constant(literal: str) -> object:
    raise RowFault("row", "NaN and Infinity are not JSON", literal)
