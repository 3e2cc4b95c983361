"""One optimiser step: every term divided by its global count, and nothing moves unless all of it is finite.

A step's gradient does not depend on how its rows are split into micro-batches: each micro-batch adds the
sum of its per-pair losses over the number of pairs in the whole step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignctl.algos import PairLoss
from alignctl.algos.pairs import pair_metrics, pair_view, row_weights
from alignctl.models.packing import micro_batches, pack
from alignctl.models.policy import Policy, branch_logps
from alignctl.records import Example


@dataclass(frozen=True, slots=True)
class StepOut:
    """What a step did; metrics are its own values before the update."""

    metrics: dict[str, float]
    applied: bool
    """False when loss or gradient was not finite: the weights were left as they are."""


def optimiser_step(
    policy: Policy,
    optimiser: torch.optim.Optimizer,
    loss: PairLoss,
    examples: Sequence[Example],
    reference: Tensor,
    *,
    lr: float,
    micro_tokens: int,
    max_grad_norm: float,
) -> StepOut:
    """Update the policy on B pairs; `reference` is float [B, 2], chosen and rejected."""
    optimiser.zero_grad(set_to_none=True)
    metrics = backward(policy, loss, examples, reference, micro_tokens=micro_tokens)
    trained = [p for p in policy.model.parameters() if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    applied = math.isfinite(metrics["loss"]) and bool(torch.isfinite(grad_norm))
    if applied:
        torch.nn.utils.clip_grads_with_norm_(trained, max_grad_norm, grad_norm)
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return StepOut({**metrics, "grad_norm": float(grad_norm), "lr": lr}, applied)


def backward(
    policy: Policy, loss: PairLoss, examples: Sequence[Example], reference: Tensor, *, micro_tokens: int
) -> dict[str, float]:
    """Add the gradient of the mean loss over B pairs to the policy's; returns the pairs' metrics."""
    sums = []
    for group in micro_batches(examples, token_budget=micro_tokens, layout=policy.layout):
        rows = [examples[index] for index in group]
        batch = pack(rows, policy.layout).to(policy.device)
        found = branch_logps(policy, batch).view(-1, 2)
        losses = loss(pair_view(rows, found, reference[group])).losses
        ((losses * row_weights(rows, losses)).sum() / len(examples)).backward()
        sums.append(found.detach())
    pairs = pair_view(examples, torch.cat(sums), reference)
    out = loss(pairs)
    return pair_metrics(pairs, out, row_weights(examples, out.losses))
