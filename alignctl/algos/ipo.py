"""Identity preference optimisation, arXiv 2310.12036: (D - 1/(2 tau))^2.

The squared distance has its minimum at a finite margin. The paper's code sums log-ratios over tokens,
its authors later confirmed the mean; so `reduction` is explicit, mean by default, and the logged rewards
use the same one.
"""

from __future__ import annotations

from alignctl.algos.log_ratios import expected_over_label, log_ratios
from alignctl.config import IpoConfig
from alignctl.records import LossOut, PairLogps


def pair_loss(pairs: PairLogps, *, config: IpoConfig) -> LossOut:
    """One loss per pair; rewards are tau r."""
    chosen, rejected = log_ratios(pairs, config.reduction)
    margin = chosen - rejected
    target = 1 / (2 * config.tau)
    return LossOut(
        losses=expected_over_label((margin - target) ** 2, (margin + target) ** 2, pairs.p_chosen),
        reward_chosen=config.tau * chosen.detach(),
        reward_rejected=config.tau * rejected.detach(),
    )
