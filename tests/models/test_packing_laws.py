"""Laws of packing on drawn rows: what is computed, what lies where, and what no row can see of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaForCausalLM

from alignctl.models.packing import SHORTEST_STEM, branch_ends, micro_batches, pack, positions
from alignctl.models.policy import Policy, branch_logps, set_attention
from alignctl.records import Example, Layout, PackedBatch

LAYOUTS: tuple[Layout, ...] = ("shared", "packed", "padded")
CPU = torch.device("cpu")
TREES = st.lists(
    st.builds(
        lambda prompt, branches: (prompt, *branches),
        st.integers(1, 9),
        st.lists(st.integers(1, 7), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)
STEMS = st.sampled_from([0, 0, SHORTEST_STEM - 1, SHORTEST_STEM, 2 * SHORTEST_STEM])
by_hand = settings(max_examples=60, deadline=None, derandomize=True)
with_model = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
Tiny = Callable[..., LlamaForCausalLM]
MakeRows = Callable[..., list[Example]]
PlainLogps = Callable[..., Tensor]


def logps(model: LlamaForCausalLM, batch: PackedBatch) -> Tensor:
    set_attention(model, batch.layout)
    with torch.no_grad():
        return branch_logps(Policy(model, batch.layout, torch.float64, CPU), batch)


def numbered(trees: Sequence[tuple[int, ...]], stem: int = 0) -> list[Example]:
    """Rows in which no token id comes twice, but for what all prompts begin with."""
    ids = iter(range(stem, 10_000))
    return [
        Example(
            id=f"row {number}",
            prompt=np.array([*range(stem), *(next(ids) for _ in range(prompt))], np.int32),
            branches=tuple(np.array([next(ids) for _ in range(n)], np.int32) for n in branches),
        )
        for number, (prompt, *branches) in enumerate(trees)
    ]


# --- what is computed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@given(trees=TREES, stem=STEMS, seed=st.integers(0, 9))
@with_model
def test_a_packed_pass_is_separate_passes(
    tiny: Tiny,
    make_rows: MakeRows,
    plain_logps: PlainLogps,
    layout: Layout,
    trees: list[tuple[int, ...]],
    stem: int,
    seed: int,
) -> None:
    model, rows = tiny(), make_rows(trees, seed=seed, stem=stem)
    found = logps(model, pack(rows, layout))
    set_attention(model, "padded")
    with torch.no_grad():
        expected = plain_logps(model, rows)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=0, abs=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(trees=TREES, stem=STEMS, data=st.data())
@with_model
def test_no_answer_sees_another_row_or_another_answer(
    tiny: Tiny,
    make_rows: MakeRows,
    layout: Layout,
    trees: list[tuple[int, ...]],
    stem: int,
    data: st.DataObject,
) -> None:
    """All other tokens are poisoned, their number unchanged: the answer's log-probability stays."""
    rows, poison = make_rows(trees, seed=1, stem=stem), make_rows(trees, seed=2)
    beginning = rows[0].prompt[:stem]
    poison = [replace(row, prompt=np.concatenate([beginning, row.prompt])) for row in poison]
    place = data.draw(st.integers(0, len(rows) - 1))
    own = data.draw(st.integers(0, len(rows[place].branches) - 1))
    branches = list(poison[place].branches)
    branches[own] = rows[place].branches[own]
    poison[place] = replace(rows[place], branches=tuple(branches))
    branch = sum(len(row.branches) for row in rows[:place]) + own
    model = tiny()
    before, after = logps(model, pack(rows, layout)), logps(model, pack(poison, layout))
    assert float(after[branch]) == pytest.approx(float(before[branch]), rel=0, abs=1e-12)


def test_the_poison_is_seen_where_it_matters(tiny: Tiny, make_rows: MakeRows) -> None:
    """The same comparison with one token of the answer's own prompt changed."""
    model, (row,) = tiny(), make_rows([(5, 3, 4)])
    other = replace(row, prompt=np.concatenate([[(row.prompt[0] + 1) % 61], row.prompt[1:]]).astype(np.int32))
    before, after = logps(model, pack([row], "shared")), logps(model, pack([other], "shared"))
    assert float((after - before).abs().min()) > 1e-6


