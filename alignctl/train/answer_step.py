"""The gradient of supervised fine-tuning: every answer token of the step counts alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from alignctl.algos.pairs import row_weights
from alignctl.algos.sft import row_losses, row_metrics
from alignctl.models.packing import micro_batches, pack
from alignctl.models.policy import Policy, branch_logps
from alignctl.records import Example


def answer_backward(policy: Policy, examples: Sequence[Example], *, micro_tokens: int) -> dict[str, float]:
    """Add the gradient of the mean loss per answer token over B rows of one branch; returns their metrics."""
    tokens = sum(len(example.branches[0]) for example in examples)
    sums = []
    for group in micro_batches(examples, token_budget=micro_tokens, layout=policy.layout):
        rows = [examples[index] for index in group]
        found = branch_logps(policy, pack(rows, policy.layout).to(policy.device))
        losses = row_losses(found)
        ((losses * row_weights(rows, losses)).sum() / tokens).backward()
        sums.append(found.detach())
    every = torch.cat(sums)
    counts = torch.tensor([len(example.branches[0]) for example in examples], device=every.device)
    return row_metrics(every, counts, row_weights(examples, every))
