"""One worker process per run: peak memory and time to the first step are then the side's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from measurements import Case, Run, read_run
from worker import LR, Job

from alignctl.models.machine import compiled_code

SCRIPTS = {
    "alignctl": "side_alignctl.py",
    "alignctl-compiled": "side_alignctl.py",
    "plain": "side_plain.py",
}
"""All others are TRL."""
OUT_OF_MEMORY = ("OutOfMemoryError", "out of memory", "can't allocate memory", "OOM")
TAIL = 15
"""Lines of a failed process's stderr that are shown."""


class TooLarge(Exception):
    """A side does not fit in this machine's memory; its text is one line."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all runs have in common."""

    model: str
    trl_python: Path
    threads: int


@dataclass(frozen=True, slots=True)
class Part:
    """The batches of one run."""

    path: Path
    sha256: str
    first: int
    batches: int
    warm_up: int
    lr: float = LR


def run(bench: Bench, side: str, case: Case, number: int, part: Part) -> Run:
    """Start the side, wait for it and read what it measured.

    Raises TooLarge where memory ran out, SystemExit with the end of the process's own output where it failed
    otherwise: a side that cannot run makes the comparison worthless.
    """
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run.json"
        job = Job(
            side=side,
            case=case,
            round=number,
            model=bench.model,
            pairs=str(part.path),
            first=part.first,
            batches=part.batches,
            warm_up=part.warm_up,
            lr=part.lr,
            threads=bench.threads,
            started=0.0,
            out=str(out),
        )
        ended = start(bench, job, directory)
        if ended.returncode:
            raise failure(side, case, ended)
        found = read_run(json.loads(out.read_text(encoding="utf-8")))
    assert found.batches == part.sha256  # one file for all, read by each
    return found


def start(bench: Bench, job: Job, directory: str) -> subprocess.CompletedProcess[str]:
    """Run the worker to its end."""
    python = bench.trl_python if job.side.startswith("trl") else Path(sys.executable)
    script = Path(__file__).parent / SCRIPTS.get(job.side, "side_trl.py")
    environment = os.environ | {
        "OMP_NUM_THREADS": str(bench.threads),
        # Empty, so that no reference is found that an earlier run has scored.
        "ALIGNCTL_CACHE": f"{directory}/cache",
        # The model is a directory; nothing is to be asked for over the network while the clock runs.
        "HF_HUB_OFFLINE": "1",
    }
    if job.side.startswith("alignctl"):
        # As the command line sets it for itself before torch is imported (alignctl/cli).
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # The user's own, beside an empty cache: later rounds find the code as later runs of a user do.
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled_code()))
    begun = json.dumps(asdict(replace(job, started=time.monotonic())))
    return subprocess.run(
        [python, script, begun], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def failure(side: str, case: Case, ended: subprocess.CompletedProcess[str]) -> Exception | SystemExit:
    """What to raise of a process that ended with an error; SIGKILL is what the system sends for memory."""
    if ended.returncode == -9 or any(word in ended.stderr for word in OUT_OF_MEMORY):
        return TooLarge(f"{side} ran out of memory ({case.name})")
    tail = "\n".join(ended.stderr.splitlines()[-TAIL:])
    return SystemExit(f"{side} failed ({case.name}):\n{tail}")
