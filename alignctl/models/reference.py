"""Log-probabilities of fixed models: computed once, kept on disk under a name made of all they depend on.

The reference of a run, and every model of an evaluation. The name is a hash over the model's weights, the
token ids of the rows, compute dtype and layout: the same request from another run finds them, and nothing
else does. Learning rate, beta, loss or output directory do not enter; max_length, template and data enter
through the token ids they lead to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from alignctl.models.machine import cache_root
from alignctl.models.policy import Policy
from alignctl.models.scoring import Progress, score
from alignctl.models.tensor_files import read_tensors, write_tensors
from alignctl.records import Example, Scores

FORMAT = b"alignctl reference 2"
BLOCK_ROWS = 512


def tokens_fingerprint(examples: Iterable[Example]) -> str:
    """sha256 over the token ids of every row, in order."""
    digest = hashlib.sha256()
    for example in examples:
        for part in (example.prompt, *example.branches):
            digest.update(len(part).to_bytes(4, "little"))
            digest.update(np.ascontiguousarray(part, dtype="<i4").tobytes())
    return digest.hexdigest()


def cache_key(policy: Policy, fingerprint: str, examples: Sequence[Example], *, with_top: bool) -> str:
    """The name under which the scores of these rows by this reference are kept."""
    parts = (
        fingerprint,
        tokens_fingerprint(examples),
        str(policy.compute_dtype),
        policy.layout,
        str(with_top),
    )
    return hashlib.sha256(FORMAT + "\n".join(parts).encode()).hexdigest()


def cached_scores(
    policy: Policy,
    fingerprint: str,
    examples: Sequence[Example],
    *,
    token_budget: int,
    with_top: bool,
    progress: Progress | None = None,
) -> tuple[Scores, bool]:
    """Scores of the rows under the model of that fingerprint, and whether all came from the cache.

    Rows are kept by the block: a pass that was killed goes on from its last whole block, and the same rows
    in front of a longer file are found again.
    """
    parts, all_cached = [], True
    for start in range(0, len(examples), BLOCK_ROWS):
        block = examples[start : start + BLOCK_ROWS]
        scores, found = _block_scores(
            policy,
            fingerprint,
            block,
            token_budget=token_budget,
            with_top=with_top,
            progress=progress and _from_row(start, len(examples), progress),
        )
        parts.append(scores)
        all_cached &= found
    return _joined(parts), all_cached


def _from_row(start: int, rows: int, progress: Progress) -> Progress:
    return lambda done, _: progress(start + done, rows)


def _block_scores(
    policy: Policy,
    fingerprint: str,
    block: Sequence[Example],
    *,
    token_budget: int,
    with_top: bool,
    progress: Progress | None,
) -> tuple[Scores, bool]:
    key = cache_key(policy, fingerprint, block, with_top=with_top)
    path = cache_root() / "reference" / f"{key}.safetensors"
    cached = read_tensors(path)
    if cached is not None:
        return from_tensors(cached), True
    scores = score(policy, block, token_budget=token_budget, with_top=with_top, progress=progress)
    write_tensors(path, as_tensors(scores))
    return scores, False


def _joined(parts: Sequence[Scores]) -> Scores:
    named = [as_tensors(part) for part in parts]
    return from_tensors({name: torch.cat([one[name] for one in named]) for name in named[0]})


def as_tensors(scores: Scores, prefix: str = "") -> dict[str, Tensor]:
    """Named tensors for a safetensors file; `from_tensors` reverses it."""
    named = {
        "sums": scores.sums,
        "counts": scores.counts,
        "top_entropy": scores.top_entropy,
        "top_mass": scores.top_mass,
    }
    return {prefix + name: tensor.contiguous() for name, tensor in named.items() if tensor is not None}


def from_tensors(tensors: Mapping[str, Tensor], prefix: str = "") -> Scores:
    """Scores out of named tensors; KeyError when sums or counts are missing."""
    return Scores(
        sums=tensors[prefix + "sums"],
        counts=tensors[prefix + "counts"],
        top_entropy=tensors.get(prefix + "top_entropy"),
        top_mass=tensors.get(prefix + "top_mass"),
    )
