"""Direct preference optimisation, arXiv 2305.18290.

-p log s(beta D) - (1 - p) log s(-beta D), with D = r(y_w) - r(y_l) and p the probability that chosen is
really better: 1 for a hard label, `p_chosen` of the row for a soft one. `label_noise` e flips either with
probability e (conservative DPO): p becomes p (1 - e) + (1 - p) e.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from alignctl.algos.log_ratios import expected_over_label, log_ratios
from alignctl.config import DpoConfig, HypoConfig
from alignctl.records import LossOut, PairLogps


def pair_loss(pairs: PairLogps, *, config: DpoConfig | HypoConfig) -> LossOut:
    """One loss per pair; rewards are beta r."""
    chosen, rejected = log_ratios(pairs, config.reduction)
    margin = config.beta * (chosen - rejected)
    p = pairs.p_chosen * (1 - config.label_noise) + (1 - pairs.p_chosen) * config.label_noise
    return LossOut(
        losses=expected_over_label(-logsigmoid(margin), -logsigmoid(-margin), p),
        reward_chosen=config.beta * chosen.detach(),
        reward_rejected=config.beta * rejected.detach(),
    )
