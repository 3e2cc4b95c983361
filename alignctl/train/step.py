"""One optimiser step: every term divided by its global count, and nothing moves unless all of it is finite.

A step's gradient does not depend on how its rows are split into micro-batches: each micro-batch adds the
sum of its per-pair losses over the number of pairs in the whole step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from alignctl.algos import PairLoss
from alignctl.algos.pairs import pair_metrics, pair_view, row_weights
from alignctl.models.packing import micro_batches, pack
from alignctl.models.policy import Policy, branch_logps
from alignctl.records import Example
from alignctl.train.optimiser import make_moments


@dataclass(frozen=True, slots=True)
class StepOut:
    """What a step did; metrics are its own values before the update."""

    metrics: Mapping[str, float]
    applied: bool
    """False when loss or gradient was not finite: the weights were left as they are."""
    tokens: int
    """Tokens of rows and answers that were trained on, each once."""
    carried: Mapping[str, float] = field(default_factory=dict)
    """What the next step has to know of this one, a few finite numbers; part of the checkpoint."""
    alarms: tuple[str, ...] = ()
    """What the user should see, each told once in a run."""
    stop: str | None = None
    """Why the run should end after this step; None to go on."""


def optimiser_step(
    optimiser: torch.optim.Optimizer,
    backward: Callable[[], Mapping[str, float]],
    *,
    lr: float,
    max_grad_norm: float,
) -> tuple[dict[str, float], bool]:
    """One update: `backward` adds the gradients and returns metrics, with `loss` among them.

    Returns the metrics with grad_norm (before clipping) and lr, and whether the update was made; a loss or
    gradient that is not finite moves nothing. A parameter group may have `lr_scale`, a factor on the rate.
    """
    optimiser.zero_grad(set_to_none=True)
    metrics = backward()
    trained = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in trained])
    applied = math.isfinite(metrics["loss"]) and bool(torch.isfinite(grad_norm))
    if applied:
        torch.nn.utils.clip_grads_with_norm_(trained, max_grad_norm, grad_norm)
        for group in optimiser.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        make_moments(optimiser)
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return {**metrics, "grad_norm": float(grad_norm), "lr": lr}, applied


def pair_backward(
    policy: Policy, loss: PairLoss, examples: Sequence[Example], reference: Tensor, *, micro_tokens: int
) -> dict[str, float]:
    """Add the gradient of the mean loss over B pairs to the policy's; returns the pairs' metrics.

    `reference` is float [B, 2], chosen and rejected.
    """
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
