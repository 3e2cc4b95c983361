"""The run directory: one writer, one request, records that survive a crash.

Decisions. A lock (`flock` on `.lock`) is held as long as the run is open; the kernel drops it when the
process dies, so a run that was killed needs no cleaning up by hand: `status: running` without a lock holder
means unfinished, and the same request goes on with it. run.json is written first and never removed, so a
directory without it is not ours and nothing in it is touched. The JSON Lines files are cut back on resume
to the offsets noted in the checkpoint: they hold exactly the lines that belong to it. Imports no torch.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml

from alignctl import __version__
from alignctl.config import Config, as_plain, as_yaml, request_hash
from alignctl.config.paths import local_path
from alignctl.errors import Interrupted, RunDirectoryError, SetupError, storage_faults
from alignctl.train.durable import (
    encode,
    is_temporary,
    remove,
    remove_leftovers,
    strict_json,
    sync_directory,
    sync_file,
    write_bytes,
    write_json,
)
from alignctl.train.lock import LOCK, only_writer

SCHEMA = 1
_RECORD = "run.json"
_CONFIG = "config.yaml"
_OVERRIDES = "overrides.txt"
_LINES = ("metrics.jsonl", "samples.jsonl", "timing.jsonl")
_PRODUCTS = (
    *(
        *_LINES,
        "bad_rows.jsonl",
        "train_prompts.txt",
        "reference.safetensors",
        "report.html",
        "model",
        _CONFIG,
        _OVERRIDES,
    ),
    *("results.json", "results.md", "pairs.parquet", "answers.jsonl", "verdicts.jsonl"),
)
_BEFORE_ANYTHING = ("bad_rows.jsonl", "train_prompts.txt", _CONFIG, _OVERRIDES)
"""Products of a run that has computed nothing yet."""
_PACKAGES = ("torch", "transformers", "peft")
_NOT_PART_OF_THE_REQUEST = ("hardware", "out", "overwrite")
_SHOWN_DIFFERENCES = 8


@dataclass(frozen=True, slots=True)
class JsonLines:
    """An append-only file, one strict JSON object per line; created by its first line."""

    path: Path

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line; a line that does not fit on the disk leaves nothing behind (SetupError)."""
        line = encode(strict_json(record) + "\n")
        with storage_faults(self.path), open(self.path, "ab", buffering=0) as file:
            start = file.tell()
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(start)
                raise

    def sync(self) -> int:
        """Put every line on the disk; returns the size in bytes, the offset to come back to."""
        if not self.path.exists():
            return 0
        with storage_faults(self.path):
            sync_file(self.path)
            sync_directory(self.path.parent)
        return self.path.stat().st_size

    def truncate(self, offset: int) -> None:
        """Drop what was written after `offset`. Raises RunDirectoryError when the file is shorter."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < offset:
            raise RunDirectoryError(
                f"{self.path} has {size} bytes, but the checkpoint was saved when it had {offset}",
                "put the file back, or start over with overwrite=true or another out=DIR",
            )
        if size > offset:
            with open(self.path, "r+b") as file:
                file.truncate(offset)
                os.fsync(file.fileno())


class RunDirectory:
    """An open run; made by `open_run`, which holds its lock."""

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics, self.samples, self.timing = (JsonLines(path / name) for name in _LINES)
        self._record = dict(record)

    @property
    def record(self) -> Mapping[str, Any]:
        """What run.json holds."""
        return self._record

    def update(self, **fields: Any) -> None:
        """Merge fields into run.json, at once and durably; non-finite numbers become null."""
        self._record = {**self._record, **fields}
        write_json(self.path / _RECORD, self._record)

    def warn(self, message: str) -> None:
        """Keep a warning in run.json, each text once."""
        if message not in self._record["warnings"]:
            self.update(warnings=[*self._record["warnings"], message])

    def offsets(self) -> dict[str, int]:
        """Put the JSON Lines files on the disk and return their sizes, for the checkpoint's state.

        To be called before the checkpoint is saved: then a checkpoint never promises lines that a power cut
        took away.
        """
        return {lines.path.name: lines.sync() for lines in (self.metrics, self.samples, self.timing)}

    def rewind(self, offsets: Mapping[str, int]) -> None:
        """Cut the JSON Lines files back to a checkpoint's `offsets`; {} empties them: a start from step 0."""
        for lines in (self.metrics, self.samples, self.timing):
            lines.truncate(offsets.get(lines.path.name, 0))

    def note_resume(self, step: int) -> None:
        """Add to run.json that training went on after `step`."""
        self.update(resumes=[*self._record["resumes"], {"step": step}])

    def finish(self, status: Literal["done", "stopped", "failed"], **fields: Any) -> None:
        """Close the books: done and stopped are final, a failed run can be gone on with."""
        self.offsets()
        self.update(status=status, **fields)


