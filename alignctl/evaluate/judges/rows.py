"""Files of answers and questions as JSON lines, read strictly: every bad line is named, none is skipped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from alignctl.config.paths import local_path
from alignctl.data.bad_rows import BadRows, RowFault, bad_row
from alignctl.data.conversations import UNENCODABLE
from alignctl.data.files import read_json_lines
from alignctl.errors import DataError

T = TypeVar("T")


def read_rows(path: str, parse: Callable[[Mapping[str, object]], T]) -> dict[int, T]:
    """What `parse` makes of every line, by physical line from 1.

    `parse` raises RowFault. Raises BadRows (a DataError) with all bad lines as FILE:LINE, DataError for a
    file without rows, SetupError for one that cannot be read.
    """
    rows: dict[int, T] = {}
    bad = []
    for line, record in read_json_lines(local_path(path)):
        try:
            if isinstance(record, RowFault):
                raise record
            rows[line] = parse(record)
        except RowFault as fault:
            bad.append(bad_row(f"{path}:{line}", fault))
    if bad:
        raise BadRows(bad, left=f" of {path}")
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows


def check_columns(row: Mapping[str, object], needed: Collection[str], allowed: Collection[str] = ()) -> None:
    """Raise RowFault unless the row has all of `needed` and nothing beyond `allowed`."""
    for name in needed:
        if name not in row:
            found = ", ".join(repr(key)[:30] for key in list(row)[:8])
            raise RowFault(name, "is not there", f"found {found}" if found else "the row has no columns")
    for name in row:
        if name not in needed and name not in allowed:
            raise RowFault(repr(name)[:30], "is no column of this file", f"columns: {', '.join(needed)}")


def text_of(field: str, value: object, *, may_be_empty: bool = False) -> str:
    """The value as text that every tokenizer can read. Raises RowFault."""
    if not isinstance(value, str):
        raise RowFault(field, "is not text", type(value).__name__)
    if not may_be_empty and not value.strip():
        raise RowFault(field, "is empty")
    if found := UNENCODABLE.search(value):
        raise RowFault(field, "has a character that cannot be encoded", f"at character {found.start()}")
    return value
