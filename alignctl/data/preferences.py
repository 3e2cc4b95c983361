"""Preference data from a file or the hub: every row checked, then split into training and held-out rows.

All rows are checked before anything is loaded or trained, and all bad ones are collected, so that one look
at the list is enough to mend a file. The split hashes (seed, prompt): it does not depend on the order or
number of rows, and rows of one prompt stay together, so no held-out prompt was trained on.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from alignctl.config import FileDataset
from alignctl.data.bad_rows import BadRows, RowFault, bad_row
from alignctl.data.files import MAX_ROW, read_records
from alignctl.data.schemas import Form, column_names, parse_row
from alignctl.errors import DataError
from alignctl.records import BadRow, Message, PreferenceData, Row

DUPLICATES_WORTH_A_WARNING = 0.05
OUTLIER = 100
"""A row is too long when it has this many times the file's median characters ..."""
OUTLIER_FLOOR = 2**15
"""... and at least this many: in a file of one-word rows a paragraph is no damage."""


@dataclass(frozen=True, slots=True)
class Checked:
    """One source after its rows were checked."""

    rows: tuple[Row, ...]
    bad: tuple[BadRow, ...]
    unread_columns: tuple[str, ...]


def load_file(config: FileDataset, *, seed: int) -> PreferenceData:
    """Read, check and split preference rows.

    Raises BadRows (every bad row listed) when a row fails a check and `on_bad` is error, DataError when no
    row is left or the split cannot be made, SetupError when a source is missing.
    """
    main = check_source(config.path, config, limit=config.limit)
    held = check_source(config.eval_path, config, limit=None) if config.eval_path is not None else None
    bad = main.bad + (held.bad if held else ())
    if bad and config.on_bad == "error":
        raise BadRows(bad)
    for path, source in ((config.path, main), (config.eval_path, held)):
        if source and not source.rows:
            _raise_empty(str(path), source.bad)
    if held:
        train, held_out = main.rows, held.rows
    else:
        train, held_out = split_rows(main.rows, config.eval_size, seed=seed)
    overlap = overlap_warning(train, held_out)
    return PreferenceData(
        train=train,
        held_out=held_out,
        bad=bad,
        warnings=(*_unread_warning(main), *pair_warnings(main.rows), *overlap),
    )


def _raise_empty(path: str, bad: Sequence[BadRow]) -> None:
    if bad:
        raise BadRows(bad, left=f" and no row of {path} is left")
    raise DataError(f"{path} holds no rows")


def check_source(path: str, config: FileDataset, *, limit: int | None) -> Checked:
    """Read one source and check its rows, first each alone, then against the others."""
    parsed: list[tuple[int, Row, Form]] = []
    faults: list[tuple[int, RowFault]] = []
    columns: dict[str, None] = {}
    for line, record in read_records(path, split=config.split, limit=limit):
        try:
            if isinstance(record, RowFault):
                raise record
            columns.update(dict.fromkeys(record))
            row, form = parse_row(
                f"{path}:{line}", record, config.columns, allow_empty_prompt=config.allow_empty_prompt
            )
            parsed.append((line, row, form))
        except RowFault as fault:
            faults.append((line, fault))
    odd = _odd_rows(parsed)
    faults += odd.items()
    read = set(column_names(config.columns).values())
    return Checked(
        rows=tuple(row for line, row, _ in parsed if line not in odd),
        bad=tuple(
            bad_row(f"{path}:{line}", fault) for line, fault in sorted(faults, key=lambda pair: pair[0])
        ),
        unread_columns=tuple(name for name in columns if name not in read),
    )


def _odd_rows(parsed: Sequence[tuple[int, Row, Form]]) -> dict[int, RowFault]:
    """Rows that differ from the rest of the file: another form, or far longer."""
    if not parsed:
        return {}
    usual, _ = Counter(form for _, _, form in parsed).most_common(1)[0]
    sizes = [_size(row) for _, row, _ in parsed]
    longest = min(MAX_ROW, max(OUTLIER_FLOOR, OUTLIER * median(sizes)))
    odd = {}
    for (line, _, form), size in zip(parsed, sizes, strict=True):
        if form != usual:
            odd[line] = RowFault("row", f"in {form} form where most rows are in {usual} form")
        elif size > longest:
            odd[line] = RowFault("row", f"over {OUTLIER} times the median length", f"{size} characters")
    return odd


