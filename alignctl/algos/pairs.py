"""Pairs as the losses see them, and their metrics by the names of metrics.jsonl.

Sums are exact (`math.fsum`), so a mean does not depend on how its pairs were batched or ordered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from alignctl.records import Example, LossOut, PairLogps


def pair_view(rows: Sequence[Example], sums: Tensor, reference: Tensor) -> PairLogps:
    """Branch log-probabilities [B, 2] of policy and reference by their roles, on sums' device and dtype."""
    counts = torch.tensor([[len(branch) for branch in row.branches] for row in rows], device=sums.device)
    reference = reference.to(sums)
    return PairLogps(
        chosen=sums[:, 0],
        rejected=sums[:, 1],
        ref_chosen=reference[:, 0],
        ref_rejected=reference[:, 1],
        chosen_tokens=counts[:, 0],
        rejected_tokens=counts[:, 1],
        p_chosen=torch.tensor([row.p_chosen for row in rows], dtype=sums.dtype, device=sums.device),
    )


def row_weights(rows: Sequence[Example], like: Tensor) -> Tensor:
    """Weights [B] of the rows; a loss is multiplied by its row's, and divided by the number of rows."""
    return torch.tensor([row.weight for row in rows], dtype=like.dtype, device=like.device)


def outcomes(margins: Tensor) -> list[float]:
    """1 for a positive margin, 0 for a negative one, one half for a tie."""
    return _floats((margins > 0).double() + 0.5 * (margins == 0).double())


def _floats(values: Tensor) -> list[float]:
    return [float(value) for value in values]


def mean(values: Tensor | Sequence[float]) -> float:
    """Exactly rounded mean of a vector; NaN where it has none, as for infinities of both signs."""
    numbers = _floats(values) if isinstance(values, Tensor) else values
    try:
        return math.fsum(numbers) / len(numbers)
    except (ValueError, OverflowError):
        return math.nan


def pair_metrics(pairs: PairLogps, out: LossOut, weights: Tensor) -> dict[str, float]:
    """Means over B pairs, all without gradient; the loss is weighted as it is optimised."""
    margins = out.reward_chosen - out.reward_rejected
    return {
        "loss": mean(out.losses * weights),
        "rewards/chosen": mean(out.reward_chosen),
        "rewards/rejected": mean(out.reward_rejected),
        "rewards/margins": mean(margins),
        "rewards/accuracies": mean(outcomes(margins)),
        "logps/chosen": mean(pairs.chosen),
        "logps/rejected": mean(pairs.rejected),
        "accuracy_logp": mean(outcomes(pairs.chosen - pairs.rejected)),
        "likelihood/chosen": mean(pairs.chosen / pairs.chosen_tokens),
        "likelihood/rejected": mean(pairs.rejected / pairs.rejected_tokens),
        "displacement": mean((pairs.chosen < pairs.ref_chosen).double()),
    }
