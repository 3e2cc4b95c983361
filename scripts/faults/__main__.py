"""What alignctl survives, measured: every fault of a list put into real runs, and what came of it.

    python scripts/faults --out faults
    python scripts/faults --only kill-dpo damage --trials 3 --out faults

Each finished trial is a line of DIR/trials.jsonl, and the same command goes on with those that are missing.
The table is printed and written to DIR/faults.md. One core is enough; kill-recipe takes minutes a trial.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, as scripts are

from scripts.faults.figures import FIGURES, Figure
from scripts.faults.lab import Lab
from scripts.faults.processes import Failed


def main() -> int:
    """Run the trials that are missing; returns 1 when one of those asked for failed."""
    options = _options()
    figures = [figure for figure in FIGURES if not options.only or figure.name in options.only]
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        for number in range(_wanted(figure, options.trials)):
            if (figure.name, number) not in {(one["figure"], one["trial"]) for one in _records(out)}:
                _keep(out, measured(figure, number, Lab(out / "lab")))
    text = table(figures, _records(out))
    (out / "faults.md").write_text(text, encoding="utf-8")
    print(text, end="")
    names = {figure.name for figure in figures}
    return int(any(not one["passed"] for one in _records(out) if one["figure"] in names))


def measured(figure: Figure, number: int, lab: Lab) -> dict[str, Any]:
    """One trial, as its line says it."""
    lab.root.mkdir(parents=True, exist_ok=True)
    began, faults, why = time.monotonic(), 1, None
    try:
        faults = figure.trial(lab, number)
    except Failed as error:
        why = str(error)
    except Exception:
        why = traceback.format_exc(limit=-3)
    seconds = round(time.monotonic() - began, 1)
    print(f"{figure.name} {number}: {'passed' if why is None else why}  ({seconds} s)", file=sys.stderr)
    return {
        "figure": figure.name,
        "trial": number,
        "faults": faults,
        "passed": why is None,
        "why": why,
        "seconds": seconds,
    }


def table(figures: Sequence[Figure], records: Iterable[dict[str, Any]]) -> str:
    """Markdown: a row per figure that was measured, then what failed."""
    records = list(records)
    lines = ["| fault | trials | passed | how long |", "|---|---|---|---|"]
    for figure in figures:
        own = [one for one in records if one["figure"] == figure.name]
        if own:
            tried = sum(one["faults"] for one in own)
            passed = sum(one["faults"] for one in own if one["passed"])
            lines.append(
                f"| {figure.fault} | {tried} | {passed} | {sum(one['seconds'] for one in own):.0f} s |"
            )
    shown = {figure.name for figure in figures}
    failed = [one for one in records if not one["passed"] and one["figure"] in shown]
    lines += [f"\n{one['figure']} {one['trial']}: {one['why']}" for one in failed]
    return "\n".join(lines) + "\n"


def _wanted(figure: Figure, trials: int | None) -> int:
    return figure.trials if trials is None else min(trials, figure.trials)


def _records(out: Path) -> list[dict[str, Any]]:
    """The finished trials; a line that a kill cut short is a trial that did not finish."""
    file = out / "trials.jsonl"
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def _keep(out: Path, record: dict[str, Any]) -> None:
    """One line more; an empty one before it, so that a line which was cut short does not swallow it."""
    with open(out / "trials.jsonl", "a", encoding="utf-8") as file:
        file.write(f"\n{json.dumps(record)}\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [figure.name for figure in FIGURES]
    parser.add_argument("--out", type=Path, required=True, help="directory of the trials and the table")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--trials", type=int, help="at most so many trials of each figure")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
