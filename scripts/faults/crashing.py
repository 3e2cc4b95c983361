"""Dying on purpose: a forked child leaves right before its n-th call that can change the disk.

Random kills almost never land between two calls of a save; here every such place is visited in turn. Calls
are seen by the profiler, so nothing of what is tested is replaced.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import types
from collections.abc import Callable, Collection
from pathlib import Path

CHANGES = (
    "chmod",
    "ftruncate",
    "fsync",
    "mkdir",
    "open",
    "pwrite",
    "rename",
    "rmdir",
    "serialize_file",
    "truncate",
    "unlink",
    "write",
)
"""Calls into `posix`, methods of file objects, and the writing of safetensors."""
DIED = 99
MOST_CALLS = 5000


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process; its wait status as `os.waitstatus_to_exitcode` gives it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(count: int, calls: Collection[str] = CHANGES) -> None:
    """Leave the process, without any clean-up, right before its `count`-th of such calls, in any thread.

    A call that only reads leaves the disk as the next change finds it: dying there would show nothing more.
    """
    left = count

    def observe(frame: object, event: str, function: types.BuiltinFunctionType) -> None:
        nonlocal left
        if event == "c_call" and function.__name__ in calls:
            left -= 1
            if left == 0:
                os._exit(DIED)

    threading.setprofile(observe)
    sys.setprofile(observe)


def crash_everywhere(
    before: Path,
    work: Callable[[Path], object],
    check: Callable[[Path], None],
    *,
    every: int = 1,
    calls: Collection[str] = CHANGES,
) -> int:
    """Run `work` on copies of `before`, dying at each call in turn (or at every n-th); `check` what is left.

    Returns how many copies there were; on the last one it died no more.
    """
    for places, count in enumerate(range(1, MOST_CALLS, every), start=1):
        directory = before.with_name("crashed")
        shutil.copytree(before, directory)

        def die(directory: Path = directory, count: int = count) -> None:
            die_at(count, calls)
            work(directory)

        status = in_child(die)
        if status not in (0, DIED):
            raise AssertionError(f"call {count}: the work itself failed with status {status}")
        check(directory)
        shutil.rmtree(directory)
        if status == 0:
            return places
    raise AssertionError(f"did not end within {MOST_CALLS} calls")
