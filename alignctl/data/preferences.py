"""Rows from a file or the hub: every row checked, then split into training and held-out rows.

All rows are checked before anything is loaded or trained, and all bad ones are collected, so that one look
at the list is enough to mend a file. The split hashes (seed, prompt): it does not depend on the order or
number of rows, and rows of one prompt stay together, so no held-out prompt was trained on. It is made before
repeats of a prompt are dropped, so preference rows are split alike whether pairs, answers or prompts are
wanted of them.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from alignctl.config import DatasetConfig, DemoDataset, FileDataset
from alignctl.data.bad_rows import BadRows, RowFault, bad_row
from alignctl.data.demo import demo_prompts
from alignctl.data.files import MAX_ROW, read_records
from alignctl.data.overlap import distinct_prompts, prompt_key, prompt_keys
from alignctl.data.schemas import ACCEPTED, Parsed, RowKind, parse_row
from alignctl.errors import DataError
from alignctl.records import BadRow, Message, PreferenceData, Row

DUPLICATES_WORTH_A_WARNING = 0.05
OUTLIER = 100
"""A row is too long when it has this many times the file's median characters ..."""
OUTLIER_FLOOR = 2**15
"""... and at least this many: in a file of one-word rows a paragraph is no damage."""


Source = Literal["path", "eval_path", "prompts"]
"""The keys of a data set that name a file."""


@dataclass(frozen=True, slots=True)
class Checked:
    """One source after its rows were checked."""

    path: str
    rows: tuple[Row, ...]
    bad: tuple[BadRow, ...]
    unread_columns: tuple[str, ...]


def load_file(config: FileDataset, *, seed: int, kind: RowKind) -> PreferenceData:
    """Read, check and split rows; prompts come once each, and `warnings` says how many repeats there were.

    Raises BadRows (every bad row listed) when a row fails a check and `on_bad` is error, DataError when no
    row is left or the split cannot be made, SetupError when a source is missing.
    """
    sources = [check_source(config, "path", kind)]
    if config.eval_path is not None:
        sources.append(check_source(config, "eval_path", kind))
    bad = _checked_bad(config, sources, kind)
    main, *others = sources
    if others:
        train, held_out = main.rows, others[0].rows
    else:
        train, held_out = split_rows(main.rows, config.eval_size, seed=seed)
    told = [*_unread_warning(main), *_row_warnings(main.rows, kind)]
    if kind == "prompts":
        everything = len(train) + len(held_out)
        train, held_out = distinct_prompts(train), distinct_prompts(held_out)
        told += _repeats_warning(everything, everything - len(train) - len(held_out))
    told += overlap_warning(train, held_out)
    return PreferenceData(train, held_out, bad, tuple(told))


def load_prompts(config: DatasetConfig) -> PreferenceData:
    """The prompts that `dataset.prompts` names, in `train`, each once; with their gold score for the demo.

    `dataset.columns` and `on_bad` hold for them as for the rows, the split of a hub id is train. Raises as
    `load_file` does, UsageError when the demo has no so many, ValueError when `dataset.prompts` is null.
    """
    if config.prompts is None:
        raise ValueError("dataset.prompts is null")
    if isinstance(config, DemoDataset):
        return demo_prompts(config, config.prompts)
    source = check_source(config, "prompts", "prompts")
    bad = _checked_bad(config, [source], "prompts")
    rows = distinct_prompts(source.rows)
    told = (*_unread_warning(source), *_repeats_warning(len(source.rows), len(source.rows) - len(rows)))
    return PreferenceData(rows, (), bad, tuple(f"dataset.prompts: {sentence}" for sentence in told))


def without_held_out(
    prompts: PreferenceData, held_out: Sequence[Row]
) -> tuple[PreferenceData, tuple[str, ...]]:
    """The prompts of `train` that no held-out row has, and all there is to tell about them.

    Raises DataError when none is left.
    """
    keys = set(prompt_keys(held_out))
    kept = tuple(row for row in prompts.train if prompt_key(row.prompt) not in keys)
    if not kept:
        raise DataError("dataset.prompts: no prompt is left, all of them are also held out")
    told = prompts.warnings
    if dropped := len(prompts.train) - len(kept):
        told += (f"dataset.prompts: Left out because they are held out: {dropped} of {len(prompts.train)}.",)
    return replace(prompts, train=kept, warnings=told), told


