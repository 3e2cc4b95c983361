"""The Bradley-Terry loss of a reward model, arXiv 2009.01325, with soft labels and margins.

    -p log s(D - m) - (1 - p) log s(-D - m),   D = R(y_w) - R(y_l)

p is the probability that chosen is really better, and `label_noise` e flips it as in dpo: p becomes
p (1 - e) + (1 - p) e. m >= 0 is the row's margin (arXiv 2307.09288), by how much the better answer has to
lead. It belongs to whichever side is better: swapping the answers and their label changes nothing, and m
pushes the two apart under either label. With -log s(-(D - m)) as the second term, cross-entropy on the input
D - m, a pair whose rejected answer is the better one would be content to leave it behind by nearly m.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignctl.algos.log_ratios import expected_over_label
from alignctl.algos.pairs import mean, outcomes
from alignctl.config import RewardModelConfig
from alignctl.records import Example, LossOut


@dataclass(frozen=True, slots=True, eq=False)
class RewardPairs:
    """What the loss may look at: the scores of B pairs, and the pairs' labels."""

    chosen: Tensor
    """float [B]: R(y_w)."""
    rejected: Tensor
    p_chosen: Tensor
    """float [B]: probability that chosen is really better."""
    margin: Tensor
    """float [B], 0 or more: by how much the better answer has to lead."""


RewardLoss = Callable[[RewardPairs], LossOut]


def reward_loss(config: RewardModelConfig) -> RewardLoss:
    """The loss under the configured label noise."""
    return partial(pair_loss, config=config)


def reward_pairs(rows: Sequence[Example], rewards: Tensor) -> RewardPairs:
    """Scores [B, 2] of the rows' two answers by their roles, labels on the scores' device and dtype."""

    def labels(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=rewards.dtype, device=rewards.device)

    return RewardPairs(
        chosen=rewards[:, 0],
        rejected=rewards[:, 1],
        p_chosen=labels([row.p_chosen for row in rows]),
        margin=labels([row.margin for row in rows]),
    )


def pair_loss(pairs: RewardPairs, *, config: RewardModelConfig) -> LossOut:
    """One loss per pair; rewards are the scores themselves."""
    lead = pairs.chosen - pairs.rejected
    p = pairs.p_chosen * (1 - config.label_noise) + (1 - pairs.p_chosen) * config.label_noise
    return LossOut(
        losses=expected_over_label(-logsigmoid(lead - pairs.margin), -logsigmoid(-lead - pairs.margin), p),
        reward_chosen=pairs.chosen.detach(),
        reward_rejected=pairs.rejected.detach(),
    )


def reward_metrics(out: LossOut, weights: Tensor) -> dict[str, float]:
    """Means over B pairs, all without gradient; the loss is weighted as it is optimised.

    `reward/mean` and `reward/std` are over all 2 B answers: the scale that a later use has to expect.
    """
    margins = out.reward_chosen - out.reward_rejected
    rewards = torch.cat([out.reward_chosen, out.reward_rejected]).double()
    middle = mean(rewards)
    return {
        "loss": mean(out.losses * weights),
        "rewards/chosen": mean(out.reward_chosen),
        "rewards/rejected": mean(out.reward_rejected),
        "rewards/margins": mean(margins),
        "rewards/accuracies": mean(outcomes(margins)),
        "reward/mean": middle,
        "reward/std": mean((rewards - middle).square()) ** 0.5,
    }
