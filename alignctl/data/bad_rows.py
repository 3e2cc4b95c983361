"""Rows that cannot be used, and the error that lists them.

One problem per row, the first one found, so counts of problems are counts of rows. The reason is a
constant phrase that can be counted; what belongs to the single row (byte offset, value) is the detail.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignctl.errors import DataError
from alignctl.records import BadRow

SHOWN = 8


class RowFault(Exception):
    """What is wrong with one row, raised by a check that does not know where the row comes from."""

    def __init__(self, field: str, reason: str, detail: str = "") -> None:
        super().__init__(field, reason, detail)
        self.field = field
        self.reason = reason
        self.detail = detail


class BadRows(DataError):
    """Several unusable rows; `rows` holds all of them, the message only the first few.

    `accepted` says what a row may look like; it is shown where a column is missing.
    """

    def __init__(self, rows: Sequence[BadRow], *, left: str = "", accepted: str = "") -> None:
        listed = [row.text for row in rows[:SHOWN]]
        if len(rows) > SHOWN:
            listed.append(f"+{len(rows) - SHOWN} more")
        if accepted and any(row.reason == "missing" for row in rows):
            listed.append(accepted)
        if not left:
            listed.append("dataset.on_bad=drop leaves such rows out and counts them")
        count = "1 row cannot" if len(rows) == 1 else f"{len(rows)} rows cannot"
        super().__init__(f"{count} be used{left}", *listed)
        self.rows = tuple(rows)


def bad_row(row_id: str, fault: RowFault) -> BadRow:
    """The fault together with the row it belongs to."""
    return BadRow(row_id, fault.field, fault.reason, fault.detail)


def count_reasons(rows: Sequence[BadRow]) -> dict[str, int]:
    """How many rows there are for each `field: reason`, in order of appearance."""
    counts: dict[str, int] = {}
    for row in rows:
        key = f"{row.field}: {row.reason}"
        counts[key] = counts.get(key, 0) + 1
    return counts
