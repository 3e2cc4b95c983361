"""`watch.action=adapt`: a term that holds on to chosen answers, raised while an alarm lasts.

Why this and not a stronger beta: on pairs that are told apart already, beta only makes the loss flatter,
which slows what went wrong and turns nothing back. The likelihood of chosen answers is what the losses on
pairs leave free, and what falls when they are over-optimised. arXiv 2410.11677 finds that such a term helps
only where it moves the likelihood; so its weight is not set beforehand, but raised until the indicator comes
back.
"""

from __future__ import annotations

ANCHOR = "watch/anchor"
"""Its name in metrics.jsonl."""
STEPS = 4
"""Evaluations with an alarm until the weight is at its limit."""


def next_anchor(weight: float, *, alarm: bool, limit: float) -> float:
    """The weight until the next evaluation: a quarter of `limit` more under an alarm, else as much less."""
    quarters = round(weight / limit * STEPS) + (1 if alarm else -1)
    # Counted in quarters, so that going up and down again ends exactly where it began.
    return limit * min(max(quarters, 0), STEPS) / STEPS
