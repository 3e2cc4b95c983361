"""A key-value cache with room to spare, so that a decode step copies nothing but its own token.

transformers' DynamicCache concatenates all it holds with every new token, which took half of a decode step
(16 rows of 200 tokens, 30 layers, float32, two cores). Here a layer's keys and values are the first rows and
columns of larger stores: a token is written in place, and where rows leave, the last ones are copied to their
places. Rows of several caches are put together right-aligned, so that all go on in the same column.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

ROOM = 64
"""Columns by which full stores grow; growing copies them."""


def keeps_all(model: PreTrainedModel, longest: int) -> bool:
    """Whether every layer keeps keys and values alone, and all of them up to `longest` tokens.

    Recurrent layers, and windows that forget, need transformers' own cache.
    """
    return all(
        type(layer) is DynamicLayer
        or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window > longest)
        for layer in DynamicCache(config=model.config).layers
    )


class _RoomyLayer(DynamicLayer):
    """One layer's keys and values [rows, heads, columns, dim] as views of its stores."""

    keys: Tensor  # type: ignore[assignment]
    values: Tensor  # type: ignore[assignment]

    def __init__(self, stores: Sequence[Tensor], columns: int) -> None:
        super().__init__()
        self.stores = tuple(stores)
        self.dtype, self.device, self.is_initialized = stores[0].dtype, stores[0].device, True
        self.keys, self.values = (store[:, :, :columns] for store in stores)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        rows, _, begin, _ = self.keys.shape
        end = begin + key_states.shape[2]
        if end > self.stores[0].shape[2]:
            self.stores = tuple(nn.functional.pad(held, (0, 0, 0, ROOM)) for held in (self.keys, self.values))
        for store, states in zip(self.stores, (key_states, value_states), strict=True):
            store[:rows, :, begin:end] = states
        self.keys, self.values = (store[:rows, :, :end] for store in self.stores)
        return self.keys, self.values

    def keep(self, rows: int, holes: Tensor, fillers: Tensor) -> None:
        """Keep the first `rows` rows, once the rows `fillers` have been copied to the places `holes`."""
        for held in (self.keys, self.values):
            held[holes] = held[fillers]
        self.keys, self.values = self.keys[:rows], self.values[:rows]


class RoomyCache(DynamicCache):
    """Takes one token per row at a time; made by `merged_cache`."""

    layers: list[_RoomyLayer]  # type: ignore[assignment]

    def __init__(self, layers: list[_RoomyLayer]) -> None:
        super().__init__()
        self.layers = layers

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row beam_idx[i] was; int64 [at most rows], on the CPU."""
        holes = (beam_idx != torch.arange(len(beam_idx))).nonzero()[:, 0]
        places, fillers = (index.to(self.layers[0].device) for index in (holes, beam_idx[holes]))
        for layer in self.layers:
            layer.keep(len(beam_idx), places, fillers)


def merged_cache(
    parts: Sequence[tuple[DynamicCache, Tensor]], columns: int, dtype: torch.dtype | None
) -> RoomyCache:
    """The given rows (int64, with repetition) of each cache below each other, right-aligned.

    Keeps the last `columns` tokens, in `dtype` if given. Takes the layers out of the caches, one at a time,
    so that the old ones' memory is free for the new.
    """
    layers = []
    while parts[0][0].layers:
        old = [(cache.layers.pop(0), rows) for cache, rows in parts]
        keys = [_taken(layer.keys, rows, columns) for layer, rows in old]  # type: ignore[union-attr]
        values = [_taken(layer.values, rows, columns) for layer, rows in old]  # type: ignore[union-attr]
        layers.append(_RoomyLayer([_right_aligned(held, columns, dtype) for held in (keys, values)], columns))
    return RoomyCache(layers)


def _taken(held: Tensor, rows: Tensor, columns: int) -> Tensor:
    """Rows of keys or values [rows, heads, any, dim], the last `columns` of them."""
    return held[:, :, -columns:].index_select(0, rows)


def _right_aligned(parts: Sequence[Tensor], columns: int, dtype: torch.dtype | None) -> Tensor:
    """Parts [n, heads, at most columns, dim] below each other, zeros at the left and ROOM at the right."""
    _, heads, _, dim = parts[0].shape
    store = parts[0].new_zeros(sum(map(len, parts)), heads, columns + ROOM, dim, dtype=dtype)
    begin = 0
    for part in parts:
        store[begin : begin + len(part), :, columns - part.shape[2] : columns] = part
        begin += len(part)
    return store
