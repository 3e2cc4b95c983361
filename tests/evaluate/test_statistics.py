"""Intervals against published values, exact laws and simulated coverage."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from alignctl.evaluate.statistics import Estimate, Quotient, mean_interval, quotient_interval, share, wilson


@pytest.mark.parametrize(
    ("successes", "n", "expected"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (score, no continuity correction).
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        # Worked by hand from the formula.
        (8, 10, (0.4902, 0.9433)),
        (0, 10, (0.0, 0.2775)),
        (10, 10, (0.7225, 1.0)),
    ],
)
def test_wilson_agrees_with_the_literature(successes: float, n: int, expected: tuple[float, float]) -> None:
    assert wilson(successes, n) == pytest.approx(expected, abs=5.1e-5)


def test_wilson_is_symmetric_in_success_and_failure() -> None:
    for successes in (0, 0.5, 3, 7.5, 12):
        low, high = wilson(successes, 12)
        other_low, other_high = wilson(12 - successes, 12)
        assert (low, high) == pytest.approx((1 - other_high, 1 - other_low))
        assert 0.0 <= low <= successes / 12 <= high <= 1.0


def test_all_ties_are_one_half_with_the_interval_of_half_successes() -> None:
    estimate = share([0.5] * 48)
    assert estimate == Estimate(0.5, wilson(24, 48), 48, "wilson")


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5), (math.nan, 5)])
def test_impossible_shares_are_refused(successes: float, n: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        wilson(successes, n)


@pytest.mark.parametrize(
    ("n", "t"), [(4, 3.182), (6, 2.571), (11, 2.228), (31, 2.042), (61, 2.000), (121, 1.980), (10_001, 1.960)]
)
def test_the_half_width_is_the_tabled_t_times_the_standard_error(n: int, t: float) -> None:
    values = np.arange(n, dtype=float)
    estimate = mean_interval(values)
    assert estimate.ci is not None
    half = (estimate.ci[1] - estimate.ci[0]) / 2
    assert half / (values.std(ddof=1) / math.sqrt(n)) == pytest.approx(t, abs=0.004)
    assert estimate.value == values.mean()


def test_students_sleep_data() -> None:
    # Student, Biometrika 6 (1908): extra hours of sleep, mean 1.58, standard error 0.389, t(9) = 2.262.
    differences = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    estimate = mean_interval(differences)
    assert estimate.value == pytest.approx(1.58)
    assert estimate.ci == pytest.approx((0.700, 2.460), abs=1e-3)
    assert (estimate.n, estimate.method) == (10, "t")


def test_the_interval_of_a_score_stays_on_its_scale() -> None:
    estimate = mean_interval([1.0] * 11 + [0.0], bounds=(0.0, 1.0))
    assert estimate.ci is not None
    assert estimate.ci[1] == 1.0
    assert estimate.ci[0] == mean_interval([1.0] * 11 + [0.0]).ci[0]  # type: ignore[index]


@pytest.mark.parametrize("score", [0.0, 0.1, 0.5, 1.0])
def test_equal_scores_are_not_taken_for_certainty(score: float) -> None:
    estimate = mean_interval([score] * 48, bounds=(0.0, 1.0))
    assert estimate.value == score
    assert estimate.ci == pytest.approx(wilson(score * 48, 48))
    assert estimate.method == "wilson"


def test_equal_values_without_a_scale_have_no_width() -> None:
    # The DPO loss of a policy at its reference is ln 2 for every pair, and that is no estimate.
    assert mean_interval([math.log(2)] * 48) == Estimate(math.log(2), (math.log(2), math.log(2)), 48, "t")


def test_small_and_broken_samples_have_a_value_and_no_interval() -> None:
    assert mean_interval([1.0, 2.0, 3.0]) == Estimate(2.0, None, 3, "none")
    broken = mean_interval([1.0, math.nan, 2.0, 3.0, 4.0])
    assert broken.ci is None
    assert json.loads(json.dumps(broken.as_json(), allow_nan=False)) == {
        "value": None,
        "ci": None,
        "n": 5,
        "method": "none",
    }
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_as_json_is_plain_json() -> None:
    assert json.loads(json.dumps(share([1, 1, 0.5, 0]).as_json())) == {
        "value": 0.625,
        "ci": list(wilson(2.5, 4)),
        "n": 4,
        "method": "wilson",
    }


@pytest.mark.parametrize("n", [48, 200])
def test_t_intervals_of_gold_like_scores_cover_at_their_level(n: int) -> None:
    generator = np.random.default_rng(7)
    samples = generator.choice([0.0, 0.5, 1.0], size=(2000, n), p=[0.3, 0.3, 0.4])
    intervals = [mean_interval(sample, bounds=(0.0, 1.0)).ci for sample in samples]
    covered = np.mean([ci is not None and ci[0] <= 0.55 <= ci[1] for ci in intervals])
    assert 0.93 <= covered <= 0.97


def test_wilson_covers_accuracies_by_exact_enumeration() -> None:
    # Mean coverage over true shares, from the binomial distribution itself rather than from draws.
    n = 48
    intervals = [wilson(k, n) for k in range(n + 1)]
    coverage = [
        sum(
            math.comb(n, k) * p**k * (1 - p) ** (n - k)
            for k in range(n + 1)
            if intervals[k][0] <= p <= intervals[k][1]
        )
        for p in np.linspace(0.05, 0.95, 91)
    ]
    assert min(coverage) > 0.91
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.01)


def test_the_error_of_a_mean_is_its_spread_over_the_root_of_n() -> None:
    values = np.array([1.0, 4.0, 2.5, 7.0, -3.0])
    quotient = Quotient(values, np.ones(5))
    assert quotient.value == pytest.approx(2.3)
    assert quotient.error(np.arange(5)) == pytest.approx(np.std(values, ddof=1) / math.sqrt(5))
    # The same row twice is one prompt: nothing is known better.
    twice = Quotient(values.repeat(2), np.ones(10))
    assert twice.error(np.arange(5).repeat(2)) == pytest.approx(quotient.error(np.arange(5)))
    assert quotient.error(np.zeros(5, dtype=np.int64)) is None


def test_a_quotient_that_is_not_finite_has_no_error_and_no_interval() -> None:
    broken = Quotient(np.array([1.0, math.inf, 2.0, 3.0]), np.ones(4))
    assert math.isnan(broken.value)
    assert broken.error(np.arange(4)) is None
    assert quotient_interval(broken).ci is None


def test_the_interval_of_a_quotient_covers_it() -> None:
    """Bits over tokens of 12 rows, 2,000 times: 95 % of the intervals hold the true ratio."""
    generator = np.random.default_rng(5)
    hits = 0
    for _ in range(2000):
        tokens = generator.integers(2, 40, 12).astype(float)
        found = quotient_interval(Quotient(generator.normal(1.5, 0.4, 12) * tokens, tokens))
        assert found.ci is not None
        hits += found.ci[0] <= 1.5 <= found.ci[1]
    assert hits / 2000 == pytest.approx(0.93, abs=0.03)
