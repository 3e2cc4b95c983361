"""Real allocations that cannot be made, and errors that only look like them."""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np
import pyarrow
import pytest
import torch

from alignctl.errors import OutOfMemoryError, UsageError
from alignctl.models.exhaustion import is_out_of_memory, memory_faults

EXBIBYTE = 2**60


def cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")


def no_pages() -> None:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


ALLOCATIONS: dict[str, Callable[[], object]] = {
    "torch": lambda: torch.empty(EXBIBYTE, dtype=torch.uint8),
    "numpy": lambda: np.empty(EXBIBYTE, dtype=np.uint8),
    "arrow": lambda: pyarrow.allocate_buffer(EXBIBYTE),
    "python": lambda: bytearray(EXBIBYTE),
    "cuda": cuda,
    "the system": no_pages,
}


@pytest.mark.parametrize("allocate", ALLOCATIONS.values(), ids=list(ALLOCATIONS))
def test_an_allocation_that_fails_ends_with_exit_code_4_and_what_needs_less(
    allocate: Callable[[], object],
) -> None:
    with pytest.raises(OutOfMemoryError) as error, memory_faults("try eval.max_length=64"):
        allocate()
    assert error.value.exit_code == 4
    assert error.value.hints == ("try eval.max_length=64",)
    assert len(error.value.render().splitlines()) == 2


@pytest.mark.parametrize(
    "other",
    [
        RuntimeError("The size of tensor a (3) must match"),
        OSError(errno.ENOENT, "No such file"),
        ValueError("out of memory"),
        UsageError("alignctl has no option 'out of memory'"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_pass(other: Exception) -> None:
    assert not is_out_of_memory(other)
    with pytest.raises(type(other)) as error, memory_faults():
        raise other
    assert error.value is other
