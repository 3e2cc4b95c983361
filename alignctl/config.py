"""The typed, frozen configuration of a training run.

One home per fact: conf/*.yaml holds every default and what a key means; here stand the types and the
ranges. Hydra composes the YAML, `parse` turns it into these objects once, and nobody touches omegaconf
afterwards. Values that follow from others are functions (`learning_rate`), never written back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """Base of every group: frozen, no unknown keys, no silent conversion, no NaN and no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
WarmUp = Annotated[float, Field(ge=0, lt=1)] | Count
"""A fraction of the steps when below 1, a number of steps otherwise."""


# --- algo ----------------------------------------------------------------------------------------------


class Reference(Settings):
    """Which model the policy is measured against."""

    kind: Literal["frozen", "adapter_off"]
    path: str | None


class DpoConfig(Settings):
    """Direct preference optimisation, arXiv 2305.18290."""

    name: Literal["dpo"]
    beta: Positive
    label_noise: Annotated[float, Field(ge=0, lt=0.5)]
    reduction: Literal["sum", "mean"]
    reference: Reference


class IpoConfig(Settings):
    """Identity preference optimisation, arXiv 2310.12036."""

    name: Literal["ipo"]
    tau: Positive
    reduction: Literal["sum", "mean"]
    reference: Reference


class HingeConfig(Settings):
    """Hinge loss on the reward margin (RSO, arXiv 2309.06657)."""

    name: Literal["hinge"]
    beta: Positive
    reduction: Literal["sum", "mean"]
    reference: Reference


class SlicConfig(Settings):
    """SLiC: hinge on the policy's own log-likelihoods plus a regulariser, in the form of arXiv 2410.11677."""

    name: Literal["slic"]
    gamma: Positive
    alpha: NonNegative
    reference: Reference


AlgoConfig = Annotated[DpoConfig | IpoConfig | HingeConfig | SlicConfig, Field(discriminator="name")]


# --- model and adapter ---------------------------------------------------------------------------------


class PinnedModel(Settings):
    """SmolLM2-135M-Instruct out of a pinned wheel, for machines without a model hub."""

    kind: Literal["pinned"]
    name: Literal["smollm2-135m"]
    lr: Positive


class TinyModel(Settings):
    """A small random model over bytes, for tests and smoke runs."""

    kind: Literal["tiny"]
    name: Literal["tiny"]
    seed: Annotated[int, Field(ge=0)]
    layers: Count
    hidden: Annotated[int, Field(ge=16, multiple_of=16)]
    lr: Positive


class PretrainedModel(Settings):
    """A hub id, a local model directory or a PEFT adapter directory."""

    kind: Literal["pretrained"]
    path: Annotated[str, Field(min_length=1)]
    revision: str | None
    lr: Positive


ModelConfig = Annotated[PinnedModel | TinyModel | PretrainedModel, Field(discriminator="kind")]


class NoAdapter(Settings):
    """Full fine-tuning."""

    kind: Literal["none"]


class LoraAdapter(Settings):
    """Low-rank adapters (arXiv 2106.09685)."""

    kind: Literal["lora"]
    r: Count
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    targets: str | Annotated[tuple[str, ...], Field(strict=False)]
    lr_scale: Positive


AdapterConfig = Annotated[NoAdapter | LoraAdapter, Field(discriminator="kind")]


# --- dataset -------------------------------------------------------------------------------------------


class Columns(Settings):
    """Names of the columns to read; null means the usual name."""

    prompt: str | None
    chosen: str | None
    rejected: str | None
    p_chosen: str | None
    weight: str | None


class DemoDataset(Settings):
    """Instructions with verifiable constraints, made from a seed; answers have a gold score."""

    kind: Literal["demo"]
    seed: Annotated[int, Field(ge=0)]
    pairs: Count
    eval_pairs: Annotated[int, Field(ge=0)]
    gold_samples: Annotated[int, Field(ge=0)]
    limit: Count | None
    min_response_tokens: Count


class FileDataset(Settings):
    """Preference rows from a file, or from a hub id or directory that `datasets` can load."""

    kind: Literal["file"]
    path: Annotated[str, Field(min_length=1)]
    split: str
    eval_path: str | None
    eval_size: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)]
    limit: Count | None
    on_bad: Literal["error", "drop"]
    min_response_tokens: Count
    allow_empty_prompt: bool
    allow_control_tokens: bool
    columns: Columns


