"""Every figure that is measured: a fault, how often it is put, and the function that puts it once.

A trial's randomness comes from its figure's name and its own number, so that a trial that failed can be
repeated alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from scripts.faults import computing, damage, habits, injected, kills, places, storage, writers
from scripts.faults.lab import CHAIN, EVAL, SOUP, TRAINING, Lab, Work

KILL_TRIALS = 10
SIGNAL_TRIALS = 20
UNDAMAGED_TRIALS = 10
DPO, SFT = TRAINING["dpo"], TRAINING["sft"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table."""

    name: str
    fault: str
    trials: int
    trial: Callable[[Lab, int], int]
    """Puts the fault; raises Failed (or whatever alignctl should not have raised). Gives how many it put."""


def _random(name: str, trial: int) -> Random:
    return Random(f"{name} {trial}")


def _drawn(name: str, fault: str, trials: int, put: Callable[[Lab, Random], None]) -> Figure:
    """A fault at random moments."""

    def trial(lab: Lab, number: int) -> int:
        put(lab, _random(name, number))
        return 1

    return Figure(name, fault, trials, trial)


def _cases(name: str, fault: str, cases: Sequence[tuple[Any, ...]], put: Callable[..., None]) -> Figure:
    """A fault in every one of some cases: `put(lab, *case)`."""

    def trial(lab: Lab, number: int) -> int:
        put(lab, *cases[number])
        return 1

    return Figure(name, fault, len(cases), trial)


def _enumerated(name: str, fault: str, put: Callable[[Lab], int]) -> Figure:
    """All places of a fault in one trial."""
    return Figure(name, fault, 1, lambda lab, number: put(lab))


def _crashes(name: str, what: str, crash: Callable[..., int]) -> Figure:
    def put(lab: Lab) -> int:
        root = places.emptied(lab.root / name)
        return crash(lab, root) if crash is places.crash_soup else crash(root)

    return _enumerated(name, f"crash at every call that changes the disk: {what}", put)


CRASHES = (
    _crashes("crash-save", "save and rotate", places.crash_save),
    _crashes("crash-replacement", "a bad checkpoint replaced", places.crash_replacement),
    _crashes("crash-run", "a run directory opened, updated, finished", places.crash_run_directory),
    _crashes("crash-soup", "a soup over an older one", places.crash_soup),
)
KILLS = (
    *(
        _drawn(f"kill-{name}", f"kill -9 three times: {name}", KILL_TRIALS, put)
        for name, work in TRAINING.items()
        for put in [lambda lab, random, work=work: kills.kill_training(lab, work, random)]
    ),
    *(
        _drawn(f"kill-{work.name}", f"kill -9 three times: {work.name}", KILL_TRIALS, put)
        for work in (SOUP, EVAL, CHAIN)
        for put in [lambda lab, random, work=work: kills.kill_command(lab, work, random)]
    ),
)
SIGNALS = tuple(
    _drawn(number.name.lower(), f"{number.name}: exit {code}, saved, gone on with", SIGNAL_TRIALS, put)
    for number, code in kills.CODES.items()
    for put in [lambda lab, random, number=number: kills.stop_training(lab, DPO, number, random)]
)
DAMAGES = (
    _cases(
        "damage",
        "newest checkpoint damaged, per file",
        [(_random("damage", number), *case) for number, case in enumerate(damage.DAMAGES)],
        lambda lab, random, kind, file: damage.damaged(lab, DPO, random, kind, file),
    ),
    _drawn(
        "undamaged",
        "nothing damaged: no false alarm",
        UNDAMAGED_TRIALS,
        lambda lab, random: damage.undamaged(lab, DPO, random),
    ),
    _drawn(
        "all-damaged",
        "every checkpoint damaged: exit 7",
        5,
        lambda lab, random: damage.all_damaged(lab, DPO, random),
    ),
)
STORAGE = (
    *(
        _cases(f"file-limit-{work.name}", f"no file may grow beyond a size: {work.name}", cases, put)
        for work in (DPO, SOUP, EVAL)
        for cases in [[(work, size) for size in storage.LIMITS]]
        for put in [storage.limited]
    ),
    _cases(
        "small-disk",
        "a tmpfs that fills up: dpo",
        [(DPO, share) for share in storage.SHARES],
        storage.on_small_disk,
    ),
)
SWEEP = Work(
    "sweep", ("train", "-m", "seed=0,1", *DPO.words[1:-1], "out=sweep"), "sweep", ("*/metrics.jsonl",)
)
WRITERS = _cases(
    "second-writer",
    "second writer of a run, soup, eval, recipe, sweep: exit 7",
    [
        (DPO, "run/.lock"),
        (SOUP, ".soup.lock"),
        (EVAL, "eval/.lock"),
        (CHAIN, "chain/.lock"),
        (SWEEP, "sweep/.lock"),
    ],
    writers.second_writer,
)
SPOILERS = (
    *((injected.spoil_loss, value) for value in (math.nan, math.inf)),
    *((injected.spoil_gradient, value) for value in (math.nan, math.inf)),
)
BAD = computing.BAD_STEP
NUMBERS = (
    _cases(
        "not-finite",
        "NaN or inf in loss or gradient: nothing moves, recorded",
        [(work, partial(spoil, value, [BAD])) for work in (DPO, SFT) for spoil, value in SPOILERS],
        computing.not_finite,
    ),
    _cases(
        "three-in-row",
        "three such steps in a row: stopped",
        [(DPO, partial(spoil, value, [BAD, BAD + 1, BAD + 2])) for spoil, value in SPOILERS],
        computing.three_in_row,
    ),
    _cases("spike", "a gradient a million times too large: clipped", [(DPO,), (SFT,)], computing.spike),
)
MEMORY = (
    _cases(
        "out-of-memory",
        "out of memory in a step: half the micro-batch, the same result",
        [
            *(
                (DPO, partial(injected.exhaust, "training", [call], kind))
                for call in (1, 2)
                for kind in ("cuda", "cpu", "python")
            ),
            *((SFT, partial(injected.exhaust, "training", [1], kind)) for kind in ("cuda", "python")),
            *((work, partial(injected.exhaust_moments, call)) for work in (DPO, SFT) for call in (1, 2, 9)),
        ],
        computing.halved,
    ),
    _cases(
        "memory-floor",
        "out of memory at the smallest micro-batch: exit 4",
        [(DPO,), (SFT,)],
        computing.at_the_floor,
    ),
    _cases(
        "memory-outside",
        "out of memory in reference pass, sampling, evaluation: exit 4",
        [
            *(
                (DPO, partial(injected.exhaust, "scoring", [call], kind))
                for call in (1, 9, 15)
                for kind in ("cuda", "cpu", "python")
            ),
            *((EVAL, partial(injected.exhaust, "scoring", [call], "cpu")) for call in (1, 9)),
        ],
        computing.outside_a_step,
    ),
    _cases(
        "memory-limit",
        "RLIMIT_AS: exit 0 or 4",
        [(work, megabytes) for work in (DPO, SOUP, EVAL) for megabytes in computing.LIMITS],
        computing.short_of_memory,
    ),
)
HABITS = _cases(
    "habits",
    "evaluation, logging, saving at other times: weights the same",
    [(DPO, words) for words in habits.VARIATIONS],
    habits.other_habits,
)
FIGURES = (*CRASHES, *KILLS, *SIGNALS, *DAMAGES, *STORAGE, WRITERS, *NUMBERS, *MEMORY, HABITS)