@given(trees=TREES, ids=st.lists(st.integers(0, 60), min_size=8, max_size=8))
@with_model
def test_whatever_stands_under_the_padding_changes_no_bit(
    tiny: Tiny, make_rows: MakeRows, trees: list[tuple[int, ...]], ids: list[int]
) -> None:
    model, batch = tiny(), pack(make_rows(trees), "padded")
    assert batch.padding_mask is not None
    poisoned = batch.ids.clone()
    places = (~batch.padding_mask).nonzero()
    for number, (row, column) in enumerate(places.tolist()):
        poisoned[row, column] = ids[number % len(ids)]
    assert torch.equal(logps(model, replace(batch, ids=poisoned)), logps(model, batch))


# --- what lies where -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@given(trees=TREES, stem=STEMS)
@by_hand
def test_every_answer_token_is_predicted_by_the_token_before_it(
    layout: Layout, trees: list[tuple[int, ...]], stem: int
) -> None:
    rows = numbered(trees, stem)
    batch = pack(rows, layout)
    flat, where = batch.ids.flatten().tolist(), batch.positions.flatten().tolist()
    before, targets, position = [], [], []
    for row in rows:
        for branch in row.branches:
            sequence = [*row.prompt.tolist(), *branch.tolist()]
            before += sequence[len(row.prompt) - 1 : -1]
            targets += branch.tolist()
            position += range(len(row.prompt) - 1, len(sequence) - 1)
    assert [flat[place] for place in batch.score_index.tolist()] == before
    assert [where[place] for place in batch.score_index.tolist()] == position
    assert batch.targets.tolist() == targets
    lengths = [len(branch) for row in rows for branch in row.branches]
    assert batch.counts.tolist() == lengths
    assert batch.branch.tolist() == [k for k, length in enumerate(lengths) for _ in range(length)]
    assert batch.layout == layout


@pytest.mark.parametrize("layout", LAYOUTS)
@given(trees=TREES, stem=STEMS)
@by_hand
def test_an_answer_ends_at_its_last_token(layout: Layout, trees: list[tuple[int, ...]], stem: int) -> None:
    rows = numbered(trees, stem)
    batch = pack(rows, layout)
    flat, ends = batch.ids.flatten().tolist(), branch_ends(batch)
    assert [flat[end] for end in ends.tolist()] == [int(b[-1]) for row in rows for b in row.branches]
    assert ends.dtype == torch.int64


@pytest.mark.parametrize("layout", LAYOUTS)
@given(trees=TREES)
@by_hand
def test_a_pass_takes_the_positions_that_were_counted(layout: Layout, trees: list[tuple[int, ...]]) -> None:
    rows = numbered(trees)
    batch = pack(rows, layout)
    real = batch.ids.numel() if batch.padding_mask is None else int(batch.padding_mask.sum())
    assert real == sum(positions(row, layout) for row in rows)
    assert (batch.padding_mask is None) == (layout != "padded")


def test_a_prompt_is_read_once_where_it_is_shared() -> None:
    (row,) = numbered([(3, 2, 1, 4)])
    assert positions(row, "shared") == 3 + 2 + 1 + 4
    assert positions(row, "packed") == positions(row, "padded") == 3 * 3 + 2 + 1 + 4
    batch = pack([row], "shared")
    assert batch.ids.tolist() == [list(range(10))]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 3, 3, 4, 5, 6]]
    assert batch.score_index.tolist() == [2, 3, 2, 2, 6, 7, 8]
    assert branch_ends(batch).tolist() == [4, 5, 9]


def test_a_micro_batch_is_full_at_its_budget_and_no_token_later() -> None:
    rows = numbered([(2, 1), (1, 2), (3, 3), (1, 1), (1, 1), (1, 1)])
    costs = [3, 3, 6, 2, 2, 2]
    assert [positions(row, "shared") for row in rows] == costs
    split = {
        budget: micro_batches(rows, token_budget=budget, layout="shared") for budget in (1, 5, 6, 12, 17, 18)
    }
    assert split == {
        1: [[0], [1], [2], [3], [4], [5]],
        5: [[0], [1], [2], [3, 4], [5]],
        6: [[0, 1], [2], [3, 4, 5]],
        12: [[0, 1, 2], [3, 4, 5]],
        17: [[0, 1, 2, 3, 4], [5]],
        18: [[0, 1, 2, 3, 4, 5]],
    }
    assert micro_batches([], token_budget=5, layout="shared") == []
