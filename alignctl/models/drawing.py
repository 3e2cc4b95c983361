"""Drawing tokens by inversion: one uniform number per token, so there is no random state to save.

A number depends on (seed, step, sample id, position) alone. Temperature comes first, then top-p on the
tempered distribution, as in transformers (nucleus sampling, arXiv 1904.09751): the fewest likeliest tokens
whose mass reaches `top_p`. Measured on 16 rows of 49,152 tokens, two cores: the cumulative sum in two steps
(blocks, then tokens of one block) takes a third of the time of a plain one; finding the 256 likeliest tokens
takes a fifteenth of the time of sorting all, and rows whose nucleus is larger are sorted by themselves.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

BLOCK = 256
"""Tokens whose probabilities are summed together when one is drawn."""
NUCLEUS = 256
"""Likeliest tokens in which the nucleus is looked for first, on a CPU."""


def uniforms(seed: int, step: int, sample_id: int, n: int) -> np.ndarray:
    """The numbers of one answer's first `n` positions: float64 [n] in [0, 1)."""
    digest = hashlib.sha256(f"sample {seed} {step} {sample_id}".encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest[:16], "little"))).random(n)


def draw(logits: Tensor, uniform: Tensor, *, temperature: float | Tensor, top_p: float) -> Tensor:
    """One token per row of `logits` float32 [n, V], by inversion at `uniform` float64 [n]; int64 [n].

    `temperature` may be float32 [n], one per row; 0 takes the likeliest token, whatever the number. At least
    one token survives `top_p`.
    """
    if isinstance(temperature, Tensor):
        greedy = temperature == 0
        drawn = _drawn(logits, uniform, torch.where(greedy, 1.0, temperature)[:, None], top_p)
        return torch.where(greedy, logits.argmax(-1), drawn)
    return logits.argmax(-1) if temperature == 0 else _drawn(logits, uniform, temperature, top_p)


def _drawn(logits: Tensor, uniform: Tensor, temperature: float | Tensor, top_p: float) -> Tensor:
    weights = (logits / temperature).sub_(logits.amax(-1, keepdim=True) / temperature).exp_()
    return _from_all(weights, uniform) if top_p >= 1 else _from_nucleus(weights, uniform, top_p)


def _from_all(weights: Tensor, uniform: Tensor) -> Tensor:
    """First the block of tokens, then the token in it: only sums of blocks and one block are in float64."""
    vocabulary = weights.shape[1]
    blocks = torch.nn.functional.pad(weights, (0, -vocabulary % BLOCK)).unflatten(1, (-1, BLOCK))
    sums = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    # Times the last sum, since weights are not divided by it.
    target = (uniform * sums[:, -1])[:, None]
    block = torch.searchsorted(sums, target, right=True).clamp_max(sums.shape[1] - 1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp_min(0)), 0.0)
    within = blocks.gather(1, block[..., None].expand(-1, 1, BLOCK))[:, 0].double().cumsum(-1)
    place = torch.searchsorted(within, target - before, right=True).clamp_max(BLOCK - 1)
    return (block * BLOCK + place)[:, 0].clamp_max(vocabulary - 1)


def _from_nucleus(weights: Tensor, uniform: Tensor, top_p: float) -> Tensor:
    wanted = top_p * weights.sum(-1, dtype=torch.float64)
    # On a GPU sorting is cheap and asking whether some rows need it would wait for the device.
    if weights.is_cuda or weights.shape[1] <= NUCLEUS:
        return _from_top(weights, uniform, wanted, weights.shape[1])[0]
    tokens, reached = _from_top(weights, uniform, wanted, NUCLEUS)
    wide = (~reached).nonzero()[:, 0]
    if len(wide):
        tokens[wide] = _from_top(weights[wide], uniform[wide], wanted[wide], weights.shape[1])[0]
    return tokens


def _from_top(weights: Tensor, uniform: Tensor, wanted: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Tokens [n] drawn from the fewest likeliest whose weights reach `wanted` [n], and where `width` did."""
    values, tokens = weights.topk(width)
    sums = values.double().cumsum(-1)
    last = (sums < wanted[:, None]).sum(-1, keepdim=True).clamp_max(width - 1)
    mass = sums.gather(1, last)
    place = torch.searchsorted(sums, uniform[:, None] * mass, right=True).minimum(last)
    return tokens.gather(1, place)[:, 0], mass[:, 0] >= wanted
