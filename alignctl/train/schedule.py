"""What happens at step s, as closed forms of s: which rows, which learning rate, which random numbers.

Nothing here is state, so a resumed run needs no loader, scheduler or generator restored, and another
number of devices sees the same global batches.
"""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import numpy as np

from alignctl.config import TrainSettings


def total_steps(settings: TrainSettings, rows: int) -> int:
    """`train.steps`, else as many as `train.epochs` take."""
    # Fraction of the decimal as typed: 1.1 epochs of 100 rows are 110 rows, not one more by rounding.
    return settings.steps or math.ceil(Fraction(str(settings.epochs)) * rows / settings.batch_size)


def batch_indices(step: int, *, rows: int, batch_size: int, seed: int) -> list[int]:
    """Row numbers of step `step` (from 1): the next slice of one shuffled epoch after another."""
    places = range((step - 1) * batch_size, step * batch_size)
    orders = {epoch: _epoch_order(epoch, rows, seed) for epoch in {place // rows for place in places}}
    return [int(orders[place // rows][place % rows]) for place in places]


def _epoch_order(epoch: int, rows: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(derived_seed("order", seed, epoch))).permutation(rows)


def derived_seed(purpose: str, seed: int, number: int) -> int:
    """63 bits that depend on all three arguments and on nothing else."""
    digest = hashlib.sha256(f"{purpose} {seed} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def learning_rate_at(step: int, *, peak: float, steps: int, settings: TrainSettings) -> float:
    """Learning rate of step `step` (1 to `steps`): linear warm-up to `peak`, then the schedule.

    The decay would reach 0 one step after the last, so that no step is wasted.
    """
    warmup = round(settings.warmup * steps) if settings.warmup < 1 else int(settings.warmup)
    if step <= warmup:
        return peak * step / warmup
    passed = (step - warmup) / (steps - warmup + 1)
    match settings.schedule:
        case "constant":
            return peak
        case "linear":
            return peak * (1 - passed)
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * passed))
