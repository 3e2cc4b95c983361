"""Checkpoints: saved whole or not at all, checksummed, verified before use.

    checkpoints/step-000100/  model.safetensors  optimizer.safetensors  state.json  MANIFEST.json

Decisions. Tensors only as safetensors, so nothing is ever unpickled. The manifest lists size and SHA-256 of
every file and carries the hash of itself, so any change of any byte is seen; it also names the step and the
request (`config.request_hash`), so directories that were swapped or come from elsewhere are seen too. Hashes
are taken from the finished files, in threads, while the next file is being written. An old checkpoint goes
only after the new one is in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignctl.errors import RunDirectoryError, storage_faults
from alignctl.train.durable import publish_directory, remove, sync_directory

FORMAT = 1
_MANIFEST = "MANIFEST.json"
_STATE = "state.json"
_STEP = re.compile(r"step-([0-9]{6,})")
_SET_ASIDE = "bad-"
_LARGEST_JSON = 1 << 20
_SHOWN_REASONS = 6


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint whose every byte was verified."""

    path: Path
    step: int
    state: Mapping[str, Any]
    """As it was given to `save_checkpoint`."""
    skipped: tuple[str, ...] = ()
    """Newer checkpoints that were found bad, newest first: `step-000200: model.safetensors ...`."""

    def tensors(self, stem: str) -> dict[str, Tensor]:
        """The tensors saved under `stem`, on the CPU, in memory of their own (not mapped from the file).

        Raises RunDirectoryError when the checkpoint has no such file.
        """
        try:
            return load_file(self.path / f"{stem}.safetensors", backend="pread")
        except (OSError, SafetensorError) as error:
            raise RunDirectoryError(f"{self.path}/{stem}.safetensors cannot be read: {error}") from error


class _Unfit(Exception):
    """Why one checkpoint cannot be used; the next older one is tried."""


def save_checkpoint(
    directory: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    request: str,
    keep: int,
    protect: Collection[int] = (),
) -> Path:
    """Write `directory`/step-NNNNNN, then rotate. Returns its path.

    tensors: file stem -> name -> tensor, e.g. {"model": ..., "optimizer": ...}. Tensors that share storage
    (tied weights) must be passed once; safetensors raises RuntimeError otherwise. Views and tensors on other
    devices are copied as needed.
    state: about 1 KiB of plain, finite JSON. request: `config.request_hash` of the run.
    keep: how many of the newest stay (never fewer than two), besides the steps in `protect`.
    A step that already stands there and verifies is left as it is: the same request gives the same step.
    Raises SetupError when the disk is full; then every older checkpoint is as it was.
    """
    target = directory / step_name(step)
    with storage_faults(target):
        if not _is_good(target, request):
            directory.mkdir(exist_ok=True)
            sync_directory(directory.parent)
            publish_directory(lambda fresh: _write_files(fresh, step, tensors, state, request), target)
        rotate(directory, step, request=request, keep=keep, protect=protect)
    return target


def load_newest(directory: Path, *, request: str) -> Loaded | None:
    """The newest checkpoint that verifies; None when the run never saved one.

    Reads only. Raises RunDirectoryError when there are checkpoints but none is good (starting over must be
    asked for) or when one was written by a newer alignctl.
    """
    skipped: list[str] = []
    for path in reversed(_steps(directory)):
        try:
            state = _verify(path, request)
        except _Unfit as reason:
            skipped.append(f"{path.name}: {reason}")
        else:
            return Loaded(path, _step_of(path), state, tuple(skipped))
    skipped += [f"{name}: set aside earlier" for name in _names(directory) if name.startswith(_SET_ASIDE)]
    if not skipped:
        return None
    more = [f"+{len(skipped) - _SHOWN_REASONS} more"] if len(skipped) > _SHOWN_REASONS else []
    raise RunDirectoryError(
        f"no checkpoint in {directory} can be used",
        *skipped[:_SHOWN_REASONS],
        *more,
        "put a good copy back, or start over with overwrite=true or another out=DIR",
    )


