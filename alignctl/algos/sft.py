"""Supervised fine-tuning: the negative log-likelihood of the answer's tokens, the prompt's left out."""

from __future__ import annotations

from torch import Tensor

from alignctl.algos.pairs import mean


def row_losses(sums: Tensor) -> Tensor:
    """Loss [B] of each row in nats, summed over its answer; `sums` are its log-probabilities [B].

    To be divided by the number of answer tokens in the whole step: a mean over tokens, in which a long answer
    counts for more than a short one, as everywhere in supervised fine-tuning.
    """
    return -sums


def row_metrics(sums: Tensor, counts: Tensor, weights: Tensor) -> dict[str, float]:
    """Metrics of B rows, no gradient: `loss` is per token and weighted as it is optimised."""
    total = mean(row_losses(sums) * weights) * len(sums)
    return {
        "loss": total / float(counts.sum()),
        "likelihood/chosen": mean(sums / counts),
        "logps/chosen": mean(sums),
    }
