"""A config as a whole: parsed, printed, hashed, and the directory named after it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import yaml

from alignctl.config.evaluation import EvalConfig
from alignctl.config.groups import DatasetConfig, FileDataset, PretrainedModel
from alignctl.config.soup import SoupConfig
from alignctl.config.train import TrainConfig

Config = TrainConfig | SoupConfig | EvalConfig
C = TypeVar("C", TrainConfig, SoupConfig, EvalConfig)
LONGEST_PART = 48
"""Letters of a model's or data set's name in that of a directory, which may have 255 bytes in all."""


def parse(schema: type[C], composed: Mapping[str, Any]) -> C:
    """Turn a composed config (plain dicts, lists and scalars) into objects.

    Raises pydantic.ValidationError; the command line turns it into lines a user can act on.
    """
    return schema.model_validate(composed)


def as_plain(config: Config) -> dict[str, Any]:
    """Plain dicts, lists and scalars, in the order of the classes."""
    return config.model_dump(mode="json")


def as_yaml(config: Config) -> str:
    """The whole config as YAML; what `--cfg job` prints."""
    return yaml.safe_dump(as_plain(config), sort_keys=False, allow_unicode=True)


def request_hash(config: Config) -> str:
    """Eight hex digits that name what is computed, wherever and on whatever hardware it runs."""
    request = config.model_dump(mode="json", exclude={"out", "overwrite", "hardware"})
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8]


def model_name(config: TrainConfig) -> str:
    """A short name for directories: the option's name, or the last part of a path or hub id."""
    model = config.model
    return last_part(model.path) if isinstance(model, PretrainedModel) else model.name


def dataset_name(dataset: DatasetConfig) -> str:
    """A short name for directories: the file's name without its endings, else `demo` or `mixture`."""
    return last_part(dataset.path).split(".", 1)[0] if isinstance(dataset, FileDataset) else dataset.kind


def last_part(path: str) -> str:
    """The last part of a path or hub id, without the configuration of a hub data set (OWNER/NAME:CONFIG)."""
    return path.rstrip("/").rsplit("/", 1)[-1].split(":", 1)[0]


def run_directory(config: Config) -> str:
    """`out`, or the default that the same request always maps to."""
    if config.out is not None:
        return config.out
    digest = request_hash(config)
    match config:
        case TrainConfig():
            model, data = model_name(config)[:LONGEST_PART], dataset_name(config.dataset)[:LONGEST_PART]
            return f"runs/{config.algo.name}-{model}-{data}-{digest}"
        case SoupConfig():
            return f"soups/{config.soup.method}-{digest}"
        case EvalConfig():
            return f"evals/{dataset_name(config.dataset)[:LONGEST_PART]}-{digest}"
