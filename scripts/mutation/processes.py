"""Where mutants meet the tests: a copy of the project, everything imported, a forked process each."""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings

from scripts.mutation.mutants import Mutant

COPIED = ("alignctl", "conf", "scripts", "tests", "pyproject.toml", "README.md")


@dataclass(frozen=True, slots=True)
class Area:
    """Modules that are mutated, and the tests that have to notice; both relative to the root."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]
    least: float
    """Share of the mutants that are not equivalent which has to be killed."""


# --- what depends on what ------------------------------------------------------------------------------


def module_name(file: Path) -> str:
    """`a.b` for a/b.py and for a/b/__init__.py."""
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def imports_of(source: bytes) -> set[str]:
    """Dotted names of everything imported at any place: `from a import b` gives a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def dependants(imports: Mapping[str, set[str]], mutated: Iterable[str]) -> set[str]:
    """The mutated modules and every module that imports one of them, directly or not."""
    found = set(mutated)
    while more := {name for name, seen in imports.items() if seen & found} - found:
        found |= more
    return found


# --- one process: a copy of the project and everything imported that no mutant changes -----------------


@dataclass(frozen=True, slots=True)
class Reach:
    """What the unchanged tests did."""

    tests: Mapping[str, Mapping[int, set[str]]]
    """File -> line -> the tests that run it."""
    seconds: Mapping[str, float]
    """Of each test."""


class _Observer:
    """Pytest plugin: which lines of the watched files each test runs, and how long it takes."""

    def __init__(self, files: Iterable[str]) -> None:
        self._files = {os.path.abspath(file): file for file in files}
        self.lines: dict[str, dict[int, set[str]]] = {file: {} for file in self._files.values()}
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        def local(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
            file = self._files[frame.f_code.co_filename]
            self.lines[file].setdefault(frame.f_lineno, set()).add(item.nodeid)
            return local

        def trace(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
            return local if frame.f_code.co_filename in self._files else None

        began = time.perf_counter()
        sys.settrace(trace)
        threading.settrace(trace)  # of those that the test starts
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            self.seconds[item.nodeid] = time.perf_counter() - began


class _Chosen:
    """Pytest plugin: some of the tests, in the order given."""

    def __init__(self, tests: Sequence[str]) -> None:
        self._places = {test: place for place, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid in self._places]
        items.sort(key=lambda item: self._places[item.nodeid])


def settle(root: Path, area: Area, copies: Path) -> None:
    """Make this process one that mutants are forked from, in a copy of the project below `copies`."""
    place = Path(tempfile.mkdtemp(dir=copies))
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (root / name).exists():
            shutil.copy(root / name, place / name)
    os.chdir(place)
    sys.path.insert(0, str(place))
    quick = [Phase.explicit, Phase.generate]  # a failing example need not be made smaller
    hypothesis_settings.register_profile(
        "mutation", database=None, derandomize=True, phases=quick, suppress_health_check=list(HealthCheck)
    )
    hypothesis_settings.load_profile("mutation")
    _import_what_stays(area)


def _import_what_stays(area: Area) -> None:
    mutated = {Path(file).parts[0] for file in area.modules}
    imports = {
        module_name(file): imports_of(file.read_bytes())
        for package in sorted(mutated)
        for file in sorted(Path(package).rglob("*.py"))
    }
    for file in (file for test in area.tests for file in (Path(test), *Path(test).rglob("*.py"))):
        if file.suffix == ".py" and file.exists():
            imports[module_name(file)] = imports_of(file.read_bytes())
    changing = dependants(imports, map(module_name, modules_of(area, Path())))
    foreign = {name for seen in imports.values() for name in seen if name.split(".")[0] not in mutated}
    own = {name for name in imports if name.split(".")[0] in mutated and "__main__" not in name}
    for name in sorted(foreign | own - changing):
        with suppress(ImportError):
            importlib.import_module(name)


def modules_of(area: Area, root: Path) -> list[Path]:
    """The files that are mutated, relative to the root."""
    return sorted(file.relative_to(root) for pattern in area.modules for file in root.glob(pattern))


def in_child(work: Callable[[], int], seconds: float) -> int:
    """Exit code of `work` in a forked process, negative for a signal: that of an alarm after `seconds`."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.setsid()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            silence = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(silence, stream)
            status = work()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what a test had started
    return status


def run_tests(paths: Iterable[str], plugin: object, *words: str) -> int:
    """Pytest's exit code."""
    options = ["-n", "0", "-x", "-m", "not slow", "-p", "no:cacheprovider", *words]
    return int(pytest.main([*options, *paths], plugins=[plugin]))


def observe(area: Area) -> tuple[int, Reach]:
    """Run the unchanged tests; their exit code and what they reach."""
    report = Path("reach.json")

    def work() -> int:
        observer = _Observer(map(str, modules_of(area, Path())))
        code = run_tests(area.tests, observer)
        lines = {file: {k: sorted(v) for k, v in found.items()} for file, found in observer.lines.items()}
        report.write_text(json.dumps({"lines": lines, "seconds": observer.seconds}))
        return code

    code = in_child(work, 3600)
    found = json.loads(report.read_text()) if report.exists() else {"lines": {}, "seconds": {}}
    tests = {file: {int(k): set(v) for k, v in seen.items()} for file, seen in found["lines"].items()}
    return code, Reach(tests, found["seconds"])


def is_killed(mutant: Mutant, reach: Reach) -> bool:
    """Whether a test fails, or never ends, with the fault in the copy of the file."""
    tests = tests_for(mutant, reach)
    path = Path(mutant.file)
    source = path.read_bytes()

    def work() -> int:
        # No bytecode of the faulty file: another fault of the same size may follow within the same second.
        sys.dont_write_bytecode = True
        importlib.import_module(module_name(path))
        sys.dont_write_bytecode = False
        return run_tests(dict.fromkeys(test.split("::")[0] for test in tests), _Chosen(tests))

    path.write_bytes(mutant.applied(source))
    try:
        expected = sum(reach.seconds[test] for test in tests)
        return bool(tests) and in_child(work, 20 + 5 * expected) != 0
    finally:
        path.write_bytes(source)


def tests_for(mutant: Mutant, reach: Reach) -> list[str]:
    """The tests that run the mutated code, the fastest first; all of them for code that runs on import."""
    first, last = mutant.lines
    lines = reach.tests[mutant.file]
    reached = set().union(*(lines.get(line, set()) for line in range(first, last + 1)))
    return sorted(reached or _on_import(mutant, reach), key=lambda test: reach.seconds[test])


def _on_import(mutant: Mutant, reach: Reach) -> Iterable[str]:
    inside = [
        range(node.body[0].lineno, (node.end_lineno or 0) + 1)
        for node in ast.walk(ast.parse(Path(mutant.file).read_bytes()))
        if isinstance(node, ast.FunctionDef)
    ]
    return () if any(mutant.lines[0] in body for body in inside) else reach.seconds
