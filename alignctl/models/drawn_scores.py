"""What the policy says of a token at the moment it draws it: log-probability, top-10 entropy and mass.

Its logits are there anyway: to read 32 finished answers once more (SmolLM2-135M, float32, one core) took 6 s,
as long as the reference takes for them. In float32 both agree to rounding. In bfloat16 a decode step and a
pass over whole answers round differently, as two models would: log pi - log ref of one model came to 0.3 nats
an answer of 44 tokens, of either sign, on average -0.003 (standard error 0.002) a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from alignctl.models.head import scores_of_logits
from alignctl.records import Scores


class DrawnScores:
    """Gathers the scores of some of the answers that are sampled, token by token."""

    def __init__(self, scored: Sequence[bool], longest: int) -> None:
        """`scored` says of each answer whether it is; none is longer than `longest` tokens."""
        self._scored = np.array(scored, dtype=bool)
        self._rows = self._scored.cumsum() - 1
        self._values = torch.zeros(3, int(self._scored.sum()), longest)

    def add(self, answers: np.ndarray, columns: np.ndarray, logits: Tensor, tokens: Tensor) -> None:
        """`tokens` [n] drawn from `logits` float32 [n, V] go to places `columns` [n] of `answers` [n]."""
        kept = np.flatnonzero(self._scored[answers])
        if not len(kept):
            return
        index = torch.from_numpy(kept).to(logits.device)
        found = scores_of_logits(logits[index], tokens[index])
        self._values = self._values.to(logits.device)
        values = torch.stack([found.logps, found.top_entropy, found.top_mass])
        self._values[:, self._rows[answers[kept]], columns[kept]] = values

    def of(self, answers: Sequence[np.ndarray]) -> Scores:
        """Sums over the tokens of the scored ones among all answers, [n, 1] each, on the CPU; what was drawn
        behind an answer's end does not count."""
        lengths = [len(answer) for answer, scored in zip(answers, self._scored, strict=True) if scored]
        counts = torch.tensor(lengths)[:, None]
        within = torch.arange(self._values.shape[2]) < counts
        # In float64, rounded once, as a pass over whole answers adds them up.
        sums = (self._values.cpu().double() * within).sum(-1, keepdim=True).float()
        return Scores(sums[0], counts, sums[1], sums[2])
