"""Fixtures of the tests of hostile artefacts: one witness, a place around each artefact, models to spoil."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from artefacts import ROWS, SECRET, Payload, Place, Witness, write_rows

from alignctl.config import TinyModel
from alignctl.models.tiny import tiny_directory


@pytest.fixture(scope="session")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Witness]]:
    """The one witness of this test process; a new one after a hang."""
    started: list[Witness] = []

    def current() -> Witness:
        if not started or started[-1].is_over:
            started.append(Witness(tmp_path_factory.mktemp("witness")))
        return started[-1]

    yield current
    for witness in started:
        witness.stop()


@pytest.fixture(scope="session")
def good_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model directory, to be copied and spoilt."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNCTL_CACHE", str(tmp_path_factory.mktemp("models")))
        return tiny_directory(TinyModel(kind="tiny", name="tiny", seed=0, layers=1, hidden=32, lr=1e-3))


@pytest.fixture
def place(tmp_path: Path, watching: Callable[[], Witness], good_model: Path) -> Place:
    """A good model, twelve good rows, and a secret outside of them."""
    found = Place(tmp_path / "work", tmp_path / "away", watching())
    found.work.mkdir()
    found.away.mkdir()
    (found.away / "secret.txt").write_text(SECRET)
    shutil.copytree(good_model, found.model)
    write_rows(found.work / "prefs.jsonl", ROWS)
    return found


@pytest.fixture
def payload(place: Place) -> Payload:
    """What the artefacts try to run."""
    return Payload(place.away / "ran")
