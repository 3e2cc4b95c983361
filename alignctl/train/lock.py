"""One writer at a time: an exclusive `flock` on a file that stays when the lock goes.

The kernel drops the lock when its last holder dies, so nothing has to be cleaned up after a kill. Removing
the file would let two processes lock two files of one name. Its content names the holder.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignctl.errors import RunDirectoryError, storage_faults

LOCK = ".lock"
"""The file's name inside a directory that is locked."""


def lock_beside(target: Path) -> Path:
    """The lock of what is renamed into place whole, so that its own directory cannot hold one."""
    return target.with_name(f".{target.name}{LOCK}")


@contextmanager
def only_writer(target: Path, lock: Path) -> Iterator[int]:
    """Be the only writer of `target` as long as the block runs; `lock` is the file that stands for it.

    Gives the lock's descriptor: a child process that inherits it holds the lock too, also after its parent
    was killed. Raises RunDirectoryError naming the other writer where there is one.
    """
    with storage_faults(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            with storage_faults(lock):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunDirectoryError(
                f"{target} is in use by {_holder(descriptor)}",
                "wait for it, stop it, or write into out=DIR",
            ) from error
        with storage_faults(lock):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 300, 0).decode(errors="replace").strip() or "another process"
