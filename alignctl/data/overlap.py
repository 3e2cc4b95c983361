"""Rows with a prompt in common; prompts as short hashes, which a run can keep and an evaluation ask for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence

from alignctl.records import Message, Row


def prompt_key(prompt: Sequence[Message]) -> str:
    """Sixteen hex digits of sha256 over the messages; equal prompts, equal keys."""
    text = json.dumps([[message.role, message.content] for message in prompt])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prompt_keys(rows: Iterable[Row]) -> tuple[str, ...]:
    """The different prompts of some rows, sorted: what `train_prompts.txt` of a run holds, one a line."""
    return tuple(sorted({prompt_key(row.prompt) for row in rows}))


def overlapping(rows: Sequence[Row], keys: Collection[str]) -> tuple[Row, ...]:
    """The rows whose prompt is among the keys."""
    return tuple(row for row in rows if prompt_key(row.prompt) in keys)


def distinct_prompts(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The first row of every prompt, in order."""
    first: dict[tuple[Message, ...], Row] = {}
    for row in rows:
        first.setdefault(row.prompt, row)
    return tuple(first.values())
