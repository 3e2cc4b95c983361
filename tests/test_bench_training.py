"""The training benchmark: batches, records, what it composes, and that its sides compute the same."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

BENCH = Path(__file__).parents[1] / "scripts" / "bench" / "training"
sys.path.insert(0, str(BENCH))

NAMES = (
    *("batches", "measurements", "options", "parity"),
    *("side_alignctl", "side_plain", "worker", "workloads"),
)
batches, measurements, options, parity, side_alignctl, side_plain, worker, workloads = map(
    importlib.import_module, NAMES
)

CASE = measurements.Case("full", "float32", 2)


def pair(prompt: int, chosen: int, rejected: int, seed: int = 0) -> worker.Pair:
    draw = np.random.Generator(np.random.PCG64(seed))
    return worker.Pair(*(draw.integers(3, 61, size=n, dtype=np.int32) for n in (prompt, chosen, rejected)))


def made_run(
    side: str, steps: Sequence[float], *, reference: float = 0.0, number: int = 0
) -> measurements.Run:
    """Two pairs a step, one step of warm-up."""
    tokens = measurements.Tokens(pairs=2, unique=30, completion=20, attended=100, padded=40)
    return measurements.Run(
        side=side,
        case=CASE,
        round=number,
        start=measurements.Start(4.0, reference, 9.0),
        steps=tuple(steps),
        warm_up=1,
        loss=(0.69,) * (1 + len(steps)),
        grad_norm=(3.0,) * (1 + len(steps)),
        tokens=(tokens,) * (1 + len(steps)),
        peak_memory=1.5,
        peak_device_memory=None,
        batches="ab",
        threads=2,
    )


# --- what is composed ----------------------------------------------------------------------------------


def test_epochs_and_sweeps_pay_the_reference_pass_once_or_not_at_all() -> None:
    # Steps of 6 s a batch of two are 3 s a pair; a pass of 4 s over two batches of two is 1 s a pair.
    found = workloads.cost([made_run("alignctl", [6.0], reference=4.0)])
    assert found == workloads.Cost(step=3.0, reference=1.0)
    assert (found.one_epoch, found.three_epochs, found.warm_sweep) == (4.0, 10.0, 9.0)


def test_the_reference_pass_is_shared_out_by_positions() -> None:
    run = made_run("alignctl", [6.0], reference=4.0)
    warm_up, timed = run.tokens
    longer = dataclasses.replace(run, tokens=(dataclasses.replace(warm_up, padded=3 * timed.padded), timed))
    assert longer.reference_per_batch == 1.0
    assert made_run("trl", [6.0]).reference_per_batch == 0.0


def test_a_side_with_the_reference_in_its_step_pays_it_every_time() -> None:
    found = workloads.cost([made_run("trl", [8.0, 12.0])])
    assert (found.one_epoch, found.three_epochs, found.warm_sweep) == (5.0, 15.0, 15.0)


@pytest.mark.parametrize(("side", "seconds"), [("trl-tuned", 2.0), ("trl-grouped", 4.0)])
def test_the_median_round_counts_but_grouped_rounds_are_added_up(side: str, seconds: float) -> None:
    rounds = [made_run(side, [took], number=number) for number, took in enumerate([2.0, 4.0, 18.0])]
    assert workloads.cost(rounds).step == seconds


def test_time_to_the_first_step_has_load_reference_and_step() -> None:
    assert made_run("alignctl", [6.0], reference=4.0).start.total == 17.0


def test_a_round_goes_on_where_it_was_broken_off_and_turns_round() -> None:
    result = measurements.Result(
        machine=measurements.Machine("cpu", 2, 24.0, "Linux", None, {}, (0.1, 0.2, 0.3)),
        model="smol",
        source="hh",
        threads=2,
        batches={"2": "ab"},
        parity=(),
        runs=(made_run("alignctl", [6.0]), made_run("trl", [8.0])),
        failed=(measurements.Failure("plain", CASE, "out of memory"),),
    )
    other = dataclasses.replace(CASE, adapter="lora")
    left = ["alignctl-compiled", "trl-tuned", "trl-grouped"]
    whole = list(measurements.SIDES)
    first = [*((CASE, side) for side in left), *((other, side) for side in whole)]
    assert result.left([CASE, other], 0) == first
    assert [side for _, side in result.left([other], 1)] == whole[::-1]
    assert [side for _, side in result.left([CASE], 1)] == [side for side in whole[::-1] if side != "plain"]


def test_a_result_goes_to_json_and_back(tmp_path: Path) -> None:
    result = measurements.Result(
        machine=measurements.Machine("cpu", 2, 24.0, "Linux", None, {"torch": "2"}, (0.1, 0.2, 0.3)),
        model="smol",
        source="hh",
        threads=2,
        batches={"2": "ab"},
        parity=(measurements.Parity("trl", CASE, (0.69, 0.68), (3.0, 2.0)),),
        runs=(made_run("alignctl", [6.0, 5.0], reference=4.0), made_run("trl", [8.0, 9.0])),
        failed=(measurements.Failure("plain", CASE, "out of memory"),),
    )
    measurements.write_result(result, tmp_path / "result.json")
    assert measurements.read_result(tmp_path / "result.json") == result
    assert [run.side for run in result.of("trl", CASE)] == ["trl"]


# --- parity --------------------------------------------------------------------------------------------


def figures(dtype: str, loss: float, norm: float, side: str = "trl") -> measurements.Parity:
    return measurements.Parity(side, measurements.Case("full", dtype, 4), (0.693, loss), (2.0, norm))


@pytest.mark.parametrize(
    ("dtype", "loss", "norm", "what"),
    [
        ("float32", 0.5 * (1 + 2e-4), 4.0, "step 2 of full-float32-4: loss"),
        ("float32", 0.5, 4.0 * (1 - 2e-4), "step 2 of full-float32-4: gradient norm"),
        ("float32", float("nan"), 4.0, "loss"),
        ("bfloat16", 0.5, 4.3, "gradient norm"),
    ],
)
def test_a_side_that_computes_something_else_stops_the_benchmark(
    dtype: str, loss: float, norm: float, what: str
) -> None:
    ours = figures(dtype, 0.5, 4.0, "alignctl")
    with pytest.raises(parity.Disagreement, match=what):
        parity.check_parity([ours, figures(dtype, 0.5, 4.0), figures(dtype, loss, norm)])


def test_differences_within_rounding_pass_and_the_largest_is_told() -> None:
    sides = [figures("bfloat16", 0.5, 4.0, "alignctl"), figures("bfloat16", 0.501, 4.02)]
    parity.check_parity(sides)
    assert parity.largest_difference(sides) == pytest.approx(0.005)


def test_a_missing_step_is_a_difference() -> None:
    ours = figures("float32", 0.5, 4.0, "alignctl")
    with pytest.raises(parity.Disagreement, match="2 steps, trl 1"):
        parity.check_parity([ours, dataclasses.replace(figures("float32", 0.5, 4.0), loss=(0.693,))])


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_padded_loop_and_alignctl_agree_in_loss_and_gradient_norm(
    adapter: str, tmp_path: Path, cache: Path, tiny: Callable[..., LlamaForCausalLM]
) -> None:
    tiny(dtype=torch.float32).save_pretrained(tmp_path)
    made = [[pair(9, 5, 12, 1), pair(20, 30, 4, 2)], [pair(3, 8, 7, 3), pair(14, 1, 16, 4)]]
    case = measurements.Case(adapter, "float32", 2)
    job = worker.Job("", case, 0, str(tmp_path), "", 0, 2, 0, 1e-6, 1, 0.0, "")
    found = [
        measurements.Parity(side, case, timeline.loss, timeline.grad_norm)
        for side, timeline in (
            ("alignctl", side_alignctl.train(job, made)),
            ("plain", side_plain.train(job, made)),
        )
    ]
    parity.check_parity(found)
    assert found[0].loss[0] == pytest.approx(np.log(2), abs=1e-4)
    assert found[0].loss[1] != found[0].loss[0]


def test_adapters_start_alike_whoever_made_them() -> None:
    names = ("b.lora_A.default.weight", "a.lora_A.default.weight", "a.lora_B.default.weight")
    one = {name: torch.zeros(4, 16) for name in names}
    other = {name: torch.zeros(4, 16) for name in reversed(names)}
    worker.same_adapter(one)
    worker.same_adapter(other)
    for name in names:
        assert torch.equal(one[name], other[name])
    assert not one[names[2]].any()
    assert not torch.equal(one[names[0]], one[names[1]])
    # PEFT's bound for an input of width 16.
    assert 0.2 < float(one[names[0]].abs().max()) <= 0.25


# --- batches -------------------------------------------------------------------------------------------


def test_pairs_come_back_as_written_and_every_token_counts_in_the_hash(tmp_path: Path) -> None:
    wanted = [pair(3, 2, 5, 1), pair(7, 1, 1, 2)]
    sha256 = worker.write_pairs(wanted, tmp_path / "pairs.npz")
    found, again = worker.read_pairs(tmp_path / "pairs.npz")
    assert sha256 == again
    assert [[part.tolist() for part in dataclasses.astuple(one)] for one in found] == [
        [part.tolist() for part in dataclasses.astuple(one)] for one in wanted
    ]
    wanted[1].rejected[0] += 1
    assert worker.write_pairs(wanted, tmp_path / "other.npz") != sha256


def test_a_padded_batch_is_split_and_each_part_padded_to_its_own_longest() -> None:
    # Eight pairs of 10 positions, then one of 7 by itself, each twice.
    assert worker.padded_positions([pair(6, 4, 2)] * 8 + [pair(5, 1, 2)]) == 2 * 8 * 10 + 2 * 7


def test_sizes_of_a_batch() -> None:
    found = worker.tokens_of([pair(3, 2, 1), pair(1, 1, 4)], padded=50)
    # Prompt tokens read 1, 2, 3; the chosen 4, 5; the rejected 4. Then 1; 2; 2, 3, 4, 5.
    assert found == measurements.Tokens(
        pairs=2, unique=12, completion=8, attended=(6 + 9 + 4) + (1 + 2 + 14), padded=50
    )


def test_grouped_batches_hold_pairs_of_about_one_length_from_all_over_the_pool() -> None:
    draw = np.random.Generator(np.random.PCG64(0))
    pool = [pair(int(length), 1, 1) for length in draw.permutation(np.arange(10, 90))]
    schedule = batches.Schedule(rounds=2, steps=2)
    found = batches.grouped(pool, 4, schedule)
    # Warm-up and four timed steps a round; twenty groups, a quarter of them at a time.
    assert len(found) == schedule.pairs(4) == 2 * 5 * 4
    longest = [found[start].longer for start in range(0, len(found), 4)]
    groups = [(90 - length) // 4 for length in longest]
    assert groups == [11, 1, 6, 11, 16, 13, 3, 8, 13, 18]
    for start in range(0, len(found), 4):
        lengths = [one.longer for one in found[start : start + 4]]
        assert max(lengths) - min(lengths) == 3


@pytest.mark.parametrize(("batch", "timed"), [(1, 24), (8, 3), (32, 1)])
def test_a_run_times_about_as_many_pairs_whatever_the_batch(batch: int, timed: int) -> None:
    assert batches.Schedule(rounds=5, steps=3).timed(batch) == timed


def test_too_few_pairs_are_refused_with_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="3 pairs are too few: 80 are needed"):
        batches.prepare([pair(3, 2, 1)] * 3, [8], batches.Schedule(rounds=5, steps=1), tmp_path)


# --- the command line ----------------------------------------------------------------------------------


def test_cases_are_named_by_adapter_dtype_and_pairs() -> None:
    case = options.parse_case("lora-bfloat16-32")
    assert case == measurements.Case("lora", "bfloat16", 32)
    assert case.name == "lora-bfloat16-32"


@pytest.mark.parametrize(
    "word",
    ["full", "full-float16-8", "qlora-float32-8", "full-float32-0", "full-float32-12", "full-float32-8-"],
)
def test_other_cases_are_refused(word: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=word):
        options.parse_case(word)
