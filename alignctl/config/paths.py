"""Paths as a person types them."""

from __future__ import annotations

import os
from pathlib import Path


def local_path(text: str | Path) -> Path:
    """The path with `~` expanded; of an unknown user it stays as it is, and no file of that name is found."""
    return Path(os.path.expanduser(text))
