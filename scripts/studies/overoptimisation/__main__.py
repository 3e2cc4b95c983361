"""Over-optimisation (arXiv 2410.11677): where the watch's rule fires against where the gold score peaks.

    python scripts/studies/overoptimisation --out studies/overoptimisation --hours 3
    python scripts/studies/overoptimisation --data hh-harmless.jsonl --out studies/harmless --hours 1

Losses on pairs, each at two strengths and four seeds, trained well past the optimum on the demo pairs,
whose gold score of freshly sampled answers is the truth. A run on one core of a Xeon takes some 11
minutes, on one without bfloat16 (`--set train.dtype=float32`) some 40; `--hours` is the budget:
what would not end within it is not begun, and repeating the command goes on from there. Two runs at a time,
one core each. Every rule is replayed on the evaluations that a run leaves (kept.py), so rules are compared on
the same runs. Seeds 0 and 1 calibrate, the others are reported. `--adapt` trains the runs of the reported
seeds once more, with watch.action=adapt.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # what the studies share

import harmless
from common import finished
from grid import CALIBRATION, DEMO, GRID, Run, command, training
from kept import is_kept, keep, kept
from replay import CANDIDATES, Outcome, outcome, summary
from tables import adapted, charts, tables

from alignctl.train.watch.course import Record, read_records


@dataclass(frozen=True, slots=True)
class Study:
    """Runs on one set of data, and how their truth is found."""

    runs: tuple[Run, ...]
    words: tuple[str, ...]
    """Settings that all of them share."""
    records: Callable[[Path], list[Record]]
    """The evaluations in the directory of a finished run, with their truth as a gold score."""


def main() -> None:
    """Train within the budget, replay the rules, print the tables, write the charts."""
    options = _options()
    options.kept = options.kept or options.out / "evaluations"
    options.out.mkdir(parents=True, exist_ok=True)
    study = _on_demo(options) if options.data is None else _on_preferences(options)
    _train(study, options)
    records = {run: kept(run, options.kept) for run in study.runs if is_kept(run, options.kept)}
    print(f"{len(records)} of {len(study.runs)} runs are finished")
    found: dict[str, list[Outcome]] = {
        candidate.name: [outcome(candidate, run, of_run) for run, of_run in records.items() if not run.adapt]
        for candidate in CANDIDATES
    }
    print(tables(found), adapted(records), sep="\n\n")
    for name, picture in charts(records).items():
        (options.out / name).write_text(picture, encoding="utf-8")
    everything = {name: [asdict(one) for one in of_rule] for name, of_rule in found.items()}
    report = {"outcomes": everything, "summaries": {name: summary(one) for name, one in found.items()}}
    (options.out / "outcomes.json").write_text(json.dumps(report, indent=1, default=str) + "\n")


def _on_demo(options: argparse.Namespace) -> Study:
    runs = [Run(arm, seed, calibrates=seed in CALIBRATION) for seed in options.seeds for arm in GRID]
    if options.adapt:
        runs += [replace(run, adapt=True) for run in runs if not run.calibrates]
    return Study(tuple(runs), replaced(DEMO, options.set), lambda run: read_records(run / "metrics.jsonl"))


def _on_preferences(options: argparse.Namespace) -> Study:
    """The rule is settled by then: no run calibrates."""
    judge = cache(lambda: harmless.open_judge(harmless.prepared(options.data, options.out)))
    runs = [Run(arm, seed) for seed in options.seeds for arm in harmless.ARMS]
    if options.hours and not all(is_kept(run, options.kept) for run in runs):
        judge()  # writes the half that they train on
    words = replaced(harmless.words(options.out), options.set)
    return Study(tuple(runs), words, lambda run: harmless.judged_records(run, options.out, judge()))


def replaced(words: Sequence[str], changes: Sequence[str]) -> tuple[str, ...]:
    """Settings (key=value) with others in place of those of the same key, or added."""
    changed = {word.partition("=")[0] for word in changes}
    return (*(word for word in words if word.partition("=")[0] not in changed), *changes)


def _train(study: Study, options: argparse.Namespace) -> None:
    """Side by side; none is begun that would end after the budget."""
    ends = time.monotonic() + 3600 * options.hours
    longest = 0.0

    def one(run: Run) -> None:
        nonlocal longest
        if time.monotonic() + longest > ends or is_kept(run, options.kept):
            return
        directory = run.directory(options.out)
        if not finished(directory):  # a study that was killed may have left one that is
            longest = max(longest, training(run, options.out, study.words))
        keep(run, command(run, study.words), study.records(directory), options.kept)

    with ThreadPoolExecutor(options.parallel) as workers:
        list(workers.map(one, study.runs))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("studies/overoptimisation"))
    parser.add_argument("--data", type=Path, help="pairs of transcripts to train on instead of the demo's")
    parser.add_argument("--hours", type=float, default=6.0, help="budget; 0 = report on what is there")
    parser.add_argument(
        "--kept", type=Path, help="evaluations of finished runs; OUT/evaluations unless given"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--adapt", action="store_true", help="also train with watch.action=adapt")
    parser.add_argument("--set", nargs="*", default=[], help="other settings for every run, key=value")
    return parser.parse_args()


if __name__ == "__main__":
    main()
