"""The course of a metric over a run's evaluations, and how much of it is noise.

Evaluations ask the same prompts, so most of the spread over prompts is common to two of them and says little
of their difference. The noise is therefore read from the course itself, by its second differences, which a
steady trend does not enter (von Neumann et al., Ann. Math. Stat. 12, 1941); while the course is short, the
spread over prompts counts for a few of them.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PRIOR = 2
"""Second differences that the spread over prompts counts for."""
SCATTER = 0.4549
"""Median of the square of a standard normal variable."""


@dataclass(frozen=True, slots=True)
class Record:
    """One evaluation, as a line of metrics.jsonl has it."""

    step: int
    metrics: dict[str, float]
    """Those that are finite."""


@dataclass(frozen=True, slots=True)
class Point:
    """A metric at one evaluation."""

    step: int
    value: float
    error: float | None
    """Its standard error over prompts, where it has one."""


def read_records(path: Path) -> list[Record]:
    """The evaluations of a metrics.jsonl, in order; none where there is no such file."""
    if not path.exists():
        return []
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [record_of(line["step"], line) for line in lines if line["split"] == "eval"]


def record_of(step: int, metrics: dict[str, float | str | None]) -> Record:
    """A record without what is no finite number."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, float | int)}
    return Record(step, {name: value for name, value in numbers.items() if math.isfinite(value)})


def course(records: Sequence[Record], name: str) -> list[Point]:
    """A metric wherever it was measured."""
    return [
        Point(record.step, record.metrics[name], record.metrics.get(f"{name}_se"))
        for record in records
        if name in record.metrics
    ]


def extreme(points: Sequence[Point], *, highest: bool) -> Point:
    """The highest or the lowest point, the first of equals."""
    return min(points, key=lambda point: -point.value if highest else point.value)


def noise(points: Sequence[Point], *, prior: bool) -> float:
    """Standard deviation of one evaluation around the trend; 0.0 where nothing tells it.

    The square of a second difference is six times the variance on average. Their median is taken: the steep
    first evaluations of a run are trend. With `prior` the errors over prompts count for `PRIOR` more.
    """
    values = [point.value for point in points]
    squares = [(a - 2 * b + c) ** 2 / 6 for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    spread = [point.error**2 for point in points if point.error is not None] if prior else []
    own = statistics.median(squares) / SCATTER if squares else 0.0
    known, weight = (statistics.fmean(spread), PRIOR) if spread else (0.0, 0)
    total = len(squares) + weight
    return math.sqrt((own * len(squares) + known * weight) / total) if total else 0.0
