"""What a source holds, as one hash: the name under which its checked rows are kept.

A file is its bytes and its ending, a directory all files below it, a hub data set the fingerprint that
`datasets` gives it. Nothing of a path enters, so a copy is found again under another name.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from contextlib import nullcontext
from pathlib import Path

from alignctl.config.paths import local_path
from alignctl.data.files import names_hub
from alignctl.data.through_datasets import files_below, hub_fingerprint

SAMPLE = 1 << 22
"""Bytes, inflated, from which the number of lines of a file is estimated."""


def content_hash(path: str, split: str) -> str | None:
    """sha256 of the source; None for one that cannot be read, about which reading it says more.

    Raises SetupError for a directory that links to files elsewhere.
    """
    source = local_path(path)
    try:
        if source.is_file():
            return _file_hash(source)
        if source.is_dir():
            parts = [f"{file.relative_to(source)} {_file_hash(file)}" for file in files_below(source)]
            return hashlib.sha256("\n".join([f"split {split}", *parts]).encode()).hexdigest()
    except OSError:
        return None
    fingerprint = hub_fingerprint(path, split) if names_hub(path) else None
    return f"hub {path} {split} {fingerprint}" if fingerprint else None


def _file_hash(path: Path) -> str:
    """Of bytes and ending: the ending decides how a file is read."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{found} {''.join(path.suffixes)}"


def expected_records(path: str) -> int | None:
    """About how many rows a file has, from the start of it; None where that cannot be told."""
    import pyarrow.parquet

    source = local_path(path)
    try:
        if source.suffix == ".parquet":
            return pyarrow.parquet.ParquetFile(source).metadata.num_rows
        if not source.is_file() or source.suffix in (".json", ".arrow"):
            return None
        with source.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.open(file) if packed else nullcontext(file) as text:
                start = text.read(SAMPLE)
            read, size = file.tell(), os.fstat(file.fileno()).st_size
    except (OSError, EOFError, ValueError, zlib.error):
        return None
    return max(1, round(start.count(b"\n") * size / read)) if read else None
