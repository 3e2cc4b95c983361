"""Tree attention against its definition: each branch with its prompt, alone, causal."""

from __future__ import annotations

import pytest
import torch

from alignctl.errors import SetupError
from alignctl.models.attention import LONGEST_PLAIN_ROW, tree_attention, tree_masks

CPU = torch.device("cpu")


def masks_for(trees, dtype=torch.float64, *, stem=0, forward_only=False):
    return tree_masks(trees, stem=stem, dtype=dtype, device=CPU, forward_only=forward_only)


def heads(count, tokens, *, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, count, tokens, 8, dtype=torch.float64, generator=generator)


def by_definition(query, key, value, trees, scale, stem=0):
    """[1, T, Hq, D], looping over rows, branches and heads."""
    out = torch.zeros_like(query)
    group = query.shape[1] // key.shape[1]
    start = stem
    for prompt, *branches in trees:
        offset = start + prompt
        for length in branches:
            path = [*range(stem), *range(start, start + prompt), *range(offset, offset + length)]
            causal = torch.ones(len(path), len(path), dtype=torch.bool).tril()
            for head in range(query.shape[1]):
                q, k, v = query[0, head, path], key[0, head // group, path], value[0, head // group, path]
                scores = (q @ k.T * scale).masked_fill(~causal, float("-inf"))
                out[0, head, path] = scores.softmax(-1) @ v
            offset += length
        start = offset
    return out.transpose(1, 2)


def test_the_mask_of_a_pair_by_hand():
    (mask,) = masks_for([(2, 2, 1)]).masks
    seen = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert (mask == 0).int().tolist() == seen
    assert mask[~(mask == 0)].tolist() == [float("-inf")] * 12


@pytest.mark.parametrize("stem", [0, 1, 9])
@pytest.mark.parametrize("forward_only", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(
    "trees",
    [
        [(1, 1)],
        [(3, 2, 4)],
        [(1, 1, 1), (5, 2, 3, 1), (2, 7)],
        [(LONGEST_PLAIN_ROW - 3, 2, 2)],  # one token too long for the plain form
        [(LONGEST_PLAIN_ROW - 4, 2, 2), (4, 3, 2)],
    ],
    ids=str,
)
def test_tree_attention_is_each_branch_alone(trees, kv_heads, forward_only, stem):
    tokens = stem + sum(map(sum, trees))
    query = heads(4, tokens, seed=1)
    key, value = heads(kv_heads, tokens, seed=2), heads(kv_heads, tokens, seed=3)
    masks = masks_for(trees, stem=stem, forward_only=forward_only)
    found, weights = tree_attention(torch.nn.Identity(), query, key, value, None, tree=masks, scaling=0.3)
    assert weights is None
    assert float((found - by_definition(query, key, value, trees, 0.3, stem)).abs().max()) < 1e-12


def test_scale_is_one_over_root_of_the_head_size_by_default():
    query, key, value = (heads(2, 6, seed=seed) for seed in (1, 2, 3))
    call = (torch.nn.Identity(), query, key, value, None)
    found, _ = tree_attention(*call, tree=masks_for([(3, 3)]))
    same, _ = tree_attention(*call, tree=masks_for([(3, 3)]), scaling=8**-0.5)
    assert torch.equal(found, same)


def test_longest_path_is_the_farthest_a_token_looks_back():
    assert masks_for([(3, 2, 4), (5, 1, 1)]).longest_path == 7
    assert masks_for([(3, 2, 4), (5, 1, 1)], stem=10).longest_path == 17


def test_masks_of_a_stem_by_hand():
    stem, row = masks_for([(1, 1, 1)], stem=2).masks
    assert (stem == 0).int().tolist() == [[1, 0], [1, 1]]
    assert (row == 0).int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 1]]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"softcap": 50.0}, "a soft cap"),
        ({"s_aux": torch.zeros(2)}, "attention sinks"),
        ({"position_bias": torch.zeros(1, 2, 5, 5)}, "a position bias"),
        ({"sliding_window": 3}, "a sliding window of 3 tokens"),
        ({"dropout": 0.1}, "dropout"),
    ],
)
def test_what_it_does_not_compute_is_refused(argument, message):
    query, key, value = (heads(2, 5, seed=seed) for seed in (1, 2, 3))
    with pytest.raises(SetupError, match=message):
        tree_attention(torch.nn.Identity(), query, key, value, None, tree=masks_for([(2, 2, 1)]), **argument)


@pytest.mark.parametrize(
    "argument",
    [{"sliding_window": 4}, {"sliding_window": None}, {"softcap": None}, {"s_aux": None}, {"dropout": 0.0}],
    ids=str,
)
def test_what_changes_nothing_is_let_through(argument):
    """A window as long as prompt and branch (4 here) hides no token of them."""
    query, key, value = (heads(2, 5, seed=seed) for seed in (1, 2, 3))
    call = (torch.nn.Identity(), query, key, value, None)
    found, _ = tree_attention(*call, tree=masks_for([(2, 2, 1)]), **argument)
    plain, _ = tree_attention(*call, tree=masks_for([(2, 2, 1)]))
    assert torch.equal(found, plain)
