"""Verdicts on disk, so that a run that broke off asks only for what it does not have yet.

One JSON line per verdict, appended as it comes: a hash and a number. The hash covers who was asked and the
whole text that was shown, so order, wording and content are part of it and nothing of them is stored.
Missing judgements are not kept: they are asked again.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

from alignctl.errors import SetupError, storage_faults

FILE = "verdicts.jsonl"


def verdict_key(identity: str, text: str) -> str:
    """sha256 over the judge's identity and the text it is shown."""
    size = len(identity.encode("utf-8", "surrogatepass"))
    return hashlib.sha256(f"{size} {identity} {text}".encode("utf-8", "surrogatepass")).hexdigest()


class VerdictCache:
    """The verdicts in one directory, all in memory; its only writer is the run that holds the directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        data = self._read()
        self._values = _parse(data)
        # A line that broke off must not swallow the one that is appended next.
        self._torn = bool(data) and not data.endswith(b"\n")

    def get(self, key: str) -> float | None:
        """The number kept under a key; None when there is none."""
        return self._values.get(key)

    def put(self, key: str, value: float) -> None:
        """Keep a finite number. Raises SetupError when the file cannot be written."""
        line = json.dumps({"key": key, "value": value}, allow_nan=False).encode() + b"\n"
        with storage_faults(self._path), self._path.open("ab") as file:
            file.write(b"\n" + line if self._torn else line)
        self._torn = False
        self._values[key] = value

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise SetupError(f"cannot read {self._path}: {error.strerror}") from error


def _parse(data: bytes) -> dict[str, float]:
    """Every line that is whole; what is damaged is asked again."""
    values: dict[str, float] = {}
    for line in data.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(entry, dict):
            continue
        key, value = entry.get("key"), entry.get("value")
        if isinstance(key, str) and isinstance(value, float) and math.isfinite(value):
            values[key] = value
    return values
