"""What a run or a soup knows of itself: its start, its reference, its beta, the prompts it was trained on.

Read from config.yaml or soup.json alone; imports no torch, so that merging two models starts at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from alignctl.config import (
    DpoConfig,
    HingeConfig,
    HypoConfig,
    IpoConfig,
    ModelConfig,
    PinnedModel,
    Reference,
    TinyModel,
    TrainConfig,
    parse,
    reference_of,
)
from alignctl.config.groups import FULL_PRECISION
from alignctl.config.paths import local_path
from alignctl.errors import RunDirectoryError, SetupError

TRAINED_ON = "train_prompts.txt"
"""One key per training prompt (`alignctl.data.overlap`), in every run and every soup of runs."""
SOUP_RECORD = "soup.json"
STEP_OF_RUN = re.compile(r"(?P<run>.+)@(?P<step>\d+)")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
MODEL: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig, config=ConfigDict(defer_build=True))
START = Reference(kind="frozen", path=None, members=(), weights=None, alpha=None)
"""What a run without a reference is measured against: the model it started from."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a trained model comes from."""

    model: ModelConfig
    """What training started from."""
    reference: Reference
    """What its rewards are measured against, in the terms of the run's config."""
    beta: float | None
    """Scale of its rewards; None for an algorithm without one."""


@dataclass(frozen=True, slots=True)
class Named:
    """What a person typed, understood: RUN, RUN@STEP, or any other word."""

    path: Path
    step: int | None = None

    @property
    def run(self) -> Path | None:
        """The run directory; RUN/model is the run's model too."""
        for run in (self.path, *((self.path.parent,) if self.path.name == "model" else ())):
            if (run / "run.json").is_file():
                return run
        return None


def understand(word: str) -> Named:
    """Take RUN@STEP apart, unless a directory has that very name. Raises SetupError when RUN is no run."""
    path = local_path(word)
    found = STEP_OF_RUN.fullmatch(word)
    if found is None or path.exists():
        return Named(path)
    run = local_path(found["run"])
    if not (run / "run.json").is_file():
        raise SetupError(f"{word}: {run} is not a run", "RUN@STEP names a checkpoint of a run directory")
    return Named(run, int(found["step"]))


def read_config(run: Path) -> TrainConfig:
    """The config a run was started with; raises RunDirectoryError when it cannot be read."""
    try:
        return parse(TrainConfig, yaml.safe_load((run / "config.yaml").read_bytes()))
    except (OSError, yaml.YAMLError, ValidationError, TypeError) as error:
        raise RunDirectoryError(f"{run}/config.yaml cannot be read: {str(error).splitlines()[0]}") from error


def lineage_of(named: Named) -> Lineage | None:
    """What the directory says of itself; None for a foreign model. Raises RunDirectoryError when damaged."""
    if (named.path / SOUP_RECORD).is_file():
        return _of_soup(named.path / SOUP_RECORD)
    if named.run is None:
        return None
    config = read_config(named.run)
    return Lineage(config.model, reference_of(config.algo) or START, _beta(config))


def _beta(config: TrainConfig) -> float | None:
    match config.algo:
        case DpoConfig() | HingeConfig() | HypoConfig():
            return config.algo.beta
        case IpoConfig():
            return config.algo.tau
        case _:
            return None


def _of_soup(record: Path) -> Lineage | None:
    try:
        found = json.loads(record.read_bytes())["lineage"]
        if found is None:
            return None
        model = MODEL.validate_python(found["model"])
        return Lineage(model, Reference.model_validate(found["reference"]), found["beta"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"{record} cannot be read: {str(error).splitlines()[0]}") from error


def common_lineage(lineages: Sequence[Lineage | None]) -> dict[str, Any] | None:
    """What soup.json keeps of its members' lineages: the one that they share, else null."""
    first = lineages[0]
    if first is None or any(one != first for one in lineages):
        return None
    return {
        "model": first.model.model_dump(mode="json"),
        "reference": first.reference.model_dump(mode="json"),
        "beta": first.beta,
    }


def hub_base(model: ModelConfig, generations: int = 20) -> str | None:
    """The hub id that a model began with, through the runs and soups between; None where it has none.

    Runs are followed for so many `generations`: a directory written anew may make a circle of them.
    """
    if isinstance(model, PinnedModel):
        return FULL_PRECISION
    if isinstance(model, TinyModel) or generations == 0:
        return None
    if is_hub_id(model.path):
        return model.path
    with suppress(RunDirectoryError, SetupError):
        lineage = lineage_of(understand(model.path))
        return None if lineage is None else hub_base(lineage.model, generations - 1)
    return None


def is_hub_id(path: str) -> bool:
    """Whether OWNER/NAME names something on the hub: a directory or file of that name comes first."""
    return HUB_ID.fullmatch(path) is not None and not Path(path).exists()


def trained_on(named: Named) -> frozenset[str]:
    """Keys of the prompts that the model was trained on; empty where nothing is known."""
    for directory in (named.path, *((named.run,) if named.run else ())):
        with suppress(OSError):
            return frozenset((directory / TRAINED_ON).read_text().split())
    return frozenset()
