"""A loss on pairs with a hold on the preferred answers: their log-likelihood, weighted.

DPO + NLL (arXiv 2404.19733) in the units of the loss itself: the weight is a multiple of the pull that the
loss has on that answer where policy and reference agree. So one number means the same for every loss: nats a
token would be little beside ipo, whose slope is 1/tau, and much beside dpo, whose slope is beta/2.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import relu

from alignctl.algos import PairLoss
from alignctl.records import LossOut, PairLogps


def anchored(loss: PairLoss, weight: float) -> PairLoss:
    """The loss plus `weight` times a steady pull on preferred answers; with weight 0 the loss itself."""
    return loss if weight == 0 else partial(_anchored_loss, loss=loss, weight=weight)


def _anchored_loss(pairs: PairLogps, *, loss: PairLoss, weight: float) -> LossOut:
    out = loss(pairs)
    chosen, rejected = _pull(pairs, loss)
    # With a soft label below one half the pull is on the other answer.
    hold = relu(chosen) * pairs.chosen + relu(rejected) * pairs.rejected
    return replace(out, losses=out.losses - weight * hold)


@torch.enable_grad()
def _pull(pairs: PairLogps, loss: PairLoss) -> tuple[Tensor, Tensor]:
    """What a nat more of each answer's log-probability takes off the loss, [B] each, at the reference."""
    chosen, rejected = (
        side.detach().clone().requires_grad_() for side in (pairs.ref_chosen, pairs.ref_rejected)
    )
    losses = loss(replace(pairs, chosen=chosen, rejected=rejected)).losses
    slopes = torch.autograd.grad(losses.sum(), (chosen, rejected))
    return -slopes[0], -slopes[1]
