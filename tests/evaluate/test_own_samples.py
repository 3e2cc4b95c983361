"""Figures of sampled answers against plain loops over them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from alignctl.evaluate.own_samples import evaluate_samples
from alignctl.records import Example, Scores

STOP = (9,)
ANSWERS = ([1, 2, 9], [1, 2, 3, 4], [5, 9])
SUMS = (-3.0, -10.0, -1.0)
ENTROPY = (1.5, 6.0, 0.5)
MASS = (2.75, 3.0, 1.875)
REFERENCE = (-4.0, -9.5, -2.5)
VOCABULARY = 10


def examples(answers=ANSWERS) -> list[Example]:
    return [
        Example(f"row {place}", np.array([place], dtype=np.int32), (np.array(answer, dtype=np.int32),))
        for place, answer in enumerate(answers)
    ]


def scores(answers=ANSWERS) -> Scores:
    def column(values) -> torch.Tensor:
        return torch.tensor(values[: len(answers)])[:, None]

    counts = torch.tensor([[len(answer)] for answer in answers])
    return Scores(column(SUMS), counts, column(ENTROPY), column(MASS))


def found(reference=REFERENCE, answers=ANSWERS):
    sums = None if reference is None else torch.tensor(reference[: len(answers)])[:, None]
    return evaluate_samples(examples(answers), scores(answers), sums, stop=STOP, vocabulary=VOCABULARY)


def error_of(numerators, denominators) -> float:
    """Of a ratio of sums over three independent rows, linearised."""
    ratio = sum(numerators) / sum(denominators)
    rest = [top - ratio * bottom for top, bottom in zip(numerators, denominators, strict=True)]
    return math.sqrt(sum(one * one for one in rest) * 3 / 2) / sum(denominators)


def test_every_figure_is_a_plain_loop_over_the_answers() -> None:
    lengths, ones = [3, 4, 2], [1, 1, 1]
    per_token = [-1.0, -2.5, -0.5]
    nats = [1.0, -0.5, 1.5]
    # Without the stop tokens 1 2 | 1 2 3 4 | 5: seven tokens of 5 kinds, four pairs of 3 kinds, two and one
    # longer n-grams that differ.
    kinds = {1: (5, 7), 2: (3, 4), 3: (2, 2), 4: (1, 1)}
    distinct = [
        different / float(10**n * (1 - Fraction(10**n - 1, 10**n) ** many))
        for n, (different, many) in kinds.items()
    ]
    expected = {
        "sampled/likelihood": sum(per_token) / 3,
        "sampled/likelihood_se": error_of(per_token, ones),
        "sampled/entropy_top10": 8 / 9,
        "sampled/entropy_top10_se": error_of(ENTROPY, lengths),
        "sampled/mass_top10": 7.625 / 9,
        "sampled/mass_top10_se": error_of(MASS, lengths),
        "sampled/distinct": sum(distinct) / 4,
        "response_length": 3.0,
        "response_length_se": math.sqrt(1 / 3),
        "kl/sequence": 2 / 3,
        "kl/sequence_se": error_of(nats, ones),
        "kl/token": 2 / 9,
        "kl/token_se": error_of(nats, lengths),
    }
    metrics = found().metrics
    assert metrics.pop("sampled/distinct_se") > 0
    assert metrics == pytest.approx(expected, rel=1e-12)


def test_a_policy_that_is_its_reference_has_no_kl_at_all() -> None:
    metrics = found(reference=SUMS).metrics
    assert [metrics[f"kl/{name}"] for name in ("sequence", "token", "sequence_se", "token_se")] == [0.0] * 4


def test_without_a_reference_there_is_no_kl() -> None:
    without = found(reference=None)
    assert without.metrics == {name: value for name, value in found().metrics.items() if "kl/" not in name}
    assert set(without.estimates) == {"response_length"}


def test_a_single_prompt_has_no_errors_and_an_empty_answer_no_n_grams() -> None:
    one = found(answers=ANSWERS[:1]).metrics
    assert not any(name.endswith("_se") for name in one)
    assert one["kl/sequence"] == 1.0
    assert "sampled/distinct" not in found(answers=([9],)).metrics


def test_estimates_are_about_the_metrics_of_the_same_name() -> None:
    answers = ANSWERS * 4
    rows = Scores(
        *(torch.cat([part] * 4) for part in (scores().sums, scores().counts)), *2 * (torch.ones(12, 1),)
    )
    reference = torch.tensor(REFERENCE * 4)[:, None]
    figures = evaluate_samples(examples(answers), rows, reference, stop=STOP, vocabulary=VOCABULARY)
    for name, estimate in figures.estimates.items():
        assert estimate.value == pytest.approx(figures.metrics[name], rel=1e-12)
        assert estimate.n == 12
        assert estimate.ci is not None
        # Student's t at 11 degrees of freedom.
        half = 2.201 * figures.metrics[f"{name}_se"]
        assert estimate.ci == pytest.approx((estimate.value - half, estimate.value + half), rel=1e-3)
    assert set(figures.estimates) == {"response_length", "kl/token"}
