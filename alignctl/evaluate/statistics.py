"""Intervals for the numbers of an evaluation: a value never stands alone.

Shares (accuracies) get Wilson's score interval, JASA 22 (1927): it holds its level for small n and at 0 or 1.
Means get Student's t, not a bootstrap: simulated on score-like and loss-like samples, t covered as often as
the percentile bootstrap or oftener on nearly all of them at n = 48 (0.946 against 0.930 on scores of 0, 1/2
and 1) and clearly oftener at n = 12 (0.946 against 0.912), and it needs no seed. Neither sees the unseen:
when every score of a bounded scale is the same, the spread says nothing, and Wilson's interval takes over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
SMALLEST_SAMPLE = 4
"""Fewer values get no t interval: it would span almost anything."""

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, its interval (None when the sample allows none), the sample's size and the method's name."""

    value: float
    ci: Interval | None
    n: int
    method: str

    def as_json(self) -> dict[str, object]:
        """The entry of run.json and results.json; null stands for a value that is not finite."""
        value = self.value if math.isfinite(self.value) else None
        return {
            "value": value,
            "ci": None if self.ci is None else list(self.ci),
            "n": self.n,
            "method": self.method,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Quotient:
    """The sum of `numerators` over that of `denominators`, float64 [n] each: a mean with weights."""

    numerators: np.ndarray
    denominators: np.ndarray

    @property
    def value(self) -> float:
        """Both sums exactly rounded; NaN where a numerator is not finite."""
        if not np.isfinite(self.numerators).all():
            return math.nan
        return math.fsum(self.numerators) / math.fsum(self.denominators)

    @property
    def residuals(self) -> np.ndarray:
        """float64 [n]: what each row adds beyond its share, on the scale of the value."""
        mean = math.fsum(self.denominators) / len(self.denominators)
        return np.asarray((self.numerators - self.value * self.denominators) / mean)

    def error(self, prompts: np.ndarray) -> float | None:
        """Standard error of the value, linearised; rows of one prompt, int64 [n] from 0 without gaps, are not
        independent. None for a single prompt and where the value is not finite."""
        residuals = self.residuals
        totals = np.bincount(prompts, weights=residuals)
        groups = len(totals)
        if groups < 2 or not np.isfinite(totals).all():
            return None
        return math.sqrt(math.fsum(totals**2) * groups / (groups - 1)) / len(residuals)


def named_errors(errors: Mapping[str, float | None]) -> dict[str, float]:
    """The standard errors there are, under the names of their figures with `_se`."""
    return {f"{name}_se": error for name, error in errors.items() if error is not None}


def wilson(successes: float, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a share; a tie may count one half, so successes need not be whole.

    Raises ValueError unless 0 <= successes <= n and n >= 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes out of {n} are no share")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n the bound is exact in algebra; rounding must not push it past the end.
    return (0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def share(outcomes: Sequence[float] | np.ndarray, confidence: float = CONFIDENCE) -> Estimate:
    """The share of successes among outcomes of 0, 1/2 (tie) or 1, with Wilson's interval."""
    successes, n = float(np.sum(outcomes)), len(outcomes)
    return Estimate(successes / n, wilson(successes, n, confidence), n, "wilson")


def mean_interval(
    values: Sequence[float] | np.ndarray, bounds: Interval | None = None, confidence: float = CONFIDENCE
) -> Estimate:
    """The mean with Student's t interval.

    `bounds` are the ends of a bounded scale, such as (0, 1) for a gold score: the interval is cut there, and
    is Wilson's when all values are equal. No interval for fewer than four values or where one is not finite.
    Raises ValueError for no values at all.
    """
    sample = np.asarray(values, dtype=np.float64)
    n = len(sample)
    if n == 0:
        raise ValueError("no values to average")
    # Equal values must give exactly that value: a rounded mean would fake a spread or leave the scale.
    equal = bool(np.all(sample == sample[0]))
    mean = float(sample[0]) if equal else float(sample.mean())
    if n < SMALLEST_SAMPLE or not np.isfinite(sample).all():
        return Estimate(mean, None, n, "none")
    if equal and bounds is not None:
        low, high = bounds
        below, above = wilson((mean - low) / (high - low) * n, n, confidence)
        return Estimate(mean, (low + below * (high - low), low + above * (high - low)), n, "wilson")
    spread = 0.0 if equal else float(sample.std(ddof=1))
    half = _t_quantile(0.5 + confidence / 2, n - 1) * spread / math.sqrt(n)
    low, high = bounds if bounds is not None else (-math.inf, math.inf)
    return Estimate(mean, (max(low, mean - half), min(high, mean + half)), n, "t")


def quotient_interval(quotient: Quotient) -> Estimate:
    """A quotient of independent rows with Student's t interval, from its residuals."""
    value = quotient.value
    if not math.isfinite(value):
        return Estimate(value, None, len(quotient.numerators), "none")
    return mean_interval(value + quotient.residuals)


def _t_quantile(p: float, df: int) -> float:
    """Student's t quantile from the normal one (Abramowitz and Stegun 26.7.5); at df = 3 it is 0.004 low."""
    z = NormalDist().inv_cdf(p)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / df**power for power, term in enumerate(terms))
