"""The quantity all pairwise losses are made of: r(y) = log pi(y|x) - log ref(y|x)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from alignctl.records import PairLogps

Reduction = Literal["sum", "mean"]


def log_ratios(pairs: PairLogps, reduction: Reduction) -> tuple[Tensor, Tensor]:
    """r of chosen and of rejected, [B] each: summed over completion tokens, or divided by their number."""
    chosen = pairs.chosen - pairs.ref_chosen
    rejected = pairs.rejected - pairs.ref_rejected
    if reduction == "mean":
        return chosen / pairs.chosen_tokens, rejected / pairs.rejected_tokens
    return chosen, rejected


def expected_over_label(when_chosen: Tensor, when_rejected: Tensor, p_chosen: Tensor) -> Tensor:
    """The loss expected under a soft label: p L(chosen better) + (1 - p) L(rejected better)."""
    return p_chosen * when_chosen + (1 - p_chosen) * when_rejected
