"""What is trained: losses on pairs at two strengths each, and the one command that all runs share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Arm:
    """A loss at one strength."""

    algo: str
    setting: str

    @property
    def name(self) -> str:
        """As in the tables: dpo beta=0.1."""
        return f"{self.algo} {self.setting.removeprefix('algo.')}"


GRID = (
    *(Arm("dpo", f"algo.beta={value}") for value in (0.05, 0.2)),
    *(Arm("ipo", f"algo.tau={value}") for value in (0.05, 0.2)),
    *(Arm("hinge", f"algo.beta={value}") for value in (0.05, 0.2)),
    *(Arm("slic", f"algo.alpha={value}") for value in (0.1, 1.0)),
)
"""Around the defaults; slic is the paper's hinge, whose strength is the weight of its regulariser."""

CALIBRATION = (0, 1)
"""Seeds whose runs the rule's numbers may be chosen by."""

DEMO = (
    *("train.dtype=bfloat16", "train.lr=2e-5", "train.schedule=constant", "train.steps=72"),
    *("dataset=demo", "dataset.pairs=96", "dataset.eval_pairs=144", "dataset.gold_samples=144"),
    *("eval.every=6", "eval.max_new_tokens=32"),
)
"""Six epochs over 96 pairs at a constant rate; gold scores of 144 sampled answers at every evaluation."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training run."""

    arm: Arm
    seed: int
    calibrates: bool = False
    """The rule's numbers may be chosen by it."""
    adapt: bool = False

    @property
    def name(self) -> str:
        """Of its directory and in messages."""
        strength = self.arm.setting.partition("=")[2]
        return f"{self.arm.algo}-{strength}-seed-{self.seed}" + ("-adapt" if self.adapt else "")

    def directory(self, out: Path) -> Path:
        """Where it is kept."""
        return out / self.name


def command(run: Run, shared: Sequence[str]) -> list[str]:
    """The words of its `alignctl`, all but the directory."""
    action = "watch.action=adapt" if run.adapt else "watch.action=warn"
    return ["train", f"algo={run.arm.algo}", run.arm.setting, f"seed={run.seed}", *shared, action]


def training(run: Run, out: Path, shared: Sequence[str]) -> float:
    """Train it on one core, or go on where it was killed; returns the seconds that took.

    Ends the study when the command fails.
    """
    directory = run.directory(out)
    words = [*command(run, shared), f"out={directory}"]
    print(f"+ alignctl {' '.join(words)}", flush=True)
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "alignctl", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if ended.returncode:
        print("\n".join(ended.stderr.splitlines()[-6:]), file=sys.stderr)
        os._exit(ended.returncode)  # from a thread: leave the other run to be resumed
    took = time.monotonic() - began
    print(f"  {run.name}: {took:.0f} s", flush=True)
    # Metrics and answers are what the study reads; the weights of two dozen runs would fill a disk.
    for heavy in ("checkpoints", "model"):
        shutil.rmtree(directory / heavy, ignore_errors=True)
    return took
