"""Commands run as child processes, one after another, in a directory that one parent writes at a time.

Shared by sweeps and recipes. A child per command, because GPU memory, compiled code and random state of one
run must not reach the next. Children inherit the descriptor of the directory's lock: it lasts as long as one
of them runs, also when the parent was killed and its last child goes on alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from alignctl.cli.options import Conf
from alignctl.report.output import OutputFormat

STDERR = 2
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of a command that a signal stopped after it had saved."""


def child_command(conf: Conf, verb: str, words: Sequence[str], output: OutputFormat) -> list[str]:
    """The process that runs `alignctl VERB WORDS` with the same options of the user's own."""
    flags = [] if conf.own is None else ["--config-dir", str(conf.own)]
    flags += [] if output == "text" else ["--format", output]
    # The working directory is on the child's import path only where it is on ours.
    isolated = [] if {"", os.getcwd()} & set(sys.path) else ["-P"]
    return [sys.executable, *isolated, "-m", "alignctl.cli", verb, *flags, *words]


def run_child(command: Sequence[str], *, lock: int, output: OutputFormat) -> int:
    """Run one command in a session of its own, so that each signal reaches it exactly once: from here.

    For programs and scripts stdout has one result, the parent's: with json a child's result is one more
    line on stderr, with quiet it is left out. Returns the child's exit code; 128 + the number of the signal
    that ended it.
    """
    results = {"text": None, "json": STDERR, "quiet": subprocess.DEVNULL}[output]
    child = subprocess.Popen(command, start_new_session=True, pass_fds=(lock,), stdout=results)
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {stop: signal.signal(stop, lambda number, _: child.send_signal(number)) for stop in stops}
    try:
        code = child.wait()
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)
    return code if code >= 0 else 128 - code
