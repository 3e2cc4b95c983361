"""The rows of a data set: its sources tabulated, then split into training and held-out rows.

All rows are checked and rendered before a weight is loaded, and all bad ones are collected, so that one look
at the list is enough to mend a file. Rows are places in a pool from here on (table.py): splitting, repeats
and warnings work on digests. The split is made before repeats are dropped and before rows that could not be
rendered are, so preference rows are split alike whether pairs, answers or prompts are wanted of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from alignctl.config import (
    Columns,
    DatasetConfig,
    DemoDataset,
    FileDataset,
    MixtureDataset,
    dataset_name,
)
from alignctl.config.paths import local_path
from alignctl.data.bad_rows import BadRows, count_reasons
from alignctl.data.demo import demo_prompts, load_demo
from alignctl.data.digests import first_places
from alignctl.data.formats import Labelling
from alignctl.data.rendering import Limits, open_renderer
from alignctl.data.schemas import ACCEPTED, RowKind
from alignctl.data.split import split_places, weighted_places
from alignctl.data.table import Facts, Pool, Table, labelled, pool_of
from alignctl.data.tabulation import Report, Wanted, Workshop, tabulate, tabulate_rows
from alignctl.errors import DataError, UsageError
from alignctl.records import BadRow, GoldScore, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DUPLICATES_WORTH_A_WARNING = 0.05
NO_COLUMNS = Columns.model_validate(dict.fromkeys(Columns.model_fields))
DEMO_TRAIN, DEMO_HELD_OUT = "demo/train/", "demo/held-out/"
"""What the ids of the demo's rows start with."""
SHOWN_REASONS = 6
HARD = Labelling(soft=False, score_scale=1.0, min_score_ratio=None)

Source = Literal["path", "eval_path", "eval_split"]
"""The keys of a data set that name rows."""
Gold = Callable[[Row, str], GoldScore]


@dataclass(frozen=True, slots=True, eq=False)
class Preferences:
    """A data set, checked, rendered and split."""

    pool: Pool
    train: np.ndarray
    """int64: places in the pool of what an epoch goes through, where the weights of a mixture say so more or
    less than once."""
    held_out: np.ndarray
    """int64: places in the pool, rising."""
    bad: tuple[BadRow, ...]
    """Rows that were dropped, and why."""
    left_out: Mapping[str, int]
    """Sound rows that are not used: why, and how many."""
    warnings: tuple[str, ...]
    gold: Gold | None = None


class TooManyBadRows(BadRows):
    """More rows of a source are unusable than may be dropped."""

    def __init__(self, rows: Sequence[BadRow], *, path: str, share: float, limit: float) -> None:
        reasons = [f"{count} {reason}" for reason, count in count_reasons(rows).items()]
        more = len(reasons) - SHOWN_REASONS
        enough = math.ceil(share * 100) / 100
        super(BadRows, self).__init__(
            f"{len(rows)} rows of {path} cannot be used, {share:.1%} of them; dataset.max_bad={limit:g} "
            f"lets {limit:.1%} be dropped",
            *reasons[:SHOWN_REASONS],
            *([f"+{more} more reasons"] if more > 0 else []),
            f"dataset.max_bad={enough:g} drops them all the same; bad_rows.jsonl lists them",
        )
        self.rows = tuple(rows)


def open_workshop(
    dataset: DatasetConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocabulary: int,
    max_length: int,
    max_prompt: int,
    cache: Path,
    report: Report,
) -> Workshop:
    """What the rows of a data set are tabulated with; `cache` is where alignctl keeps what can be deleted.

    Raises DataError when the tokenizer or its template is unfit for all rows.
    """
    made_here = isinstance(dataset, DemoDataset)
    limits = Limits(
        max_length=max_length,
        max_prompt=max_prompt,
        min_response_tokens=dataset.min_response_tokens,
        vocab_size=vocabulary,
        allow_control_tokens=not made_here and dataset.allow_control_tokens,
    )
    renderer = open_renderer(tokenizer, limits)
    return Workshop(renderer, cache / "data", report, stop_at_bad=not drops_bad_rows(dataset))


def drops_bad_rows(dataset: DatasetConfig) -> bool:
    """Whether rows that cannot be used are left out; the demo has none."""
    return not isinstance(dataset, DemoDataset) and dataset.on_bad == "drop"


