"""An area examined: its mutants tried one after another, and what became of each."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.mutation.mutants import Mutant, mutants_of
from scripts.mutation.processes import Area, is_killed, modules_of, observe, settle


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one mutant."""

    mutant: Mutant
    before: str
    after: str
    killed: bool
    reason: str | None
    """Why it is equivalent, where it is listed as that."""


def equivalents(path: Path) -> dict[tuple[str, str, str], str]:
    """(file, line before, line after) -> why nothing can tell them apart."""
    entries = tomllib.loads(path.read_text())["equivalent"] if path.exists() else []
    return {(entry["file"], entry["before"], entry["after"]): entry["reason"] for entry in entries}


def examine(
    area: Area,
    *,
    root: Path,
    sample: int | None = None,
    jobs: int = 1,
    listed: Mapping[tuple[str, str, str], str] | None = None,
    tell: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Try the area's mutants, or a sample of them; raises SystemExit when its tests fail without any."""
    sources = {str(file): (root / file).read_bytes() for file in modules_of(area, root)}
    mutants = [mutant for file, source in sources.items() for mutant in mutants_of(file, source)]
    if sample is not None and sample < len(mutants):
        chosen = set(random.Random(0).sample(range(len(mutants)), sample))
        mutants = [mutant for place, mutant in enumerate(mutants) if place in chosen]
    outcomes = []
    with (
        TemporaryDirectory(prefix="mutation-") as copies,
        ProcessPoolExecutor(jobs, get_context("spawn"), settle, (root, area, Path(copies))) as pool,
    ):
        code, reach = pool.submit(observe, area).result()
        if code:
            raise SystemExit(f"the tests fail without a mutant (exit code {code}): {' '.join(area.tests)}")
        changes = [mutant.change(sources[mutant.file]) for mutant in mutants]
        reasons = [(listed or {}).get((m.file, *change)) for m, change in zip(mutants, changes, strict=True)]
        tried = [m for m, reason in zip(mutants, reasons, strict=True) if reason is None]
        results = pool.map(is_killed, tried, [reach] * len(tried))
        for mutant, (before, after), reason in zip(mutants, changes, reasons, strict=True):
            killed = reason is None and next(results)
            outcomes.append(Outcome(mutant, before, after, killed, reason))
            tell(outcomes[-1])
    return outcomes
