"""A model directory holds its own files: nothing in it may lead out of it.

A directory from a stranger could name `../other.safetensors` as a shard, or hold a link to a private file,
which would then be copied into whatever is trained from it. Directories of the hub's cache are the one
exception: a snapshot there is made of links to the blobs beside it. No weight is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from alignctl.errors import SetupError
from alignctl.models.soup.files import INDEX, read_json


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
    index = directory / INDEX
    if index.is_file():
        _refuse_shards_elsewhere(index)


def _refuse_shards_elsewhere(index: Path) -> None:
    for shard in sorted(_shards(index)):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise SetupError(
                f"{index} names the shard {shard[:160]!r}",
                "a shard is a safetensors file of the same directory",
            )


def _shards(index: Path) -> set[str]:
    """The files that an index names; whether they hold what it says is for the loader to see."""
    places = read_json(index).get("weight_map", {})
    if not isinstance(places, Mapping) or not all(isinstance(shard, str) for shard in places.values()):
        raise SetupError(f"{index} has no weight_map from tensors to files", "copy the model again")
    return set(places.values())