@contextmanager
def open_run(
    path: Path | str, config: Config, overrides: Sequence[str], argv: Sequence[str]
) -> Iterator[RunDirectory]:
    """Create the run directory, or go on with the unfinished run of the same request; lock it meanwhile.

    A run that is left without `finish` stays `running`, which the next `open_run` takes as unfinished;
    so does one that raises Interrupted. Any other exception makes it `failed`.
    Raises RunDirectoryError when the directory is foreign, busy, finished, damaged, of a newer schema, or of
    another request; SetupError when it cannot be written.
    """
    path = local_path(path).absolute()
    _refuse_foreign(path)
    with storage_faults(path):
        path.mkdir(parents=True, exist_ok=True)
    with only_writer(path, path / LOCK):
        remove_leftovers(path)
        remove_leftovers(path / "checkpoints")
        record = _usable_record(path, config)
        run = RunDirectory(path, record or _new_record(config, argv))
        run.update(status="running")
        _write_request(path, config, overrides)
        try:
            yield run
        except Interrupted:
            raise
        except Exception as error:
            # The disk may be what failed: then the original error matters, not that it cannot be recorded.
            with suppress(SetupError, OSError):
                run.finish("failed", error=f"{type(error).__name__}: {error}")
            raise


def standing(path: Path | str, config: Config) -> Literal["new", "unfinished", "replaced"]:
    """What `open_run` would find there, or why it would refuse, as it says it; nothing is touched.

    Only whether another process holds the lock is not looked at: asking would mean to hold it.
    """
    path = local_path(path).absolute()
    _refuse_foreign(path)
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    with storage_faults(path):
        if not nearest.is_dir():
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    if not (path / _RECORD).exists():
        return "new"
    if config.overwrite or _gives_way(path, _read_record(path / _RECORD), config):
        return "replaced"
    _usable_record(path, config)
    return "unfinished"


def _refuse_foreign(path: Path) -> None:
    """Raise RunDirectoryError unless the path is free, empty, or a run of ours."""
    if path.resolve() in (Path("/"), Path(os.path.expanduser("~")).resolve()):
        raise RunDirectoryError(f"{path} cannot be a run directory", "name another one: out=DIR")
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise RunDirectoryError(f"{path} exists and is not a directory", "name another one: out=DIR")
    with storage_faults(path):
        names = sorted(os.listdir(path))
    if _RECORD not in names and any(name != LOCK and not is_temporary(name) for name in names):
        raise RunDirectoryError(
            f"{path} is not empty and not a run: it has no {_RECORD}",
            "nothing in it was touched; name another directory: out=DIR",
        )
    _refuse_detours(path)


def _refuse_detours(path: Path) -> None:
    """Raise RunDirectoryError for a link or a pipe in a run: what is written there would go elsewhere."""
    with storage_faults(path):
        inside = [path / "checkpoints"] if (path / "checkpoints").is_dir() else []
        entries = [entry for directory in (path, *inside) for entry in sorted(directory.iterdir())]
        kinds = {entry: entry.lstat().st_mode for entry in entries if not is_temporary(entry.name)}
    for entry, kind in kinds.items():
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            what = f"a link to {os.readlink(entry)}" if stat.S_ISLNK(kind) else "no regular file"
            raise RunDirectoryError(
                f"{entry} is {what}",
                "a run holds its own files: remove it, or name another directory: out=DIR",
            )


# --- run.json, config.yaml, overrides.txt --------------------------------------------------------------


