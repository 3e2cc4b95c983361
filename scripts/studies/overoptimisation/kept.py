"""What stays of a finished run: its evaluations with their truth, in one small file.

Rules are compared on these alone, so runs that took hours are replayed in a second, and by anyone:

    python scripts/studies/overoptimisation --hours 0 --kept scripts/studies/overoptimisation/evaluations

replays runs that the README reports.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from grid import Run

from alignctl.train.watch.course import Record, record_of

DIGITS = 6
"""Significant ones, far below the noise of any of these figures."""


def is_kept(run: Run, folder: Path) -> bool:
    """Whether the run has ended and its evaluations are there."""
    return _file(run, folder).is_file()


def keep(run: Run, words: Sequence[str], records: Sequence[Record], folder: Path) -> None:
    """Write the evaluations of a finished run; `words` are its command's."""
    lines = [
        {name: float(f"{value:.{DIGITS}g}") for name, value in one.metrics.items()} | {"step": one.step}
        for one in records
    ]
    head = json.dumps({"command": f"alignctl {' '.join(words)}", "torch": version("torch")})[1:-1]
    body = ",\n".join(map(json.dumps, lines))
    folder.mkdir(parents=True, exist_ok=True)
    _file(run, folder).write_text(f'{{{head}, "evaluations": [\n{body}\n]}}\n', encoding="utf-8")


def kept(run: Run, folder: Path) -> list[Record]:
    """The evaluations of a finished run."""
    lines = json.loads(_file(run, folder).read_text(encoding="utf-8"))["evaluations"]
    return [record_of(line.pop("step"), line) for line in lines]


def _file(run: Run, folder: Path) -> Path:
    return folder / f"{run.name}.json"