def load_step(directory: Path, step: int, *, request: str) -> Loaded:
    """One particular checkpoint, e.g. the best. Raises RunDirectoryError when it is missing or bad."""
    path = directory / step_name(step)
    try:
        return Loaded(path, step, _verify(path, request))
    except _Unfit as reason:
        have = ", ".join(str(_step_of(path)) for path in _steps(directory)) or "none"
        raise RunDirectoryError(f"{path} cannot be used: {reason}", f"steps here: {have}") from reason


def set_aside_newer(directory: Path, step: int) -> tuple[Path, ...]:
    """Rename every checkpoint after `step` to bad-..., so that rotation never counts it.

    For the writer that goes on from `step`: what is newer was just found bad, or it would go on from there.
    Returns the new names.
    """
    moved: list[Path] = []
    for path in _steps(directory):
        if _step_of(path) > step:
            aside = path.with_name(_SET_ASIDE + path.name)
            if os.path.lexists(aside):
                remove(aside)
            os.rename(path, aside)
            moved.append(aside)
    if moved:
        sync_directory(directory)
    return tuple(moved)


def rotate(directory: Path, step: int, *, request: str, keep: int, protect: Collection[int] = ()) -> None:
    """Remove this run's old checkpoints, except the `keep` (at least two) newest up to `step` and `protect`.

    Only what has a sound manifest of this request and files of the listed sizes is counted or removed;
    hashes are not computed here. Steps after `step` are not this run's any more and count for nothing.
    """
    own = [path for path in _steps(directory) if _step_of(path) <= step and _looks_sound(path, request)]
    for path in own[: -max(keep, 2)]:
        if _step_of(path) not in protect:
            remove(path)


def step_name(step: int) -> str:
    """The directory's name; six digits so that a listing is in order."""
    return f"step-{step:06d}"


# --- writing -------------------------------------------------------------------------------------------


def _write_files(
    directory: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    request: str,
) -> None:
    with ThreadPoolExecutor(max_workers=2) as pool:
        hashes = {}
        for stem, group in tensors.items():
            path = directory / f"{stem}.safetensors"
            _write_tensors(path, group)
            hashes[path.name] = pool.submit(_sha256, path)
        state_bytes = _canonical({"step": step, "request": request, "state": state})
        (directory / _STATE).write_bytes(state_bytes)
        hashes[_STATE] = pool.submit(_sha256, directory / _STATE)
        files = {
            name: {"size": (directory / name).stat().st_size, "sha256": future.result()}
            for name, future in hashes.items()
        }
    manifest = {"format": FORMAT, "step": step, "request": request, "files": files}
    (directory / _MANIFEST).write_bytes(_canonical({**manifest, "seal": _seal(manifest)}))


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    dense = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(dense, path)
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in dense.items()}
    with safe_open(path, framework="pt") as file:
        read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    if {name: (tensor.shape, tensor.dtype) for name, tensor in read.items()} != expected:
        raise RunDirectoryError(f"{path} does not hold the tensors that were written to it")


# --- verifying -----------------------------------------------------------------------------------------


def _verify(path: Path, request: str) -> Mapping[str, Any]:
    """The state of a checkpoint whose files are exactly those that were saved; raises _Unfit."""
    try:
        manifest = _read_manifest(path, request)
        with ThreadPoolExecutor(max_workers=2) as pool:
            hashes = dict(zip(manifest, pool.map(lambda name: _sha256(path / name), manifest), strict=True))
        for name, entry in manifest.items():
            if hashes[name] != entry["sha256"]:
                raise _Unfit(f"{name} was changed: its SHA-256 is not the one in {_MANIFEST}")
        document = _read_json(path / _STATE)
    except OSError as error:
        raise _Unfit(f"cannot be read: {error.strerror}") from error
    if document != {"step": _step_of(path), "request": request, "state": document.get("state")}:
        raise _Unfit(f"{_STATE} belongs to another step or run")
    return document["state"]


