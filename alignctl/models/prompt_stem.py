"""What all prompts begin with, read once: its keys and values, from which the cache of every prompt goes on.

A pass reads the rests of its prompts behind it, padded on the left, so that padding comes to lie between the
two; `close_gaps` then moves the stem up to where each rest begins, as decoding and the merging of caches know
rows by their right ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from alignctl.models.packing import common_beginning


@dataclass(frozen=True, slots=True, eq=False)
class Stem:
    """The beginning of some prompts; no tokens where they have none in common."""

    length: int
    layers: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values [1, heads, length, dim] of every layer."""

    def cache(self, model: PreTrainedModel, rows: int) -> DynamicCache:
        """A cache of `rows` rows that has read the stem."""
        cache = DynamicCache(config=model.config)
        for number, held in enumerate(self.layers):
            keys, values = (one.expand(rows, -1, -1, -1) for one in held)
            cache.update(keys, values, number)
        return cache


NO_STEM = Stem(0, ())


def read_stem(model: PreTrainedModel, prompts: Sequence[np.ndarray]) -> Stem:
    """What the prompts have in common, read by the model, whose layers must keep all keys and values."""
    length = common_beginning(prompts) if len(prompts) > 1 else 0
    if not length:
        return NO_STEM
    ids = torch.from_numpy(prompts[0][:length].astype(np.int64))[None].to(model.device)
    cache = DynamicCache(config=model.config)
    # The head on one token, as there is no way to leave it out.
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return Stem(length, tuple((layer.keys, layer.values) for layer in cache.layers))  # type: ignore[misc]


def close_gaps(cache: DynamicCache, stem: int, gaps: Tensor) -> None:
    """Move the first `stem` columns of row i to the right by gaps[i] (int64 [rows]), over its padding."""
    if not stem or not gaps.any():
        return
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)  # where not all layers are, no stem is read
        assert layer.keys is not None
        assert layer.values is not None
        columns = torch.arange(layer.keys.shape[2], device=gaps.device)
        moved = (columns >= gaps[:, None]) & (columns < stem + gaps[:, None])
        source = torch.where(moved, columns - gaps[:, None], columns)[:, None, :, None]
        layer.keys = layer.keys.gather(2, source.expand_as(layer.keys))
        layer.values = layer.values.gather(2, source.expand_as(layer.values))
