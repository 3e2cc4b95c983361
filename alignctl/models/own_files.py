"""A model directory holds its own files: nothing in it may lead out of it.

A directory from a stranger could name `../other.safetensors` as a shard, or hold a link to a private file,
which would then be copied into whatever is trained from it. Directories of the hub's cache are the one
exception: a snapshot there is made of links to the blobs beside it. No weight is read here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from alignctl.errors import SetupError

INDEX = "model.safetensors.index.json"
LARGEST_INDEX = 1 << 28
"""Bytes."""


def refuse_files_elsewhere(directory: Path) -> None:
    """Raise SetupError where a link or a shard named in the index leads out of the directory."""
    root = directory.resolve()
    homes = (root, root.parent.parent / "blobs")
    for entry in (*root.iterdir(), *root.glob("*/*")):
        target = entry.resolve()
        if entry.is_symlink() and not any(target.is_relative_to(home) for home in homes):
            raise SetupError(
                f"{directory / entry.relative_to(root)} is a link out of the model's directory, to {target}",
                "copy the file to where the link is, or name the directory that holds the files",
            )
    index = root / INDEX
    if index.is_file():
        _refuse_shards_elsewhere(directory / INDEX, index)


def _refuse_shards_elsewhere(shown: Path, index: Path) -> None:
    for shard in sorted(_shards(shown, index)):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise SetupError(
                f"{shown} names the shard {shard[:160]!r}",
                "a shard is a safetensors file of the same directory",
            )


def _shards(shown: Path, index: Path) -> set[str]:
    """The files that an index names; whether they hold what it says is for the loader to see."""
    if index.stat().st_size > LARGEST_INDEX:
        raise SetupError(f"{shown} is larger than {LARGEST_INDEX >> 20} MiB, which no index should be")
    try:
        found = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SetupError(
            f"{shown} cannot be read as JSON: {str(error)[:80]}", "copy the model again"
        ) from error
    places = found.get("weight_map", {}) if isinstance(found, dict) else None
    if not isinstance(places, Mapping) or not all(isinstance(shard, str) for shard in places.values()):
        raise SetupError(f"{shown} has no weight_map from tensors to files", "copy the model again")
    return set(places.values())
