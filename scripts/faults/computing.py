"""Losses and gradients that are no numbers, spikes, and memory that runs out, while a real run trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from scripts.faults import injected
from scripts.faults.lab import Lab, Work, changed, compare
from scripts.faults.processes import expect, record_of, run, steps_of, steps_recorded, succeed

BAD_STEP = 7
SPIKE = 1e6
LARGEST_MOVE = 4.0
"""In learning rates: what Adam moves at most when one clipped gradient follows small ones is 3.2."""
EVERY_STEP = ("checkpoint.every=1", "checkpoint.keep=30")
BATCH, WHOLE, HALF = 8, 1024, 512
"""Rows of a step and tokens at a time: the rows take more than half, so halving splits them anew."""
MEGABYTE = 2**20
LIMITS = (400, 200, 120, 60)
"""Megabytes that a command may map beyond what its imports took."""


def not_finite(lab: Lab, work: Work, prepare: Callable[[], None]) -> None:
    """One bad step: nothing moves, the step and its rows are recorded, and the run goes on."""
    out = _trained(lab, work, prepare)
    before, after = _state(out, BAD_STEP - 1), _state(out, BAD_STEP)
    expect(before == after, "weights or moments changed at the bad step")
    expect(_state(out, BAD_STEP + 1) != after, "nothing moved after the bad step")
    skipped = [line["step"] for line in _lines(out) if line.get("skipped")]
    expect(skipped == [BAD_STEP], f"recorded as skipped: {skipped}")
    told = [text for text in _warnings(out) if text.startswith(f"step {BAD_STEP} was not finite")]
    expect(len(told) == 1 and ": " in told[0], f"the rows are not named: {_warnings(out)}")


def three_in_row(lab: Lab, work: Work, prepare: Callable[[], None]) -> None:
    """Three bad steps in a row stop the run with exit 1, and no weight has moved since."""
    place = lab.fresh()
    ended = run(place, lab.words(changed(work, *EVERY_STEP)), prepare)
    expect(ended.code == 1, f"exit {ended.code}: {ended.said[-300:]}")
    expect("not finite at 3 steps in a row" in ended.said, ended.said[-300:])
    out = place / work.out
    states = [_state(out, int(path.name.removeprefix("step-"))) for path in steps_of(out)]
    expect(all(state == states[BAD_STEP - 2] for state in states[BAD_STEP - 1 :]), "weights changed")


def spike(lab: Lab, work: Work) -> None:
    """A gradient a million times too large: clipped, recorded as it was, and no weight leaps."""
    out = _trained(
        lab, work, partial(injected.spoil_gradient, SPIKE, [BAD_STEP], times=True), "train.schedule=constant"
    )
    lines = {line["step"]: line for line in _lines(out)}
    usual = max(line["grad_norm"] for step, line in lines.items() if step < BAD_STEP)
    expect(lines[BAD_STEP]["grad_norm"] > 1000 * usual, "the spike is not in grad_norm")
    before, after = _weights(out, BAD_STEP - 1), _weights(out, BAD_STEP)
    move = max(float((after[name] - before[name]).abs().max()) for name in before)
    expect(0 < move <= LARGEST_MOVE * lines[BAD_STEP]["lr"], f"a weight moved by {move:.2g}")
    last = _weights(out, work.steps)
    expect(all(bool(torch.isfinite(one).all()) for one in last.values()), "weights are not finite")


def halved(lab: Lab, work: Work, prepare: Callable[[], None]) -> None:
    """Out of memory once in the first step: from there the same as half the micro-batch from the start."""
    whole = changed(work, f"train.batch_size={BATCH}", f"hardware.micro_tokens={WHOLE}")
    half = replace(
        changed(whole, f"hardware.micro_tokens={HALF}"),
        name=f"{work.name}-half",
        same=("metrics.jsonl", "samples.jsonl", "model/*.safetensors"),
        steps=0,
    )
    expected = lab.undisturbed(half)
    place = lab.fresh()
    ended = run(place, lab.words(whole), prepare)
    expect(ended.code == 0, f"exit {ended.code}: {ended.said[-300:]}")
    expect(f"going on with hardware.micro_tokens={HALF}" in " ".join(_warnings(place / work.out)), "not told")
    compare(half, expected, place / work.out)
    expect(_state(place / work.out, work.steps) == _state(expected, work.steps), "another state at the end")


def at_the_floor(lab: Lab, work: Work) -> None:
    """Out of memory whatever the micro-batch: exit 4 with what to try, and the run goes on elsewhere."""
    _refused(lab, work, partial(injected.exhaust, "training", (), "cpu", 1), "train.max_length=")


def outside_a_step(lab: Lab, work: Work, prepare: Callable[[], None]) -> None:
    """Out of memory while scoring or sampling: exit 4 with what to try, and the run goes on elsewhere."""
    _refused(lab, work, prepare, "out of memory")


def short_of_memory(lab: Lab, work: Work, megabytes: int) -> None:
    """A real limit on the address space: the command ends well or with exit 4."""
    undisturbed, place = lab.undisturbed(work), lab.fresh()
    ended = run(place, lab.words(work), partial(injected.limit_memory, megabytes * MEGABYTE))
    expect(ended.code in (0, 4), f"exit {ended.code}: {ended.said[-400:]}")
    expect("Traceback" not in ended.said, ended.said[-400:])
    if ended.code:
        succeed(place, lab.words(work))
        compare(work, undisturbed, place / work.out)


def _refused(lab: Lab, work: Work, prepare: Callable[[], None], told: str) -> None:
    undisturbed, place = lab.undisturbed(work), lab.fresh()
    ended = run(place, lab.words(work), prepare)
    expect(ended.code == 4, f"exit {ended.code}: {ended.said[-300:]}")
    expect(told in ended.said and "try " in ended.said, f"no way on: {ended.said[-300:]}")
    # The micro-batch that was halved on the way down is the run's own: undisturbed means without that.
    if not record_of(place / work.out).get("troubles"):
        succeed(place, lab.words(work))
        compare(work, undisturbed, place / work.out)


# --- reading what a run left ---------------------------------------------------------------------------


def _trained(lab: Lab, work: Work, prepare: Callable[[], None], *words: str) -> Path:
    place = lab.fresh()
    ended = run(place, lab.words(changed(work, *EVERY_STEP, *words)), prepare)
    expect(ended.code == 0, f"exit {ended.code}: {ended.said[-300:]}")
    expect(steps_recorded(place / work.out) == work.steps, "not every step was recorded")
    return place / work.out


def _lines(out: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == "train"]


def _warnings(out: Path) -> list[str]:
    found = record_of(out).get("warnings", [])
    assert isinstance(found, list)
    return found


def _state(out: Path, step: int) -> tuple[bytes, bytes]:
    place = out / "checkpoints" / f"step-{step:06d}"
    return (place / "model.safetensors").read_bytes(), (place / "optimizer.safetensors").read_bytes()


def _weights(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / f"step-{step:06d}" / "model.safetensors")
