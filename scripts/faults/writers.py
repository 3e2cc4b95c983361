"""A second writer of one place: turned away with exit 7 while the first, held still, keeps what it has."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from scripts.faults.lab import Lab, Work, compare
from scripts.faults.processes import Failed, expect, run, start

AT_ONCE = 30.0
"""Seconds; on an idle machine it is one or two."""
ATTEMPTS = 20


def second_writer(lab: Lab, work: Work, lock: str) -> None:
    """Stop the first process right after it took the lock, then start the same command again."""
    undisturbed = lab.undisturbed(work)
    for _ in range(ATTEMPTS):
        place, words = lab.fresh(), lab.words(work)
        first = start(place, words)
        if not first.wait_until(lambda file=place / lock: _held(file)):
            raise Failed(f"the first never locked {lock}: {first.wait().said[-300:]}")
        first.send(signal.SIGSTOP)
        if first.process.is_alive():
            break
    else:
        raise Failed("the first always ended before it could be held")
    began = time.monotonic()
    second = run(place, words)
    seconds = time.monotonic() - began
    first.send(signal.SIGCONT)
    expect(second.code == 7, f"exit {second.code}: {second.said[-300:]}")
    expect(f"in use by process {first.process.pid}" in second.said, second.said[-300:])
    expect(seconds < AT_ONCE, f"took {seconds:.0f} s")
    ended = first.wait()
    expect(ended.code == 0, f"the first ended with {ended.code}: {ended.said[-300:]}")
    compare(work, undisturbed, place / work.out)


def _held(lock: Path) -> bool:
    return lock.exists() and lock.read_text() != ""
