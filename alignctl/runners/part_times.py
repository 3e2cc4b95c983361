"""How long the parts of an evaluation take, read off the progress that they report."""

from __future__ import annotations

import time

from alignctl.report.terminal import Report


class PartTimes:
    """Passes progress on and adds the time since the report before to the part that reports now.

    A part reports last when it is done, so what passes before its first report is its own.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._began = self._last = time.monotonic()
        self._parts: dict[str, float] = {}

    def __call__(self, what: str, done: int, total: int, tokens: int | None = None, /) -> None:
        now = time.monotonic()
        self._parts[what] = self._parts.get(what, 0.0) + now - self._last
        self._last = now
        self._report(what, done, total, tokens)

    def as_json(self) -> dict[str, object]:
        """Seconds since this was made, and those of each part."""
        parts = {what: round(seconds, 4) for what, seconds in self._parts.items()}
        return {"seconds": round(time.monotonic() - self._began, 4), "parts": parts}