DatasetConfig = Annotated[DemoDataset | FileDataset, Field(discriminator="kind")]


# --- hardware, loop ------------------------------------------------------------------------------------


class HardwareConfig(Settings):
    """Where the run computes and how much at once; never part of what it computes."""

    device: Literal["auto", "cpu", "cuda"]
    threads: Count | None
    micro_tokens: Count | Literal["auto"]
    activation_checkpointing: bool | Literal["auto"]


class TrainSettings(Settings):
    """The optimisation loop."""

    steps: Count | None
    epochs: Positive
    batch_size: Count
    lr: Positive | None
    warmup: WarmUp
    schedule: Literal["constant", "linear", "cosine"]
    max_grad_norm: Positive
    weight_decay: NonNegative
    max_length: Annotated[int, Field(ge=8)]
    max_prompt: Count
    dtype: Literal["auto", "float32", "bfloat16"]

    @model_validator(mode="after")
    def _prompt_leaves_room(self) -> TrainSettings:
        if self.max_prompt >= self.max_length:
            raise ValueError(
                f"train.max_prompt={self.max_prompt} leaves no room for an answer in "
                f"train.max_length={self.max_length}"
            )
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> TrainSettings:
        if self.steps is not None and self.warmup > self.steps:
            raise ValueError(f"train.warmup={self.warmup} is longer than train.steps={self.steps}")
        return self


class EvalSettings(Settings):
    """Evaluation while training."""

    every: Count
    pairs: Count | None
    samples: Annotated[int, Field(ge=0)]
    max_new_tokens: Count
    temperature: NonNegative


class CheckpointSettings(Settings):
    """What is kept on disk."""

    every: Count
    keep: Annotated[int, Field(ge=2)]
    export: Literal["best", "last"]


class TrainConfig(Settings):
    """Everything `alignctl train` needs to know."""

    algo: AlgoConfig
    model: ModelConfig
    dataset: DatasetConfig
    hardware: HardwareConfig
    adapter: AdapterConfig
    train: TrainSettings
    eval: EvalSettings
    checkpoint: CheckpointSettings
    out: str | None
    overwrite: bool
    seed: Annotated[int, Field(ge=0, lt=2**63)]

    @model_validator(mode="after")
    def _reference_can_be_had(self) -> TrainConfig:
        reference = self.algo.reference
        if reference.kind == "adapter_off" and isinstance(self.adapter, NoAdapter):
            raise ValueError("algo.reference.kind=adapter_off needs a fresh adapter: adapter=lora")
        if reference.kind == "adapter_off" and reference.path is not None:
            raise ValueError(
                f"algo.reference.path={reference.path} is not read with algo.reference.kind=adapter_off"
            )
        return self


def parse(composed: Mapping[str, Any]) -> TrainConfig:
    """Turn a composed config (plain dicts, lists and scalars) into objects.

    Raises pydantic.ValidationError; cli.py turns it into lines a user can act on.
    """
    return TrainConfig.model_validate(composed)


def as_yaml(config: TrainConfig) -> str:
    """The whole config as YAML, in the order of the classes; what `--cfg job` prints."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def learning_rate(config: TrainConfig) -> float:
    """The peak learning rate: `train.lr`, else the model option's, times the adapter's factor."""
    if config.train.lr is not None:
        return config.train.lr
    scale = config.adapter.lr_scale if isinstance(config.adapter, LoraAdapter) else 1.0
    return config.model.lr * scale


def request_hash(config: TrainConfig) -> str:
    """Eight hex digits that name what is computed, wherever and on whatever hardware it runs."""
    request = config.model_dump(mode="json", exclude={"out", "overwrite", "hardware"})
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8]


def model_name(config: TrainConfig) -> str:
    """A short name for directories: the option's name, or the last part of a path or hub id."""
    model = config.model
    return model.path.rstrip("/").rsplit("/", 1)[-1] if isinstance(model, PretrainedModel) else model.name


def dataset_name(config: TrainConfig) -> str:
    """A short name for directories: `demo`, or the file's name without its endings."""
    if isinstance(config.dataset, DemoDataset):
        return "demo"
    return config.dataset.path.rstrip("/").rsplit("/", 1)[-1].split(".", 1)[0]


def run_directory(config: TrainConfig) -> str:
    """`out`, or the default that the same request always maps to."""
    name = f"{config.algo.name}-{model_name(config)}-{dataset_name(config)}-{request_hash(config)}"
    return config.out or f"runs/{name}"
