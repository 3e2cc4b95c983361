"""The mutation tool: it names what a weak test lets through, and a test with teeth kills every mutant."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.mutation import examination, mutants, processes

SOURCE = '''"""Planted."""


def clamped(value: float, low: float, high: float) -> float:
    """A docstring with 1 < 2."""
    if value < low:
        return low
    return high if value > high else value
'''
STRONG = """
import pytest
from alignctl.planted import clamped


@pytest.mark.parametrize(("value", "expected"), [(-1, 0), (0, 0), (1, 1), (2, 2), (3, 2)])
def test_clamped(value, expected):
    assert clamped(value, 0, 2) == expected
"""
WEAK = STRONG.replace("(-1, 0), ", "").replace("(3, 2)", "(2, 2)")
BROKEN = STRONG.replace("== expected", "!= expected")


def examined(root: Path, test: str, listed: dict[tuple[str, str, str], str] | None = None) -> list:
    """The outcomes for the planted module under one test file."""
    (root / "alignctl").mkdir()
    (root / "tests").mkdir()
    (root / "alignctl" / "__init__.py").touch()
    (root / "alignctl" / "planted.py").write_text(SOURCE)
    (root / "tests" / "test_planted.py").write_text(test)
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["slow"]\n')
    area = processes.Area(("alignctl/planted.py",), ("tests/test_planted.py",), 1.0)
    return examination.examine(area, root=root, listed=listed)


@pytest.mark.slow
def test_a_strong_test_kills_every_mutant_that_is_not_equivalent(tmp_path: Path) -> None:
    same = {
        ("alignctl/planted.py", "if value < low:", "if (value <= low):"): "low is returned either way",
        (
            "alignctl/planted.py",
            "return high if value > high else value",
            "return high if (value >= high) else value",
        ): "high is returned either way",
    }
    outcomes = examined(tmp_path, STRONG, same)
    assert [outcome.after for outcome in outcomes if not outcome.killed and outcome.reason is None] == []
    assert sum(outcome.reason is not None for outcome in outcomes) == 2
    assert {outcome.mutant.operator for outcome in outcomes} == {
        "compare",
        "return None",
        "branches swapped",
    }
    assert (tmp_path / "alignctl" / "planted.py").read_text() == SOURCE


@pytest.mark.slow
def test_what_a_test_runs_in_a_thread_counts_as_run(tmp_path: Path) -> None:
    threaded = STRONG.replace(
        "clamped(value, 0, 2)", "ThreadPoolExecutor().submit(clamped, value, 0, 2).result()"
    )
    outcomes = examined(tmp_path, f"from concurrent.futures import ThreadPoolExecutor\n{threaded}")
    assert [
        outcome.after
        for outcome in outcomes
        if outcome.mutant.operator == "return None" and not outcome.killed
    ] == []


@pytest.mark.slow
def test_what_a_weak_test_lets_through_is_named_with_its_place(tmp_path: Path) -> None:
    survivors = [outcome for outcome in examined(tmp_path, WEAK) if not outcome.killed]
    found = {(outcome.mutant.line, outcome.after) for outcome in survivors}
    # Nothing below `low` is tried, so the line that returns it is never run.
    assert (7, "return None") in found
    assert (8, "return None") not in found
    assert all(outcome.before in SOURCE for outcome in survivors)


@pytest.mark.slow
def test_a_failing_suite_is_no_measure(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="fail without a mutant"):
        examined(tmp_path, BROKEN)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", {"(a <= b)"}),
        ("a and b", {"(a or b)"}),
        ("-a", {"(a)"}),
        ("f(a, b)", {"(f(b, a))", "(f(a))"}),
        ("max(a, b)", {"(max(a))"}),
        ("f(a, key=b)", {"(f(a))"}),
        ("f(a, device=b)", set()),
        ("zip(a, strict=True)", set()),
        ("x = 3", {"(4)"}),
        ("x = 0.5", {"(1.0)"}),
        ("x = True", {"(False)"}),
        ("x = a if b else c", {"(c if b else a)"}),
        ("x: Literal['a'] = y", set()),
        ("x = f'{a + b}'", set()),
        ("assert a < b", set()),
        ("import a", set()),
    ],
)
def test_every_operator_by_hand(source: str, expected: set[str]) -> None:
    found = {mutant.text for mutant in mutants.mutants_of("x.py", source.encode())}
    assert found - {"pass"} == expected - {"pass"}


def test_a_mutant_changes_its_own_place_and_no_other() -> None:
    source = "é = 1\nx = a + b  # +\n".encode()
    one, other = mutants.mutants_of("x.py", source)
    assert one.applied(source).decode() == "é = (2)\nx = a + b  # +\n"
    assert other.applied(source).decode() == "é = 1\nx = (a - b)  # +\n"
    assert other.change(source) == ("x = a + b  # +", "x = (a - b)  # +")


def test_what_is_listed_as_equivalent_is_a_mutant_of_today() -> None:
    root = Path(mutants.__file__).parents[2]
    listed = examination.equivalents(root / "scripts" / "mutation" / "equivalents.toml")
    sources = {file: (root / file).read_bytes() for file, *_ in listed}
    made = {
        (file, *mutant.change(source))
        for file, source in sources.items()
        for mutant in mutants.mutants_of(file, source)
    }
    assert listed.keys() <= made


def test_a_module_that_imports_a_mutated_one_is_not_imported_beforehand() -> None:
    imports = {"a": set(), "b": {"a"}, "c": {"b", "torch"}, "d": {"torch"}}
    assert processes.dependants(imports, ["a"]) == {"a", "b", "c"}