def _usable_record(path: Path, config: Config) -> Mapping[str, Any] | None:
    """The record of the unfinished run to go on with; None when a new run starts here."""
    if not (path / _RECORD).exists():
        return None
    record = _read_record(path / _RECORD)
    if config.overwrite or _gives_way(path, record, config):
        _remove_run(path, record)
        return None
    if record["status"] in ("done", "stopped"):
        raise RunDirectoryError(
            f"{path} is finished (status {record['status']})",
            "out=DIR          write into another directory",
            "overwrite=true   remove this one and start again",
        )
    if record["request"] != request_hash(config):
        raise RunDirectoryError(
            f"{path} was started with other settings",
            *_differences(path / _CONFIG, config),
            "go on with the settings it was started with, or start over:",
            "overwrite=true or another out=DIR",
        )
    return {key: value for key, value in record.items() if key != "error"}


def _gives_way(path: Path, record: Mapping[str, Any], config: Config) -> bool:
    """Whether a run failed before it made anything and another is asked for: its mistake is being mended."""
    if record["status"] != "failed" or record["request"] == request_hash(config):
        return False
    made = [name for name in _PRODUCTS if name not in _BEFORE_ANYTHING and os.path.lexists(path / name)]
    return not made and not any((path / "checkpoints").glob("*step-*"))


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunDirectoryError(
            f"{path} cannot be read: {error}", "put a good copy back, or name another directory: out=DIR"
        ) from error
    needed = {"schema": int, "status": str, "request": str, "resumes": list, "warnings": list}
    schema = record.get("schema") if isinstance(record, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise RunDirectoryError(
            f"{path} was written by a newer alignctl: schema {schema}, this one reads {SCHEMA}",
            "install that version, or name another directory: out=DIR",
        )
    if schema is None or not all(isinstance(record.get(key), kind) for key, kind in needed.items()):
        raise RunDirectoryError(
            f"{path} is not the record of a run",
            "nothing beside it was touched; name another directory: out=DIR",
        )
    return record


def _new_record(config: Config, argv: Sequence[str]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "status": "running",
        "request": request_hash(config),
        "argv": list(argv),
        "seed": config.seed,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "alignctl": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
        "resumes": [],
        "warnings": [],
    }


def _write_request(path: Path, config: Config, overrides: Sequence[str]) -> None:
    """config.yaml and overrides.txt, as they were when the run started."""
    if not (path / _OVERRIDES).exists():
        write_bytes(path / _CONFIG, encode(as_yaml(config)))
        write_bytes(path / _OVERRIDES, encode("".join(f"{override}\n" for override in overrides)))


def _differences(path: Path, config: Config) -> list[str]:
    """`train.lr: 0.0001, now 0.0002`, one line per key of the request that differs."""
    try:
        old = _flat(yaml.safe_load(path.read_bytes()))
    except (OSError, yaml.YAMLError, RecursionError):
        return [f"its {path.name} cannot be read, so they cannot be listed"]
    new = _flat(as_plain(config))
    lines = [
        f"{key}: {_shown(old, key)}, now {_shown(new, key)}"
        for key in dict.fromkeys([*new, *old])
        if _shown(old, key) != _shown(new, key) and key.split(".")[0] not in _NOT_PART_OF_THE_REQUEST
    ]
    more = [f"+{len(lines) - _SHOWN_DIFFERENCES} more"] if len(lines) > _SHOWN_DIFFERENCES else []
    return lines[:_SHOWN_DIFFERENCES] + more


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(value, Mapping):
        return {prefix.removesuffix("."): value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.")
    return flat


def _shown(values: Mapping[str, Any], key: str) -> str:
    return strict_json(values[key]) if key in values else "absent"


def _remove_run(path: Path, record: Mapping[str, Any]) -> None:
    """Remove what a run writes, and nothing else.

    run.json stays, marked as incomplete, until the new run's replaces it: a crash on the way leaves a run
    that is not finished and can be overwritten again, and never a directory that is no run any more.
    """
    write_json(path / _RECORD, {**record, "status": "failed", "error": "removed by overwrite=true"})
    checkpoints = path / "checkpoints"
    for entry in [*checkpoints.glob("step-*"), *checkpoints.glob("bad-step-*")]:
        remove(entry)
    with suppress(OSError):
        checkpoints.rmdir()  # stays when something of the user's lies in it
    for name in _PRODUCTS:
        if os.path.lexists(path / name):
            remove(path / name)
