"""The contract between the training loop and an algorithm: a step, an evaluation, what is trained and saved.

The loop owns order, checkpoints, signals, records and the panel; a task owns what is computed. A task keeps
no state of its own besides the weights: a step is a closed form of (weights, moments, seed, step, carried),
so a resumed run needs nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from alignctl.config import TrainConfig
from alignctl.evaluate.held_out import Evaluation
from alignctl.records import Example
from alignctl.report.terminal import Panel, Report
from alignctl.runners.preparation import StartingPolicy
from alignctl.runners.training_data import TrainingData
from alignctl.train.run_directory import RunDirectory
from alignctl.train.schedule import batch_indices
from alignctl.train.signals import StopFlag
from alignctl.train.step import StepOut


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """What every task is made from."""

    config: TrainConfig
    data: TrainingData
    start: StartingPolicy
    directory: RunDirectory
    panel: Panel
    stop: StopFlag
    resumes: bool
    """The run has a checkpoint to go on from."""

    def places(self, step: int, rows: int) -> list[int]:
        """Which of so many rows are a step's: `train.batch_size`, in an order that the seed decides."""
        config = self.config
        return batch_indices(step, rows=rows, batch_size=config.train.batch_size, seed=config.seed)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What the loop decides about a step."""

    step: int
    """From 1."""
    lr: float
    micro_tokens: int
    carried: Mapping[str, float]
    """What the step before handed on (`StepOut.carried`); empty at the first step. Part of the checkpoint."""
    anchor: float = 0.0
    """Weight of the hold on chosen answers; above 0 only where `watch.action=adapt` can act."""


class Task(Protocol):
    """One algorithm on one run's data."""

    @property
    def unit(self) -> str:
        """What a step counts: pairs, rows or prompts."""
        ...

    @property
    def trained(self) -> nn.Module:
        """Holds every parameter that the optimiser moves; what a checkpoint keeps."""
        ...

    @property
    def optimiser(self) -> torch.optim.Optimizer: ...

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """What a checkpoint must find unchanged, besides data and template."""
        ...

    def examples(self, step: int) -> Sequence[Example]:
        """The rows of a step, for its name, its speed and its share of truncated rows."""
        ...

    def step(self, plan: StepPlan) -> StepOut:
        """One step of the optimiser, or several on the answers of one rollout."""
        ...

    def evaluate(self, step: int, report: Report) -> Evaluation | None:
        """Held-out figures of the present weights; None where nothing is held out."""
        ...

    def export(self, directory: Path) -> None:
        """Write what was trained into an empty directory, as plain transformers (or PEFT) opens it."""
        ...
