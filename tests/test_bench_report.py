"""The training benchmark's report: lengths, FLOPs, medians, ratios, table and chart; the ladder's rungs."""

from __future__ import annotations

import importlib
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

BENCH = Path(__file__).parents[1] / "scripts" / "bench" / "training"
sys.path.insert(0, str(BENCH))

ladder, lengths, measurements, parity, peak, report, side_rung, worker = map(
    importlib.import_module,
    ("ladder", "lengths", "measurements", "parity", "peak", "report", "side_rung", "worker"),
)

SHAPE = peak.ModelShape(body=100, head=50, attention=8, adapter=10)
YARDSTICK = peak.Yardstick(SHAPE, {"bfloat16": 1000.0}, {"bfloat16": {"square": 1000.0}})
CASE = measurements.Case("full", "bfloat16", 2)
SVG = "{http://www.w3.org/2000/svg}"


def made_run(
    side: str, number: int, steps: Sequence[float], *, reference: float = 0.0, memory: float = 2.0
) -> Any:
    """Two pairs a step, one step of warm-up; `reference` seconds went into the pass over all batches."""
    count = 1 + len(steps)
    tokens = measurements.Tokens(pairs=2, unique=60, completion=20, attended=50, padded=100)
    return measurements.Run(
        side=side,
        case=CASE,
        round=number,
        start=measurements.Start(3.0, reference, 2.0),
        steps=tuple(steps),
        warm_up=1,
        loss=(0.7,) * count,
        grad_norm=(5.0,) * count,
        tokens=(tokens,) * count,
        peak_memory=memory,
        peak_device_memory=None,
        batches="ab",
        threads=2,
    )


def made_result() -> Any:
    """alignctl takes 1, 1 and 2 s a pair and half a second for its reference, TRL 4, 4 and 8 s."""
    ours = [
        made_run("alignctl", number, steps, reference=3.0)
        for number, steps in enumerate([(1.0, 3.0), (2.0, 2.0), (4.0, 4.0)])
    ]
    theirs = [
        made_run("trl", number, steps, memory=5.0)
        for number, steps in enumerate([(8.0, 8.0), (8.0, 8.0), (16.0, 16.0)])
    ]
    machine = measurements.Machine("a chip", 2, 16.0, "Linux", None, {"torch": "2"}, (0.1, 0.2, 0.3))
    return measurements.Result(
        machine=machine,
        model="small",
        source="hh",
        threads=2,
        batches={"2": "abcdef"},
        parity=(
            measurements.Parity("alignctl", CASE, (0.69, 0.5), (2.0, 4.0)),
            measurements.Parity("trl", CASE, (0.69, 0.4), (2.0, 5.0)),
        ),
        runs=(*ours, *theirs),
        failed=(measurements.Failure("plain", CASE, "out of memory"),),
    )


# --- lengths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["hh", "ultrafeedback"])
def test_made_up_pairs_have_the_lengths_of_the_table_and_come_out_the_same_again(shape: str) -> None:
    table = np.array(json.loads((BENCH / "lengths" / f"{shape}.json").read_text())["triples"])
    made = lengths.made_up_pairs(shape, 2 * len(table), 1000, seed=3)
    found = np.array([(len(one.prompt), *map(len, one.branches)) for one in made])
    assert sorted(found.tolist()) == sorted(table.tolist() * 2)
    assert found[: len(table)].tolist() != found[len(table) :].tolist()
    ids = np.concatenate([part for one in made for part in (one.prompt, *one.branches)])
    assert (ids.min(), ids.max(), ids.dtype) == (100, 999, np.int32)
    again = lengths.made_up_pairs(shape, 5, 1000, seed=3)
    for one, other in zip(made, again, strict=False):
        assert np.array_equal(one.prompt, other.prompt)
        assert all(map(np.array_equal, one.branches, other.branches))
    assert lengths.made_up_pairs(shape, 5, 1000, seed=4)[0].tokens != made[0].tokens


@pytest.mark.parametrize("shape", ["hh", "ultrafeedback"])
def test_a_shipped_table_has_the_means_of_all_rows_it_stands_for(shape: str) -> None:
    found = json.loads((BENCH / "lengths" / f"{shape}.json").read_text())
    table = np.array(found["triples"])
    assert table.mean(0) == pytest.approx(found["all"]["mean"], rel=0.02)
    assert table.min() >= 1
    assert (table[:, 0] + table[:, 1:].max(1)).max() <= 1024


def test_the_fitted_table_has_the_published_medians() -> None:
    table = lengths.read_table("ultrafeedback")
    assert np.median(table[:, :1] + table[:, 1:]) == pytest.approx(409, rel=0.05)
    assert np.median(table[:, :1] / table[:, 1:]) == pytest.approx(0.42, rel=0.1)


# --- work ----------------------------------------------------------------------------------------------


