"""The roomy cache: it holds what concatenation would hold, through growth, leaving rows and merging."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from transformers import DynamicCache

from alignctl.models import kv_cache
from alignctl.models.kv_cache import keeps_all, merged_cache

LAYERS, HEADS, DIM = 2, 3, 4


def states(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, rows, HEADS, columns, DIM, generator=generator) for _ in range(LAYERS)]


def filled(rows, columns, seed):
    cache = DynamicCache()
    for number, (keys, values) in enumerate(states(rows, columns, seed)):
        cache.update(keys, values, number)
    return cache


def held(cache):
    return [torch.stack([layer.keys, layer.values]) for layer in cache.layers]


def same(left, right):
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


@pytest.mark.parametrize("room", [1, 3, 64])
def test_it_holds_what_concatenation_holds(monkeypatch, room):
    """Ten tokens, rows leaving twice in between; each update returns all that is held."""
    monkeypatch.setattr(kv_cache, "ROOM", room)
    wanted = states(5, 6, 0)
    cache = merged_cache([(filled(5, 6, 0), torch.arange(5))], 6, None)
    for step in range(10):
        new = states(wanted[0].shape[1], 1, step + 1)
        wanted = [torch.cat([old, one], dim=3) for old, one in zip(wanted, new, strict=True)]
        given = [torch.stack(cache.update(*one, number)) for number, one in enumerate(new)]
        assert same(given, wanted)
        assert cache.get_seq_length() == 7 + step
        if step in (2, 6):
            kept = torch.tensor([0, 4, 2] if step == 2 else [2])
            cache.reorder_cache(kept)
            wanted = [one[:, kept] for one in wanted]
            assert same(held(cache), wanted)


def test_any_order_of_rows_can_be_kept():
    cache = merged_cache([(filled(4, 3, 0), torch.arange(4))], 3, None)
    order = torch.tensor([3, 0, 1])
    cache.reorder_cache(order)
    assert same(held(cache), [one[:, order] for one in states(4, 3, 0)])


def test_parts_are_right_aligned_with_repeated_rows():
    cache = merged_cache(
        [(filled(2, 5, 0), torch.tensor([0, 0, 1])), (filled(3, 2, 1), torch.tensor([2, 0]))], 4, None
    )
    for layer, left, right in zip(held(cache), states(2, 5, 0), states(3, 2, 1), strict=True):
        assert layer.shape == (2, 5, HEADS, 4, DIM)
        assert torch.equal(layer[:, :3], left[:, [0, 0, 1], :, 1:])
        assert torch.equal(layer[:, 3:, :, 2:], right[:, [2, 0]])
        assert not layer[:, 3:, :, :2].any()


def test_a_merged_cache_can_be_merged_again():
    first = merged_cache([(filled(3, 4, 0), torch.arange(3))], 4, None)
    first.reorder_cache(torch.tensor([0, 2]))
    again = merged_cache([(filled(1, 6, 1), torch.tensor([0])), (first, torch.arange(2))], 6, None)
    for layer, new, old in zip(held(again), states(1, 6, 1), states(3, 4, 0), strict=True):
        assert torch.equal(layer[:, :1], new)
        assert torch.equal(layer[:, 1:, :, 2:], old[:, [0, 2]])


def test_it_is_kept_in_the_type_asked_for():
    cache = merged_cache([(filled(2, 3, 0), torch.arange(2))], 3, torch.bfloat16)
    assert {one.dtype for one in held(cache)} == {torch.bfloat16}
    assert same(held(cache), [one.bfloat16() for one in states(2, 3, 0)])


SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        (hf.LlamaForCausalLM, hf.LlamaConfig(**SIZES), True),
        (hf.MistralForCausalLM, hf.MistralConfig(**SIZES, sliding_window=21), True),
        (hf.MistralForCausalLM, hf.MistralConfig(**SIZES, sliding_window=20), False),
        (hf.Lfm2ForCausalLM, hf.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]), False),
    ],
    ids=["full attention", "window that holds all", "window that forgets", "convolutions"],
)
def test_which_models_keep_all(kind, config, expected):
    with torch.device("meta"):
        model = kind(config)
    assert keeps_all(model, 20) is expected
