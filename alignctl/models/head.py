"""The vocabulary head on completion positions only, in row chunks, never [T, V] as a whole.

log pi(token) = logit(token) - logsumexp(logits), with the log-sum-exp in float32 (float64 for float64
input). The backward pass needs the softmax again: it is kept while it fits `KEPT_BYTES`, recomputed
block by block above that. Its gradient is one matrix product per block for the hidden states and one for
the weight, so nothing is rounded per vocabulary chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ROWS = 256
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
    weight, bias = in_dtype_of_hidden(weight, bias, hidden)
    for rows in torch.arange(len(targets), device=hidden.device).split(CHUNK_ROWS):
        logits = logits_of(hidden[rows], weight, bias)
        normaliser = logits.logsumexp(-1, keepdim=True)
        logps = logits.gather(1, targets[rows, None]) - normaliser
        top = (logits.topk(min(TOP_K, logits.shape[-1]), dim=-1).values - normaliser).exp()
        mass = top.sum(-1)
        share = top / mass[:, None]
        entropy = -(share * share.clamp_min(torch.finfo(share.dtype).tiny).log2()).sum(-1)
        parts.append((logps[:, 0], entropy, mass))
    logps, entropy, mass = (torch.cat(part) for part in zip(*parts, strict=True))
    return TokenScores(logps, entropy, mass)


def in_dtype_of_hidden(weight: Tensor, bias: Tensor | None, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """The head in hidden's dtype: bfloat16 products over float32 master weights."""
    return weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[n, V] in at least float32."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return logits if logits.dtype == torch.float64 else logits.float()


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
        compute_weight, compute_bias = in_dtype_of_hidden(weight, bias, hidden)
        keep = rows * vocabulary * hidden.element_size() <= KEPT_BYTES and any(ctx.needs_input_grad)
        kept = hidden.new_empty(rows, vocabulary) if keep else None
        logps, normaliser = [], []
        for start in range(0, rows, CHUNK_ROWS):
            block = slice(start, start + CHUNK_ROWS)
            logits = logits_of(hidden[block], compute_weight, compute_bias)
            lse = logits.logsumexp(-1, keepdim=True)
            logps.append((logits.gather(1, targets[block, None]) - lse)[:, 0])
            normaliser.append(lse)
            if kept is not None:
                kept[block] = logits.sub_(lse).exp_()
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normaliser))
        ctx.kept = kept
        return torch.cat(logps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:  # type: ignore[override]
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        # Used up in place below; a second backward pass finds none and recomputes.
        kept, ctx.kept = ctx.kept, None
        rows, vocabulary = len(targets), weight.shape[0]
        compute_weight, compute_bias = in_dtype_of_hidden(weight, bias, hidden)
        block_rows = rows if kept is not None else max(1, KEPT_BYTES // (vocabulary * 4))
        gradients = HeadGradients.of(ctx.needs_input_grad[:3], hidden, weight, bias)
        for start in range(0, rows, block_rows):
            block = slice(start, start + block_rows)
            if kept is not None:
                softmax = kept
            else:
                logits = logits_of(hidden[block], compute_weight, compute_bias)
                softmax = logits.sub_(normaliser[block]).exp_().to(hidden.dtype)
            # d logp / d logits = onehot(target) - softmax.
            scale = grad[block].to(hidden.dtype)
            d_logits = softmax.mul_(-scale[:, None])
            d_logits.scatter_add_(1, targets[block, None], scale[:, None])
            gradients.add(block, d_logits, hidden, compute_weight)
        return gradients.hidden, gradients.weight, gradients.bias, None