def test_work_counts_every_pair_of_tokens_that_causal_attention_reads() -> None:
    trees = [(3, 2, 1), (1, 4, 2)]
    attended = 0
    for prompt, *branches in trees:
        attended += sum(1 for query in range(prompt) for key in range(prompt) if key <= query)
        for length in branches:
            # An answer's token reads the prompt and the answer up to itself.
            attended += sum(prompt + token + 1 for token in range(length))
    assert peak.work_of(trees) == peak.Work(unique=13, completion=9, attended=attended)
    run = worker.tokens_of([worker.Pair(*map(np.zeros, tree)) for tree in trees], padded=0)
    assert (run.unique, run.completion, run.attended) == (13, 9, attended)


def test_useful_flops_worked_out_by_hand() -> None:
    work = peak.work_of([(3, 2, 1)])
    assert work == peak.Work(unique=6, completion=3, attended=19)
    attention = 12 * 8 * 19
    assert peak.useful_flops(SHAPE, work, adapter="full") == 6 * 100 * 6 + 6 * 50 * 3 + attention
    frozen = 4 * 100 * 6 + 4 * 50 * 3
    assert peak.useful_flops(SHAPE, work, adapter="lora") == frozen + 6 * 10 * 6 + attention
    assert peak.reference_flops(SHAPE, work) == 2 * 100 * 6 + 2 * 50 * 3 + 4 * 8 * 19


def test_linear_flops_are_those_that_torch_counts() -> None:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    shape = peak.shape_of(config, rank=2)
    # A layer: q and o 8 x 8, k and v 8 x 4, three of 8 x 16; adapters of rank 2 on each of them.
    layer, adapters = 2 * 64 + 2 * 32 + 3 * 128, 2 * (2 * 16 + 2 * 12 + 3 * 24)
    assert shape == peak.ModelShape(body=2 * layer, head=32 * 8, attention=2 * 8, adapter=2 * adapters)
    model = LlamaForCausalLM(config)
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(7)[None]).logits.sum().backward()
    linear = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    # Every position goes through the head here, and attention is no `mm`.
    assert linear == peak.useful_flops(shape, peak.Work(7, 7, 0), adapter="full")


# --- figures -------------------------------------------------------------------------------------------


def test_medians_ratios_and_ranges_worked_out_by_hand() -> None:
    ours, theirs = report.cells(made_result(), YARDSTICK)
    assert (ours.side, theirs.side, ours.rounds) == ("alignctl", "trl", 3)
    speed = ours.pairs_per_second
    assert speed["one epoch"] == report.Spread(1 / 1.5, 1 / 2.5, 1 / 1.5)
    assert speed["three epochs"].value == pytest.approx(3 / 3.5)
    assert speed["sweep of three betas, warm cache"].value == pytest.approx(1.0)
    ratio = theirs.ratio
    assert ratio["one epoch"].value == pytest.approx(4 / 1.5)
    assert (ratio["one epoch"].low, ratio["one epoch"].high) == pytest.approx((4 / 1.5, 8 / 2.5))
    assert ratio["three epochs"].value == pytest.approx(12 / 3.5)
    assert ratio["sweep of three betas, warm cache"].value == pytest.approx(4.0)
    assert theirs.memory_ratio == pytest.approx(2 / 5)
    assert (ours.first_step.value, theirs.first_step.value) == (8.0, 5.0)


def test_a_ratio_is_the_median_of_rounds_on_the_same_batches() -> None:
    ours = [made_run("alignctl", number, (seconds,)) for number, seconds in enumerate((2.0, 4.0, 8.0))]
    theirs = [made_run("trl", number, (seconds,)) for number, seconds in enumerate((10.0, 8.0, 24.0))]
    # Medians of the sides are 10 and 4, so 2.5; the rounds say 5, 2 and 3.
    assert report.cell(theirs, ours, YARDSTICK).ratio["one epoch"] == report.Spread(3.0, 2.0, 5.0)
    assert report.cell(theirs[:2], ours[2:], YARDSTICK).ratio == {}


def test_the_length_grouped_side_is_compared_over_all_rounds_together() -> None:
    ours = [made_run("alignctl", number, (seconds,)) for number, seconds in enumerate((2.0, 4.0, 3.0))]
    grouped = [made_run("trl-grouped", number, (seconds,)) for number, seconds in enumerate((2.0, 13.0, 3.0))]
    assert report.cell(grouped, ours, YARDSTICK).ratio["one epoch"] == report.Spread(2.0, 2.0, 2.0)


def test_tokens_a_second_and_utilisation_worked_out_by_hand() -> None:
    ours, theirs = report.cells(made_result(), YARDSTICK)
    # Two timed batches of 60 tokens; 4 s of steps and 2 s of the reference pass, against 16 s.
    assert ours.tokens_per_second.value == pytest.approx(120 / 6)
    assert theirs.tokens_per_second.value == pytest.approx(120 / 16)
    training = 6 * 100 * 120 + 6 * 50 * 40 + 12 * 8 * 100
    scoring = 2 * 100 * 120 + 2 * 50 * 40 + 4 * 8 * 100
    assert ours.utilisation.value == pytest.approx((training + scoring) / 6 / 1000)
    assert ours.step_utilisation.value == pytest.approx(training / 4 / 1000)
    assert theirs.utilisation.value == pytest.approx((training + scoring) / 16 / 1000)
    assert theirs.step_utilisation == theirs.utilisation


