"""The algorithms: each a file of pure functions over its own config, named in one literal dict.

To add one: its config class in config/train.py, `algos/x.py`, `conf/algo/x.yaml`, a line here, a test file.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from alignctl.algos import dpo, hinge, ipo, slic
from alignctl.config import DpoConfig, HingeConfig, HypoConfig, IpoConfig, PairwiseConfig, SlicConfig
from alignctl.records import LossOut, PairLogps

PairLoss = Callable[[PairLogps], LossOut]


def pair_loss(config: PairwiseConfig | HypoConfig) -> PairLoss:
    """The loss on preference pairs that the configured algorithm minimises; hypo's is DPO's."""
    match config:
        case DpoConfig() | HypoConfig():
            return partial(dpo.pair_loss, config=config)
        case IpoConfig():
            return partial(ipo.pair_loss, config=config)
        case HingeConfig():
            return partial(hinge.pair_loss, config=config)
        case SlicConfig():
            return partial(slic.pair_loss, config=config)
