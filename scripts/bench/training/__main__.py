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
written after every run: a long benchmark can be looked at on its way, or broken off and begun again with the
same words, which goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
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
from measurements import (
    SAME_BATCHES,
    Case,
    Failure,
    Machine,
    Parity,
    Result,
    Run,
    read_result,
    write_result,
)
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


def same_start(bench: Bench, prepared: Prepared, case: Case) -> tuple[Parity, ...]:
    """One way of computing on every side, on a few steps: raises Disagreement where two sides differ."""
    case = replace(case, batch=PARITY_PAIRS)
    lr = LR if case.dtype == "float32" else 0.0
    part = Part(prepared.path, prepared.sha256, first=0, batches=PARITY_STEPS, warm_up=0, lr=lr)
    sides = [as_parity(run(bench, side, case, 0, part)) for side in SAME_BATCHES]
    check_parity(sides)
    apart = largest_difference(sides)
    say(f"all sides agree ({case.adapter}-{case.dtype}), {apart:.1e} apart at most: {sides[0]}")
    return tuple(sides)


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


def one_round(plan: Plan, so_far: Result, number: int) -> Iterator[Result]:
    """What is left of a round, run by run; the result as it grows."""
    for case, side in so_far.left(plan.cases, number):
        try:
            found = run(plan.bench, side, case, number, plan.part(side, case.batch, number))
        except TooLarge as error:
            say(f"round {number + 1}: {error}")
            failure = Failure(side, case, "out of memory")
            so_far = replace(so_far, failed=(*so_far.failed, failure))
        else:
            say(f"round {number + 1} of {plan.schedule.rounds}, {case.name}, {side}: {described(found)}")
            so_far = replace(so_far, runs=(*so_far.runs, found))
        yield so_far


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


def begun(fresh: Result, path: Path) -> Result:
    """What an earlier call with the same words left at `path`, else `fresh`. Raises SystemExit for others."""
    if not path.exists():
        return fresh
    found = read_result(path)
    for name in ("model", "source", "threads", "batches"):
        if getattr(found, name) != getattr(fresh, name):
            raise SystemExit(f"{path} holds a benchmark of another {name}; name another --out")
    if (found.machine.cpu, found.machine.versions) != (fresh.machine.cpu, fresh.machine.versions):
        raise SystemExit(f"{path} was measured on another machine or other packages; name another --out")
    say(f"{path} has {len(found.runs)} runs; going on")
    return found


def measured(plan: Plan, result: Result) -> Iterator[Result]:
    """Parity of every way of computing, then the rounds; the result as it grows."""
    for way in dict.fromkeys(replace(case, batch=PARITY_PAIRS) for case in plan.cases):
        if not any(one.case == way for one in result.parity):
            try:
                found = same_start(plan.bench, plan.files["parity"], way)
            except (Disagreement, TooLarge) as error:
                raise SystemExit(f"nothing was timed: {error}") from error
            result = replace(result, parity=(*result.parity, *found))
            yield result
    for number in range(plan.schedule.rounds):
        for grown in one_round(plan, result, number):
            result = grown
            yield result
        tell_drift(result, number)


def main() -> None:
    """Prepare, check, measure, report."""
    options = arguments((__doc__ or "").partition("\n")[0])
    torch.set_num_threads(options.threads)
    model = (options.model or pinned_directory(say)).resolve()
    python, versions = trl_python(options.trl_python)
    plan = planned(options, Bench(str(model), python, options.threads))
    fresh = Result(
        machine=this_machine(versions),
        model=model.name,
        source=options.data.name if options.data else options.lengths,
        threads=options.threads,
        batches={name: file.sha256 for name, file in plan.files.items()},
        parity=(),
        runs=(),
        failed=(),
    )
    file = options.out / "result.json"
    result = begun(fresh, file)
    dtypes = sorted({case.dtype for case in plan.cases})
    yardstick = measure_yardstick(AutoConfig.from_pretrained(model), dtypes, rank=LORA_RANK)
    for grown in measured(plan, result):
        result = grown
        write_result(result, file)
        if result.runs:
            write_report(result, yardstick, options.out)
    print(write_report(result, yardstick, options.out))


if __name__ == "__main__":
    main()