def test_rounds_of_the_length_grouped_side_count_as_one_long_round() -> None:
    # Long pairs in one round and short ones in another: the mean is meant, not either of them.
    runs = [
        made_run("trl-grouped", 0, (2.0,), reference=2.0),
        made_run("trl-grouped", 1, (10.0,), reference=2.0),
    ]
    cell = report.cell(runs, [], YARDSTICK)
    assert cell.pairs_per_second["one epoch"].value == pytest.approx(1 / (3.0 + 0.5))
    assert cell.tokens_per_second.value == pytest.approx(120 / (12 + 2))
    assert (cell.ratio, cell.memory_ratio) == ({}, None)


# --- what is shown -------------------------------------------------------------------------------------


def test_the_table_says_what_was_measured(tmp_path: Path) -> None:
    text = report.write_report(made_result(), YARDSTICK, tmp_path)
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    head, _, ours, theirs, failed = rows
    assert len(head) == len(ours) == len(theirs) == len(failed)
    shown = dict(zip(head, theirs, strict=True))
    assert shown["side"] == "TRL, defaults"
    assert shown["alignctl is faster: one epoch"] == "2.67 (2.67 to 3.20)x"
    assert shown["three epochs"] == "3.43 (3.43 to 3.69)x"
    assert shown["alignctl's memory"] == "0.40x"
    assert dict(zip(head, ours, strict=True))["pairs/s, one epoch"] == "0.667 (0.4 to 0.667)"
    assert failed[:2] == ["plain loop", "out of memory"]
    # Loss 0.5 against 0.4 and norm 4 against 5.
    assert "TRL, defaults 2.5e-01 / 2.0e-01" in text
    assert "a chip" in text
    assert (tmp_path / "report.md").read_text() == text
    everything = json.loads((tmp_path / "report.json").read_text())
    assert [one["side"] for one in everything["figures"]] == ["alignctl", "trl"]
    assert len(everything["measured"]["runs"]) == 6


def test_bars_begin_at_zero_and_are_as_long_as_their_figures(tmp_path: Path) -> None:
    report.write_report(made_result(), YARDSTICK, tmp_path)
    root = ET.parse(tmp_path / "report.svg").getroot()
    bars = [one for one in root.iter(f"{SVG}rect") if (one.get("class") or "").startswith("m")]
    assert [one.get("x") for one in bars] == ["0.000%", "0.000%"]
    ours, theirs = (float((one.get("width") or "").removesuffix("%")) for one in bars)
    assert ours / theirs == pytest.approx(4 / 1.5, rel=1e-3)
    style = root.find(f"{SVG}style")
    assert style is not None
    assert "prefers-color-scheme: dark" in (style.text or "")
    shown = [one.text for one in root.iter(f"{SVG}text")]
    assert {"alignctl", "TRL, defaults", "0.667", "0.25"} <= set(shown)


# --- the ladder ----------------------------------------------------------------------------------------


def test_every_rung_computes_the_same_over_its_own_positions(
    tmp_path: Path, tiny: Callable[..., LlamaForCausalLM]
) -> None:
    tiny(dtype=torch.float32).save_pretrained(tmp_path)
    draw = np.random.Generator(np.random.PCG64(0))
    sizes = [[(9, 5, 12), (20, 30, 4)], [(3, 8, 7), (14, 1, 16)]]
    made = [
        [worker.Pair(*(draw.integers(3, 61, size=n, dtype=np.int32) for n in size)) for size in batch]
        for batch in sizes
    ]
    case = measurements.Case("full", "float32", 2)
    found = {
        rung: side_rung.train(worker.Job(rung, case, 0, str(tmp_path), "", 0, 2, 0, 1e-6, 1, 0.0, ""), made)
        for rung in side_rung.RUNGS
    }
    parity.check_parity(
        [measurements.Parity(rung, case, one.loss, one.grad_norm) for rung, one in found.items()]
    )
    # Each prompt twice and padded to 50 and 30; then without the pads; then each prompt once.
    assert found["rung-padded"].padded == found["rung-head"].padded == (4 * 50, 4 * 30)
    assert found["rung-packed"].padded == (80 + 29, 49 + 17)
    assert found["rung-shared"].padded == found["rung-full"].padded == (80, 49)
    assert [rung for rung, one in found.items() if not one.reference] == ["rung-padded", "rung-without-cache"]
    assert list(ladder.TOLD) == list(side_rung.RUNGS)


def test_the_ladder_tells_how_much_faster_each_rung_is() -> None:
    runs = {rung: [made_run(rung, 0, (4.0,), reference=2.0)] for rung in side_rung.RUNGS}
    runs["rung-padded"] = [made_run("rung-padded", 0, (20.0,))]
    runs["rung-without-head"] = []
    lines = ladder.table(runs).splitlines()
    assert lines[2].endswith("| 20.00 |  | 100 | 2.00 | 1.00x | 1.00x |")
    # A step of 4 s and 1 s of the pass over two batches, against 20 s.
    assert lines[8].endswith("| 4.00 | 1.00 | 100 | 2.00 | 4.00x | 5.00x |")
    assert "did not fit" in lines[10]
