"""A child process that runs alignctl commands and reports everything they do beside their work.

    python witness.py LOG        one JSON request per line on stdin, one JSON answer per line on stdout

An audit hook sees what the interpreter does before it happens, whoever asks for it: files opened to be
written, sockets, processes, foreign code, pickles, libraries, removals. What a request does not allow is
noted and refused at once, so a hole does no harm to the machine it is found on. The notes go to a file
through one descriptor, so forked children report too. Compiled libraries open files unseen: the tests
compare the directories around an artefact as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import io
import json
import marshal
import os
import pickle
import shutil
import socket
import subprocess
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

WORK = ("alignctl.runners.train", "alignctl.runners.evaluation", "alignctl.runners.soup", "datasets")
"""What commands import, and this process before it is watched."""
REPOSITORY = Path(__file__).resolve().parents[2]
TRUSTED = tuple(
    os.path.realpath(place) + os.sep
    for place in (sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), REPOSITORY / "alignctl")
)
"""Code and libraries from here are alignctl and what is installed with it."""
IMPORTING = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
FORKS = (str(REPOSITORY / "alignctl/data/sandbox.py"),)
"""Who may fork: a child that renders a template under limits, and is watched like its parent."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "os.forkpty")
CHANGES = {
    **dict.fromkeys(("os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.truncate"), (0,)),
    **dict.fromkeys(("os.utime", "shutil.rmtree", "os.setxattr", "os.removexattr"), (0,)),
    **dict.fromkeys(("os.rename", "shutil.move"), (0, 1)),
    **dict.fromkeys(("os.link", "os.symlink", "shutil.copyfile"), (1,)),
}
"""Audit event -> which of its arguments are paths that it changes."""


@dataclass(frozen=True)
class Allowed:
    """What one request may do."""

    writable: tuple[str, ...]
    """Directories."""
    unreadable: tuple[str, ...]
    """Directories whose files nobody may even read."""
    ports: tuple[int, ...]
    """Of this machine, to connect to."""


class Witness:
    """The audit hook; silent until a request is being worked on."""

    def __init__(self, log: str) -> None:
        self.allowed: Allowed | None = None
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._busy = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None or self._busy:
            return
        self._busy = True
        try:
            seen = _judged(event, arguments, self.allowed, sys._getframe(1))
        finally:
            self._busy = False
        if seen is not None:
            os.write(self._log, (json.dumps(seen) + "\n").encode())
            raise PermissionError(errno.EPERM, f"refused by the witness: {seen}")


def _judged(event: str, arguments: tuple[Any, ...], allowed: Allowed, frame: FrameType) -> str | None:
    """What to note of an audit event, None for what is allowed."""
    if event == "open":
        return _opened(arguments, allowed)
    if event in CHANGES:
        paths = [_absolute(arguments[place], _descriptor(arguments)) for place in CHANGES[event]]
        outside = [path for path in paths if not _inside(path, allowed.writable)]
        return f"{event} {outside[0]}" if outside else None
    if event in STARTS:
        return f"{event} {arguments[:2]!r}"
    if event == "os.fork":
        return None if _called_from(frame, FORKS) else "os.fork"
    if event.startswith("socket."):
        return _networked(event, arguments, allowed)
    return _ran(event, arguments, frame)


def _opened(arguments: tuple[Any, ...], allowed: Allowed) -> str | None:
    path, _, flags = arguments
    if isinstance(path, int):
        return None
    place = os.path.realpath(os.fsdecode(path))
    if flags & WRITES and not _inside(place, (*allowed.writable, "/dev")):
        return f"open for writing {place}"
    return f"open for reading {place}" if _inside(place, allowed.unreadable) else None


def _networked(event: str, arguments: tuple[Any, ...], allowed: Allowed) -> str | None:
    if event in ("socket.connect", "socket.sendto", "socket.bind"):
        address = arguments[1]
        own = (
            isinstance(address, tuple) and address[0] in ("127.0.0.1", "::1") and address[1] in allowed.ports
        )
        return None if own and event == "socket.connect" else f"{event} {address!r}"
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        own = arguments[0] in ("127.0.0.1", "localhost") and allowed.ports
        return None if own else f"{event} {arguments!r}"
    return None


def _ran(event: str, arguments: tuple[Any, ...], frame: FrameType) -> str | None:
    """Code and data that run: what was not installed, text made into code outside installed packages."""
    caller = frame.f_code.co_filename
    if event == "exec":
        code: CodeType = arguments[0]
        return None if _is_trusted_code(code.co_filename, caller) else f"exec {code.co_filename}"
    if event == "compile":
        return None if _is_trusted_code(str(arguments[1]), caller) else f"compile {arguments[1]}"
    if event in ("pickle.find_class", "marshal.load", "marshal.loads"):
        return None if event != "pickle.find_class" and caller in IMPORTING else f"{event} {arguments!r:.80}"
    if event in ("import", "ctypes.dlopen"):
        file = arguments[1] if event == "import" else arguments[0]
        is_foreign = isinstance(file, str) and os.sep in file and not _inside(os.path.realpath(file), TRUSTED)
        return f"{event} {file}" if is_foreign else None
    return None


def _is_trusted_code(file: str, caller: str) -> bool:
    """Code of an installed file; or code without a file (`<template>`), made by an installed package."""
    if file.startswith("<"):
        return caller in IMPORTING or caller.startswith("<frozen") or _inside(caller, TRUSTED)
    return _inside(os.path.realpath(file), TRUSTED)


