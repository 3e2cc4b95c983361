"""Log-probabilities of tokens with the KL divergence to a reference over the whole vocabulary, in row chunks.

KL = sum over v of p (log p - log q) at each position, p the policy and q the reference, and

    d logp / d logits = onehot(target) - p        d KL / d logits = p (log p - log q - KL)

The divergence is summed as p (log p - log q) + q - p. Both sums of probabilities are one, so nothing is
added but the error of their normalisers, which then cancels: close to the reference KL is of second order
in the difference, and in float32 the plain sum would be all rounding. As in head.py, what the backward pass
needs (here p and the KL's gradient) is kept while it fits `KEPT_BYTES`, and recomputed above that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignctl.models import head
from alignctl.models.head import HeadGradients, in_dtype_of_hidden, log_softmax_blocks, rows_of


def token_logps_and_kl(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ref_hidden: Tensor,
    ref_weight: Tensor,
    ref_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of `targets` [N] and KL(policy || reference) in nats at each position, [N] each.

    `hidden` [N, H] and `weight` [V, H] are the policy's, `ref_hidden` [N, H'] and `ref_weight` [V, H'] the
    reference's; the weights may be one tensor. Both results are float32 (float64 for float64 input) and
    differentiable with respect to hidden, weight and bias, never to the reference's. Call it outside
    autocast.
    """
    reference = (ref_hidden.detach(), ref_weight.detach(), None if ref_bias is None else ref_bias.detach())
    return _TokenLogpsAndKl.apply(hidden, weight, bias, targets, *reference)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """What a block of n rows yields."""

    logps: Tensor
    """float [n]."""
    kl: Tensor
    """float [n]."""
    softmax: Tensor
    """float [n, V]."""
    kl_slope: Tensor
    """float [n, V]: d KL / d logits."""


def _block(log_p: Tensor, log_q: Tensor, targets: Tensor) -> _Block:
    """From the log-softmax [n, V] of both, which are used up."""
    logps = log_p.gather(1, targets[:, None])[:, 0]
    softmax = log_p.exp()
    weighted = log_p.sub_(log_q).mul_(softmax)
    kl = log_q.exp_().sub_(softmax).add_(weighted).sum(-1)
    return _Block(logps, kl, softmax, weighted.addcmul_(softmax, kl[:, None], value=-1))


_Head = tuple[Tensor, Tensor, Tensor | None]
"""Hidden states, weight and bias, of one dtype."""


def _blocks(policy: _Head, reference: _Head, targets: Tensor) -> Iterator[tuple[slice, _Block]]:
    """Rows in order, and what they yield."""
    both = zip(log_softmax_blocks(*policy), log_softmax_blocks(*reference), strict=True)
    for (rows, log_p), (_, log_q) in both:
        yield rows, _block(log_p, log_q, targets[rows])


class _TokenLogpsAndKl(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        ref_hidden: Tensor,
        ref_weight: Tensor,
        ref_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        rows, vocabulary = len(targets), weight.shape[0]
        policy = hidden, *in_dtype_of_hidden(weight, bias, hidden)
        reference = ref_hidden, *in_dtype_of_hidden(ref_weight, ref_bias, ref_hidden)
        needed = 2 * rows * vocabulary * hidden.element_size()
        keep = needed <= head.KEPT_BYTES and any(ctx.needs_input_grad)
        kept = hidden.new_empty(2, rows, vocabulary) if keep else None
        logps, kl = [], []
        for block, found in _blocks(policy, reference, targets):
            logps.append(found.logps)
            kl.append(found.kl)
            if kept is not None:
                kept[0, block], kept[1, block] = found.softmax, found.kl_slope
        ctx.save_for_backward(hidden, weight, bias, targets, ref_hidden, ref_weight, ref_bias)
        ctx.kept = kept
        return torch.cat(logps), torch.cat(kl)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logps: Tensor, grad_kl: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, bias, targets, ref_hidden, ref_weight, ref_bias = ctx.saved_tensors
        # Used up in place below; a second backward pass finds none and recomputes.
        kept, ctx.kept = ctx.kept, None
        rows = len(targets)
        policy = in_dtype_of_hidden(weight, bias, hidden)
        reference = in_dtype_of_hidden(ref_weight, ref_bias, ref_hidden)
        gradients = HeadGradients.of(ctx.needs_input_grad[:3], hidden, weight, bias)
        block_rows = rows if kept is not None else rows_of(head.CHUNK_BYTES, weight)
        for start in range(0, rows, block_rows):
            block = slice(start, start + block_rows)
            if kept is None:
                both = hidden.new_empty(2, len(targets[block]), weight.shape[0])
                again = _blocks((hidden[block], *policy), (ref_hidden[block], *reference), targets[block])
                for place, found in again:
                    both[0, place], both[1, place] = found.softmax, found.kl_slope
            else:
                both = kept
            softmax, kl_slope = both
            scale = grad_logps[block, None].to(hidden.dtype)
            d_logits = softmax.mul_(-scale).addcmul_(kl_slope, grad_kl[block, None].to(hidden.dtype))
            d_logits.scatter_add_(1, targets[block, None], scale)
            gradients.add(block, d_logits, hidden, policy[0])
        return gradients.hidden, gradients.weight, gradients.bias, None, None, None, None
