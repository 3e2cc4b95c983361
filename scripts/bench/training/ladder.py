"""What each part of the engine brings: a ladder from a padded loop up, and the whole with one part left out.

    python scripts/bench/training/ladder.py --lengths hh --out ladder.json
    python scripts/bench/training/ladder.py --data hh.jsonl.gz
    python scripts/bench/training/ladder.py --data hh.jsonl.gz --rungs rung-shared rung-stem

Full fine-tuning on the benchmark's own batches. The whole without fused norms is the rung before it; packing
and sharing build on each other and have no line among those left out.
Decisions. A run is a fresh process, so peak memory is its own; the order of the rungs turns round with every
round, medians are shown. All rungs have to find one loss and one gradient norm. "One epoch" is a step and the
reference's part of it, wherever that is computed; "reference known" is a step of a later epoch or of a sweep.
The rungs are in side_rung.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from batches import WARM_UP, Prepared, Schedule, made_up, prepare, read_data, wanted_pairs
from lengths import SHAPES
from measurements import Case, Parity, Run, read_run
from parity import Disagreement, check_parity
from processes import Part, TooLarge, failure
from side_rung import RUNGS
from worker import MICRO_PAIRS, Job
from workloads import cost

from alignctl.models.pinned import pinned_directory

TOLD = {
    "rung-padded": "padded, reference at every step, logits of all positions",
    "rung-cached": "+ reference scored once, before",
    "rung-head": "+ head on completion positions",
    "rung-packed": "+ packing",
    "rung-shared": "+ shared prompts",
    "rung-stem": "+ shared beginnings of prompts",
    "rung-full": "+ fused norms: the whole engine",
    "rung-without-cache": "the whole, reference at every step",
    "rung-without-head": "the whole, logits of all positions",
    "rung-checkpointing": "the whole, activation checkpointing on",
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="preference rows that alignctl reads")
    source.add_argument("--lengths", choices=SHAPES, help="made-up tokens in those lengths")
    parser.add_argument("--model", type=Path, help="model directory (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--rungs", nargs="+", choices=RUNGS, default=list(RUNGS), help="all unless named")
    parser.add_argument("--pairs", type=int, default=MICRO_PAIRS, help="pairs per optimiser step")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of 8 pairs per run")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="write every run to this JSON file")
    return parser.parse_args()


def climb(
    rungs: Sequence[str], model: str, threads: int, file: Prepared, schedule: Schedule, case: Case
) -> tuple[dict[str, list[Run]], list[str]]:
    """Every one of the rungs in every round, and those that did not fit in memory."""
    runs: dict[str, list[Run]] = {rung: [] for rung in rungs}
    too_large: list[str] = []
    batches = schedule.batches(case.batch)
    for number in range(schedule.rounds):
        part = Part(file.path, file.sha256, first=number * batches, batches=batches, warm_up=WARM_UP)
        for rung in rungs if number % 2 == 0 else reversed(rungs):
            if rung in too_large:
                continue
            try:
                runs[rung].append(one_run(model, threads, rung, case, number, part))
            except TooLarge as error:
                too_large.append(rung)
                print(error, file=sys.stderr)
                continue
            print(f"round {number + 1}, {TOLD[rung]}: {described(runs[rung][-1])}", file=sys.stderr)
        same_figures([of_rung[-1] for of_rung in runs.values() if of_rung])
    return runs, too_large


def one_run(model: str, threads: int, rung: str, case: Case, number: int, part: Part) -> Run:
    """One fresh process. Raises TooLarge where memory ran out, SystemExit where it failed otherwise."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    # As the command line sets it for itself before torch is imported (alignctl/cli).
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run.json"
        job = Job(
            side=rung,
            case=case,
            round=number,
            model=model,
            pairs=str(part.path),
            first=part.first,
            batches=part.batches,
            warm_up=part.warm_up,
            # As much work as at any other rate, and every step is comparable (parity.py).
            lr=0.0,
            threads=threads,
            started=time.monotonic(),
            out=str(out),
        )
        command = [sys.executable, Path(__file__).parent / "side_rung.py", json.dumps(asdict(job))]
        ended = subprocess.run(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if ended.returncode:
            raise failure(rung, case, ended)
        return read_run(json.loads(out.read_text(encoding="utf-8")))


def described(found: Run) -> str:
    """One line of progress."""
    return f"{statistics.median(found.steps):.2f} s a step, {found.peak_memory:.2f} GB"


def same_figures(found: Sequence[Run]) -> None:
    """Raise SystemExit where two rungs differ in loss or gradient norm."""
    try:
        check_parity([Parity(one.side, one.case, one.loss, one.grad_norm) for one in found])
    except Disagreement as error:
        raise SystemExit(f"the rungs do not compute the same: {error}") from error


COLUMNS = (
    "rung",
    "s a step",
    "reference before, s a batch",
    "positions a step",
    "peak memory, GB",
    "faster: one epoch",
    "reference known",
)


def table(runs: dict[str, list[Run]]) -> str:
    """Medians of the rounds; the last columns are the first rung's seconds over the rung's."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    first = next(iter(runs.values()))
    base = cost(first) if first else None
    for rung, found in runs.items():
        if not found:
            lines.append(f"| {TOLD[rung]} | did not fit in memory " + "| " * (len(COLUMNS) - 2) + "|")
            continue
        one, pairs = cost(found), found[0].case.batch
        positions = statistics.mean(tokens.padded for run in found for tokens in run.timed)
        figures = (
            f"{one.step * pairs:.2f}",
            f"{one.reference * pairs:.2f}" if one.reference else "",
            f"{positions:,.0f}",
            f"{statistics.median(map(memory_of, found)):.2f}",
            f"{base.one_epoch / one.one_epoch:.2f}x" if base else "",
            f"{base.step / one.step:.2f}x" if base else "",
        )
        lines.append("| " + " | ".join((TOLD[rung], *figures)) + " |")
    return "\n".join(lines)


def memory_of(run: Run) -> float:
    """GB at most: on the accelerator where there is one, else resident."""
    return run.peak_memory if run.peak_device_memory is None else run.peak_device_memory


def main() -> None:
    """Prepare, climb, print the table and write the runs."""
    options = arguments()
    model = str((options.model or pinned_directory(print)).resolve())
    schedule = Schedule(options.rounds, options.steps)
    case = Case("full", options.dtype, options.pairs)
    wanted = wanted_pairs([options.pairs], schedule)
    pairs = (
        read_data(options.data, model, wanted) if options.data else made_up(options.lengths, model, wanted)
    )
    with tempfile.TemporaryDirectory() as directory:
        file = prepare(pairs, [options.pairs], schedule, Path(directory))[str(options.pairs)]
        print(f"batches: sha256 {file.sha256}", file=sys.stderr)
        runs, too_large = climb(options.rungs, model, options.threads, file, schedule, case)
    print(table(runs))
    if options.out is not None:
        figures = {"runs": [asdict(one) for of_rung in runs.values() for one in of_rung]}
        options.out.write_text(json.dumps(figures | {"too_large": too_large}, indent=1) + "\n")


if __name__ == "__main__":
    main()
