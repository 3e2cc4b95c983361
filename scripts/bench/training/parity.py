"""Whether two sides compute the same: loss and gradient norm of the first steps, before anything is timed.

Decision. In float32 the steps are made, so that the optimisers are compared too; in bfloat16 their rate is 0.
AdamW's first update moves every weight by the learning rate in the direction of its gradient's sign; where
that gradient is smaller than rounding, two sound sides take opposite ways, and from then on differ by more
than their arithmetic. Measured on SmolLM2 with 8 pairs of HH: float32, all sides within 3e-6 at both steps;
bfloat16 with a rate of 1e-6, 0.1 % apart at the first step and up to 4.3 % at the second, where all were 1 to
5 % off float32's norm. And bfloat16 is allowed five per cent: alignctl scores its reference in batches of
their own, whose products round otherwise than a step's, which puts policy and reference 0.1 nats of 134 apart
at the start on HH, more on made-up tokens; in float32 they are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

from measurements import Parity

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""By how much a figure may differ from alignctl's, relative to it."""


class Disagreement(Exception):
    """Two sides differ; its text is the line that is shown."""


def check_parity(found: Sequence[Parity]) -> None:
    """Raise Disagreement unless every side has the first one's figures; all are of one case."""
    ours = found[0]
    for other in found[1:]:
        for what, mine, theirs in (
            ("loss", ours.loss, other.loss),
            ("gradient norm", ours.grad_norm, other.grad_norm),
        ):
            if len(mine) != len(theirs):
                raise Disagreement(f"{ours.side} made {len(mine)} steps, {other.side} {len(theirs)}")
            for step, (a, b) in enumerate(zip(mine, theirs, strict=True)):
                limit = TOLERANCE[ours.case.dtype]
                # Written so that a NaN on either side is a difference.
                if not abs(a - b) <= limit * abs(a):
                    raise Disagreement(
                        f"{ours.side} and {other.side} differ at step {step + 1} of {ours.case.name}: "
                        f"{what} {a:.6g} and {b:.6g}, {abs(a - b) / abs(a):.1e} apart (limit {limit:g})"
                    )


def largest_difference(found: Sequence[Parity]) -> float:
    """Relative to the first side's figures, over all sides, steps, losses and norms."""
    ours = found[0]
    return max(
        abs(a - b) / abs(a)
        for other in found[1:]
        for a, b in zip(ours.loss + ours.grad_norm, other.loss + other.grad_norm, strict=True)
    )
