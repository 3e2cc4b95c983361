"""Rendering with a foreign chat template in a process of its own, which can be stopped.

A template is a program. transformers' sandbox keeps it from Python's objects, but not from computing: one
`{{ 'a' * 10**10 }}` is a single call into C that holds the interpreter, so neither a thread nor a signal
handler could end it. The kernel can: the child has a limit on processor time and one on memory, and what it
writes is read up to a limit.

Decision: a fork, since the tokenizer is there already and starting Python anew takes seconds. Other threads
of the parent do not exist in the child, so it must not wait for what they held: it renders, which is Python
alone, writes JSON into a pipe and leaves without any cleaning up.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from alignctl.data.bad_rows import RowFault

STATM = Path("/proc/self/statm")
CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a rendering may take."""

    seconds: int = 1
    """Of processor time, so that a busy machine condemns no template."""
    longest_wait: float = 60.0
    """Seconds on the clock."""
    memory: int = 512 * 2**20
    """Bytes beyond what the process has already."""
    characters: int = 2**20
    """Of all texts together."""


class Overrun(Exception):
    """A rendering took more than it may; the message completes `the template ...`."""


def render_apart(work: Callable[[], Sequence[str]], allowance: Allowance) -> tuple[str, ...]:
    """What `work` returns, computed in a child process.

    Raises RowFault as `work` does, Overrun when it takes more than its allowance or breaks the process.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(work, allowance, writing)
    os.close(writing)
    try:
        # In JSON a character takes at most twelve bytes.
        reply = _read(reading, 12 * allowance.characters + CHUNK, allowance.longest_wait)
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if reply is None:
        raise Overrun(f"does not come to an end within {allowance.longest_wait:g} s")
    if not reply:
        raise Overrun(_how_it_ended(status, allowance))
    return _texts(json.loads(reply), allowance)


def _read(pipe: int, limit: int, seconds: float) -> bytes | None:
    """All that comes until the other end closes; None when that takes too long or it is too much."""
    reply, end = bytearray(), time.monotonic() + seconds
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while len(reply) <= limit:
        if not poll.poll(1000 * max(0.0, end - time.monotonic())):
            return None
        piece = os.read(pipe, CHUNK)
        if not piece:
            return bytes(reply)
        reply += piece
    return None


def _how_it_ended(status: int, allowance: Allowance) -> str:
    killer = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if killer in (signal.SIGXCPU, signal.SIGKILL):
        return f"takes more than {allowance.seconds} s"
    return "breaks the process that renders it"


def _texts(reply: dict[str, list[str]], allowance: Allowance) -> tuple[str, ...]:
    if "fault" in reply:
        raise RowFault(*reply["fault"])
    if "memory" in reply:
        raise Overrun(f"takes more than {allowance.memory >> 20} MiB of memory")
    if "length" in reply:
        raise Overrun(f"writes more than {allowance.characters} characters")
    return tuple(reply["texts"])


# --- in the child --------------------------------------------------------------------------------------


def _answer(work: Callable[[], Sequence[str]], allowance: Allowance, pipe: int) -> NoReturn:
    """Write what became of `work` and leave, whatever happens; an empty answer says that it broke."""
    try:
        # What the parent would do on a signal, or with objects that are no longer used, is not for the child.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        gc.disable()
        _limit(allowance)
        rest = memoryview(json.dumps(_outcome(work, allowance)).encode("ascii"))
        while rest:
            rest = rest[os.write(pipe, rest) :]
    finally:
        os._exit(0)


def _outcome(work: Callable[[], Sequence[str]], allowance: Allowance) -> dict[str, list[str]]:
    try:
        texts = work()
    except MemoryError:
        return {"memory": []}
    except RowFault as fault:
        if isinstance(fault.__cause__, MemoryError):
            return {"memory": []}
        return {"fault": [fault.field, fault.reason, fault.detail, fault.hint]}
    return {"texts": [*texts]} if sum(map(len, texts)) <= allowance.characters else {"length": []}


def _limit(allowance: Allowance) -> None:
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_CPU, allowance.seconds)
    if STATM.exists():
        pages = int(STATM.read_text().split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + allowance.memory)


def _lower(kind: int, limit: int) -> None:
    """Set a limit, never above the one there is."""
    _, hard = resource.getrlimit(kind)
    least = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (least, hard))
