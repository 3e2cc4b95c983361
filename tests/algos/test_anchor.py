"""The hold on chosen answers: its value by hand, its gradient, and that weight 0 changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from alignctl.algos import pair_loss
from alignctl.algos.anchor import anchored
from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import DpoConfig, Reference, TrainConfig
from alignctl.records import PairLogps

DPO = DpoConfig(
    name="dpo",
    beta=0.1,
    label_noise=0.0,
    reduction="sum",
    reference=Reference(kind="frozen", path=None, members=(), weights=None, alpha=None),
)


def pairs(p_chosen: float = 1.0) -> PairLogps:
    """Policy and reference agree: DPO costs ln 2. Chosen has 4 tokens, rejected 5."""
    chosen = torch.tensor([-8.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-15.0], dtype=torch.float64, requires_grad=True)
    return PairLogps(
        chosen=chosen,
        rejected=rejected,
        ref_chosen=chosen.detach(),
        ref_rejected=rejected.detach(),
        chosen_tokens=torch.tensor([4]),
        rejected_tokens=torch.tensor([5]),
        p_chosen=torch.tensor([p_chosen], dtype=torch.float64),
    )


@pytest.mark.parametrize(
    ("p_chosen", "held"), [(1.0, 0.05 * 8), (0.5, 0.0), (0.0, 0.05 * 15), (0.75, 0.025 * 8)]
)
def test_the_term_is_the_log_likelihood_of_the_preferred_answer_times_the_slope(
    p_chosen: float, held: float
) -> None:
    """DPO's slope at the reference is beta (p - 1/2)."""
    found = anchored(pair_loss(DPO), 2.0)(pairs(p_chosen))
    assert found.losses.item() == pytest.approx(math.log(2) + 2 * held)


def test_its_pull_is_steady_where_that_of_the_loss_has_gone() -> None:
    at_start, far = pairs(), pairs()
    far = replace(far, ref_chosen=far.ref_chosen - 900, ref_rejected=far.ref_rejected + 900)
    for given, own in ((at_start, 0.05), (far, 0.0)):
        anchored(pair_loss(DPO), 0.5)(given).losses.sum().backward()
        assert given.chosen.grad is not None
        assert given.rejected.grad is not None
        assert given.chosen.grad.item() == pytest.approx(-own - 0.5 * 0.05)
        assert given.rejected.grad.item() == pytest.approx(own)


@pytest.mark.parametrize(
    ("words", "slope"),
    [
        (["algo=dpo", "algo.beta=0.3"], 0.15),
        (["algo=ipo", "algo.tau=0.05"], 20 / 4),  # 2 / (2 tau), a mean over 4 tokens
        (["algo=hinge", "algo.beta=0.3"], 0.3),
        (["algo=slic", "algo.alpha=0", "algo.gamma=10"], 1 / 4),
    ],
)
def test_it_is_measured_by_each_loss(words: list[str], slope: float) -> None:
    config = load(open_conf(None), words)
    assert isinstance(config, TrainConfig)
    given, plain = pairs(), pairs()
    loss = pair_loss(config.algo)
    anchored(loss, 1.0)(given).losses.sum().backward()
    loss(plain).losses.sum().backward()
    assert given.chosen.grad is not None
    assert plain.chosen.grad is not None
    assert given.chosen.grad.item() == pytest.approx(plain.chosen.grad.item() - slope)


def test_weight_zero_is_the_loss_itself() -> None:
    loss = pair_loss(DPO)
    assert anchored(loss, 0.0) is loss
