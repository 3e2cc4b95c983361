"""Where a run stands, as the kilobyte of JSON in a checkpoint; everything else follows from the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from alignctl.errors import RunDirectoryError

Figures = Mapping[str, Mapping[str, Any]]
"""Metric -> {value, ci, n, method}."""


@dataclass(frozen=True, slots=True)
class Progress:
    """State of the loop after a step; a new record each time."""

    step: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    skipped_in_row: int = 0
    start: Figures | None = None
    best: Figures | None = None
    last: Figures | None = None
    carried: Mapping[str, float] = field(default_factory=dict)
    """What the last step handed on to the next."""
    stopped: str | None = None
    """Why the run ended before its last step."""

    def stepped(
        self, step: int, *, applied: bool, carried: Mapping[str, float], stopped: str | None
    ) -> Progress:
        """After a step; `applied` is False when it was not finite and changed nothing."""
        skipped = 0 if applied else self.skipped_in_row + 1
        return replace(self, step=step, skipped_in_row=skipped, carried=dict(carried), stopped=stopped)

    def evaluated(self, figures: Figures, loss: float | None) -> Progress:
        """After an evaluation at the present step; the start's own is never the best."""
        now = replace(self, last=figures, start=self.start if self.step else figures)
        if self.step == 0 or loss is None or not math.isfinite(loss):
            return now
        if self.best_loss is not None and loss >= self.best_loss:
            return now
        return replace(now, best=figures, best_step=self.step, best_loss=loss)

    def as_state(self) -> dict[str, Any]:
        """Plain JSON; `from_state` reverses it."""
        return asdict(self)


def from_state(state: Mapping[str, Any]) -> Progress:
    """A checkpoint's progress."""
    return Progress(**state)


def headline(progress: Progress, *, export_best: bool) -> dict[str, dict[str, Any]]:
    """Metric -> {start, best, last}; `best` is the kept checkpoint's."""
    kept = progress.best if export_best and progress.best is not None else progress.last
    columns = {"start": progress.start or {}, "best": kept or {}, "last": progress.last or {}}
    names = list(columns["last"])
    return {name: {place: figures.get(name) for place, figures in columns.items()} for name in names}


def refuse_changes(saved: Mapping[str, str], current: Mapping[str, str]) -> None:
    """Raise RunDirectoryError naming every fingerprint that is not what the checkpoint was made with."""
    changed = [name for name, value in current.items() if saved.get(name) != value]
    if changed:
        raise RunDirectoryError(
            f"{' and '.join(changed)} changed since this run began",
            *(f"{name}: {saved.get(name, 'none')[:12]} then, {current[name][:12]} now" for name in changed),
            "put it back, or start over with overwrite=true or another out=DIR",
        )
