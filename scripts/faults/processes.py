"""`alignctl` as processes of their own, to be killed, stopped and starved.

A server process imports everything once and forks for each command (multiprocessing's forkserver), so that
a command costs what it does and not four seconds of imports. What runs is the command line's own `main`, in
a process of its own, with real signals and real limits.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

POLL = 0.002
PATIENCE = 180.0
"""Seconds after which whatever is waited for has hung."""
PIPE_BYTES = 2**20
PRELOADED = ["scripts.faults.preload"]
ENVIRONMENT = {
    # The server takes the import path from here alone.
    "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


class Failed(Exception):
    """What a trial found to be otherwise than promised."""


def expect(holds: bool, otherwise: str) -> None:
    """Raise Failed with the text unless it holds."""
    if not holds:
        raise Failed(otherwise)


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that is over: 128 + n where signal n of its own ended it well, -n where it was killed."""

    code: int
    said: str
    """On stderr and stdout."""


@dataclass(frozen=True, slots=True, eq=False)
class Command:
    """One `alignctl` command under way."""

    process: ForkServerProcess
    output: Connection
    """A pipe, as a file would be subject to the limits that are put on files."""

    def send(self, number: int) -> None:
        """Send a signal, unless it has ended already."""
        if self.process.is_alive() and self.process.pid:
            os.kill(self.process.pid, number)

    def wait(self) -> Ended:
        """Its end; raises Failed when it never comes."""
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            raise Failed(f"hung for {PATIENCE:.0f} s: {self._said()[-300:]}")
        return Ended(self.process.exitcode or 0, self._said())

    def wait_until(self, reached: Callable[[], bool]) -> bool:
        """Wait for something to happen; False when the command ended first."""
        until = time.monotonic() + PATIENCE
        while not reached():
            if not self.process.is_alive() or time.monotonic() > until:
                return reached()
            time.sleep(POLL)
        return True

    def _said(self) -> str:
        # Not up to the end of the pipe: a command's own children may hold it open.
        parts = []
        with suppress(BlockingIOError):
            while part := os.read(self.output.fileno(), PIPE_BYTES):
                parts.append(part)
        return b"".join(parts).decode(errors="replace")


def start(place: Path, words: Sequence[str], prepare: Callable[[], object] | None = None) -> Command:
    """Begin `alignctl WORDS` in a directory, its cache beside; `prepare` runs in the process before it."""
    place.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    output, said = context.Pipe(duplex=False)
    fcntl.fcntl(output.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.set_blocking(output.fileno(), False)
    with _environment():
        context.set_forkserver_preload(PRELOADED)
        process = context.Process(target=_run, args=(str(place), said, tuple(words), prepare))
        process.start()
    said.close()
    return Command(process, output)


def run(place: Path, words: Sequence[str], prepare: Callable[[], object] | None = None) -> Ended:
    """The same, waited for."""
    return start(place, words, prepare).wait()


def succeed(place: Path, words: Sequence[str]) -> Ended:
    """The same, which has to end well."""
    ended = run(place, words)
    expect(ended.code == 0, f"alignctl {words[0]} ended with {ended.code}: {ended.said[-400:]}")
    return ended


def _run(place: str, said: Connection, words: tuple[str, ...], prepare: Callable[[], object] | None) -> None:
    """What a forked process does."""
    from alignctl.cli import main

    os.chdir(place)
    os.environ["ALIGNCTL_CACHE"] = str(Path(place) / "cache")
    for stream in (1, 2):
        os.dup2(said.fileno(), stream)
    said.close()
    # The server's own streams believe that they write to a file.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    if prepare is not None:
        prepare()
    code = main(list(words))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def _environment() -> Iterator[None]:
    """What the server is started with; the caller's own environment is as it was afterwards."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# --- reading a run -------------------------------------------------------------------------------------


def steps_recorded(run: Path) -> int:
    """Training steps in metrics.jsonl so far."""
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b'"split": "train"') if metrics.exists() else 0


def record_of(run: Path) -> Mapping[str, object]:
    """run.json; nothing where there is none yet."""
    file = run / "run.json"
    return json.loads(file.read_bytes()) if file.exists() else {}


def resumes_of(run: Path) -> list[int]:
    """The steps that a run was gone on from."""
    entries = record_of(run).get("resumes", [])
    assert isinstance(entries, list)
    return [entry["step"] for entry in entries]


def newest_checkpoint(run: Path) -> int:
    """The highest step that is kept; 0 for none."""
    return max((int(path.name.removeprefix("step-")) for path in steps_of(run)), default=0)


def steps_of(run: Path) -> list[Path]:
    """The checkpoints' directories, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def kill_family(command: Command) -> None:
    """SIGKILL for a command and the commands that it started itself."""
    assert command.process.pid is not None
    children = _children_of(command.process.pid)
    command.send(signal.SIGKILL)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _children_of(parent: int) -> list[int]:
    file = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(word) for word in file.read_text().split()] if file.exists() else []
