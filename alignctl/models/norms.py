"""RMS normalisation in one autograd node, in place of the model's own (arXiv 1910.07467).

Architectures write it as five or six operations, each of which keeps its result for the backward pass, and
under autocast leave a float32 result that each of the next linear layers casts anew. Here the input and one
number a token are kept, and the result leaves in the dtype that those layers want. Measured on 1,345 tokens
of width 576 with the three linear layers after it, forward and backward, two cores: 11.7 ms as written, 12.0
with `torch.nn.functional.rms_norm`, 7.5 here in bfloat16; 16.4, 17.0 and 14.4 in float32.

A norm is replaced where its own forward pass, tried on random numbers, is that of this module; any other
stays as it is.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class FusedRmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (offset + weight) over the last dimension, in at least float32."""

    def __init__(self, weight: nn.Parameter, *, eps: float, offset: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps
        self.offset = offset

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Same shape; under autocast in its dtype, else in the one that the weight and the input share."""
        kind = hidden_states.device.type
        dtype = (
            torch.get_autocast_dtype(kind)
            if torch.is_autocast_enabled(kind)
            else torch.promote_types(hidden_states.dtype, self.weight.dtype)
        )
        return _RmsNorm.apply(hidden_states, self.weight, self.eps, self.offset, dtype)  # type: ignore[no-any-return]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, eps: float, offset: float, dtype: torch.dtype
    ) -> Tensor:
        wide = _wide(hidden)
        mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(wide.shape[-1])
        inverse = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(hidden, weight, inverse)
        ctx.offset = offset
        return (wide * inverse).mul_(weight + offset if offset else weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, inverse = ctx.saved_tensors
        normed = _wide(hidden) * inverse
        grad = grad.to(normed.dtype)
        d_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None, None, None
        scaled = grad * (weight + ctx.offset if ctx.offset else weight)
        along = torch.linalg.vecdot(scaled, normed, dim=-1).div_(normed.shape[-1])[..., None]
        d_hidden = torch.addcmul(scaled, normed, along, value=-1).mul_(inverse)
        return d_hidden.to(hidden.dtype), d_weight, None, None, None


def _wide(hidden: Tensor) -> Tensor:
    return hidden if hidden.dtype == torch.float64 else hidden.float()


def fuse_norms(model: nn.Module) -> int:
    """Replace every RMS norm of the model by one that shares its weight; returns how many."""
    fused = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            found = _fused(child)
            if found is not None:
                parent.register_module(name, found)
                fused += 1
    return fused


def _fused(norm: nn.Module) -> FusedRmsNorm | None:
    """The same norm in one node; None where this is none, or not one of ours."""
    parameters = dict(norm.named_parameters())
    takes = [one for one in inspect.signature(norm.forward).parameters if one != "self"]
    if "RMSNorm" not in type(norm).__name__ or list(parameters) != ["weight"] or len(takes) != 1:
        return None
    weight = parameters["weight"]
    eps = next((one for key, one in vars(norm).items() if "eps" in key and isinstance(one, float)), None)
    if weight.dim() != 1 or eps is None:
        return None
    with torch.no_grad():
        # Small enough for eps to show; a seed of its own leaves the run's random numbers alone.
        draw = torch.Generator().manual_seed(0)
        tried = torch.randn(1, 4, 3, len(weight), generator=draw).to(weight) * eps**0.5
        expected = norm(tried)
        for offset in (0.0, 1.0):
            candidate = FusedRmsNorm(nn.Parameter(weight), eps=eps, offset=offset)
            # Another order of the same operations: a few roundings of the weight's dtype.
            if torch.allclose(candidate(tried), expected, rtol=16 * torch.finfo(weight.dtype).eps, atol=0.0):
                candidate.weight = weight
                return candidate.train(norm.training)
    return None
