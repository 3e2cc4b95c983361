"""Hinge loss on the reward margin, relu(1 - beta D): the form of RSO, arXiv 2309.06657."""

from __future__ import annotations

from torch.nn.functional import relu

from alignctl.algos.log_ratios import expected_over_label, log_ratios
from alignctl.config import HingeConfig
from alignctl.records import LossOut, PairLogps


def pair_loss(pairs: PairLogps, *, config: HingeConfig) -> LossOut:
    """One loss per pair; rewards are beta r."""
    chosen, rejected = log_ratios(pairs, config.reduction)
    margin = config.beta * (chosen - rejected)
    return LossOut(
        losses=expected_over_label(relu(1 - margin), relu(1 + margin), pairs.p_chosen),
        reward_chosen=config.beta * chosen.detach(),
        reward_rejected=config.beta * rejected.detach(),
    )
