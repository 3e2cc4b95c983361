"""Power cuts: no name appears before its bytes are on the disk, no call ends before its names are.

A process that dies loses nothing it had written; a power cut takes back whatever was not synced. So syncs and
renames are noted on their way to the kernel, and held against the files as they are at that moment.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from alignctl.train.checkpoint import save_checkpoint, set_aside_newer
from alignctl.train.durable import is_temporary, publish_directory, remove, write_bytes

REQUEST = "0123abcd"


class Disk:
    """What a power cut would spare: files as they were synced, names whose directory was synced later."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.synced: dict[int, tuple[int, int]] = {}
        """Inode -> size and time of change when it was last synced."""
        self.renamed: list[str] = []
        self.volatile: set[str] = set()
        """Directories with renames that a power cut would undo."""
        self._fsync, self._rename = os.fsync, os.rename
        patch.setattr(os, "fsync", self.fsync)
        patch.setattr(os, "rename", self.rename)

    def fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        found = os.fstat(descriptor)
        self.synced[found.st_ino] = (found.st_size, found.st_mtime_ns)
        self.volatile.discard(os.readlink(f"/proc/self/fd/{descriptor}"))

    def rename(self, old: Path, new: Path) -> None:
        if is_temporary(old.name):
            late = [path for path in [old, *old.rglob("*")] if not self.holds(path)]
            assert not late, f"{new.name} appears before {late} are on the disk"
        self._rename(old, new)
        self.renamed.append(new.name)
        self.volatile.add(os.fspath(new.parent))

    def holds(self, path: Path) -> bool:
        """Whether a file, or the names in a directory, are on the disk as they stand."""
        found = path.stat()
        return self.synced.get(found.st_ino) == (found.st_size, found.st_mtime_ns)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def save(directory: Path, step: int) -> None:
    tensors = {"model": {"w": torch.full((50, 50), float(step))}}
    save_checkpoint(directory, step, tensors, {}, request=REQUEST, keep=2)


def write_a_tree(directory: Path) -> None:
    (directory / "deep").mkdir()
    (directory / "deep" / "file").write_bytes(b"12345")


def test_a_file(tmp_path: Path, disk: Disk) -> None:
    write_bytes(tmp_path / "run.json", b"{}")
    assert disk.renamed == ["run.json"]
    assert disk.volatile == set()


def test_a_directory_and_one_in_its_place(tmp_path: Path, disk: Disk) -> None:
    publish_directory(write_a_tree, tmp_path / "model")
    publish_directory(write_a_tree, tmp_path / "model")
    assert disk.renamed.count("model") == 2
    assert disk.volatile == set()


def test_what_is_removed_is_gone_before_its_parts_are(tmp_path: Path, disk: Disk) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "file").touch()
    remove(tmp_path / "model")
    assert len(disk.renamed) == 1
    assert disk.volatile == set()


def test_checkpoints_and_their_rotation(tmp_path: Path, disk: Disk) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.parent.mkdir()
    for step in (1, 2, 3):
        save(checkpoints, step)
        assert disk.volatile == set()
    assert [name for name in disk.renamed if name.startswith("step-")] == [
        f"step-00000{n}" for n in (1, 2, 3)
    ]
    assert disk.holds(checkpoints.parent)


def test_a_checkpoint_that_is_set_aside(tmp_path: Path, disk: Disk) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    set_aside_newer(tmp_path, 1)
    assert disk.renamed[-1] == "bad-step-000002"
    assert disk.volatile == set()
