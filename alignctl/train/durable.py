"""Files and directories that are complete or absent, also after a crash or a power cut.

Decision: whatever a run writes gets a temporary name first (`.tmp-...`, beside its target, so on the same
file system), is flushed to the disk, and only then renamed. Removal goes the other way round: renamed to
a temporary name, then deleted. So a name without `.tmp-` never stands for half of something, and whatever
a crash leaves behind can be recognised by its name and cleaned.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignctl.errors import storage_faults

_TEMPORARY = re.compile(r"\.tmp-.+-[0-9a-f]{8}")


def strict_json(value: Any, indent: int | None = None, *, ascii_only: bool = False) -> str:
    """JSON that every parser accepts: NaN and infinity become null; keys keep the order of insertion."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=ascii_only)


def encode(text: str) -> bytes:
    """UTF-8. A lone surrogate, which UTF-8 cannot carry, becomes `\\udXXX`: inside JSON, its own escape."""
    return text.encode("utf-8", errors="backslashreplace")


def write_bytes(path: Path, data: bytes) -> None:
    """Create or replace a file at once. Raises SetupError when it cannot be written."""
    temporary = temporary_name(path)
    try:
        with storage_faults(path):
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
            sync_directory(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Create or replace a JSON file meant for people too: indented, strict."""
    write_bytes(path, encode(strict_json(value, indent=2) + "\n"))


def publish_directory(write: Callable[[Path], None], target: Path) -> None:
    """Let `write` fill a fresh directory, then put it in place of `target`, which it replaces if it exists.

    `write` gets the temporary directory. When it fails, nothing of it remains and an old target stays as it
    was. Two renames are needed to replace a directory: a crash between them leaves no target, never half.
    Raises SetupError when the storage is full or refuses.
    """
    temporary = temporary_name(target)
    try:
        with storage_faults(target):
            temporary.mkdir()
            write(temporary)
            sync_tree(temporary)
            if os.path.lexists(target):
                remove(target)
            os.rename(temporary, target)
            sync_directory(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove(path: Path) -> None:
    """Delete a file or a directory; a crash on the way leaves it whole or leaves only a `.tmp-` name."""
    doomed = temporary_name(path)
    os.rename(path, doomed)
    sync_directory(path.parent)
    _delete(doomed)


def remove_leftovers(directory: Path) -> None:
    """Delete the `.tmp-` entries that a crash left; only the holder of the run's lock may call this."""
    if directory.is_dir():
        for name in filter(is_temporary, os.listdir(directory)):
            _delete(directory / name)


def remove_leftovers_of(target: Path) -> None:
    """The same for what a crash left of one name; only the holder of that name's lock may call this."""
    for name in filter(is_temporary, os.listdir(target.parent)):
        if name.rpartition("-")[0] == f".tmp-{target.name}":
            _delete(target.with_name(name))


def temporary_name(target: Path) -> Path:
    """A fresh name beside the target."""
    return target.with_name(f".tmp-{target.name}-{secrets.token_hex(4)}")


def is_temporary(name: str) -> bool:
    """Whether `temporary_name` makes such names."""
    return _TEMPORARY.fullmatch(name) is not None


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


sync_directory = sync_file
"""The same for a directory: its entries, that is the names in it, are on the disk."""


def sync_tree(directory: Path) -> None:
    """The same for everything below a directory.

    safetensors creates its files readable by the owner alone; they get the rights that the umask gives, here
    read off the directory, so that a group which shares runs can read the weights too.
    """
    rights = directory.stat().st_mode & 0o666
    for folder, _, names in os.walk(directory):
        for name in names:
            os.chmod(Path(folder, name), rights)
            sync_file(Path(folder, name))
        sync_directory(Path(folder))


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
