"""The files of a checkpoint: JSON, and tensors as byte ranges of safetensors files.

Decision: tensors are read piece by piece into buffers of our own, never through a memory map of the whole
file, so the memory in use does not depend on how large a tensor is, and a file that is cut short meanwhile
is an error instead of a bus error. The safetensors library itself judges the header before it is used.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from alignctl.errors import SetupError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
JSON_LIMIT = 1 << 28
COPY_AGAIN = "copy it again from where it came"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies."""

    file: Path
    offset: int
    """In bytes, from the start of the file."""
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises SetupError when the file is absent, huge or anything else."""
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise SetupError(
                f"{path} is larger than {JSON_LIMIT >> 20} MiB, which no such file should be", COPY_AGAIN
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SetupError(f"{path} cannot be read as JSON: {_first_line(error)}", COPY_AGAIN) from error
    if not isinstance(value, dict):
        raise SetupError(f"{path} holds a JSON {type(value).__name__}, not an object", COPY_AGAIN)
    return value


def places_of_file(path: Path) -> dict[str, Place]:
    """The tensors of one safetensors file by name. Raises SetupError when its header is unfit."""
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        # Opening judges sizes, offsets and types, which the reader below may then trust. As NumPy would:
        # torch's own map counts as memory, more of it than a small machine grants.
        with safe_open(path, "np"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise SetupError(
            f"{path} is no sound safetensors file: {_first_line(error)}", "copy or convert it again"
        ) from error
    header.pop("__metadata__", None)
    return {name: _place(path, 8 + length, name, entry) for name, entry in header.items()}


def _place(path: Path, start: int, name: str, entry: dict[str, Any]) -> Place:
    if entry["dtype"] not in DTYPES:
        raise SetupError(
            f"{path}: {name} has dtype {entry['dtype']}, which cannot be averaged",
            "name the unquantised model",
        )
    return Place(path, start + entry["data_offsets"][0], DTYPES[entry["dtype"]], tuple(entry["shape"]))


def places_of_model(directory: Path) -> dict[str, Place]:
    """The tensors of a model directory, from model.safetensors or from the shards its index names.

    Whether one of them lies elsewhere is seen by own_files.py. Raises SetupError when a shard is missing or
    does not hold what the index says.
    """
    if (directory / SINGLE).is_file():
        return places_of_file(directory / SINGLE)
    index = directory / INDEX
    wanted = read_json(index).get("weight_map")
    if not isinstance(wanted, dict) or not all(isinstance(shard, str) for shard in wanted.values()):
        raise SetupError(
            f"{index} has no weight_map from tensors to files", "copy or convert the model again"
        )
    shards = {shard: _shard(directory, shard) for shard in sorted(set(wanted.values()))}
    for name, shard in wanted.items():
        if name not in shards[shard]:
            raise SetupError(f"{index} says that {name} is in {shard}, which does not hold it")
    return {name: shards[shard][name] for name, shard in wanted.items()}


def _shard(directory: Path, shard: str) -> dict[str, Place]:
    if not (directory / shard).is_file():
        raise SetupError(
            f"{directory / INDEX} names the shard {shard}, which is missing", "copy the model again"
        )
    return places_of_file(directory / shard)


def read_piece(place: Place, start: int, stop: int) -> Tensor:
    """Elements start to stop of the flattened tensor, in its own dtype."""
    buffer = bytearray((stop - start) * place.dtype.itemsize)
    if not buffer:
        return torch.empty(0, dtype=place.dtype)
    with place.file.open("rb", buffering=0) as file:
        file.seek(place.offset + start * place.dtype.itemsize)
        view = memoryview(buffer)
        while view:
            count = file.readinto(view)
            if not count:
                raise SetupError(f"{place.file} became shorter while it was read")
            view = view[count:]
    return torch.frombuffer(buffer, dtype=place.dtype)


def read_tensor(place: Place) -> Tensor:
    """The whole tensor, in its own dtype."""
    return read_piece(place, 0, place.numel).view(place.shape)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
