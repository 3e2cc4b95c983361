"""What a model answers before its first step, kept in the cache: drawn once for all runs that begin with it.

On two cores (SmolLM2-135M, float32, 116 answers of up to 64 tokens) drawing them took 40 of the 63 seconds to
the end of the first step; a sweep, or a run begun again, reads them. The name is a hash over all that a draw
depends on, as that of a reference's scores is (reference.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alignctl.models.machine import cache_root
from alignctl.models.reference import as_tensors, from_tensors
from alignctl.models.tensor_files import read_tensors, write_tensors
from alignctl.records import Scores

FORMAT = b"alignctl answers 1"
Drawn = tuple[list[np.ndarray], Scores]
"""Answers, int32 up to the longest allowed, and the scores of those that were to be scored."""


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """All that decides a model's answers."""

    fingerprint: str
    """Of the model."""
    dtype: torch.dtype
    """It computes in."""
    prompts: Sequence[np.ndarray]
    """int32 [P] each, one for each answer."""
    sample_ids: Sequence[int]
    temperatures: Sequence[float]
    scored: Sequence[bool]
    """Which answers' scores are wanted."""
    stop: Sequence[int]
    max_new_tokens: int
    seed: int

    @property
    def path(self) -> Path:
        """The place of these answers, and of no others."""
        settings = [
            self.fingerprint,
            str(self.dtype),
            [prompt.tolist() for prompt in self.prompts],
            [*self.sample_ids],
            [*self.temperatures],
            [*self.scored],
            sorted(self.stop),
            self.max_new_tokens,
            self.seed,
        ]
        name = hashlib.sha256(FORMAT + json.dumps(settings).encode()).hexdigest()
        return cache_root() / "answers" / f"{name}.safetensors"


def kept_answers(wanted: Draw, draw: Callable[[], Drawn]) -> Drawn:
    """The answers of an earlier call for the same, or those that `draw` gives, which are then kept."""
    path = wanted.path
    kept = read_tensors(path)
    if kept is not None:
        return _answers(kept), from_tensors(kept)
    answers, scores = draw()
    write_tensors(path, _tensors(answers) | as_tensors(scores))
    return answers, scores


def _tensors(answers: Sequence[np.ndarray]) -> dict[str, Tensor]:
    lengths = torch.tensor([len(answer) for answer in answers])
    return {"tokens": torch.from_numpy(np.concatenate(answers)), "lengths": lengths}


def _answers(tensors: dict[str, Tensor]) -> list[np.ndarray]:
    return [part.numpy() for part in tensors["tokens"].split(tensors["lengths"].tolist())]
