"""Hinge on the policy's own likelihoods with a regulariser, the form of arXiv 2410.11677.

max(0, gamma - (log pi(y_w) - log pi(y_l))) + alpha softplus(1 - r(y_w)), log-probabilities and r as means
over tokens. The reference enters through the regulariser alone.
"""

from __future__ import annotations

from torch.nn.functional import relu, softplus

from alignctl.algos.log_ratios import expected_over_label, log_ratios
from alignctl.config import SlicConfig
from alignctl.records import LossOut, PairLogps


def pair_loss(pairs: PairLogps, *, config: SlicConfig) -> LossOut:
    """One loss per pair; rewards are r itself (there is no beta)."""
    gap = pairs.chosen / pairs.chosen_tokens - pairs.rejected / pairs.rejected_tokens
    chosen, rejected = log_ratios(pairs, "mean")
    regulariser = expected_over_label(softplus(1 - chosen), softplus(1 - rejected), pairs.p_chosen)
    preference = expected_over_label(relu(config.gamma - gap), relu(config.gamma + gap), pairs.p_chosen)
    return LossOut(
        losses=preference + config.alpha * regulariser,
        reward_chosen=chosen.detach(),
        reward_rejected=rejected.detach(),
    )
