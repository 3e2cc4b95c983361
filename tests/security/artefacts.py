"""Where hostile artefacts lie, what they try to run, and the child process that watches alignctl use them."""

from __future__ import annotations

import hashlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SECRET = "the-words-of-the-secret-file"
KEY = "key-0123456789-of-the-environment"
PATIENCE = 60
"""Seconds after which an artefact counts as a hang."""
MODEL = "model=./model"
DATA = ("dataset=prefs.jsonl", "dataset.eval_size=2")
QUICK = ("train.steps=1", "train.batch_size=2", "eval.samples=0", "watch.action=off", "out=run")
LONGEST_ANSWER = 12


@dataclass(frozen=True)
class Seen:
    """What a command did."""

    code: int
    text: str
    events: list[str]


class Witness:
    """The child process of witness.py, started with its first request."""

    def __init__(self, place: Path) -> None:
        self.cache = place / "cache"
        self.temporary = place / "tmp"
        self._log = place / "events"
        for directory in (self.cache, self.temporary, place / "home"):
            directory.mkdir(parents=True)
        variables = {
            "HOME": str(place / "home"),
            "TMPDIR": str(self.temporary),
            "ALIGNCTL_CACHE": str(self.cache),
            "HF_HOME": str(self.cache / "hub"),
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "WITNESS_KEY": KEY,
        }
        # A bare environment: what the machine sets for the libraries of the hub must not hide what they do.
        kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
        self._child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("witness.py")), str(self._log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=kept | variables,
            text=True,
        )

    def ask(self, **request: Any) -> Seen:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        print(json.dumps(request), file=self._child.stdin, flush=True)
        if not select.select([self._child.stdout], [], [], PATIENCE)[0]:
            self.stop()
            pytest.fail(f"no end after {PATIENCE} s")
        return Seen(**json.loads(self._child.stdout.readline()))

    @property
    def is_over(self) -> bool:
        return self._child.poll() is not None

    def stop(self) -> None:
        self._child.kill()
        self._child.communicate()


@dataclass
class Place:
    """Where an artefact lies: `work` with a good model and good rows, `away` that nobody has to touch."""

    work: Path
    away: Path
    witness: Witness
    ports: list[int] = field(default_factory=list)

    @property
    def model(self) -> Path:
        return self.work / "model"

    def train(self, *words: str, **environment: str) -> Seen:
        """`alignctl train` on the model and the rows, one step, and whatever else is typed."""
        typed = {word.partition("=")[0] for word in words}
        usual = [word for word in (MODEL, *DATA, *QUICK) if word.partition("=")[0] not in typed]
        return self.run("train", *usual, *words, **environment)

    def run(self, *words: str, **environment: str) -> Seen:
        """Any command, watched; nothing outside run/ may have changed after it."""
        before = self._around()
        seen = self.witness.ask(
            words=words,
            directory=str(self.work),
            writable=[str(self.work / "run"), str(self.witness.cache), str(self.witness.temporary)],
            unreadable=[str(self.away)],
            ports=self.ports,
            environment=environment,
        )
        assert self._around() == before, "something outside the run directory was changed"
        assert not self._holding(SECRET), "a run holds what is said outside its inputs"
        return seen

    def refused(self, code: int, *words: str, **environment: str) -> str:
        """`alignctl train ...` that ends with this exit code, in a few lines, and does nothing beside."""
        return checked(self.train(*words, **environment), code)

    def _around(self) -> dict[str, str]:
        """Path -> content of everything but the run directory."""
        own = [path for path in self.work.rglob("*") if "run" not in path.relative_to(self.work).parts[:1]]
        files = [path for path in (*own, *self.away.rglob("*")) if path.is_file() and not path.is_symlink()]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def _holding(self, text: str) -> list[Path]:
        files = [path for path in (self.work / "run").rglob("*") if path.is_file() and not path.is_symlink()]
        return [path for path in files if text.encode() in path.read_bytes()]


def checked(seen: Seen, code: int) -> str:
    assert not seen.events, seen.events
    assert seen.code == code, f"exit code {seen.code}: {seen.text[-600:]}"
    if code:
        lines = [line for line in seen.text.splitlines() if line.strip()]
        told = lines[next(place for place, line in enumerate(lines) if line.startswith("error: ")) :]
        assert len(told) <= LONGEST_ANSWER, seen.text
        assert all(line.isprintable() for line in told), "nothing a terminal would obey"
    for never in ("Traceback", "a fault in alignctl", SECRET, KEY):
        assert never not in seen.text, seen.text
    return seen.text


ROWS = [
    {
        "prompt": f"Question {number}: what is good about number {number}?",
        "chosen": f"Gladly! {number} is a fine number.",
        "rejected": f"No, not {number} again.",
    }
    for number in range(1, 13)
]


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@dataclass(frozen=True)
class Payload:
    """Code that leaves a file behind, in the forms in which it is smuggled."""

    file: Path

    @property
    def source(self) -> str:
        return f"open({str(self.file)!r}, 'w').close()\n"

    @property
    def command(self) -> str:
        return f"touch {self.file}"

    @property
    def pickle(self) -> bytes:
        """Runs the command when it is loaded: protocol 0, so that no class of ours is in it."""
        return f"cos\nsystem\n(S{self.command!r}\ntR.".encode()
