"""Attention over packed trees: every branch sees the stem, its prompt and itself, nothing else.

One function, registered with transformers' AttentionInterface; linear layers, norms and MLPs of the model
run unchanged on the packed tokens. Rows are contiguous, so each is one small dense attention with a tree
mask and no padding. Measured on 8 pairs of HH-harmless lengths (1,812 tokens, 9 heads of 64, two cores,
forward and backward, ms in float32 / bfloat16): per-row matmul, softmax, matmul 23 / 13; per-row SDPA
with the same mask 24 / 29; two padded SDPA calls (prompt with first branch, then the others) 34 / 40;
prompt repeated for each branch, one padded causal SDPA 59 / 53. The plain form keeps the [L, L]
probabilities for the backward pass, so long rows go through SDPA, whose memory grows with L. A pass that is
forward only has no backward pass to lose time in, and SDPA takes less: 5.2 ms against 7 to 8 in float32, 3.0
against 5 to 9 in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from alignctl.errors import SetupError

NAME = "alignctl_tree"
LONGEST_PLAIN_ROW = 512


@dataclass(frozen=True, slots=True, eq=False)
class TreeMasks:
    """The additive masks of a packed batch, built once and shared by all layers."""

    stem: int
    """Tokens before the first row, which all rows see; 0 where there are none."""
    lengths: tuple[int, ...]
    """Of the rows."""
    masks: tuple[Tensor, ...]
    """[L, stem + L] each: 0 where a token of the row may look, -inf elsewhere; first the stem's own [S, S]
    where there is one."""
    longest_path: int
    """Tokens of the stem and the longest prompt with one branch: how far a token may look back."""
    forward_only: bool
    """The form that is fastest without a backward pass; it rounds otherwise."""


def tree_masks(
    trees: Sequence[tuple[int, ...]],
    *,
    stem: int = 0,
    dtype: torch.dtype,
    device: torch.device,
    forward_only: bool = False,
) -> TreeMasks:
    """Masks for rows of (prompt, branch, branch, ...) lengths behind a stem."""
    rows = [_row_mask(tree, stem, dtype, device) for tree in trees]
    return TreeMasks(
        stem=stem,
        lengths=tuple(map(sum, trees)),
        masks=(*([_row_mask((stem,), 0, dtype, device)] if stem else []), *rows),
        longest_path=stem + max(prompt + max(branches) for prompt, *branches in trees),
        forward_only=forward_only,
    )


def _row_mask(tree: tuple[int, ...], stem: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    length = sum(tree)
    owner = torch.repeat_interleave(torch.arange(len(tree)), torch.tensor(tree)).to(device)
    seen = (owner[:, None] == owner[None, :]) | (owner == 0)[None, :]
    allowed = seen & torch.ones(length, length, dtype=torch.bool, device=device).tril()
    own = torch.zeros(length, length, dtype=dtype, device=device).masked_fill(~allowed, float("-inf"))
    return F.pad(own, (stem, 0))


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: TreeMasks,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention in transformers' calling convention: query [1, Hq, T, D], key and value [1, Hkv, T, D].

    Returns [1, T, Hq, D]. Raises SetupError for what it does not compute, where ignoring it would be wrong
    without a sign; so the gate's proof meets it first.
    """
    needed = {
        "dropout": dropout > 0,
        f"a sliding window of {sliding_window} tokens": bool(sliding_window)
        and sliding_window < tree.longest_path,
        "a soft cap": bool(softcap),
        "attention sinks": s_aux is not None,
        "a position bias": position_bias is not None,
    }
    if any(needed.values()):
        raise SetupError(f"attention needs {', '.join(what for what, there in needed.items() if there)}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    lengths = [tree.stem, *tree.lengths] if tree.stem else list(tree.lengths)
    # split, not slices: its backward is one concatenation instead of one zero-filled tensor per row.
    queries, keys, values = (part[0].split(lengths, dim=1) for part in (query, key, value))
    if tree.stem:
        keys, values = _behind_stem(keys), _behind_stem(values)
    fused = query.is_cuda or tree.forward_only
    rows = zip(queries, keys, values, tree.masks, strict=True)
    outputs = [_row_attention(q, k, v, mask, scale, fused=fused) for q, k, v, mask in rows]
    return torch.cat(outputs, dim=1).transpose(0, 1)[None], None


def _behind_stem(parts: Sequence[Tensor]) -> list[Tensor]:
    """Stem and rows [H, ..., D]: the stem by itself, and before each of the rows."""
    stem, *rows = parts
    return [stem, *(torch.cat([stem, row], dim=1) for row in rows)]


def _row_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, *, fused: bool
) -> Tensor:
    """query [Hq, L, D], key and value [Hkv, K, D], mask [L, K] -> [Hq, L, D]."""
    heads, length, _ = query.shape
    if fused or key.shape[1] > LONGEST_PLAIN_ROW:
        return F.scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=mask, scale=scale, enable_gqa=True
        )[0]
    # Query heads that share a key head are stacked along the rows, so keys are never repeated.
    kv_heads = key.shape[0]
    stacked = query.reshape(kv_heads, heads // kv_heads * length, -1)
    bias = mask.repeat(heads // kv_heads, 1).expand(kv_heads, -1, -1)
    scores = torch.baddbmm(bias, stacked, key.transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(-1), value).reshape(heads, length, -1)


AttentionInterface.register(NAME, tree_attention)