def _checked_bad(config: FileDataset, sources: Sequence[Checked], kind: RowKind) -> tuple[BadRow, ...]:
    """The bad rows of all sources; raises when they matter, or where nothing else is left."""
    bad = tuple(row for source in sources for row in source.bad)
    if bad and config.on_bad == "error":
        raise BadRows(bad, accepted=ACCEPTED[kind])
    for source in sources:
        if not source.rows and source.bad:
            raise BadRows(source.bad, left=f" and no row of {source.path} is left", accepted=ACCEPTED[kind])
        if not source.rows:
            raise DataError(f"{source.path} holds no rows")
    return bad


def check_source(config: FileDataset, which: Source, kind: RowKind) -> Checked:
    """Read one source and check its rows, first each alone, then against the others."""
    path = {"path": config.path, "eval_path": config.eval_path, "prompts": config.prompts}[which]
    parsed: list[tuple[int, Parsed]] = []
    faults: list[tuple[int, RowFault]] = []
    columns: dict[str, None] = {}
    records = read_records(
        str(path),
        key=f"dataset.{which}",
        split="train" if which == "prompts" else config.split,
        limit=config.limit if which == "path" else None,
    )
    for line, record in records:
        try:
            if isinstance(record, RowFault):
                raise record
            columns.update(dict.fromkeys(record))
            row = parse_row(
                f"{path}:{line}",
                record,
                config.columns,
                kind=kind,
                allow_empty_prompt=config.allow_empty_prompt,
            )
            parsed.append((line, row))
        except RowFault as fault:
            faults.append((line, fault))
    odd = _odd_rows(parsed)
    faults += odd.items()
    read = frozenset[str]().union(*(row.columns for _, row in parsed))
    return Checked(
        path=str(path),
        rows=tuple(found.row for line, found in parsed if line not in odd),
        bad=tuple(
            bad_row(f"{path}:{line}", fault) for line, fault in sorted(faults, key=lambda pair: pair[0])
        ),
        unread_columns=tuple(name for name in columns if name not in read),
    )


def _odd_rows(parsed: Sequence[tuple[int, Parsed]]) -> dict[int, RowFault]:
    """Rows that differ from the rest of the file: another form, or far longer."""
    if not parsed:
        return {}
    usual, _ = Counter(found.form for _, found in parsed).most_common(1)[0]
    longest = min(MAX_ROW, max(OUTLIER_FLOOR, OUTLIER * median(found.size for _, found in parsed)))
    odd = {}
    for line, found in parsed:
        if found.form != usual:
            odd[line] = RowFault("row", f"in {found.form} form where most rows are in {usual} form")
        elif found.size > longest:
            odd[line] = RowFault("row", f"over {OUTLIER} times the median length", f"{found.size} characters")
    return odd


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


def _row_warnings(rows: Sequence[Row], kind: RowKind) -> list[str]:
    """Sentences about rows that are valid alone but strange together."""
    if kind == "prompts":
        return []
    found = []
    counts = Counter((row.prompt, row.branches) for row in rows)
    repeated = len(rows) - len(counts)
    if repeated > DUPLICATES_WORTH_A_WARNING * len(rows):
        found.append(f"Exact repeats of an earlier row: {repeated} of {len(rows)} rows.")
    return found + _pair_warnings(rows, counts) if kind == "pairs" else found


def _pair_warnings(
    rows: Sequence[Row], counts: Mapping[tuple[tuple[Message, ...], tuple[str, ...]], int]
) -> list[str]:
    found = []
    if contradictory := _contradictory(counts):
        found.append(
            f"Same prompt and answers, the other one chosen: {contradictory} rows contradict another."
        )
    if twins := sum(_twins(*row.branches) for row in rows):
        found.append(f"Answers that differ only in Unicode normalisation: {twins} of {len(rows)} rows.")
    if rows and all(row.p_chosen == 0.5 for row in rows):
        found.append("p_chosen is 0.5 in every row, so neither answer is preferred anywhere.")
    return found


def _repeats_warning(rows: int, repeats: int) -> tuple[str, ...]:
    return (f"Repeats of an earlier prompt, left out: {repeats} of {rows} rows.",) if repeats else ()


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
