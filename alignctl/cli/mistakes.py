"""Mistakes in what was typed: gathered, so that all of them are told at once, then shown in a few lines."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from alignctl.errors import UsageError

SHOWN = 5


@dataclass(frozen=True)
class Mistake:
    """One mistake: the key or group it is about, what is wrong, and the ways on."""

    key: str
    message: str
    hints: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """The first part of the key."""
        return self.key.split(".", 1)[0]


def as_error(mistakes: Sequence[Mistake]) -> UsageError:
    """One error out of at least one mistake; more than one are listed, each once."""
    different = list({mistake.message: mistake for mistake in mistakes}.values())
    if len(different) == 1:
        return UsageError(different[0].message, *different[0].hints)
    lines: list[str] = []
    for mistake in different[:SHOWN]:
        lines += [mistake.message, *(f"  {hint}" for hint in mistake.hints[:1])]
    if len(different) > SHOWN:
        lines.append(f"+{len(different) - SHOWN} more")
    return UsageError(f"{len(different)} mistakes in the settings", *lines)


def nearest(word: str, names: Sequence[str]) -> str | None:
    """The name that was probably meant, or None."""
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return close[0] if close else None


def alternatives(word: str, names: Sequence[str]) -> tuple[str, ...]:
    """Hints for a name that does not exist: the nearest one, and all of them."""
    close = nearest(word, names)
    everything = f"one of   {'  '.join(names)}"
    return (everything,) if close is None else (f"did you mean   {close}", everything)
