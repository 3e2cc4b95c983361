"""Paths as a person types them."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignctl.config.paths import local_path


def test_home_is_expanded_and_an_unknown_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert local_path("~/rows.jsonl") == Path("/home/ada/rows.jsonl")
    assert local_path("~nobody-of-this-name/run") == Path("~nobody-of-this-name/run")
    assert local_path(Path("run")) == Path("run")
