"""What the studies share: commands that are run once, figures read from their files, a table and a chart.

A study is a list of ordinary `alignctl` commands. Each is run in a process of its own unless its directory
says that it is done, so a study that was interrupted goes on where it stood when its command is repeated.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

COLOURS = ("#3b6fb6", "#c2571a", "#2e8b57", "#7a4fa3")


@dataclass(frozen=True)
class Arm:
    """One thing that is compared: its name and its finished runs, one per seed."""

    name: str
    runs: tuple[Path, ...]


def alignctl(words: Sequence[str], out: Path) -> Path:
    """Run one command with out=`out` unless it is done; returns `out`. Ends the study when it fails."""
    if finished(out):
        return out
    command = [sys.executable, "-m", "alignctl", *words, f"out={out}"]
    print(f"+ alignctl {' '.join(words)} out={out}", flush=True)
    began = time.monotonic()
    code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    if code:
        sys.exit(f"exit code {code}; repeat the study's command to go on")
    print(f"  {time.monotonic() - began:.0f} s", flush=True)
    # A study compares finished models; the checkpoints of a dozen runs would fill a disk.
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return out


def finished(out: Path) -> bool:
    """A run or an evaluation whose record says so, or a soup that was written."""
    if (out / "soup.json").is_file():
        return True
    record = out / "run.json"
    return record.is_file() and json.loads(record.read_text())["status"] in ("done", "stopped")


def results(evaluation: Path) -> dict[str, Any]:
    """results.json of an evaluation."""
    return json.loads((evaluation / "results.json").read_text())


def figures(evaluation: Path) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Model name -> metric -> {value, ci, n} of an evaluation, the win rate over the reference among them."""
    found = results(evaluation)
    table = {model["name"]: dict(model["metrics"]) for model in found["models"]}
    for rate in found["win_rates"]:
        table[rate["model"]]["win_rate"] = rate["metrics"]["win_rate"]
    return table


def over_seeds(values: Sequence[float]) -> str:
    """Mean and 95 % interval over runs, each run one value (Student's t)."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    half = T_95[len(values) - 1] * spread / math.sqrt(len(values))
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Two-sided quantiles of Student's t by degrees of freedom."""


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for the README."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


# --- chart ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dot:
    """One model in the plane; `error` is the vertical 95 % interval."""

    arm: int
    x: float
    y: float
    error: tuple[float, float] | None = None
    label: str = ""
    line: str = ""
    """Dots of one line are joined in their order."""


WIDTH, HEIGHT, MARGIN = 640, 400, 72
TICKS = 6
"""About as many as an axis has."""


def scatter(title: str, across: str, up: str, names: Sequence[str], dots: Sequence[Dot]) -> str:
    """An SVG of dots with vertical intervals, one colour per arm; readable on light and dark pages."""
    low_x, high_x = _range([dot.x for dot in dots])
    low_y, high_y = _range([value for dot in dots for value in (dot.y, *(dot.error or ()))])

    def x(value: float) -> float:
        return MARGIN + (value - low_x) / (high_x - low_x) * (WIDTH - 1.5 * MARGIN)

    def y(value: float) -> float:
        return HEIGHT - MARGIN - (value - low_y) / (high_y - low_y) * (HEIGHT - 2 * MARGIN)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="13"><rect width="100%" height="100%" fill="#fff"/><title>{escape(title)}</title>',
        f'<text x="{WIDTH / 2}" y="24" text-anchor="middle" font-size="15">{escape(title)}</text>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 16}" text-anchor="middle">{escape(across)}</text>',
        f'<text x="16" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 16 {HEIGHT / 2})">'
        f"{escape(up)}</text>",
        f'<path d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN / 2}" fill="none" stroke="#555"/>',
    ]
    for value in _ticks(low_x, high_x):
        place = HEIGHT - MARGIN + 18
        parts.append(f'<text x="{x(value):.1f}" y="{place}" text-anchor="middle">{value:g}</text>')
    for value in _ticks(low_y, high_y):
        parts.append(f'<text x="{MARGIN - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for line in dict.fromkeys(dot.line for dot in dots if dot.line):
        joined = [dot for dot in dots if dot.line == line]
        points = " ".join(f"{x(dot.x):.1f},{y(dot.y):.1f}" for dot in joined)
        colour = COLOURS[joined[0].arm]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-opacity="0.4"/>')
    for dot in dots:
        colour = COLOURS[dot.arm]
        if dot.error is not None:
            low, high = dot.error
            parts.append(f'<path d="M{x(dot.x):.1f} {y(low):.1f}V{y(high):.1f}" stroke="{colour}"/>')
        parts.append(
            f'<circle cx="{x(dot.x):.1f}" cy="{y(dot.y):.1f}" r="{3 if dot.line else 5}" fill="{colour}">'
            f"<title>{escape(dot.label)}</title></circle>"
        )
    for arm, name in enumerate(names):
        place = MARGIN + 110 * arm
        parts.append(
            f'<circle cx="{place}" cy="48" r="5" fill="{COLOURS[arm]}"/>'
            f'<text x="{place + 12}" y="52">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.5
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(number * step, 10) for number in range(first, last + 1)]
