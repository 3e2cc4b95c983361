"""Figures of answers against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from alignctl.evaluate.generation_statistics import drift_metrics, generation_metrics
from alignctl.evaluate.statistics import wilson


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


ANSWERS = (ids(1, 2, 3, 4, 1, 2, 3, 4, 1), ids(5, 6), ids(1, 2, 3, 4), ids(9, 9, 9, 9, 9, 9))
TEXTS = ("The cat saw the cat.", "Don't stop", "the CAT saw a dog", "no no no")


def test_every_figure_by_hand() -> None:
    found = generation_metrics(ANSWERS, TEXTS, (True, False, True, True), np.arange(4), vocabulary=50, seed=0)
    assert found["response_length"].value == pytest.approx((9 + 2 + 4 + 6) / 4)
    assert (found["no_end_rate"].value, found["no_end_rate"].ci) == (0.25, wilson(1, 4))
    # 1234 2341 3412 4123 1234 2341: two of six again; one of one; 9999 three times: two again.
    assert found["repetition_4gram"].value == pytest.approx((2 / 6 + 0 + 2 / 3) / 3)
    assert found["repetition_4gram"].n == 3
    # the cat saw the cat / don t stop / the cat saw a dog / no no no
    assert found["distinct_1"].value == pytest.approx(9 / 16)
    # the-cat cat-saw saw-the (the-cat) / don-t t-stop / (the-cat cat-saw) saw-a a-dog / no-no (no-no)
    assert found["distinct_2"].value == pytest.approx(8 / 12)
    assert found["distinct_4"].value == pytest.approx(4 / 4)
    expected = 50 * (1 - (49 / 50) ** 21)
    assert found["ead_1"].value == pytest.approx(7 / expected)
    assert found["distinct_1"].ci is None
    assert found["distinct_1"].method == "none"


def test_answers_too_short_for_a_figure_do_not_get_it() -> None:
    found = generation_metrics(
        (ids(1), ids(2)), ("one", "two"), (True, True), np.arange(2), vocabulary=9, seed=0
    )
    assert set(found) == {"response_length", "no_end_rate", "distinct_1", "ead_1"}
    silent = generation_metrics((ids(), ids()), ("", ""), (True, True), np.arange(2), vocabulary=9, seed=0)
    assert set(silent) == {"response_length", "no_end_rate"}
    assert generation_metrics((), (), (), np.arange(0), vocabulary=9, seed=0) == {}


def test_distinct_does_not_depend_on_the_order_of_answers() -> None:
    order = (2, 0, 3, 1)
    first = generation_metrics(ANSWERS, TEXTS, (True,) * 4, np.arange(4), vocabulary=50, seed=0)
    second = generation_metrics(
        [ANSWERS[i] for i in order],
        [TEXTS[i] for i in order],
        (True,) * 4,
        np.array(order),
        vocabulary=50,
        seed=0,
    )
    for name, one in first.items():
        assert second[name].value == pytest.approx(one.value), name


def test_kl_is_a_ratio_of_sums_and_a_mean_of_sums() -> None:
    generator = np.random.default_rng(2)
    tokens = generator.integers(1, 60, 50).astype(float)
    reference = -tokens * 2
    policy = reference + tokens * 0.08 + generator.normal(0, 2, 50)
    found = drift_metrics(policy, reference, tokens, np.arange(50), seed=0)
    ratios = sum(policy - reference) / sum(tokens)
    assert found["kl/token"].value == pytest.approx(ratios)
    residuals = policy - reference - ratios * tokens
    half = stats.t.ppf(0.975, 49) * residuals.std(ddof=1) / math.sqrt(50) / tokens.mean()
    assert found["kl/token"].ci == pytest.approx((ratios - half, ratios + half), rel=1e-3)
    assert found["kl/token"].method == "t"
    mean = stats.t.interval(0.95, 49, (policy - reference).mean(), stats.sem(policy - reference))
    assert found["kl/sequence"].ci == pytest.approx(tuple(mean), rel=1e-3)


def test_kl_of_a_known_pair_of_distributions_is_covered() -> None:
    # Answers of geometric length over three tokens: KL per token is the one of the two distributions.
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    truth = float((p * np.log(p / q)).sum())
    hits, values = 0, []
    for seed in range(300):
        generator = np.random.default_rng(seed)
        lengths = generator.geometric(0.1, 80)
        drawn = generator.choice(3, size=lengths.sum(), p=p)
        starts = np.r_[0, np.cumsum(lengths)[:-1]]
        own, other = (np.add.reduceat(np.log(side)[drawn], starts) for side in (p, q))
        one = drift_metrics(own, other, lengths.astype(float), np.arange(80), seed=0)["kl/token"]
        assert one.ci is not None
        values.append(one.value)
        hits += one.ci[0] <= truth <= one.ci[1]
    assert np.mean(values) == pytest.approx(truth, abs=0.01)
    assert 0.91 <= hits / 300 <= 0.985


def test_a_model_at_its_reference_has_not_drifted() -> None:
    sums = np.array([-3.0, -9.0, -4.5, -1.0])
    found = drift_metrics(sums, sums, np.array([3.0, 7.0, 4.0, 1.0]), np.arange(4), seed=0)
    assert found["kl/token"].value == found["kl/sequence"].value == 0.0
    one = drift_metrics(sums[:1], sums[1:2], np.array([3.0]), np.arange(1), seed=0)
    assert (one["kl/token"].value, one["kl/token"].ci) == (2.0, None)