def _read_manifest(path: Path, request: str) -> Mapping[str, Mapping[str, Any]]:
    """The manifest's files, after every check that needs no hashing of tensors."""
    present = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(path)}
    if _MANIFEST not in present:
        raise _Unfit(f"{_MANIFEST} is missing")
    manifest = _read_json(path / _MANIFEST)
    if manifest.pop("seal", None) != _seal(manifest):
        raise _Unfit(f"{_MANIFEST} was changed: it does not match its own SHA-256")
    _check_identity(path, manifest, request)
    files = manifest["files"]
    for name in sorted(files.keys() | present.keys() - {_MANIFEST}):
        if name not in present:
            raise _Unfit(f"{name} is missing")
        if name not in files:
            raise _Unfit(f"{name} is not listed in {_MANIFEST}")
        if not stat.S_ISREG(present[name].st_mode):
            raise _Unfit(f"{name} is not a regular file")
        if present[name].st_size != files[name]["size"]:
            raise _Unfit(f"{name} has {present[name].st_size} bytes, not {files[name]['size']}")
    return files


def _check_identity(path: Path, manifest: Mapping[str, Any], request: str) -> None:
    """Raises RunDirectoryError for a newer format, _Unfit for a checkpoint of another step or request."""
    version = manifest.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise RunDirectoryError(
            f"{path} was written by a newer alignctl: checkpoint format {version}, this one reads {FORMAT}",
            "install that version, or start over with overwrite=true or another out=DIR",
        )
    if version != FORMAT or not _lists_files(manifest.get("files")):
        raise _Unfit(f"{_MANIFEST} is not a checkpoint's")
    if manifest.get("step") != _step_of(path):
        raise _Unfit(f"holds step {manifest.get('step')}: the directory was renamed or swapped")
    if manifest.get("request") != request:
        raise _Unfit(f"belongs to another run (request {manifest.get('request')}, not {request})")


def _lists_files(files: object) -> bool:
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and entry.keys() == {"size", "sha256"} for entry in files.values()
    )


def _is_good(path: Path, request: str) -> bool:
    try:
        _verify(path, request)
    except _Unfit:
        return False
    return True


def _looks_sound(path: Path, request: str) -> bool:
    try:
        _read_manifest(path, request)
    except (_Unfit, OSError):
        return False
    return not path.is_symlink()


def _steps(directory: Path) -> list[Path]:
    """The step- directories, oldest first."""
    steps = [int(found.group(1)) for found in map(_STEP.fullmatch, _names(directory)) if found]
    return [directory / step_name(step) for step in sorted(set(steps))]


def _names(directory: Path) -> list[str]:
    """What lies in a directory, sorted; nothing when it does not exist.

    One that cannot be read is an error: a run must not start over because its checkpoints are out of reach.
    """
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunDirectoryError(f"{directory} cannot be read: {error.strerror}") from error


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _read_json(path: Path) -> dict[str, Any]:
    """An object whose bytes are exactly those that `_canonical` makes of it; raises _Unfit."""
    with open(path, "rb", opener=_open_plain) as file:
        data = file.read(_LARGEST_JSON)
    try:
        value = json.loads(data)
        if isinstance(value, dict) and _canonical(value) == data:
            return value
    except (ValueError, RecursionError):
        pass
    raise _Unfit(f"{path.name} is damaged")


def _canonical(value: Mapping[str, Any]) -> bytes:
    """JSON with one spelling per value, so that a manifest with an altered blank is an altered manifest.

    Raises ValueError for NaN, infinity and more than 1 MiB, which would not be read back.
    """
    data = (json.dumps(value, indent=1, allow_nan=False) + "\n").encode("ascii")
    if len(data) > _LARGEST_JSON:
        raise ValueError(f"{len(data)} bytes of JSON; a checkpoint takes up to {_LARGEST_JSON}")
    return data


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(manifest)).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb", opener=_open_plain) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_plain(name: str, flags: int) -> int:
    """Never through a symbolic link, and never waiting for a pipe."""
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
