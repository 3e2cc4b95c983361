"""The stem of prompts: read once, moved up to where each rest begins."""

from __future__ import annotations

import numpy as np
import torch
from transformers import DynamicCache

from alignctl.models.policy import set_attention
from alignctl.models.prompt_stem import NO_STEM, close_gaps, read_stem


def filled(rows: int, columns: int) -> DynamicCache:
    """Two layers [rows, 2, columns, 3] whose numbers tell row and column."""
    cache = DynamicCache()
    for layer in range(2):
        keys = (100 * torch.arange(rows)[:, None] + torch.arange(columns)).float()
        keys = keys[:, None, :, None].expand(-1, 2, -1, 3) + 0.1 * layer
        cache.update(keys, -keys, layer)
    return cache


def test_a_stem_is_moved_over_the_padding_of_its_row() -> None:
    cache = filled(3, 7)
    close_gaps(cache, 2, torch.tensor([0, 1, 3]))
    for number, layer in enumerate(cache.layers):
        found = (layer.keys[:, 0, :, 0] - 0.1 * number).round().long().tolist()
        assert found[0] == [0, 1, 2, 3, 4, 5, 6]
        assert found[1][1:] == [100, 101, 103, 104, 105, 106]  # what is left of it is hidden
        assert found[2][3:] == [200, 201, 205, 206]
        assert torch.equal(layer.values, -layer.keys)
        assert torch.equal(layer.keys, layer.keys[:, :1, :, :1].expand_as(layer.keys))


def test_nothing_moves_without_a_stem_or_without_padding() -> None:
    cache = filled(2, 4)
    before = [layer.keys.clone() for layer in cache.layers]
    close_gaps(cache, 0, torch.tensor([0, 3]))
    close_gaps(cache, 3, torch.tensor([0, 0]))
    assert all(torch.equal(a.keys, b) for a, b in zip(cache.layers, before, strict=True))


def test_a_cache_goes_on_from_the_stem_as_if_it_had_read_it(tiny) -> None:
    model = tiny(dtype=torch.float32)
    set_attention(model, "padded")
    prompts = [np.arange(3, 15, dtype=np.int32), np.array([*range(3, 12), 40, 41], dtype=np.int32)]
    with torch.no_grad():
        stem = read_stem(model, prompts)
        assert stem.length == 9
        whole, forked = DynamicCache(config=model.config), stem.cache(model, 2)
        model(input_ids=torch.arange(3, 12)[None], past_key_values=whole, use_cache=True)
    assert forked.get_seq_length() == 9
    for found, expected in zip(forked.layers, whole.layers, strict=True):
        assert found.keys.shape[0] == 2
        assert torch.equal(found.keys, expected.keys.expand_as(found.keys))
        assert torch.equal(found.values, expected.values.expand_as(found.values))


def test_one_prompt_and_prompts_that_begin_otherwise_have_none(tiny) -> None:
    one, other = np.arange(3, 15, dtype=np.int32), np.arange(4, 16, dtype=np.int32)
    assert read_stem(tiny(), [one]) is read_stem(tiny(), [one, other]) is NO_STEM
    assert NO_STEM.cache(tiny(), 3).get_seq_length() == 0
