"""Layouts: what lies where, and that all of them compute what separate forward passes compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignctl.models import attention
from alignctl.models.packing import SHORTEST_STEM, branch_ends, micro_batches, pack, positions, stem_length
from alignctl.models.policy import Policy, branch_logps, set_attention
from alignctl.records import Example

CPU = torch.device("cpu")
LAYOUTS = ("shared", "packed", "padded")
TREES = {
    "one branch": [(4, 3), (1, 5), (7, 1), (1, 1)],
    "pairs": [(5, 3, 6), (1, 4, 2), (9, 1, 1), (1, 1, 1), (3, 8, 1)],
    "three branches": [(6, 2, 5, 1), (1, 3, 1, 7)],
    "five branches": [(4, 1, 2, 3, 4, 5), (1, 5, 1, 1, 2, 6)],
    "unequal rows": [(3, 2), (4, 1, 5), (1, 2, 2, 2), (2, 1, 1, 1, 1, 1)],
}


def example(prompt, *branches):
    return Example("row", np.array(prompt, np.int32), tuple(np.array(b, np.int32) for b in branches))


PAIR_AND_SINGLE = [example([7, 8], [1, 2], [3]), example([9], [4, 5])]


# --- what lies where -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "ids", "places", "score_index"),
    [
        ("shared", [[7, 8, 1, 2, 3, 9, 4, 5]], [[0, 1, 2, 3, 2, 0, 1, 2]], [1, 2, 1, 5, 6]),
        ("packed", [[7, 8, 1, 2, 7, 8, 3, 9, 4, 5]], [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2]], [1, 2, 5, 7, 8]),
        ("padded", [[7, 8, 1, 2], [7, 8, 3, 0], [9, 4, 5, 0]], [[0, 1, 2, 3]] * 3, [1, 2, 5, 8, 9]),
    ],
)
def test_a_pair_and_a_single_branch_by_hand(layout, ids, places, score_index):
    batch = pack(PAIR_AND_SINGLE, layout)
    assert batch.ids.tolist() == ids
    assert batch.positions.tolist() == places
    assert batch.score_index.tolist() == score_index
    assert batch.targets.tolist() == [1, 2, 3, 4, 5]
    assert batch.branch.tolist() == [0, 0, 1, 2, 2]
    assert batch.counts.tolist() == [2, 1, 2]


def test_a_stem_by_hand():
    stem = list(range(20, 20 + SHORTEST_STEM))
    batch = pack([example([*stem, 7, 8], [1, 2], [3]), example([*stem, 9], [4, 5])], "shared")
    assert (batch.stem, batch.trees) == (8, ((2, 2, 1), (1, 2)))
    assert batch.ids.tolist() == [[*stem, 7, 8, 1, 2, 3, 9, 4, 5]]
    assert batch.positions.tolist() == [[*range(8), 8, 9, 10, 11, 10, 8, 9, 10]]
    assert batch.score_index.tolist() == [9, 10, 9, 13, 14]
    assert batch.targets.tolist() == [1, 2, 3, 4, 5]
    assert branch_ends(batch).tolist() == [11, 12, 15]


@pytest.mark.parametrize(
    ("prompts", "stem"),
    [
        ([range(12), range(12)], 11),  # the last token predicts by itself
        ([range(12), [*range(9), 40, 41]], 9),
        ([range(12), [*range(7), 40, 41, 42]], 0),  # too short to be worth it
        ([range(12), range(8)], 0),
        ([range(12)], 0),
        ([range(12), [40, *range(1, 12)]], 0),
        ([range(30), range(20), [*range(15), 40]], 15),
    ],
)
def test_a_stem_is_what_all_prompts_begin_with(prompts, stem):
    rows = [example(prompt, [1]) for prompt in prompts]
    assert stem_length(rows, "shared") == pack(rows, "shared").stem == stem
    assert stem_length(rows, "packed") == pack(rows, "packed").stem == pack(rows, "padded").stem == 0


def test_padding_mask_is_true_on_tokens_alone():
    mask = pack(PAIR_AND_SINGLE, "padded").padding_mask
    assert mask is not None
    assert mask.tolist() == [[True] * 4, [True] * 3 + [False], [True] * 3 + [False]]


def test_positions_counts_what_a_layout_runs():
    row = PAIR_AND_SINGLE[0]
    assert [positions(row, layout) for layout in LAYOUTS] == [5, 7, 7]
    assert pack([row], "shared").tokens == 5
    assert pack([row], "packed").tokens == 7


@pytest.mark.parametrize("rows", [[], [example([], [1])], [example([1], [2], [])]])
def test_what_has_no_token_to_score_is_refused(rows):
    with pytest.raises(ValueError, match=r"at least one row|empty prompt or branch"):
        pack(rows, "shared")


trees = st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=5).map(tuple), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(trees=trees, budget=st.integers(1, 60), layout=st.sampled_from(LAYOUTS))
def test_micro_batches_keep_order_and_budget(trees, budget, layout):
    rows = [
        example([number, *range(prompt - 1)], *(range(n) for n in branches))
        for number, (prompt, *branches) in enumerate(trees)
    ]
    groups = micro_batches(rows, token_budget=budget, layout=layout)
    assert [index for group in groups for index in group] == list(range(len(rows)))
    costs = [sum(positions(rows[index], layout) for index in group) for group in groups]
    assert all(cost <= budget or len(group) == 1 for cost, group in zip(costs, groups, strict=True))
    firsts = [positions(rows[group[0]], layout) for group in groups[1:]]
    assert all(cost + first > budget for cost, first in zip(costs, firsts, strict=False))  # none closed early


@settings(max_examples=50, deadline=None)
@given(trees=trees, budget=st.integers(1, 120), stem=st.integers(SHORTEST_STEM, 20))
def test_a_stem_is_counted_once_a_micro_batch(trees, budget, stem):
    rows = [
        example([*range(stem), 90 + number % 2, *range(prompt)], *(range(n) for n in branches))
        for number, (prompt, *branches) in enumerate(trees)
    ]
    groups = micro_batches(rows, token_budget=budget, layout="shared")
    assert [index for group in groups for index in group] == list(range(len(rows)))
    batches = [pack([rows[index] for index in group], "shared") for group in groups]
    assert all(batch.tokens <= budget or len(batch.trees) == 1 for batch in batches)
    firsts = [positions(rows[group[0]], "shared") - stem for group in groups[1:]]
    alike = max(stem_length(rows, "shared") - stem, 0)  # a stroke of luck: the rows have more in common
    assert all(
        batch.tokens + first + alike * len(batch.trees) > budget
        for batch, first in zip(batches, firsts, strict=False)
    )


# --- what is computed ----------------------------------------------------------------------------------


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def weighted(logps):
    """A sum in which every branch has a weight of its own, so that none can stand in for another."""
    return (logps * torch.linspace(-1, 2, len(logps), dtype=logps.dtype)).sum()


def plain_result(model, rows, plain_logps):
    set_attention(model, "padded")
    model.zero_grad(set_to_none=True)
    logps = plain_logps(model, rows)
    weighted(logps).backward()
    return logps.detach(), gradients(model)


def packed_result(model, rows, layout):
    set_attention(model, layout)
    model.zero_grad(set_to_none=True)
    logps = branch_logps(Policy(model, layout, torch.float64, CPU), pack(rows, layout))
    weighted(logps).backward()
    return logps.detach(), gradients(model)


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=0, abs=1e-10)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert gradient.abs().max() > 1e-6, f"{name} has no gradient to compare"
        assert float((found[1][name] - gradient).abs().max()) <= 1e-10, name


def assert_exact(model, rows, plain_logps, *, checkpointing):
    expected = plain_result(model, rows, plain_logps)
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for layout in LAYOUTS:
        assert_same(packed_result(model, rows, layout), expected)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("shape", TREES)
def test_every_layout_is_exact(tiny, make_rows, plain_logps, shape, kv_heads, checkpointing):
    assert_exact(tiny(kv_heads=kv_heads), make_rows(TREES[shape]), plain_logps, checkpointing=checkpointing)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("stem", [SHORTEST_STEM, 3 * SHORTEST_STEM, attention.LONGEST_PLAIN_ROW])
def test_a_beginning_that_prompts_share_is_exact(tiny, make_rows, plain_logps, stem, checkpointing):
    model, rows = tiny(kv_heads=2), make_rows(TREES["unequal rows"], stem=stem)
    batch = pack(rows, "shared")
    assert batch.tokens == sum(row.tokens for row in rows) - stem * (len(rows) - 1)
    assert_exact(model, rows, plain_logps, checkpointing=checkpointing)


def test_rows_too_long_for_the_plain_form_are_exact_too(tiny, make_rows, plain_logps):
    trees = [(attention.LONGEST_PLAIN_ROW - 20, 40, 30), (20, 5, 9)]
    model, rows = tiny(), make_rows(trees)
    expected = plain_result(model, rows, plain_logps)
    for layout in LAYOUTS:
        assert_same(packed_result(model, rows, layout), expected)


def test_untied_head_gets_its_own_gradient(tiny, make_rows, plain_logps):
    model, rows = tiny(tied=False), make_rows(TREES["pairs"])
    expected = plain_result(model, rows, plain_logps)
    assert "lm_head.weight" in expected[1]
    for layout in LAYOUTS:
        assert_same(packed_result(model, rows, layout), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_gives_what_its_rows_give_alone(tiny, make_rows, layout):
    model, rows = tiny(), make_rows(TREES["unequal rows"])
    set_attention(model, layout)
    policy = Policy(model, layout, torch.float64, CPU)
    with torch.no_grad():
        together = branch_logps(policy, pack(rows, layout))
        alone = torch.cat([branch_logps(policy, pack([row], layout)) for row in rows])
    assert together == pytest.approx(alone, rel=0, abs=1e-12)


def test_padding_never_matters(tiny, make_rows):
    """What stands under the mask is replaced by other ids."""
    model, rows = tiny(), make_rows(TREES["pairs"])
    set_attention(model, "padded")
    policy = Policy(model, "padded", torch.float64, CPU)
    batch = pack(rows, "padded")
    with torch.no_grad():
        before = branch_logps(policy, batch)
        batch.ids[~batch.padding_mask] = 17
        assert torch.equal(branch_logps(policy, batch), before)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_compute_stays_near_float32(tiny, make_rows, layout):
    model, rows = tiny(dtype=torch.float32), make_rows([(30, 12, 9), (8, 20, 3)])
    set_attention(model, layout)
    batch = pack(rows, layout)
    exact = branch_logps(Policy(model, layout, torch.float32, CPU), batch)
    found = branch_logps(Policy(model, layout, torch.bfloat16, CPU), batch)
    assert found.dtype == torch.float32  # sums are never rounded to bfloat16
    assert float(((found - exact).abs() / batch.counts).max()) < 0.05
    weighted(found).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
