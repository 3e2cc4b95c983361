"""Mutation testing by area: does a small fault in the code make some test fail?

    python scripts/mutation losses packing
    python scripts/mutation checkpoint data --sample 60

One fault at a time (`mutants_of`) is written into a temporary copy of the package. Each mutant has a process
of its own, forked from one that has imported everything except the mutated modules and what depends on them,
and there only the tests run that reach the mutated line, the fastest first. So a mutant costs well under a
second where its tests do. Tests marked slow do not take part.

A mutant that computes the same as the original is listed, with its reason, in equivalents.toml. The
exit code is 1 when an area is below the share of killed mutants that it has to reach.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, as scripts are

from scripts.mutation.examination import Outcome, equivalents, examine
from scripts.mutation.processes import Area

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENTS = Path(__file__).with_name("equivalents.toml")

AREAS = {
    "losses": Area(
        ("alignctl/algos/*.py",),
        (
            "tests/algos",
            "tests/train/test_answer_step.py",
            "tests/train/test_reward_step.py",
            "tests/train/test_step.py",
        ),
        1.0,
    ),
    "packing": Area(
        ("alignctl/models/packing.py",),
        ("tests/models/test_packing.py", "tests/models/test_packing_laws.py"),
        1.0,
    ),
    "checkpoint": Area(
        ("alignctl/train/checkpoint.py", "alignctl/train/durable.py", "alignctl/train/progress.py"),
        (
            "tests/train/test_checkpoint.py",
            "tests/train/test_durable.py",
            "tests/train/test_power_cut.py",
            "tests/train/test_progress.py",
            "tests/train/test_checkpoint_crash.py",
            "tests/train/test_run_machine.py",
        ),
        0.85,
    ),
    "data": Area(
        ("alignctl/data/rendering.py", "alignctl/data/split.py"),
        (
            "tests/data/test_rendering.py",
            "tests/data/test_rendering_prompts.py",
            "tests/data/test_split.py",
            "tests/data/test_encoding.py",
            "tests/data/test_table.py",
            "tests/data/test_answer_forms.py",
        ),
        0.85,
    ),
}


def _tell(outcome: Outcome) -> None:
    if not outcome.killed and outcome.reason is None:
        mutant = outcome.mutant
        print(f"{mutant.file}:{mutant.line}  survived  ({mutant.operator})")
        print(f"  - {outcome.before}\n  + {outcome.after}", flush=True)


def main() -> int:
    """Report on the areas named; 1 when one of them is below its share."""
    parser = argparse.ArgumentParser(description="Mutation testing by area.")
    parser.add_argument("areas", nargs="+", choices=AREAS)
    parser.add_argument("--sample", type=int, help="try that many mutants of each area, the same every time")
    parser.add_argument("--jobs", type=int, default=1)
    words = parser.parse_args()
    listed, short = equivalents(EQUIVALENTS), 0
    for name in words.areas:
        began = time.monotonic()
        area = AREAS[name]
        outcomes = examine(area, root=ROOT, sample=words.sample, jobs=words.jobs, listed=listed, tell=_tell)
        same = sum(outcome.reason is not None for outcome in outcomes)
        killed = sum(outcome.killed for outcome in outcomes)
        share = killed / max(1, len(outcomes) - same)
        seconds = time.monotonic() - began
        print(
            f"{name}: {killed} of {len(outcomes) - same} mutants killed ({share:.1%}), {same} equivalent, "
            f"{seconds:.0f} s",
            flush=True,
        )
        short += share < area.least
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
