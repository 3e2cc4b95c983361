"""A few trials of every kind of fault, by the functions that measure all of them (scripts/faults)."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from scripts.faults import damage, places
from scripts.faults.figures import FIGURES, Figure
from scripts.faults.lab import Lab
from scripts.faults.processes import Failed

command = importlib.import_module("scripts.faults.__main__")
NAMED = {figure.name: figure for figure in FIGURES}
A_FEW = {
    "killed and stopped": [("kill-dpo", 0), ("sigterm", 0), ("sigint", 1)],
    "damaged": [("damage", 3), ("damage", 13), ("damage", 19), ("undamaged", 0), ("all-damaged", 0)],
    "killed where answers are sampled": [("kill-hypo", 0), ("kill-ppo", 0)],
    "killed where scores are trained": [("kill-reward", 0)],
    "soup and evaluation": [("kill-soup", 0), ("kill-eval", 0), ("second-writer", 1)],
    "storage": [("file-limit-dpo", 3), ("file-limit-dpo", 6), ("second-writer", 0)],
    "numbers": [("not-finite", 0), ("not-finite", 3), ("three-in-row", 1), ("spike", 0), ("habits", 0)],
    "memory": [("out-of-memory", 0), ("out-of-memory", 9), ("memory-floor", 0), ("memory-outside", 1)],
}
"""(figure, trial): each group has a directory of its own, so that groups run beside each other."""


@pytest.mark.slow
@pytest.mark.parametrize("trials", A_FEW.values(), ids=list(A_FEW))
def test_a_fault_ends_as_promised(trials: list[tuple[str, int]], tmp_path: Path) -> None:
    found = [command.measured(NAMED[name], trial, Lab(tmp_path / "lab")) for name, trial in trials]
    assert [(one["figure"], one["trial"], one["why"]) for one in found if not one["passed"]] == []


@pytest.mark.slow
def test_a_crash_of_a_run_directory_can_be_gone_on_with(tmp_path: Path) -> None:
    assert places.crash_run_directory(tmp_path, every=11) > 5


def test_every_figure_has_a_name_of_its_own_and_all_its_trials() -> None:
    assert len(NAMED) == len(FIGURES) >= 25
    assert NAMED["damage"].trials == len(damage.DAMAGES) == 4 * 7 + 3
    assert all(figure.trials >= 1 for figure in FIGURES)


@pytest.mark.parametrize(("kind", "file"), damage.DAMAGES)
def test_every_damage_changes_what_it_is_done_to(kind: str, file: str, tmp_path: Path) -> None:
    steps = [tmp_path / f"step-00000{number}" for number in (1, 2)]
    for number, step in enumerate(steps):
        step.mkdir()
        for name in damage.FILES:
            (step / name).write_bytes(bytes([number + 1]) * 200)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    damage.damage(kind, file, steps[1], steps[0], damage.Random(0))
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    expected = {path for path in changed if not file or path.name == file}
    assert changed
    assert changed == expected


def test_trials_that_are_there_are_not_repeated_and_failures_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def trial(lab: Lab, number: int) -> int:
        seen.append(number)
        if number == 1:
            raise Failed("weights differ")
        return 3

    monkeypatch.setattr(command, "FIGURES", (Figure("odd", "an odd fault", 3, trial),))
    monkeypatch.setattr("sys.argv", ["faults", "--trials", "2", "--out", str(tmp_path)])
    assert command.main() == 1
    assert command.main() == 1
    assert seen == [0, 1]
    monkeypatch.setattr("sys.argv", ["faults", "--out", str(tmp_path)])
    with open(tmp_path / "trials.jsonl", "a", encoding="utf-8") as file:
        file.write('{"figure": "odd", "tr')
    assert command.main() == 1
    assert seen == [0, 1, 2]
    table = (tmp_path / "faults.md").read_text()
    assert "| an odd fault | 7 | 6 |" in table
    assert "odd 1: weights differ" in table
    assert capsys.readouterr().out.endswith(table)
