"""How fast this CPU multiplies in bfloat16, measured, as no question to torch answers it on every processor.

Without instructions for it torch rounds and widens: on a core of a Zen 3 EPYC 8.5 instead of 65 thousand
million operations a second; a Xeon with AMX gains where that one loses.
"""

from __future__ import annotations

import time
from functools import cache

import torch

SIDE, ROUNDS = 512, 3
"""Matrices multiplied: large enough for all threads, milliseconds each."""
TOO_SLOW = 0.7
"""A gain below that is worth telling; above it, half the memory of activations may be why it was chosen."""


@cache
def bfloat16_gain() -> float:
    """On the CPU: how many times as fast bfloat16 products are as float32 ones."""
    # The numbers do not matter, but zeros and subnormal ones would be another speed.
    matrix = torch.linspace(-1, 1, SIDE * SIDE).reshape(SIDE, SIDE)
    return _seconds(matrix) / _seconds(matrix.bfloat16())


def slow_bfloat16(dtype: torch.dtype, device: torch.device, setting: str) -> str | None:
    """A warning where a CPU computes in `dtype` slower than in float32; `setting` is what chose it."""
    if dtype != torch.bfloat16 or device.type != "cpu" or bfloat16_gain() >= TOO_SLOW:
        return None
    return f"this CPU is slower in bfloat16 (alignctl doctor says by how much); {setting}=float32 is faster"


def _seconds(matrix: torch.Tensor) -> float:
    """The best of a few products; a first one is not counted."""
    torch.mm(matrix, matrix)
    taken: list[float] = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        taken.append(time.perf_counter() - start)
    return min(taken)
