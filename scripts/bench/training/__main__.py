"""Times training steps: alignctl against TRL's DPOTrainer and a plain loop, on the same batches.

    python scripts/bench/training --data hh.jsonl.gz --out runs/bench-training
    python scripts/bench/training --lengths ultrafeedback

DPO on SmolLM2-135M unless --model names another. Sides: alignctl; alignctl-compiled, the same with
`hardware.compile=true`; trl, as TRL 1.16 comes; trl-tuned, with a precomputed reference and without
activation checkpointing; trl-grouped, the same on batches of its own that are grouped by length; plain, a
loop as one writes it first.
Decisions. Batches are made once and read by every side. A side is a process of its own per run, so that
memory and time to the first step are its own. Loss and gradient norm of the first steps have to agree before
anything is timed. The order of the sides turns round with every round; medians are reported. The result is
written after every round, so that a long benchmark can be looked at, or broken off, on its way.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
from batches import (
    PARITY_PAIRS,
    PARITY_STEPS,
    WARM_UP,
    Prepared,
    Schedule,
    made_up,
    prepare,
    read_data,
    wanted_pairs,
)
from environment import SHARED, trl_python
from measurements import SAME_BATCHES, SIDES, Case, Failure, Machine, Parity, Result, Run, write_result
from options import arguments
from parity import Disagreement, check_parity, largest_difference
from peak import measure_yardstick
from processes import Bench, Part, TooLarge, run
from report import write_report
from transformers import AutoConfig
from worker import LORA_RANK, LR

from alignctl.models.machine import total_memory
from alignctl.models.pinned import pinned_directory

# --- before --------------------------------------------------------------------------------------------


def same_start(bench: Bench, prepared: Prepared, cases: Sequence[Case]) -> tuple[Parity, ...]:
    """Every way of computing once, on a few steps: raises Disagreement where two sides differ."""
    found = []
    for adapter, dtype in dict.fromkeys((case.adapter, case.dtype) for case in cases):
        case = Case(adapter, dtype, PARITY_PAIRS)
        lr = LR if dtype == "float32" else 0.0
        part = Part(prepared.path, prepared.sha256, first=0, batches=PARITY_STEPS, warm_up=0, lr=lr)
        sides = [as_parity(run(bench, side, case, 0, part)) for side in SAME_BATCHES]
        check_parity(sides)
        say(f"all sides agree ({adapter}-{dtype}), {largest_difference(sides):.1e} apart at most: {sides[0]}")
        found += sides
    return tuple(found)


def as_parity(found: Run) -> Parity:
    """What the sides are compared by."""
    return Parity(found.side, found.case, found.loss, found.grad_norm)


def this_machine(trl: Mapping[str, str]) -> Machine:
    """Before the first run."""
    names = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in names if line.startswith("model name")), "")
    own = {name: version(name) for name in ("alignctl", *SHARED, "numpy")}
    return Machine(
        cpu=cpu or platform.processor(),
        cores=os.cpu_count() or 0,
        memory=total_memory() / 1e9,
        system=platform.platform(),
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        versions={"python": platform.python_version()} | own | {f"trl:{name}": v for name, v in trl.items()},
        load_before=os.getloadavg(),
    )


def say(text: str) -> None:
    """Progress, beside the table on stdout."""
    print(text, file=sys.stderr, flush=True)


# --- rounds --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured."""

    bench: Bench
    cases: tuple[Case, ...]
    schedule: Schedule
    files: Mapping[str, Prepared]

    def part(self, side: str, batch: int, number: int) -> Part:
        """The batches of a round."""
        file = self.files[f"grouped-{batch}" if side == "trl-grouped" else str(batch)]
        batches = self.schedule.batches(batch)
        return Part(file.path, file.sha256, first=number * batches, batches=batches, warm_up=WARM_UP)


def one_round(plan: Plan, so_far: Result, number: int) -> Result:
    """Every side of every case once more, but for those that did not fit."""
    sides = tuple(reversed(SIDES)) if number % 2 else SIDES
    runs, failed = list(so_far.runs), list(so_far.failed)
    for case, side in product(plan.cases, sides):
        if any((one.side, one.case) == (side, case) for one in failed):
            continue
        try:
            found = run(plan.bench, side, case, number, plan.part(side, case.batch, number))
        except TooLarge as error:
            say(f"round {number + 1}: {error}")
            failed.append(Failure(side, case, "out of memory"))
            continue
        runs.append(found)
        say(f"round {number + 1} of {plan.schedule.rounds}, {case.name}, {side}: {described(found)}")
    return replace(so_far, runs=tuple(runs), failed=tuple(failed))


def tell_drift(result: Result, number: int) -> None:
    """How far the sides are apart in a round's losses and norms: beside its times, a sign of sound runs."""
    for case in result.cases():
        found = [
            as_parity(one) for side in SAME_BATCHES for one in result.of(side, case) if one.round == number
        ]
        if len(found) > 1:
            say(f"round {number + 1}, {case.name}: {largest_difference(found):.1e} apart at most")


def described(found: Run) -> str:
    """One line of progress."""
    step = statistics.median(found.steps)
    return (
        f"{step:.2f} s a step, reference {found.reference_per_batch:.2f} s a batch, first step after "
        f"{found.start.total:.1f} s, {found.peak_memory:.1f} GB"
    )


def planned(options: argparse.Namespace, bench: Bench) -> Plan:
    """Read or make up the pairs and write all batches."""
    schedule = Schedule(options.rounds, options.steps)
    sizes = sorted({case.batch for case in options.cases})
    wanted = wanted_pairs(sizes, schedule)
    if options.data:
        pairs = read_data(options.data, bench.model, wanted)
    else:
        pairs = made_up(options.lengths, bench.model, wanted)
    options.out.mkdir(parents=True, exist_ok=True)
    files = prepare(pairs, sizes, schedule, options.out)
    for name, file in files.items():
        say(f"batches {name}: sha256 {file.sha256}")
    return Plan(bench, tuple(dict.fromkeys(options.cases)), schedule, files)


def main() -> None:
    """Prepare, check, measure, report."""
    options = arguments((__doc__ or "").partition("\n")[0])
    torch.set_num_threads(options.threads)
    model = (options.model or pinned_directory(say)).resolve()
    python, versions = trl_python(options.trl_python)
    plan = planned(options, Bench(str(model), python, options.threads))
    machine = this_machine(versions)
    try:
        parity = same_start(plan.bench, plan.files["parity"], plan.cases)
    except (Disagreement, TooLarge) as error:
        raise SystemExit(f"nothing was timed: {error}") from error
    dtypes = sorted({case.dtype for case in plan.cases})
    yardstick = measure_yardstick(AutoConfig.from_pretrained(model), dtypes, rank=LORA_RANK)
    result = Result(
        machine=machine,
        model=model.name,
        source=options.data.name if options.data else options.lengths,
        threads=options.threads,
        batches={name: file.sha256 for name, file in plan.files.items()},
        parity=parity,
        runs=(),
        failed=(),
    )
    table = ""
    for number in range(plan.schedule.rounds):
        result = one_round(plan, result, number)
        tell_drift(result, number)
        write_result(result, options.out / "result.json")
        table = write_report(result, yardstick, options.out)
    print(table)


if __name__ == "__main__":
    main()
