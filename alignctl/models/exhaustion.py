"""Memory that ran out, recognised wherever it happens: on CUDA, on the CPU, in torch, NumPy, Arrow or Python.

Inside a training step the loop halves the micro-batch and repeats the step. Everywhere else (a reference
scored, answers sampled, a model loaded or merged) nothing smaller is at hand: the command ends with exit
code 4 and says which settings need less.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from alignctl.errors import AlignctlError, OutOfMemoryError

_WORDS = (
    "can't allocate memory",  # torch on the CPU
    "Cannot allocate memory",  # the operating system, inside an error of Rust or C++
    "out of memory",  # CUDA, outside its allocator
    "CUBLAS_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; NumPy's and Arrow's own errors are kinds of MemoryError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


@contextmanager
def memory_faults(*smaller: str) -> Iterator[None]:
    """Raise OutOfMemoryError where the block runs out of memory; `smaller` names what needs less."""
    try:
        yield
    except AlignctlError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"out of memory: {_first_line(error)}", *smaller) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