def load_preferences(config: DatasetConfig, workshop: Workshop, *, seed: int, kind: RowKind) -> Preferences:
    """Read, check, render and split the rows of a data set.

    Answers and prompts come once each on either side, and `warnings` says how many repeats there were.
    Raises BadRows (every bad row listed) when a row is bad and `on_bad` is error, or drop and there are too
    many of them; DataError when no row is left or the split cannot be made; SetupError when a source is
    missing; UsageError for an `eval_split` of a plain file.
    """
    if isinstance(config, DemoDataset):
        return _demo(config, workshop, kind)
    tables = _tables(config, workshop, kind)
    apart = _held_out_tables(config, workshop, kind) if isinstance(config, FileDataset) else []
    bad = _checked_bad(config, [*tables, *apart], kind)
    pool = pool_of([*tables, *apart])
    own = sum(map(len, tables))
    if apart:
        train, held_out = np.arange(own), np.arange(own, len(pool))
    else:
        train, held_out = split_places(pool.facts.prompt, pool.prompt_json, config.eval_size, seed=seed)
    told = [*_unread_warnings(tables), *_row_warnings(pool.facts.at(slice(own)), tables, kind)]
    train, held_out = (places[pool.fit[places]] for places in (train, held_out))
    everything = len(train) + len(held_out)
    train, held_out = (_once(pool.facts, places, kind) for places in (train, held_out))
    told += _repeats_warning(kind, everything, everything - len(train) - len(held_out))
    told += _overlap_warning(pool.facts.prompt[train], pool.facts.prompt[held_out])
    if isinstance(config, MixtureDataset) and config.weights is not None:
        train = _weighted(pool, train, config.weights, seed)
    return Preferences(pool, train, held_out, bad, _left_out(pool.tables), tuple(told))


def load_prompts(config: DatasetConfig, workshop: Workshop) -> Preferences:
    """The prompts that `dataset.prompts` names, in `train`, each once; with their gold score for the demo.

    `dataset.columns` and `on_bad` hold for them as for the rows, the split of a hub id is train. Raises as
    `load_preferences` does, UsageError when the demo has not so many, ValueError when `dataset.prompts` is
    null.
    """
    if config.prompts is None:
        raise ValueError("dataset.prompts is null")
    if isinstance(config, DemoDataset):
        found = demo_prompts(config, config.prompts)
        pool = pool_of([tabulate_rows(found.train, workshop.renderer, "prompts", stem=DEMO_TRAIN)])
        bad = _checked_bad(config, pool.tables, "prompts")
        return Preferences(pool, np.flatnonzero(pool.fit), np.arange(0), bad, {}, (), found.gold)
    wanted = Wanted(
        path=config.prompts,
        key="dataset.prompts",
        split="train",
        limit=None,
        kind="prompts",
        format="auto",
        labelling=HARD,
        columns=config.columns if isinstance(config, FileDataset) else NO_COLUMNS,
        max_pairs_per_prompt=None,
        allow_empty_prompt=config.allow_empty_prompt,
    )
    table = tabulate(wanted, workshop)
    bad = _checked_bad(config, [table], "prompts")
    pool = pool_of([table])
    fit = np.flatnonzero(pool.fit)
    train = _once(pool.facts, fit, "prompts")
    told = [*_unread_warnings([table]), *_repeats_warning("prompts", len(fit), len(fit) - len(train))]
    warnings = tuple(f"dataset.prompts: {sentence}" for sentence in told)
    return Preferences(pool, train, np.arange(0), bad, table.left_out, warnings)


def without_held_out(prompts: Preferences, held_out: np.ndarray) -> Preferences:
    """The prompts of `train` that are none of the held-out ones, given by their digests.

    Raises DataError when none is left.
    """
    kept = prompts.train[~np.isin(prompts.pool.facts.prompt[prompts.train], held_out)]
    if not len(kept):
        raise DataError("dataset.prompts: no prompt is left, all of them are also held out")
    told = prompts.warnings
    if dropped := len(prompts.train) - len(kept):
        told += (f"dataset.prompts: Left out because they are held out: {dropped} of {len(prompts.train)}.",)
    return replace(prompts, train=kept, warnings=told)


def _demo(config: DemoDataset, workshop: Workshop, kind: RowKind) -> Preferences:
    """Its rows through the same tables, kept in memory."""
    made = load_demo(config, kind=kind)
    sides = [(made.train, DEMO_TRAIN), (made.held_out, DEMO_HELD_OUT)]
    pool = pool_of([tabulate_rows(rows, workshop.renderer, kind, stem=stem) for rows, stem in sides])
    bad = _checked_bad(config, pool.tables[:1] if not made.held_out else pool.tables, kind)
    fit, own = np.flatnonzero(pool.fit), len(made.train)
    return Preferences(pool, fit[fit < own], fit[fit >= own], bad, {}, (), made.gold)


# --- sources -------------------------------------------------------------------------------------------


def _tables(config: FileDataset | MixtureDataset, workshop: Workshop, kind: RowKind) -> list[Table]:
    if isinstance(config, FileDataset):
        return [tabulate(_wanted(config, "path", kind), workshop)]
    found = []
    for part in config.parts:
        wanted = replace(_wanted(part, "path", kind), key="dataset.parts")
        wanted = replace(wanted, allow_empty_prompt=config.allow_empty_prompt)
        found.append(labelled(tabulate(wanted, workshop), dataset_name(part)))
    return found


def _held_out_tables(config: FileDataset, workshop: Workshop, kind: RowKind) -> list[Table]:
    """The source of held-out rows, where there is one beside that of the training rows."""
    if config.eval_path is not None:
        return [tabulate(_wanted(config, "eval_path", kind), workshop)]
    if config.eval_split is None:
        return []
    if local_path(config.path).is_file():
        raise UsageError(
            f"dataset.eval_split={config.eval_split}, but {config.path} is a file and has no splits",
            "a file of held-out rows   dataset.eval_path=FILE",
            "a share of these rows     dataset.eval_size=0.1",
        )
    return [tabulate(_wanted(config, "eval_split", kind), workshop)]


