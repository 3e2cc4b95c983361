"""The witness is not blind: whatever hostile artefacts may not do, it sees and stops when it happens."""

from __future__ import annotations

from pathlib import Path

import pytest
from witness import CANARIES


def ask(watching, place: Path, **request) -> list[str]:
    here, away = place / "here", place / "away"
    for directory in (here, away, away / "empty"):
        directory.mkdir()
    (away / "secret.txt").write_text("kept")
    (here / "own.txt").write_text("own")
    (here / "link-out").symlink_to(away / "secret.txt")
    seen = watching().ask(
        directory=str(place),
        writable=[str(here)],
        unreadable=[str(away)],
        ports=[],
        environment={},
        **request,
    )
    assert seen.code == 0, seen.text
    return seen.events


@pytest.mark.parametrize("kind", CANARIES)
def test_each_kind_of_event_is_seen_and_stopped(kind: str, watching, tmp_path: Path) -> None:
    events = ask(watching, tmp_path, canary=kind)
    assert len(events) == 1, events
    assert events[0].split()[0] == kind.split()[0]
    assert sorted(path.name for path in (tmp_path / "away").iterdir()) == ["empty", "secret.txt"]
    assert (tmp_path / "away" / "secret.txt").read_text() == "kept"


def test_an_ordinary_command_causes_no_event(watching, tmp_path: Path) -> None:
    assert ask(watching, tmp_path, words=["ls"]) == []
