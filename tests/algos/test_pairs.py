"""Branch log-probabilities as pairs, and the metrics of pairs against hand sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from alignctl.algos.pairs import mean, outcomes, pair_metrics, pair_view, row_weights
from alignctl.records import Example, LossOut


def example(number: int, lengths: tuple[int, int], p_chosen: float = 1.0, weight: float = 1.0) -> Example:
    branches = tuple(np.ones(length, dtype=np.int32) for length in lengths)
    return Example(str(number), np.ones(3, dtype=np.int32), branches, p_chosen, weight=weight)


ROWS = [example(0, (4, 8)), example(1, (10, 5), p_chosen=0.75, weight=2.0), example(2, (2, 2), weight=0.5)]
SUMS = torch.tensor([[-10.0, -14.0], [-30.0, -20.0], [-3.0, -3.0]])
REFERENCE = torch.tensor([[-12.0, -13.0], [-25.0, -22.0], [-3.0, -4.0]], dtype=torch.float64)


def test_pairs_take_their_columns_counts_and_labels_from_the_rows() -> None:
    pairs = pair_view(ROWS, SUMS, REFERENCE)
    assert pairs.chosen.tolist() == [-10, -30, -3]
    assert pairs.rejected.tolist() == [-14, -20, -3]
    assert pairs.ref_chosen.tolist() == [-12, -25, -3]
    assert pairs.ref_rejected.tolist() == [-13, -22, -4]
    assert pairs.chosen_tokens.tolist() == [4, 10, 2]
    assert pairs.rejected_tokens.tolist() == [8, 5, 2]
    assert pairs.p_chosen.tolist() == [1.0, 0.75, 1.0]
    assert {pairs.ref_chosen.dtype, pairs.p_chosen.dtype} == {SUMS.dtype}
    assert row_weights(ROWS, pairs.chosen).tolist() == [1.0, 2.0, 0.5]


def test_metrics_are_plain_means_over_pairs_and_the_loss_is_weighted() -> None:
    out = LossOut(
        losses=torch.tensor([0.5, 1.0, 2.0]),
        reward_chosen=torch.tensor([2.0, -5.0, 0.0]),
        reward_rejected=torch.tensor([-1.0, 2.0, 0.0]),
    )
    metrics = pair_metrics(pair_view(ROWS, SUMS, REFERENCE), out, row_weights(ROWS, out.losses))
    assert metrics == pytest.approx(
        {
            "loss": (0.5 * 1 + 1.0 * 2 + 2.0 * 0.5) / 3,
            "rewards/chosen": (2 - 5 + 0) / 3,
            "rewards/rejected": (-1 + 2 + 0) / 3,
            "rewards/margins": (3 - 7 + 0) / 3,
            "rewards/accuracies": (1 + 0 + 0.5) / 3,
            "logps/chosen": (-10 - 30 - 3) / 3,
            "logps/rejected": (-14 - 20 - 3) / 3,
            "accuracy_logp": (1 + 0 + 0.5) / 3,
            "likelihood/chosen": (-10 / 4 - 30 / 10 - 3 / 2) / 3,
            "likelihood/rejected": (-14 / 8 - 20 / 5 - 3 / 2) / 3,
            # The chosen answer fell below its reference in the second pair alone.
            "displacement": 1 / 3,
        },
        rel=1e-7,
    )


def test_a_tie_counts_one_half_and_what_is_no_number_counts_nothing() -> None:
    assert outcomes(torch.tensor([3.0, 0.0, -0.0, -1e-30, 1e-30, math.nan])) == [1.0, 0.5, 0.5, 0.0, 1.0, 0.0]


def test_means_are_rounded_once() -> None:
    # A running float sum gives 0 or 1/3 of it, depending on the order.
    values = torch.tensor([1e16, 1.0, -1e16], dtype=torch.float64)
    for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2]):
        assert mean(values[order]) == 1 / 3


def test_weights_are_exact_in_the_dtype_of_the_losses() -> None:
    weights = row_weights([example(0, (1, 1), weight=0.1)], torch.zeros(1, dtype=torch.float64))
    assert weights.dtype == torch.float64
    assert weights.tolist() == [0.1]
