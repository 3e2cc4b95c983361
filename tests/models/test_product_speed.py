"""bfloat16 on a CPU that has no instructions for it: told, and told only then."""

from __future__ import annotations

import pytest
import torch

from alignctl.models import product_speed
from alignctl.models.product_speed import bfloat16_gain, slow_bfloat16

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_the_gain_is_measured():
    bfloat16_gain.cache_clear()
    assert 0.01 < bfloat16_gain() < 100
    assert bfloat16_gain() is bfloat16_gain(), "measured once: it takes a moment"


@pytest.mark.parametrize(
    ("gain", "dtype", "device", "told"),
    [
        (0.12, torch.bfloat16, CPU, True),
        (0.9, torch.bfloat16, CPU, False),
        (3.0, torch.bfloat16, CPU, False),
        (0.12, torch.float32, CPU, False),
        (0.12, torch.bfloat16, CUDA, False),
    ],
)
def test_a_cpu_that_loses_by_bfloat16_is_told_of(monkeypatch, gain, dtype, device, told):
    monkeypatch.setattr(product_speed, "bfloat16_gain", lambda: gain)
    warning = slow_bfloat16(dtype, device, "eval.dtype")
    assert (warning is not None) == told
    if warning:
        assert "eval.dtype=float32 is faster" in warning
