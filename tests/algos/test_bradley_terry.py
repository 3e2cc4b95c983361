"""The reward model's loss: its values by hand, its laws, and its metrics."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignctl.algos.bradley_terry import (
    RewardPairs,
    pair_loss,
    reward_loss,
    reward_metrics,
    reward_pairs,
)
from alignctl.config import RewardModelConfig
from alignctl.records import Example, LossOut

NUMBERS = st.floats(-8, 8)
SHARES = st.floats(0, 1)
MARGINS = st.floats(0, 5)


def config(noise: float = 0.0) -> RewardModelConfig:
    return RewardModelConfig(name="reward", label_noise=noise, lr_scale=1.0)


def pairs(chosen: float, rejected: float, p: float = 1.0, margin: float = 0.0) -> RewardPairs:
    return RewardPairs(
        *(torch.tensor([value], dtype=torch.float64) for value in (chosen, rejected, p, margin))
    )


def loss_of(chosen: float, rejected: float, p: float = 1.0, margin: float = 0.0, noise: float = 0.0) -> float:
    return pair_loss(pairs(chosen, rejected, p, margin), config=config(noise)).losses.item()


def slope(chosen: float, rejected: float, p: float = 1.0, margin: float = 0.0) -> float:
    """Derivative of the loss in the chosen score."""
    made = pairs(chosen, rejected, p, margin)
    made.chosen.requires_grad_(True)
    pair_loss(made, config=config()).losses.sum().backward()
    assert made.chosen.grad is not None
    return made.chosen.grad.item()


@pytest.mark.parametrize(
    ("chosen", "rejected", "p", "margin", "noise", "expected"),
    [
        (0.0, 0.0, 1.0, 0.0, 0.0, math.log(2)),
        (2.0, 0.5, 1.0, 0.0, 0.0, math.log(1 + math.exp(-1.5))),
        (2.0, 0.5, 0.0, 0.0, 0.0, math.log(1 + math.exp(1.5))),
        # A margin of 1 asks the better side for a lead of one more, whichever side that is.
        (2.0, 0.5, 1.0, 1.0, 0.0, math.log(1 + math.exp(-0.5))),
        (2.0, 0.5, 0.0, 1.0, 0.0, math.log(1 + math.exp(2.5))),
        (2.0, 0.5, 0.7, 1.0, 0.0, 0.7 * math.log(1 + math.exp(-0.5)) + 0.3 * math.log(1 + math.exp(2.5))),
        (2.0, 0.5, 1.0, 0.0, 0.2, 0.8 * math.log(1 + math.exp(-1.5)) + 0.2 * math.log(1 + math.exp(1.5))),
        # p = 0.7 flipped with probability 0.1: 0.7 * 0.9 + 0.3 * 0.1 = 0.66.
        (1.0, 0.0, 0.7, 0.0, 0.1, 0.66 * math.log(1 + math.exp(-1)) + 0.34 * math.log(1 + math.e)),
    ],
)
def test_values(chosen, rejected, p, margin, noise, expected) -> None:
    assert loss_of(chosen, rejected, p, margin, noise) == pytest.approx(expected, rel=1e-12)


@given(NUMBERS, NUMBERS, SHARES, MARGINS)
def test_swapping_answers_and_label_changes_nothing(a: float, b: float, p: float, margin: float) -> None:
    assert loss_of(a, b, p, margin) == pytest.approx(loss_of(b, a, 1 - p, margin), rel=1e-9, abs=1e-12)


@given(NUMBERS, NUMBERS, NUMBERS, SHARES, MARGINS)
def test_only_the_lead_counts(a: float, b: float, shift: float, p: float, margin: float) -> None:
    moved = loss_of(a + shift, b + shift, p, margin)
    assert moved == pytest.approx(loss_of(a, b, p, margin), rel=1e-9, abs=1e-9)


@given(NUMBERS, NUMBERS, st.floats(0, 0.49))
def test_label_noise_is_a_soft_label(a: float, b: float, noise: float) -> None:
    assert loss_of(a, b, noise=noise) == pytest.approx(loss_of(a, b, p=1 - noise), rel=1e-9, abs=1e-12)


@given(st.floats(0.05, 0.95))
def test_without_a_margin_the_lead_settles_at_the_label_s_log_odds(p: float) -> None:
    best = math.log(p / (1 - p))
    assert slope(best, 0.0, p) == pytest.approx(0.0, abs=1e-12)
    assert slope(best + 0.5, 0.0, p) > 0 > slope(best - 0.5, 0.0, p)


@pytest.mark.parametrize("p", [1.0, 0.9, 0.1, 0.0])
def test_a_margin_widens_the_lead_of_the_better_side(p: float) -> None:
    """At the lead where the loss without margin is at rest, a margin pulls on, away from 0."""
    rest = math.log(p / (1 - p)) if 0 < p < 1 else math.copysign(2.0, p - 0.5)
    pull = slope(rest, 0.0, p, margin=1.5) - slope(rest, 0.0, p)
    assert math.copysign(1.0, pull) == -math.copysign(1.0, rest)
    assert slope(0.0, 0.0, p=0.5, margin=1.5) == pytest.approx(0.0, abs=1e-15), "no side is better"


@pytest.mark.parametrize("lead", [1e4, -1e4])
@pytest.mark.parametrize("p", [1.0, 0.3, 0.0])
def test_extreme_leads_stay_finite(lead: float, p: float) -> None:
    assert math.isfinite(loss_of(lead, 0.0, p, 1.0))
    assert math.isfinite(slope(lead, 0.0, p, 1.0))


def test_gradients_are_those_of_the_loss() -> None:
    generator = torch.Generator().manual_seed(1)
    chosen, rejected = (
        torch.randn(6, dtype=torch.float64, generator=generator).requires_grad_(True) for _ in range(2)
    )
    p = torch.linspace(0, 1, 6, dtype=torch.float64)
    margin = torch.linspace(2, 0, 6, dtype=torch.float64)

    def losses(one: Tensor, other: Tensor) -> Tensor:
        return reward_loss(config(0.1))(RewardPairs(one, other, p, margin)).losses

    assert torch.autograd.gradcheck(losses, (chosen, rejected))


def test_rows_give_their_labels_and_scores_their_roles() -> None:
    ids = np.array([1, 2], dtype=np.int32)
    row = Example(id="a", prompt=ids, branches=(ids, ids[:1]), p_chosen=0.75, margin=2.0)
    made = reward_pairs([row, replace(row, p_chosen=1.0, margin=0.0)], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    found = [made.chosen.tolist(), made.rejected.tolist(), made.p_chosen.tolist(), made.margin.tolist()]
    assert found == [[1.0, 3.0], [2.0, 4.0], [0.75, 1.0], [2.0, 0.0]]
    assert made.p_chosen.dtype == made.chosen.dtype == torch.float32


def test_metrics_by_hand() -> None:
    out = LossOut(
        losses=torch.tensor([1.0, 2.0, 4.0]),
        reward_chosen=torch.tensor([3.0, 1.0, -2.0]),
        reward_rejected=torch.tensor([1.0, 1.0, 2.0]),
    )
    found = reward_metrics(out, weights=torch.tensor([1.0, 0.5, 2.0]))
    scores = [3.0, 1.0, -2.0, 1.0, 1.0, 2.0]
    variance = sum((score - 1.0) ** 2 for score in scores) / 6
    assert found == pytest.approx(
        {
            "loss": (1.0 + 1.0 + 8.0) / 3,
            "rewards/chosen": 2 / 3,
            "rewards/rejected": 4 / 3,
            "rewards/margins": -2 / 3,
            "rewards/accuracies": (1 + 0.5 + 0) / 3,
            "reward/mean": 1.0,
            "reward/std": math.sqrt(variance),
        }
    )


def test_scores_that_are_not_finite_show_in_the_metrics() -> None:
    out = LossOut(torch.tensor([math.nan]), torch.tensor([math.inf]), torch.tensor([-math.inf]))
    found = reward_metrics(out, torch.ones(1))
    assert math.isnan(found["loss"])
    assert math.isnan(found["reward/std"])
