"""The critic of PPO: the value of the state before each token of an answer.

A linear head reads the hidden state that predicts the token: of the policy itself (one forward pass for
log-probabilities and values, the head's gradient reaching the policy's layers), or of a model of its own.
Heads start at zero, so that a first step is one without a critic, or from a reward model's score head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alignctl.models.policy import Policy, head_parameters


class Critic(nn.Module):
    """A value head and, unless it sits on the policy, the model it reads; part of what a run trains."""

    def __init__(self, head: nn.Linear, own: Policy | None) -> None:
        super().__init__()
        self.head = head
        self.own = own
        self.trunk = None if own is None else own.model

    def forward(self, hidden: Tensor) -> Tensor:
        """Values [N] of hidden states [N, H], in the head's own dtype: float32, or float64."""
        return self.head(hidden.to(self.head.weight.dtype))[:, 0]


def trunk_critic(policy: Policy) -> Critic:
    """A head on the policy's own hidden states, starting at zero."""
    return Critic(_linear_like(head_parameters(policy.causal_lm)[0]), None)


def separate_critic(own: Policy, score: nn.Linear | None, *, mean: float = 0.0, std: float = 1.0) -> Critic:
    """A model of its own with a head that starts at zero, or from a reward model's `score` [1, H].

    `mean` and `std` are those that scores are normalised by: the head then starts on the scale of what it has
    to predict, (score - mean) / std. The model's vocabulary head is not trained, as nothing reads it.
    """
    weight, bias = head_parameters(own.causal_lm)
    read = {id(parameter) for parameter in own.causal_lm.get_decoder().parameters()}
    for parameter in (weight, bias):
        if parameter is not None and id(parameter) not in read:
            parameter.requires_grad_(False)
    head = _linear_like(weight)
    if score is not None:
        with torch.no_grad():
            head.weight.copy_(score.weight / std)
            offset = torch.zeros_like(head.bias) if score.bias is None else score.bias
            head.bias.copy_((offset - mean) / std)
    return Critic(head, own)


def trained_modules(policy: Policy, critic: Critic | None) -> nn.ModuleDict:
    """Everything PPO trains, under the names that its checkpoints keep: `policy.` and `critic.`."""
    modules: dict[str, nn.Module] = {"policy": policy.model}
    return nn.ModuleDict(modules if critic is None else {**modules, "critic": critic})


def _linear_like(vocabulary: Tensor) -> nn.Linear:
    """A zero head [1, H] for a model whose vocabulary head is `vocabulary` [V, H]."""
    # By way of the meta device: a plain Linear would draw its start from the process's random numbers.
    head = nn.Linear(vocabulary.shape[1], 1, dtype=vocabulary.dtype, device="meta")
    head = head.to_empty(device=vocabulary.device)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return head
