"""Where a run stands, as the kilobytes of JSON in a checkpoint; everything else follows from the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from alignctl.errors import RunDirectoryError
from alignctl.train.watch.rule import Verdict, verdict_of

Figures = Mapping[str, Mapping[str, Any]]
"""Metric -> {value, ci, n, method}."""


Why = Literal["alarm", "loss", "last"]
"""Why a step is kept: it lies before an alarm, its held-out loss is the lowest, or it is the last."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The step whose weights become model/."""

    step: int
    why: Why


@dataclass(frozen=True, slots=True)
class Progress:
    """State of the loop after a step; a new record each time."""

    step: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    best_under_alarm: bool = False
    skipped_in_row: int = 0
    start: Figures | None = None
    best: Figures | None = None
    last: Figures | None = None
    carried: Mapping[str, float] = field(default_factory=dict)
    """What the last step handed on to the next."""
    stopped: str | None = None
    """Why the run ended before its last step."""
    verdict: Verdict = field(default_factory=Verdict)
    """Of the watch, after the last evaluation."""
    anchor: float = 0.0
    """Weight of the hold on chosen answers, until the next evaluation."""
    held: Mapping[str, Figures] = field(default_factory=dict)
    """Step -> its figures, for the steps that the watch may ask for."""

    def stepped(
        self, step: int, *, applied: bool, carried: Mapping[str, float], stopped: str | None
    ) -> Progress:
        """After a step; `applied` is False when it was not finite and changed nothing."""
        skipped = 0 if applied else self.skipped_in_row + 1
        return replace(self, step=step, skipped_in_row=skipped, carried=dict(carried), stopped=stopped)

    def evaluated(
        self,
        figures: Figures,
        loss: float | None,
        verdict: Verdict | None = None,
        *,
        decides: bool = False,
    ) -> Progress:
        """After an evaluation at the present step and the watch's verdict on it, if there is a watch.

        The start's own is never the best. Where the verdict `decides` what is kept, nor is one under an alarm
        while there is one without: its loss is what the alarm distrusts.
        """
        now = replace(self, last=figures, start=self.start if self.step else figures)
        if verdict is not None:
            known = {**self.held, str(self.step): figures}
            now = replace(now, verdict=verdict, held={str(step): known[str(step)] for step in verdict.held})
        if self.step == 0 or loss is None or not math.isfinite(loss):
            return now
        alarm = decides and now.verdict.alarm
        if self.best_loss is not None and (alarm, loss) >= (self.best_under_alarm, self.best_loss):
            return now
        return replace(now, best=figures, best_step=self.step, best_loss=loss, best_under_alarm=alarm)

    @property
    def protected(self) -> tuple[int, ...]:
        """Steps whose checkpoints must stay: the best, and those that the watch may ask for."""
        best = () if self.best_step is None else (self.best_step,)
        return tuple(sorted({*best, *self.verdict.held}))

    def kept(self, *, export_best: bool, alarm_decides: bool = False) -> Kept:
        """Which checkpoint becomes model/ if the run ends here."""
        if export_best and alarm_decides and self.verdict.alarm and self.verdict.keep is not None:
            return Kept(self.verdict.keep, "alarm")
        if export_best and self.best_step is not None:
            return Kept(self.best_step, "loss")
        return Kept(self.step, "last")

    def as_state(self) -> dict[str, Any]:
        """Plain JSON; `from_state` reverses it."""
        return asdict(self)


def from_state(state: Mapping[str, Any]) -> Progress:
    """A checkpoint's progress."""
    return Progress(**{**state, "verdict": verdict_of(state["verdict"])})


def headline(progress: Progress, kept: Kept) -> dict[str, dict[str, Any]]:
    """Metric -> {start, best, last}; `best` is the kept checkpoint's."""
    of_kept = {
        "alarm": progress.held.get(str(kept.step)),
        "loss": progress.best,
        "last": progress.last,
    }[kept.why]
    columns = {"start": progress.start or {}, "best": of_kept or {}, "last": progress.last or {}}
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
