"""What each rule would have kept of a finished run, and how good that was by the gold score.

Decisions. The truth is the gold score averaged over an evaluation and its neighbours with weights 1/4,
1/2, 1/4: answers are drawn anew at every evaluation, so neighbours' errors are independent, and a single
maximum of a dozen noisy values would be luck. A run has over-optimised when its last value lies below its
best by a tenth of the best and by two standard errors of the difference. A rule keeps what
`watch.action=stop` would keep: the step that its first alarm settles, or, without an alarm, what every
run keeps, the lowest held-out loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from grid import Arm, Run

from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import TrainConfig, WatchSettings
from alignctl.evaluate.statistics import wilson
from alignctl.train.watch.course import Record
from alignctl.train.watch.rule import Limit, Limits, judge, rule_of

CLOSE = 0.03
"""What is kept is good when its gold score lies within that share of the best."""
NEAR = 0.1
"""A rule fires near the peak when it does so within that share of the run's steps."""
WEIGHTS = (0.25, 0.5, 0.25)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to tell what to keep."""

    name: str
    watch: Mapping[str, object] = field(default_factory=dict)
    """Settings that differ from the default's; none for what needs no rule."""
    limits: Limits | None = None
    """Instead of the rule of these settings."""
    best: Callable[[Record], float] | None = None
    """No rule: the evaluation at which this is highest."""


CANDIDATES = (
    Candidate("to the end", best=lambda record: record.step),
    Candidate("lowest held-out loss", best=lambda record: -record.metrics["loss"]),
    Candidate("likeliest chosen answers", best=lambda record: record.metrics["likelihood/chosen"]),
    *(
        Candidate(f"displacement above {share:g}, KL above {kl:g}", {"displaced": share, "kl": kl})
        for share in (0.3, 0.4, 0.5)
        for kl in (0.25, 0.5, 1.0)
    ),
    *(
        Candidate(f"displacement above {most:g}", limits=Limits((Limit("displacement", most=most),)))
        for most in (0.3, 0.4, 0.5)
    ),
    *(
        Candidate(f"KL above {most:g} nats a token", limits=Limits((Limit("kl/token", most=most),)))
        for most in (0.25, 0.5, 1.0)
    ),
    *(
        Candidate(
            f"{name}, window {window}, noise {noise:g}",
            {"indicator": indicator, "window": window, "noise": noise},
        )
        for indicator, name in (("sampled", "own answers"), ("held_out", "chosen answers"))
        for window in (1, 2, 3)
        for noise in (2.0, 3.0, 4.0)
    ),
)
"""The last two families are the paper's indicators: top-10 entropy, for hinge and slic top-10 mass."""


@dataclass(frozen=True, slots=True)
class Truth:
    """The gold score over a run."""

    steps: tuple[int, ...]
    values: tuple[float, ...]
    """Averaged over neighbours."""
    error: float
    """Standard error of such a mean."""

    @property
    def best(self) -> int:
        """Place of the highest value."""
        return max(range(len(self.values)), key=self.values.__getitem__)

    @property
    def over_optimised(self) -> bool:
        """See the module."""
        fall = self.values[self.best] - self.values[-1]
        return fall > 0.1 * self.values[self.best] and fall > 2 * math.sqrt(2) * self.error

    def at(self, step: int) -> float:
        """The value at an evaluation."""
        return self.values[self.steps.index(step)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A rule on a run."""

    run: str
    arm: str
    calibrates: bool
    over_optimised: bool
    fired: int | None
    """First step of the first alarm."""
    kept: int
    peak: int
    steps: int
    gold_kept: float
    gold_best: float
    gold_end: float

    @property
    def close(self) -> bool:
        """What was kept is about as good as the best."""
        return self.gold_kept >= (1 - CLOSE) * self.gold_best

    @property
    def near(self) -> bool:
        """Fired close to the peak."""
        return self.fired is not None and abs(self.fired - self.peak) <= NEAR * self.steps


def truth(records: Sequence[Record]) -> Truth:
    """Of evaluations after the first step."""
    trained = [record for record in records if record.step > 0]
    values = [record.metrics["gold/mean"] for record in trained]
    smooth = []
    for place in range(len(values)):
        parts = [
            (weight, values[place + offset])
            for offset, weight in zip((-1, 0, 1), WEIGHTS, strict=True)
            if 0 <= place + offset < len(values)
        ]
        smooth.append(sum(weight * value for weight, value in parts) / sum(weight for weight, _ in parts))
    errors = [record.metrics["gold/mean_se"] for record in trained]
    error = math.sqrt(sum(one**2 for one in errors) / len(errors) * sum(weight**2 for weight in WEIGHTS))
    return Truth(tuple(record.step for record in trained), tuple(smooth), error)


def outcome(candidate: Candidate, run: Run, records: Sequence[Record]) -> Outcome:
    """What the rule keeps of that run."""
    gold = truth(records)
    fired, kept = _kept(candidate, run, records)
    return Outcome(
        run=run.name,
        arm=run.arm.name,
        calibrates=run.calibrates,
        over_optimised=gold.over_optimised,
        fired=fired,
        kept=kept,
        peak=gold.steps[gold.best],
        steps=gold.steps[-1],
        gold_kept=gold.at(kept),
        gold_best=gold.values[gold.best],
        gold_end=gold.values[-1],
    )


def _kept(candidate: Candidate, run: Run, records: Sequence[Record]) -> tuple[int | None, int]:
    trained = [record for record in records if record.step > 0]
    lowest = min(trained, key=lambda record: record.metrics["loss"]).step
    if candidate.best is not None:
        return None, max(trained, key=candidate.best).step
    config = _config(run.arm)
    settings = WatchSettings.model_validate(config.watch.model_dump() | dict(candidate.watch))
    rule = candidate.limits or rule_of(config.algo, settings)
    for count in range(1, len(records) + 1):
        verdict = judge(records[:count], rule, settings)
        if verdict.alarm:
            return records[count - 1].step, verdict.keep or lowest
    return None, lowest


@cache
def _config(arm: Arm) -> TrainConfig:
    config = load(open_conf(None), [f"algo={arm.algo}", arm.setting])
    assert isinstance(config, TrainConfig)
    return config


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts with intervals and mean gold scores, of calibration and of the others."""
    return {
        name: _of(part)
        for name, part in (
            ("calibration", [one for one in outcomes if one.calibrates]),
            ("others", [one for one in outcomes if not one.calibrates]),
        )
        if part
    }


def _of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    over = [one for one in outcomes if one.over_optimised]
    sound = [one for one in outcomes if not one.over_optimised]
    return {
        "runs": len(outcomes),
        "over_optimised": len(over),
        "close": counted([one.close for one in over]),
        "near_peak": counted([one.near for one in over]),
        "missed": counted([one.fired is None for one in over]),
        "false_alarms": counted([one.fired is not None for one in sound]),
        "gold_kept": _mean([one.gold_kept for one in over]),
        "gold_end": _mean([one.gold_end for one in over]),
        "gold_best": _mean([one.gold_best for one in over]),
        "gold_kept_of_all": _mean([one.gold_kept for one in outcomes]),
        "gold_best_of_all": _mean([one.gold_best for one in outcomes]),
        "gold_end_of_all": _mean([one.gold_end for one in outcomes]),
    }


def counted(events: Sequence[bool]) -> dict[str, Any] | None:
    """Successes of n with Wilson's 95 % interval; None of nothing."""
    if not events:
        return None
    return {"count": sum(events), "of": len(events), "interval": wilson(sum(events), len(events))}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