def _wanted(config: FileDataset, which: Source, kind: RowKind) -> Wanted:
    return Wanted(
        path=config.eval_path or "" if which == "eval_path" else config.path,
        key=f"dataset.{which}",
        split=config.eval_split or "" if which == "eval_split" else config.split,
        limit=config.limit if which == "path" else None,
        kind=kind,
        format=config.format,
        labelling=Labelling(config.soft_labels, config.score_scale, config.min_score_ratio),
        columns=config.columns,
        max_pairs_per_prompt=config.max_pairs_per_prompt,
        allow_empty_prompt=config.allow_empty_prompt,
    )


def _checked_bad(config: DatasetConfig, tables: Sequence[Table], kind: RowKind) -> tuple[BadRow, ...]:
    """The bad rows of all sources; raises when they matter, or where nothing else is left."""
    bad = tuple(row for table in tables for row in table.bad)
    if bad and (isinstance(config, DemoDataset) or config.on_bad == "error"):
        raise BadRows(bad, accepted=ACCEPTED[kind])
    for table in tables:
        usable = int(table.fit.sum())
        if not usable and table.bad:
            raise BadRows(table.bad, left=f" and no row of {table.path} is left", accepted=ACCEPTED[kind])
        if not usable:
            raise DataError(f"{table.path} holds no rows", *_reasons(table.left_out))
        if table.bad and not isinstance(config, DemoDataset):
            _refuse_too_many(table, usable, config.max_bad)
    return bad


def _refuse_too_many(table: Table, usable: int, limit: float) -> None:
    share = len(table.bad) / (len(table.bad) + usable)
    if share > limit:
        raise TooManyBadRows(table.bad, path=table.path, share=share, limit=limit)


def _reasons(left_out: Mapping[str, int]) -> tuple[str, ...]:
    counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    return (f"left out: {counts}",) if counts else ()


def _left_out(tables: Sequence[Table]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for table in tables:
        counts.update(table.left_out)
    return dict(counts)


# --- rows ----------------------------------------------------------------------------------------------


def _once(facts: Facts, places: np.ndarray, kind: RowKind) -> np.ndarray:
    """The places without repeats of what is learnt from; pairs may repeat."""
    if kind == "pairs":
        return places
    digests = facts.prompt if kind == "prompts" else facts.pair
    return places[first_places(digests[places])]


def _weighted(pool: Pool, train: np.ndarray, weights: Sequence[float], seed: int) -> np.ndarray:
    """An epoch over the parts of a mixture, which are the tables of the pool."""
    parts = np.searchsorted(pool.starts, train, side="right") - 1
    lines = pool.facts.line[train].tolist()
    pieces = np.concatenate([table.piece for table in pool.tables])[train].tolist()
    names = [b"%d %d" % name for name in zip(lines, pieces, strict=True)]
    return weighted_places(train, parts, weights, names, seed=seed)


# --- warnings ------------------------------------------------------------------------------------------


def _unread_warnings(tables: Sequence[Table]) -> list[str]:
    """One sentence for every source with columns that nothing reads, named where there are several."""
    found = []
    for table in tables:
        names = ", ".join(repr(name)[:30] for name in table.unread_columns[:8])
        more = len(table.unread_columns) - 8
        names += f" and {more} more" if more > 0 else ""
        where = f" of {table.path}" if len(tables) > 1 else ""
        found += [f"Columns{where} that are not read: {names}."] if names else []
    return found


def _row_warnings(facts: Facts, tables: Sequence[Table], kind: RowKind) -> list[str]:
    """Sentences about pairs that are valid alone but strange together."""
    if kind != "pairs":
        return []
    found, rows = [], len(facts)
    different = np.unique(facts.pair)
    repeated = rows - len(different)
    if repeated > DUPLICATES_WORTH_A_WARNING * rows:
        found.append(f"Exact repeats of an earlier row: {repeated} of {rows} rows.")
    if contradictory := int(np.isin(facts.swapped, different).sum()):
        found.append(
            f"Same prompt and answers, the other one chosen: {contradictory} rows contradict another."
        )
    if twins := sum(int(table.twins.sum()) for table in tables):
        found.append(f"Answers that differ only in Unicode normalisation: {twins} of {rows} rows.")
    if rows and (facts.p_chosen == 0.5).all():
        found.append("p_chosen is 0.5 in every row, so neither answer is preferred anywhere.")
    return found


def _repeats_warning(kind: RowKind, rows: int, repeats: int) -> list[str]:
    what = "prompt" if kind == "prompts" else "answer to the same prompt"
    return [f"Repeats of an earlier {what}, left out: {repeats} of {rows} rows."] if repeats else []


def _overlap_warning(train: np.ndarray, held_out: np.ndarray) -> list[str]:
    """One sentence when held-out prompts, given by their digests, are also trained on."""
    shared = int(np.isin(held_out, train).sum())
    return [f"Held-out prompts that are also trained on: {shared} of {len(held_out)} rows."] if shared else []