def _called_from(frame: FrameType | None, files: tuple[str, ...]) -> bool:
    while frame is not None:
        if frame.f_code.co_filename in files:
            return True
        frame = frame.f_back
    return False


def _descriptor(arguments: tuple[Any, ...]) -> int:
    """The directory that relative names of an event start from: its last number from 0 on, else -1."""
    numbers = [one for one in arguments[1:] if isinstance(one, int) and one > 2]
    return numbers[-1] if numbers and len(arguments) > 1 else -1


def _absolute(path: Any, directory: int) -> str:
    """Where a name lies that is changed; a link itself, not what it leads to."""
    if isinstance(path, int):
        return os.path.realpath(f"/proc/self/fd/{path}")
    text = os.fsdecode(path)
    if directory >= 0 and not os.path.isabs(text) and os.path.exists(f"/proc/self/fd/{directory}"):
        text = os.path.join(os.path.realpath(f"/proc/self/fd/{directory}"), text)
    parent, name = os.path.split(os.path.abspath(text))
    return os.path.join(os.path.realpath(parent), name)


def _inside(path: str, directories: tuple[str, ...]) -> bool:
    return any(f"{path}{os.sep}".startswith(place.rstrip(os.sep) + os.sep) for place in directories)


# --- what every kind of event looks like ---------------------------------------------------------------


def _foreign_module(place: Path) -> None:
    (place / "foreign_module.py").write_text("VALUE = 1\n")
    sys.path.insert(0, str(place))
    try:
        importlib.import_module("foreign_module")
    finally:
        sys.path.remove(str(place))


CANARIES: dict[str, Callable[[Path, Path], object]] = {
    "open for writing": lambda _, away: (away / "new").write_text("x"),
    "open for writing through a link": lambda here, _: (here / "link-out").write_text("x"),
    "open for writing by descriptor": lambda _, away: os.open(away / "new", os.O_CREAT | os.O_WRONLY),
    "open for reading": lambda _, away: (away / "secret.txt").read_text(),
    "socket.connect": lambda *_: socket.socket().connect(("192.0.2.1", 9)),
    "socket.connect to another port": lambda *_: socket.socket().connect(("127.0.0.1", 9)),
    "socket.getaddrinfo": lambda *_: socket.getaddrinfo("nowhere.invalid", 80),
    "socket.bind": lambda *_: socket.socket().bind(("127.0.0.1", 0)),
    "socket.sendto": lambda *_: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 9)),
    "subprocess.Popen": lambda *_: subprocess.run(["true"], check=False),
    "os.system": lambda *_: os.system("true"),
    "os.exec": lambda *_: os.execv("/bin/true", ["true"]),
    "os.posix_spawn": lambda *_: os.posix_spawn("/bin/true", ["true"], {}),
    "os.fork": lambda *_: os.fork(),
    "compile a foreign module": lambda here, _: _foreign_module(here),
    "compile text": lambda *_: compile("1", "<string>", "exec"),
    "exec of foreign code": lambda *_: exec(_foreign_module.__code__.replace(co_filename="/elsewhere.py")),
    "pickle.find_class": lambda *_: pickle.loads(pickle.dumps(os.system)),
    "marshal.loads": lambda *_: marshal.loads(marshal.dumps(1)),
    "ctypes.dlopen": lambda here, _: ctypes.CDLL(str(here / "library.so")),
    "os.remove": lambda _, away: (away / "secret.txt").unlink(),
    "os.rename": lambda here, away: (away / "secret.txt").rename(here / "taken"),
    "os.rename to elsewhere": lambda here, away: (here / "own.txt").rename(away / "given"),
    "os.link": lambda here, away: os.link(here / "own.txt", away / "linked"),
    "os.symlink": lambda here, away: (away / "link").symlink_to(here),
    "os.mkdir": lambda _, away: (away / "new").mkdir(),
    "os.rmdir": lambda _, away: (away / "empty").rmdir(),
    "os.chmod": lambda _, away: (away / "secret.txt").chmod(0o777),
    "os.truncate": lambda _, away: os.truncate(away / "secret.txt", 0),
    "shutil.rmtree": lambda _, away: shutil.rmtree(away / "empty"),
}
"""Kind of event -> something that does it; with a directory that may be written and one that may not."""


# --- requests ------------------------------------------------------------------------------------------


def _answer(request: dict[str, Any], witness: Witness, log: Path) -> dict[str, Any]:
    from alignctl.cli import main

    start = log.stat().st_size
    out, err = io.StringIO(), io.StringIO()
    allowed = Allowed(tuple(request["writable"]), tuple(request["unreadable"]), tuple(request["ports"]))
    os.chdir(request["directory"])
    redirected = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with _environment(request["environment"]), redirected[0], redirected[1]:
        witness.allowed = allowed
        try:
            code = _canary(request["canary"]) if request.get("canary") else main(request["words"])
        except BaseException:
            traceback.print_exc()
            code = -1
        finally:
            witness.allowed = None
    with log.open() as file:
        file.seek(start)
        events = [json.loads(line) for line in file]
    return {"code": code, "text": err.getvalue() + out.getvalue(), "events": events}


def _canary(kind: str) -> int:
    with contextlib.suppress(PermissionError):
        CANARIES[kind](Path("here").absolute(), Path("away").absolute())
    return 0


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def serve(log: str) -> None:
    """Import what a run imports, then answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in WORK:
        importlib.import_module(module)
    witness = Witness(log)
    sys.addaudithook(witness)
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line), witness, Path(log))) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
