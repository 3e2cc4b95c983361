"""Faults of the computation, put into torch from outside before a command runs: nothing in alignctl knows.

Steps are counted by the norm of the gradients, which every step of an optimiser takes once. Where a value
enters the forward pass it does so at an activation, where memory runs out it does so there too.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Where = Literal["training", "scoring"]


@dataclass(slots=True)
class Steps:
    """How many steps of the optimiser have come as far as their gradients."""

    done: int = 0


def spoil_loss(value: float, steps: Collection[int]) -> None:
    """Multiply an activation of the given steps (from 1) by `value`: the loss becomes what it makes of it."""
    counted = _counted()
    plain = torch.nn.functional.silu

    def silu(*args: Any, **kwargs: Any) -> Tensor:
        out = plain(*args, **kwargs)
        return out * value if torch.is_grad_enabled() and counted.done + 1 in steps else out

    torch.nn.functional.silu = silu


def spoil_gradient(value: float, steps: Collection[int], *, times: bool = False) -> None:
    """Put `value` into the first gradient of the given steps; with `times`, multiply all of them by it."""

    def spoil(step: int, gradients: list[Tensor]) -> None:
        if step in steps and times:
            for gradient in gradients:
                gradient.mul_(value)
        elif step in steps:
            gradients[0].view(-1)[0] = value

    _counted(spoil)


def exhaust(where: Where, calls: Collection[int], error: str = "cuda", above: int = 0) -> None:
    """Run out of memory at the given forward passes (from 1), or at all above so many tokens."""
    seen = Steps()
    plain = torch.nn.functional.silu

    def silu(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # Before a run, memory is estimated on tensors without values: those passes are not meant.
        if type(input) is Tensor and torch.is_grad_enabled() == (where == "training"):
            seen.done += 1
            tokens = input.numel() // input.shape[-1]
            if seen.done in calls or (above and tokens > above):
                raise out_of_memory(error)
        return plain(input, *args, **kwargs)

    torch.nn.functional.silu = silu


def exhaust_moments(call: int) -> None:
    """Run out of memory once while the optimiser's moments are made: at their `call`-th tensor."""
    counted, made = _counted(), Steps()
    plain = torch.zeros_like

    def zeros_like(*args: Any, **kwargs: Any) -> Tensor:
        if counted.done == 1:
            made.done += 1
            if made.done == call:
                raise out_of_memory("cuda")
        return plain(*args, **kwargs)

    torch.zeros_like = zeros_like


def out_of_memory(kind: str) -> Exception:
    """As CUDA, torch on the CPU, or Python say it."""
    if kind == "cuda":
        return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if kind == "cpu":
        return RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"
        )
    return MemoryError()


def limit_memory(more: int) -> None:
    """Let this process map no more than so many bytes beyond what it has now: allocations fail for real."""
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more, mapped + more))


def _counted(see: Callable[[int, list[Tensor]], None] = lambda step, gradients: None) -> Steps:
    """Counts steps from now on, and shows each step's gradients before their norm is taken."""
    counted = Steps()
    plain = torch.nn.utils.get_total_norm

    def get_total_norm(tensors: Any, *args: Any, **kwargs: Any) -> Tensor:
        counted.done += 1
        gradients = list(tensors)
        see(counted.done, gradients)
        return plain(gradients, *args, **kwargs)

    torch.nn.utils.get_total_norm = get_total_norm
    return counted
