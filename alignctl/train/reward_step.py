"""The gradient of a reward model's step, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from alignctl.algos.bradley_terry import RewardLoss, reward_metrics, reward_pairs
from alignctl.algos.pairs import row_weights
from alignctl.models.packing import micro_batches, pack
from alignctl.models.policy import Policy
from alignctl.models.reward_model import RewardModel, branch_rewards
from alignctl.records import Example


def reward_backward(
    reward_model: RewardModel,
    policy: Policy,
    loss: RewardLoss,
    examples: Sequence[Example],
    *,
    micro_tokens: int,
) -> dict[str, float]:
    """Add the gradient of the mean loss over B pairs to the reward model's; returns the pairs' metrics.

    `policy` is how the model under the score is run forward.
    """
    found = []
    for group in micro_batches(examples, token_budget=micro_tokens, layout=policy.layout):
        rows = [examples[index] for index in group]
        batch = pack(rows, policy.layout).to(policy.device)
        rewards = branch_rewards(reward_model, policy, batch).view(-1, 2)
        losses = loss(reward_pairs(rows, rewards)).losses
        ((losses * row_weights(rows, losses)).sum() / len(examples)).backward()
        found.append(rewards.detach())
    out = loss(reward_pairs(examples, torch.cat(found)))
    return reward_metrics(out, row_weights(examples, out.losses))
