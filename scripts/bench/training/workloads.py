"""What epochs and sweeps cost, put together from measured steps and reference passes; a pair is the unit.

An epoch is one optimiser step per batch and, on the sides that score the reference once, one pass before it.
Decisions. Three epochs pay that pass once, a sweep over beta on a warm cache not at all: alignctl's cache is
keyed by weights and token ids, and TRL 1.16 keeps its precomputed columns in a file named by the fingerprints
of data set and model, beta not among them, so a second run finds them as well wherever its data set is read
from the same cache on disk. TRL is given that reuse. Sides without a pass of their own pay for the reference
at every step of every run.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from measurements import Run


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds per pair."""

    step: float
    reference: float
    """Of the pass before training; 0 where it is part of the step."""

    @property
    def one_epoch(self) -> float:
        """Reference pass and one step per batch."""
        return self.reference + self.step

    @property
    def three_epochs(self) -> float:
        """One pass, then every batch three times."""
        return self.reference + 3 * self.step

    @property
    def warm_sweep(self) -> float:
        """Three runs of one epoch whose reference is known already."""
        return 3 * self.step


def cost(runs: Sequence[Run]) -> Cost:
    """Of one side and case, from all its rounds: the median round.

    trl-grouped's rounds look at different lengths on purpose, so theirs are added up instead.
    """
    if runs[0].side == "trl-grouped":
        return added_cost(runs)
    single = [added_cost([run]) for run in runs]
    return Cost(
        statistics.median(one.step for one in single), statistics.median(one.reference for one in single)
    )


def added_cost(runs: Sequence[Run]) -> Cost:
    """Of all rounds as one long round."""
    pairs = sum(one.pairs for run in runs for one in run.timed)
    seconds = sum(sum(run.steps) for run in runs)
    reference = statistics.mean(run.reference_per_batch / run.case.batch for run in runs)
    return Cost(seconds / pairs, reference)
