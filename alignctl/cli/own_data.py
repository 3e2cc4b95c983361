"""`alignctl eval RUN` without a data set scores what the run held out, and so do searches for a soup.

The run's own data set, split and seed become settings of the command, as if they had been typed: they show in
`--cfg job` and in config.yaml, and anything typed wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from alignctl.cli.overrides import is_input, written
from alignctl.config import (
    Config,
    DatasetConfig,
    FileDataset,
    MixtureDataset,
    PpoConfig,
    SftConfig,
    TrainConfig,
    as_plain,
)
from alignctl.config.held_out import holds_out
from alignctl.config.paths import local_path
from alignctl.data.bad_rows import RowFault
from alignctl.data.files import read_records
from alignctl.data.formats import choose_format
from alignctl.data.schemas import Fields, column_names
from alignctl.errors import AlignctlError, DataError, UsageError
from alignctl.runners.lineage import STEP_OF_RUN, read_config, understand

NAME_ROWS = "name the rows to score   dataset=FILE"
SEARCHES = ("soup=greedy", "soup=sweep")
NOTHING_PLANNED: Mapping[str, Config] = MappingProxyType({})


def with_own_data(
    verb: str, words: Sequence[str], planned: Mapping[str, Config] = NOTHING_PLANNED
) -> list[str]:
    """The words with the data of the first run among them; as they are where a data set is named already.

    `planned` is what a recipe will have made by then, by directory.
    Raises UsageError when the run held nothing out, or no pairs.
    """
    searches = verb == "soup" and any(word in SEARCHES for word in words)
    if not (verb == "eval" or searches):
        return list(words)
    keys = {word.lstrip("+").partition("=")[0] for word in words if not is_input(word)}
    if any(key.split(".")[0] == "dataset" for key in keys):
        return list(words)
    first = next((found for word in words if is_input(word) and (found := _run_of(word, planned))), None)
    if first is None:
        return list(words)
    run, config = first
    if not holds_out(config.dataset):
        raise UsageError(f"{run} held nothing out", NAME_ROWS)
    if isinstance(config.algo, SftConfig | PpoConfig) and (path := _without_pairs(config.dataset)):
        message = f"{run} has no pairs to score: algo={config.algo.name} learned from {path}, which has none"
        raise UsageError(message, NAME_ROWS)
    own = [f"dataset={config.dataset.kind}", *_settings("dataset", as_plain(config)["dataset"])]
    own += [f"{verb}.rows=held_out", f"seed={config.seed}"]
    return [*words, *(word for word in own if word.partition("=")[0] not in keys)]


def _run_of(word: str, planned: Mapping[str, Config]) -> tuple[str, TrainConfig] | None:
    """The run that a word names, and its config; None for any other model."""
    directory = directory_of(word)
    config = planned.get(directory)
    if isinstance(config, TrainConfig):
        return directory, config
    run = understand(word).run
    return None if run is None else (str(run), read_config(run))


def directory_of(word: str) -> str:
    """RUN for RUN, RUN@STEP and RUN/model, by the word alone: also where there is no such run yet."""
    at_step = STEP_OF_RUN.fullmatch(word)
    return (at_step["run"] if at_step else word).removesuffix("/model")


def _without_pairs(dataset: DatasetConfig) -> str | None:
    """The file or directory whose rows hold no chosen and rejected answer, told by the first one.

    What is not on this machine is not asked for here: its rows are told of by who reads them.
    """
    for part in dataset.parts if isinstance(dataset, MixtureDataset) else (dataset,):
        if not isinstance(part, FileDataset):
            continue
        path = part.eval_path or part.path
        first = _first_row(path, part.eval_split or part.split)
        if first is not None and not _holds_pair(first, part):
            return path
    return None


def _first_row(path: str, split: str) -> Fields | None:
    """The first row that can be read; None where there is none."""
    if not local_path(path).exists():
        return None
    with suppress(AlignctlError):
        for _, record in read_records(path, key="dataset.path", split=split, limit=None):
            if not isinstance(record, RowFault):
                return record
    return None


def _holds_pair(fields: Fields, dataset: FileDataset) -> bool:
    with suppress(DataError):
        if choose_format(dataset.format, fields, dataset.columns).name != "plain":
            return True  # all of those are formats of preferences
    names = column_names(dataset.columns)
    return {names["chosen"], names["rejected"]} <= fields.keys()


def _settings(prefix: str, values: Mapping[str, Any]) -> list[str]:
    """`prefix.key=value` in Hydra's grammar; the key that names the option goes without."""
    found = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _settings(f"{prefix}.{key}", value)
        elif key != "kind":
            found.append(f"{prefix}.{key}={written(value)}")
    return found
