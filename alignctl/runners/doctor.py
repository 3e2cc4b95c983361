"""What torch has to compute with, for `alignctl doctor`: asked of torch, and bfloat16 on a CPU tried."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from alignctl.models.product_speed import bfloat16_gain


@dataclass(frozen=True, slots=True)
class Device:
    """One CUDA device."""

    name: str
    free_bytes: int
    total_bytes: int
    bfloat16: bool
    """Whether it computes in bfloat16 without emulation."""


@dataclass(frozen=True, slots=True)
class Compute:
    """What a run on this machine can compute with."""

    built_for: str
    """`the CPU`, `CUDA 12.8` or `ROCm 6.4`."""
    threads: int
    bfloat16_gain: float
    """On the CPU: how many times as fast bfloat16 products are as float32 ones."""
    devices: tuple[Device, ...]
    warnings: tuple[str, ...]
    """What torch said while it looked for devices, such as a driver that is too old."""


def compute() -> Compute:
    """Ask torch; raises whatever a broken torch raises."""
    if torch.version.cuda:
        built_for = f"CUDA {torch.version.cuda}"
    else:
        built_for = f"ROCm {torch.version.hip}" if torch.version.hip else "the CPU"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        devices = tuple(map(_device, range(torch.cuda.device_count()))) if torch.cuda.is_available() else ()
    said = tuple(dict.fromkeys(" ".join(str(warning.message).split()) for warning in told))
    return Compute(built_for, torch.get_num_threads(), bfloat16_gain(), devices, said)


def _device(index: int) -> Device:
    free, total = torch.cuda.mem_get_info(index)
    with torch.cuda.device(index):
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Device(torch.cuda.get_device_name(index), free, total, bfloat16)
