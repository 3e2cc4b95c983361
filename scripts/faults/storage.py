"""Storage that is too small: file size limits and a small tmpfs. One clear line, exit 3, nothing lost."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from scripts.faults.lab import Lab, Work, compare
from scripts.faults.processes import Ended, Failed, expect, run, succeed

LIMITS = (0, 50, 500, 2_000, 10_000, 40_000, 80_000, 120_000, 160_000, 250_000)
"""Bytes that a file may have; the largest files of a tiny run have some 200 000."""
SHARES = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9)
"""Of what an undisturbed run and its cache take."""


def limit_files(size: int) -> None:
    """No file of this process may grow beyond so many bytes: writing on is EFBIG."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def limited(lab: Lab, work: Work, size: int) -> None:
    """A command under a file size limit ends well or with exit 3; without the limit it ends the same."""
    undisturbed = lab.undisturbed(work)
    place, words = lab.fresh(), lab.words(work)
    ended = run(place, words, partial(limit_files, size))
    if ended.code != 0:
        told_plainly(ended)
        succeed(place, words)
    compare(work, undisturbed, place / work.out)


def on_small_disk(lab: Lab, work: Work, share: float) -> None:
    """A command on a disk of a given size ends with exit 3; when the disk has grown, it ends the same."""
    undisturbed = lab.undisturbed(work)
    used = sum(path.stat().st_size for path in undisturbed.parent.rglob("*") if path.is_file())
    words, place = lab.words(work), lab.fresh()
    with tmpfs(place, int(share * used)):
        ended = run(place, words)
        if ended.code != 0:
            told_plainly(ended)
            _mount(place, 10 * used, "remount,")
            succeed(place, words)
        compare(work, undisturbed, place / work.out)


def told_plainly(ended: Ended) -> None:
    """Raise Failed unless it is exit 3 with the path and no traceback."""
    expect(ended.code == 3, f"exit {ended.code}: {ended.said[-400:]}")
    said = ended.said[ended.said.rfind("error: ") :]
    plain = said.startswith("error: ") and "Traceback" not in ended.said and "unexpected" not in said
    expect(plain and len(said.splitlines()) <= 5, f"not told plainly: {ended.said[-400:]}")


@contextmanager
def tmpfs(place: Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes at a directory; takes the right to mount."""
    _mount(place, size)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _mount(place: Path, size: int, change: str = "") -> None:
    command = ["mount", "-t", "tmpfs", "-o", f"{change}size={max(size, 4096)}", "none", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"no tmpfs can be mounted here: {done.stderr.strip()}")
