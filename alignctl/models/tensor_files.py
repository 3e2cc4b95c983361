"""Tensors in the cache: written whole or not at all, and read only while they are what was written."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from alignctl.errors import storage_faults


def weights_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    """What `write_tensors` left at `path`; None where that is absent or damaged, to be computed again."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    # A flipped bit would train a whole run against a wrong reference.
    return tensors if weights_fingerprint(tensors) == expected else None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Put contiguous tensors at `path`, for good in one step. Raises SetupError where the storage is full."""
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with storage_faults(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(dict(tensors), temporary, metadata={"sha256": weights_fingerprint(tensors)})
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
