"""`alignctl eval RUN` without a data set scores what the run held out, and so do searches for a soup.

The run's own data set, split and seed become settings of the command, as if they had been typed: they show in
`--cfg job` and in config.yaml, and anything typed wins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from alignctl.cli.overrides import is_input
from alignctl.config import Config, FileDataset, TrainConfig, as_plain
from alignctl.errors import UsageError
from alignctl.runners.lineage import STEP_OF_RUN, read_config, understand

SEARCHES = ("soup=greedy", "soup=sweep")
NOTHING_PLANNED: Mapping[str, Config] = MappingProxyType({})


def with_own_data(
    verb: str, words: Sequence[str], planned: Mapping[str, Config] = NOTHING_PLANNED
) -> list[str]:
    """The words with the data of the first run among them; as they are where a data set is named already.

    `planned` is what a recipe will have made by then, by directory.
    Raises UsageError when the run held nothing out.
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
    dataset = config.dataset
    if isinstance(dataset, FileDataset) and dataset.eval_path is None and dataset.eval_size == 0:
        raise UsageError(f"{run} held nothing out", "name the rows to score   dataset=FILE")
    own = [f"dataset={dataset.kind}", *_settings("dataset", as_plain(config)["dataset"])]
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


def _settings(prefix: str, values: dict[str, Any]) -> list[str]:
    """`prefix.key=value` in Hydra's grammar, which reads JSON; the key that names the option goes without."""
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _settings(f"{prefix}.{key}", value)
        elif key != "kind":
            found.append(f"{prefix}.{key}={json.dumps(value, ensure_ascii=False)}")
    return found
