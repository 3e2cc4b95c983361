"""The mistakes and faults a user can meet, each with its exit code.

A message says what is wrong (the key as typed, the rule, the value), each hint says a way on. Whoever
raises one writes for a person at a terminal: at most a dozen lines, no traceback.

Messages quote what others wrote (file names, keys, values, what a server said). So they are made fit to be
shown in one place, when they are rendered: nothing in them can steer a terminal or fill the screen.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

STORAGE_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_STORAGE_REFUSES = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.ENOLCK, errno.EOPNOTSUPP),
}
_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")

ASK_THE_HUB = "check the name and the network; with HF_HUB_OFFLINE=1 the hub's cache alone is asked, at once"
"""The hint where the Hugging Face hub has not what was asked of it."""
LONGEST_LINE = 1000
"""Characters of a message or a hint that are shown."""
CUT = " ... "


def readable(text: str, limit: int = LONGEST_LINE) -> str:
    """Foreign text fit for a terminal: one line, printable, at most `limit` characters.

    White space becomes blanks, other unprintable characters their escapes (`\\x1b`, `\\ud800`). Of what is
    too long the middle is left out, since what is quoted mostly stands between what is wrong and why.
    """
    # Cut before the letters are looked at, as there may be millions, and after, as escapes are longer.
    return _shortened("".join(map(_printable, _shortened(text, limit))), limit)


def _printable(letter: str) -> str:
    if letter.isprintable():
        return letter
    return " " if letter.isspace() else letter.encode("unicode_escape").decode("ascii")


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    end = (limit - len(CUT)) // 3
    return text[: limit - len(CUT) - end] + CUT + text[-end:]


class AlignctlError(Exception):
    """The run failed. Base of every error that is shown without a traceback."""

    exit_code = 1

    def __init__(self, message: str, *hints: str) -> None:
        super().__init__(message)
        self.message = message
        self.hints = hints

    def render(self) -> str:
        """The text for stderr: `error: ...`, then one indented line per hint."""
        return "\n".join([f"error: {readable(self.message)}", *self._indented_hints()])

    def _indented_hints(self) -> list[str]:
        return [f"  {readable(hint)}" for hint in self.hints]

    def as_json(self) -> dict[str, str | int | list[str]]:
        """The same for programs (`--format json`)."""
        return {
            "error": readable(self.message),
            "hints": [readable(hint) for hint in self.hints],
            "exit_code": self.exit_code,
        }


class UsageError(AlignctlError):
    """A command, key or value that cannot be used as typed."""

    exit_code = 2


class SetupError(AlignctlError):
    """Something outside the config is missing or unfit: package, file, model, service, disk space."""

    exit_code = 3


class OutOfMemoryError(AlignctlError):
    """The model or the batch does not fit; the hints name the next smaller settings."""

    exit_code = 4


class GateError(AlignctlError):
    """A model is below a gate; the evaluation itself is complete."""

    exit_code = 5


class DataError(AlignctlError):
    """Rows that cannot be trained on."""

    exit_code = 6


class RunDirectoryError(AlignctlError):
    """A run directory or checkpoint that is busy, finished, foreign, changed or corrupt."""

    exit_code = 7


class Interrupted(AlignctlError):
    """A signal stopped the run after its state was saved; exit code 128 + signal number."""

    def __init__(self, signal_number: int, message: str, *hints: str) -> None:
        super().__init__(message, *hints)
        self.exit_code = 128 + signal_number

    def render(self) -> str:
        """Not an error: the same layout without the word."""
        return "\n".join([readable(self.message), *self._indented_hints()])


def full_storage(error: BaseException, path: Path | str) -> SetupError | None:
    """What to tell where `path` could not be written for lack of room; None for every other error."""
    number = _error_number(error)
    if number not in STORAGE_FULL:
        return None
    return SetupError(
        f"cannot write {path}: {os.strerror(number)}",
        "free some space, or raise the quota or the file size limit;",
        "the same command then goes on where it stood",
    )


@contextmanager
def storage_faults(path: Path | str) -> Generator[None]:
    """Raise SetupError where the block fails because the storage is full or refuses to be written."""
    try:
        yield
    except Exception as error:
        if full := full_storage(error, path):
            raise full from error
        number = _error_number(error)
        if number in _STORAGE_REFUSES:
            raise SetupError(f"cannot write {path}: {os.strerror(number)}") from error
        raise


def is_of_the_hub(error: BaseException | None) -> bool:
    """Whether it came about because the Hugging Face hub, or its cache, has not what was asked of it."""
    while error is not None:
        if type(error).__module__.startswith("huggingface_hub."):
            return True
        error = error.__cause__ or error.__context__
    return False


def _error_number(error: BaseException) -> int | None:
    """The operating system's error number; safetensors and tokenizers, written in Rust, give it only inside
    their text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = None if isinstance(error, AlignctlError) else _RUST_ERRNO.search(str(error))
    return int(found.group(1)) if found else None
