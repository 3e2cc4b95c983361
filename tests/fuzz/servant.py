"""A child process that tries one example after another, so that none can hang or bloat the test itself."""

from __future__ import annotations

import multiprocessing
import resource
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path

SECONDS = 5
"""Of processor time for one example."""
WAIT = 120
"""Seconds on the clock: where it only waits, or on a busy machine."""
MEMORY = 3 * 2**30
"""Beyond what the process has when it starts."""


class Servant:
    """Runs `attempt` on examples in a child that is forked once, and again after one has killed it."""

    def __init__(self, attempt: Callable[[bytes], None]) -> None:
        self._attempt = attempt
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._attempt, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self, example: bytes) -> None:
        """Fail unless `attempt` returns in time and within its memory."""
        self._connection.send_bytes(example)
        told = "it hangs"
        try:
            if self._connection.poll(WAIT):
                told = self._connection.recv_bytes().decode()
        except EOFError:
            self._process.join()
            told = f"it killed its process, exit code {self._process.exitcode}"
        if told and not told.startswith("Traceback"):
            self.stop()
            self._start()
        assert not told, told

    def stop(self) -> None:
        """End the child."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(attempt: Callable[[bytes], None], connection: Connection) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        example = connection.recv_bytes()
        used = resource.getrusage(resource.RUSAGE_SELF)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + SECONDS + 1, hard))
        said = ""
        try:
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                attempt(example)
        except BaseException:
            said = traceback.format_exc()
        connection.send_bytes(said.encode(errors="backslashreplace"))