def _size(row: Row) -> int:
    return sum(len(message.content) for message in row.prompt) + sum(len(branch) for branch in row.branches)


# --- split ---------------------------------------------------------------------------------------------


def split_rows(
    rows: tuple[Row, ...], eval_size: int | float, *, seed: int
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Hold out `eval_size` rows (int) or that fraction of them; returns (train, held out) in file order.

    Prompts are drawn in the order of a hash of (seed, prompt) and taken whole while they fit, so at most
    `eval_size` rows are held out. Raises DataError when no rows would be left on either side.
    """
    if eval_size == 0:
        return rows, ()
    target = eval_size if isinstance(eval_size, int) else max(1, round(eval_size * len(rows)))
    if target >= len(rows):
        raise DataError(
            f"dataset.eval_size={eval_size} leaves nothing to train on: there are {len(rows)} rows"
        )
    groups = Counter(row.prompt for row in rows)
    taken: set[tuple[Message, ...]] = set()
    count = 0
    for prompt in sorted(groups, key=lambda prompt: _draw(seed, prompt)):
        if count + groups[prompt] <= target:
            taken.add(prompt)
            count += groups[prompt]
        if count == target:
            break
    if not taken:
        raise DataError(
            f"dataset.eval_size={eval_size} holds nothing out: rows of one prompt stay together, and every "
            f"prompt has more than {target} rows",
            f"the smallest that works is dataset.eval_size={min(groups.values())}",
        )
    train = tuple(row for row in rows if row.prompt not in taken)
    return train, tuple(row for row in rows if row.prompt in taken)


def _draw(seed: int, prompt: tuple[Message, ...]) -> bytes:
    key = json.dumps([seed, [[message.role, message.content] for message in prompt]])
    return hashlib.sha256(key.encode()).digest()


# --- warnings ------------------------------------------------------------------------------------------


def _unread_warning(source: Checked) -> tuple[str, ...]:
    if not source.unread_columns:
        return ()
    names = ", ".join(repr(name)[:30] for name in source.unread_columns[:8])
    more = len(source.unread_columns) - 8
    return (f"Columns that are not read: {names}" + (f" and {more} more" if more > 0 else "") + ".",)


def pair_warnings(rows: Sequence[Row]) -> tuple[str, ...]:
    """Sentences about pairs that are valid alone but strange together."""
    pairs = Counter((row.prompt, row.branches) for row in rows)
    found = []
    repeated = len(rows) - len(pairs)
    if repeated > DUPLICATES_WORTH_A_WARNING * len(rows):
        found.append(f"Exact repeats of an earlier row: {repeated} of {len(rows)} rows.")
    if contradictory := _contradictory(pairs):
        found.append(
            f"Same prompt and answers, the other one chosen: {contradictory} rows contradict another."
        )
    if twins := sum(_twins(*row.branches) for row in rows):
        found.append(f"Answers that differ only in Unicode normalisation: {twins} of {len(rows)} rows.")
    if rows and all(row.p_chosen == 0.5 for row in rows):
        found.append("p_chosen is 0.5 in every row, so neither answer is preferred anywhere.")
    return tuple(found)


def _contradictory(pairs: Mapping[tuple[tuple[Message, ...], tuple[str, ...]], int]) -> int:
    return sum(count for (prompt, answers), count in pairs.items() if (prompt, answers[::-1]) in pairs)


def _twins(chosen: str, rejected: str) -> bool:
    return unicodedata.normalize("NFC", chosen) == unicodedata.normalize("NFC", rejected)


def overlap_warning(train: Sequence[Row], held_out: Sequence[Row]) -> tuple[str, ...]:
    """One sentence when held-out prompts are also trained on."""
    trained = {row.prompt for row in train}
    shared = sum(row.prompt in trained for row in held_out)
    if not shared:
        return ()
    return (f"Held-out prompts that are also trained on: {shared} of {len(held_out)} rows.",)
