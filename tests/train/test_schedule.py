"""Which rows, which learning rate, which random numbers: closed forms of the step."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignctl.config import TrainSettings
from alignctl.train.schedule import batch_indices, derived_seed, learning_rate_at, total_steps


def train_settings(**changes: object) -> TrainSettings:
    given_values = {
        "steps": None,
        "epochs": 1.0,
        "batch_size": 8,
        "lr": None,
        "warmup": 0,
        "schedule": "constant",
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "max_length": 512,
        "max_prompt": 256,
        "dtype": "auto",
    }
    return TrainSettings.model_validate(given_values | {"warmup": 0.0} | changes)


def stream(count: int, *, rows: int, batch_size: int, seed: int) -> list[int]:
    """The first `count` row numbers that training with this batch size reads."""
    batches = (
        batch_indices(step, rows=rows, batch_size=batch_size, seed=seed) for step in itertools.count(1)
    )
    return list(itertools.islice(itertools.chain.from_iterable(batches), count))


# --- rows ----------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 60), batch_size=st.integers(1, 17), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=50, deadline=None)
def test_every_epoch_reads_every_row_once(rows: int, batch_size: int, seed: int) -> None:
    read = stream(3 * rows, rows=rows, batch_size=batch_size, seed=seed)
    for epoch in range(3):
        assert sorted(read[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@given(
    rows=st.integers(1, 60), sizes=st.tuples(st.integers(1, 17), st.integers(1, 17)), seed=st.integers(0, 9)
)
@settings(max_examples=50, deadline=None)
def test_the_stream_of_rows_does_not_depend_on_the_batch_size(
    rows: int, sizes: tuple[int, int], seed: int
) -> None:
    one, other = (stream(2 * rows + 5, rows=rows, batch_size=size, seed=seed) for size in sizes)
    assert one == other


def test_a_batch_may_begin_in_one_epoch_and_end_in_the_next() -> None:
    straddling = batch_indices(2, rows=10, batch_size=7, seed=0)
    read = stream(20, rows=10, batch_size=7, seed=0)
    assert len(straddling) == 7
    assert straddling == read[7:14]
    assert set(straddling[:3]) == set(range(10)) - set(read[:7]), "the three left of the first epoch"


def test_a_batch_may_be_larger_than_the_data() -> None:
    assert Counter(batch_indices(1, rows=3, batch_size=7, seed=4)).most_common(1)[0][1] == 3
    assert set(Counter(batch_indices(1, rows=3, batch_size=6, seed=4)).values()) == {2}


def test_the_order_is_shuffled_and_another_for_every_epoch_and_seed() -> None:
    orders = [tuple(stream(300, rows=100, batch_size=100, seed=seed)) for seed in (0, 1, 2**63 - 1)]
    epochs = {order[start : start + 100] for order in orders for start in (0, 100, 200)}
    assert len(epochs) == 9
    assert tuple(range(100)) not in epochs


def test_every_place_of_an_epoch_is_as_likely_for_every_row() -> None:
    # 4 rows over 2,000 seeds: each row comes first 500 times, give or take 5 standard deviations of 19.4.
    firsts = Counter(batch_indices(1, rows=4, batch_size=1, seed=seed)[0] for seed in range(2000))
    assert all(abs(firsts[row] - 500) < 97 for row in range(4))


def test_the_order_is_pinned_so_that_a_new_release_resumes_an_old_run() -> None:
    assert batch_indices(1, rows=12, batch_size=12, seed=0) == [7, 11, 6, 5, 3, 9, 1, 10, 0, 4, 2, 8]
    assert derived_seed("order", 0, 0) == 6293064238923740493


def test_derived_seeds_depend_on_each_argument() -> None:
    seeds = {
        derived_seed(purpose, seed, number)
        for purpose in ("order", "step")
        for seed in (0, 1, 11)
        for number in (0, 1, 11, 111)
    }
    assert len(seeds) == 24
    assert all(0 <= seed < 2**63 for seed in seeds)


# --- steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "rows", "steps"),
    [
        ({"steps": 75}, 1000, 75),
        ({"epochs": 1.0}, 80, 10),
        ({"epochs": 1.0}, 81, 11),
        ({"epochs": 2.0}, 81, 21),
        ({"epochs": 0.5}, 80, 5),
        ({"epochs": 0.01}, 80, 1),
    ],
)
def test_the_number_of_steps(changes: dict[str, object], rows: int, steps: int) -> None:
    assert total_steps(train_settings(**changes), rows) == steps


# --- learning rate -------------------------------------------------------------------------------------


def rates(steps: int, **changes: object) -> list[float]:
    return [
        learning_rate_at(step, peak=1.0, steps=steps, settings=train_settings(**changes))
        for step in range(1, steps + 1)
    ]


def test_constant_is_the_peak_from_the_first_step_on() -> None:
    assert rates(3, schedule="constant") == [1.0, 1.0, 1.0]


def test_warm_up_reaches_the_peak_at_its_last_step() -> None:
    assert rates(6, schedule="constant", warmup=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_fraction_of_the_steps_is_rounded_to_whole_steps() -> None:
    # 0.29 x 100 is 28.999999999999996 in binary, and means 29.
    found = rates(100, schedule="constant", warmup=0.29)
    assert found[27:29] == [28 / 29, 1.0]


@pytest.mark.parametrize("warmup", [4, 0.4])
def test_linear_would_reach_zero_one_step_after_the_last(warmup: float) -> None:
    # 10 steps, 4 of warm-up, 6 of decay: 1/7 less at each, so 1/7 is left for the last.
    expected = [1 / 4, 2 / 4, 3 / 4, 1.0, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]
    assert rates(10, schedule="linear", warmup=warmup) == pytest.approx(expected, rel=1e-14)


def test_linear_without_warm_up_begins_just_below_the_peak() -> None:
    assert rates(4, schedule="linear") == pytest.approx([0.8, 0.6, 0.4, 0.2], rel=1e-14)


def test_cosine_is_half_way_down_half_way_through() -> None:
    # 2 steps of warm-up, then cos at 1/4, 2/4 and 3/4 of pi.
    half = math.sqrt(0.5)
    expected = [0.5, 1.0, (1 + half) / 2, 0.5, (1 - half) / 2]
    assert rates(5, schedule="cosine", warmup=2) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 1), (0.1, 7), (0.1, 100), (1, 2), (30, 30), (0.99, 9)])
def test_every_rate_is_above_zero_and_at_most_the_peak(schedule: str, warmup: float, steps: int) -> None:
    found = rates(steps, schedule=schedule, warmup=warmup)
    top = found.index(max(found))
    assert all(0 < rate <= 1.0 for rate in found)
    assert found == sorted(found[: top + 1]) + sorted(found[top + 1 :], reverse=True)


def test_the_rate_scales_with_the_peak() -> None:
    chosen = train_settings(schedule="cosine", warmup=0.2)
    one, other = (
        [learning_rate_at(step, peak=peak, steps=20, settings=chosen) for step in range(1, 21)]
        for peak in (1.0, 5e-7)
    )
    assert other == pytest.approx([5e-7 * rate for rate in one], rel=1e-14)
