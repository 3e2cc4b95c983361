"""The vocabulary head on completion positions only, in row chunks, never [T, V] as a whole.

The log-softmax is float32 (float64 for float64 input). The backward pass needs the softmax again: it is kept
while it fits `KEPT_BYTES`, recomputed block by block above that. Its gradient is one matrix product per block
for the hidden states and one for the weight, so nothing is rounded per vocabulary chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 48 * 2**20
"""Of float32 logits that one matrix product makes: 256 rows at 49,152 tokens."""
CACHED_BYTES = 3 * 2**20
"""Of log-probabilities made from them at a time on a CPU, which its cache holds. On 736 rows of 49,152
tokens, forward: 110 ms in blocks of 256 rows, 85 in blocks of 8 or 16; matrix products alone 35."""
KEPT_BYTES = 512 * 2**20
TOP_K = 10


@dataclass(frozen=True, slots=True, eq=False)
class TokenScores:
    """What one pass over the head yields for N positions, without gradients."""

    logps: Tensor
    """float [N]."""
    top_entropy: Tensor
    """float [N]: entropy in bits of the ten likeliest tokens, renormalised (arXiv 2410.11677)."""
    top_mass: Tensor
    """float [N]: raw probability of those ten."""


def token_logps(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Differentiable log-probabilities of `targets` [N] given `hidden` [N, H] and `weight` [V, H].

    Returns float32 [N] (float64 for float64 input). Matrix products run in hidden's dtype, the weight's
    gradient is summed in the weight's own. Call it outside autocast.
    """
    return _TokenLogps.apply(hidden, weight, bias, targets)  # type: ignore[no-any-return]


@torch.no_grad()
def token_scores(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> TokenScores:
    """Log-probabilities with top-10 entropy and mass from the same logits."""
    parts = []
    for rows, log_p in log_softmax_blocks(hidden, *in_dtype_of_hidden(weight, bias, hidden)):
        found = _scores(log_p, targets[rows])
        parts.append((found.logps, found.top_entropy, found.top_mass))
    logps, entropy, mass = (torch.cat(part) for part in zip(*parts, strict=True))
    return TokenScores(logps, entropy, mass)


def scores_of_logits(logits: Tensor, targets: Tensor) -> TokenScores:
    """The same of logits [N, V] that are there already."""
    return _scores(logits - logits.logsumexp(-1, keepdim=True), targets)


def _scores(log_p: Tensor, targets: Tensor) -> TokenScores:
    top = log_p.topk(min(TOP_K, log_p.shape[-1]), dim=-1).values.exp()
    mass = top.sum(-1)
    share = top / mass[:, None]
    entropy = -(share * share.clamp_min(torch.finfo(share.dtype).tiny).log2()).sum(-1)
    return TokenScores(_of_targets(log_p, targets), entropy, mass)


def in_dtype_of_hidden(weight: Tensor, bias: Tensor | None, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """The head in hidden's dtype: bfloat16 products over float32 master weights."""
    return weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)


def log_softmax_blocks(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Rows of `hidden` [N, H] in order, with log pi [n, V] of each, at least float32, to be used up."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    chunk = rows_of(CHUNK_BYTES, weight)
    step = rows_of(CACHED_BYTES, weight) if hidden.device.type == "cpu" else chunk
    for start in range(0, len(hidden), chunk):
        logits = F.linear(hidden[start : start + chunk], weight, bias)
        for first in range(0, len(logits), step):
            piece = logits[first : first + step]
            rows = slice(start + first, start + first + len(piece))
            log_p = piece.to(wide)
            # Not log_softmax: in float32 on a CPU its sum over 49,152 terms is off by 1e-5 nats a token.
            yield rows, log_p.sub_(log_p.logsumexp(-1, keepdim=True))


def rows_of(size: int, weight: Tensor) -> int:
    """How many rows of float32 logits of that head take about `size` bytes; one at least."""
    return max(1, size // (4 * weight.shape[0]))


def _of_targets(log_p: Tensor, targets: Tensor) -> Tensor:
    """[n, V] and [n] -> [n]."""
    return log_p.gather(1, targets[:, None])[:, 0]


@dataclass(frozen=True, slots=True, eq=False)
class HeadGradients:
    """Gradients of the head's inputs, gathered block by block of rows; None for what needs none."""

    hidden: Tensor | None
    """[N, H]; each block writes its own rows."""
    weight: Tensor | None
    """[V, H], in the weight's own dtype."""
    bias: Tensor | None

    @staticmethod
    def of(needed: Sequence[bool], hidden: Tensor, weight: Tensor, bias: Tensor | None) -> HeadGradients:
        """Nothing in it yet; `needed` says which of hidden, weight and bias are asked for."""
        return HeadGradients(
            torch.empty_like(hidden) if needed[0] else None,
            torch.empty_like(weight) if needed[1] else None,
            torch.empty_like(bias) if needed[2] and bias is not None else None,
        )

    def add(self, block: slice, d_logits: Tensor, hidden: Tensor, compute_weight: Tensor) -> None:
        """Add what `d_logits` [n, V], the gradient of the logits of rows `block`, gives to each.

        Blocks come in order: the first one fills what the others are added to.
        """
        if self.hidden is not None:
            torch.mm(d_logits, compute_weight, out=self.hidden[block])
        add = torch.Tensor.add_ if block.start else torch.Tensor.copy_
        if self.weight is not None:
            add(self.weight, d_logits.T @ hidden[block])
        if self.bias is not None:
            add(self.bias, d_logits.sum(0))


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        rows, vocabulary = len(targets), weight.shape[0]
        keep = rows * vocabulary * hidden.element_size() <= KEPT_BYTES and any(ctx.needs_input_grad)
        kept = hidden.new_empty(rows, vocabulary) if keep else None
        logps = []
        for block, log_p in log_softmax_blocks(hidden, *in_dtype_of_hidden(weight, bias, hidden)):
            logps.append(_of_targets(log_p, targets[block]))
            if kept is not None:
                kept[block] = log_p.exp_()
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.kept = kept
        return torch.cat(logps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:  # type: ignore[override]
        hidden, weight, bias, targets = ctx.saved_tensors
        # Used up in place below; a second backward pass finds none and recomputes.
        kept, ctx.kept = ctx.kept, None
        rows = len(targets)
        compute_weight, compute_bias = in_dtype_of_hidden(weight, bias, hidden)
        block_rows = rows if kept is not None else rows_of(KEPT_BYTES, weight)
        gradients = HeadGradients.of(ctx.needs_input_grad[:3], hidden, weight, bias)
        for start in range(0, rows, block_rows):
            block = slice(start, start + block_rows)
            softmax = _softmax(hidden[block], compute_weight, compute_bias) if kept is None else kept
            # d logp / d logits = onehot(target) - softmax.
            scale = grad[block].to(hidden.dtype)
            d_logits = softmax.mul_(-scale[:, None])
            d_logits.scatter_add_(1, targets[block, None], scale[:, None])
            gradients.add(block, d_logits, hidden, compute_weight)
        return gradients.hidden, gradients.weight, gradients.bias, None


def _softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[n, V] in hidden's dtype."""
    softmax = hidden.new_empty(len(hidden), weight.shape[0])
    for rows, log_p in log_softmax_blocks(hidden, weight, bias):
        softmax[rows] = log_p.exp_()
    return softmax
