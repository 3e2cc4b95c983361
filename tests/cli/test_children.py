"""Commands as child processes: exit codes, signals, and the lock that outlives a killed parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignctl.cli.children import run_child
from alignctl.errors import RunDirectoryError
from alignctl.train.lock import only_writer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[int]:
    with only_writer(tmp_path, tmp_path / "lock") as descriptor:
        yield descriptor


@pytest.mark.parametrize(
    ("program", "code"), [("raise SystemExit(5)", 5), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_a_child_s_exit_code_is_kept(program: str, code: int, lock: int):
    assert run_child([sys.executable, "-c", program], lock=lock, output="text") == code


def test_a_signal_to_the_parent_reaches_its_child_once(tmp_path: Path, lock: int):
    ready = tmp_path / "ready"
    program = f"""
import pathlib, signal, time
seen = []
signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
pathlib.Path({str(ready)!r}).touch()
while not seen:
    time.sleep(0.01)
time.sleep(0.2)
raise SystemExit(100 + len(seen))
"""

    def stop() -> None:
        while not ready.exists():
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert run_child([sys.executable, "-c", program], lock=lock, output="text") == 101
    thread.join()


def test_a_directory_has_one_writer_at_a_time(tmp_path: Path):
    with (
        only_writer(tmp_path, tmp_path / "lock"),
        pytest.raises(RunDirectoryError, match=f"in use by process {os.getpid()}"),
        only_writer(tmp_path, tmp_path / "lock"),
    ):
        pass
    with only_writer(tmp_path, tmp_path / "lock"):
        pass


def test_the_lock_lasts_as_long_as_a_child_that_lost_its_parent(tmp_path: Path):
    program = f"""
import os, sys
from pathlib import Path
from alignctl.cli.children import run_child
from alignctl.train.lock import only_writer
place = Path({str(tmp_path)!r})
with only_writer(place, place / "lock") as lock:
    waiting = "import sys; print('ready', flush=True); sys.stdin.read()"
    run_child([sys.executable, "-c", waiting], lock=lock, output="text")
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    parent.kill()
    parent.wait()
    with pytest.raises(RunDirectoryError, match="in use"), only_writer(tmp_path, tmp_path / "lock"):
        pass
    parent.stdin.close()  # the child reads to the end, and leaves
    parent.stdout.read()
    with only_writer(tmp_path, tmp_path / "lock"):
        pass
