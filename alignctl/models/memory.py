"""What a run needs in memory at its peak, and the settings that follow from it, before its first step.

The estimate is what the process holds when it plans, the weights among it, and what will come: moments,
models beside, and the largest of the phases that follow one another: a step's heaviest micro-batches, the
optimiser with all gradients, scoring without gradients, sampling. Passes are rehearsed (models/rehearsal.py),
so the numbers follow the engine; only the cache of sampled answers is a formula.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from alignctl.errors import OutOfMemoryError
from alignctl.models.generation import BATCH
from alignctl.models.machine import free_memory
from alignctl.models.policy import Policy
from alignctl.models.rehearsal import (
    Ghost,
    NotRehearsed,
    Pass,
    ghost_of,
    own_head_bytes,
    scoring_bytes,
    training_bytes,
    weight_bytes,
)
from alignctl.records import Example

CPU_MICRO_TOKENS = 4096
CUDA_MICRO_TOKENS = 16384
ENOUGH_TOKENS = 1024
"""Rather than compute fewer at a time, activations are recomputed."""
USABLE = 0.9
"""Share of the memory that can be had which a plan may fill; the rest is for what no count sees."""
COLUMNS = 64
"""By which the cache of sampled answers grows."""
LOGITS = 6
"""Float32 copies of the logits of a token that drawing it takes."""
M_MMAP_THRESHOLD = -3
"""As in glibc's malloc.h."""
MAPPED_BYTES = 2**20
STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Rows that go through the model together."""

    rows: Sequence[Example]
    accumulates: bool
    """It is not the first of its step, whose gradients are there already."""


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What a run puts through its model; token ids do not matter, lengths do."""

    heaviest: Callable[[int], Sequence[MicroBatch]]
    """The micro-batches of the run that may need most, by their budget of tokens."""
    forward: Pass
    """Of a micro-batch that is trained on."""
    scored: Sequence[Example]
    """The most that is scored at one time without gradients."""
    score: Pass
    longest_row: int
    """Positions of the longest row: the least that a micro-batch has to hold."""
    step_tokens: int
    """Positions of the largest step: the most that is of use."""
    sampled: tuple[int, int] = (0, 0)
    """Answers that are written side by side, and positions of the longest with its prompt."""
    head_trained: bool = True
    """False where a vocabulary head of its own gets no gradient."""
    beside_bytes: int = 0
    """What other models hold while this one trains."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Decided once per run: how much is computed at a time, and what that is estimated to need."""

    micro_tokens: int
    activation_checkpointing: bool
    resident_bytes: int
    """What the process holds when it plans, the weights among it."""
    state_bytes: int
    """What comes to stay: moments of the optimiser and models beside."""
    work_bytes: int
    """The most that comes and goes: gradients, activations, the head's buffers."""
    available_bytes: int
    """What the process holds and what is free."""
    uncounted: str = ""
    """Why the passes could not be rehearsed, so that only weights, gradients and moments are counted."""

    @property
    def needed_bytes(self) -> int:
        """Estimated peak."""
        return self.resident_bytes + self.state_bytes + self.work_bytes

    @property
    def fits(self) -> bool:
        """Whether the estimate leaves something free."""
        return self.needed_bytes <= USABLE * self.available_bytes


def plan_memory(
    policy: Policy,
    work: Work,
    memory: Memory,
    *,
    micro_tokens: int | None,
    activation_checkpointing: bool | None,
) -> MemoryPlan:
    """Choose micro-batch and checkpointing, `None` meaning automatic; the caller asks if the plan `fits`.

    Activations are recomputed where otherwise not even the longest row, or some 1024 tokens, would fit.
    Where nothing fits, the plan is the one that needs least; without activations where that is too much.
    """
    most = CUDA_MICRO_TOKENS if policy.device.type == "cuda" else CPU_MICRO_TOKENS
    wanted = micro_tokens or max(work.longest_row, min(work.step_tokens, most))
    trained = _trained_bytes(policy, work)
    bare = MemoryPlan(
        micro_tokens=wanted,
        activation_checkpointing=bool(activation_checkpointing),
        resident_bytes=memory.resident_bytes,
        state_bytes=2 * trained + work.beside_bytes,
        work_bytes=trained,
        available_bytes=memory.available_bytes,
    )
    if not bare.fits:
        return bare
    if activation_checkpointing is not None:
        kinds = (activation_checkpointing,)
    else:
        kinds = (False, True) if policy.causal_lm.supports_gradient_checkpointing else (False,)
    try:
        ghost = ghost_of(policy, head_trained=work.head_trained)
        untrained = max(
            scoring_bytes(ghost, work.scored, work.score), _sampling_bytes(ghost.policy, *work.sampled)
        )
        return _chosen(_Desk(ghost, work, bare, untrained), kinds, micro_tokens)
    except NotRehearsed as error:
        return replace(bare, uncounted=str(error))


@dataclass(frozen=True, slots=True, eq=False)
class _Desk:
    """What every plan is made from."""

    ghost: Ghost
    work: Work
    bare: MemoryPlan
    """Without activations; its micro-batch is the largest that is wanted."""
    untrained_bytes: int
    """What scoring and sampling take, whatever the micro-batch is."""
    rehearsed: dict[tuple[int, bool], MemoryPlan] = field(default_factory=dict)

    def plan(self, micro_tokens: int, checkpointing: bool) -> MemoryPlan:
        """With the passes of such micro-batches, each rehearsed once. Raises NotRehearsed."""
        asked = (micro_tokens, checkpointing)
        if asked not in self.rehearsed:
            self.rehearsed[asked] = self._rehearse(micro_tokens, checkpointing)
        return self.rehearsed[asked]

    def _rehearse(self, micro_tokens: int, checkpointing: bool) -> MemoryPlan:
        ghost, work = self.ghost, self.work
        training = [
            training_bytes(
                ghost, batch.rows, work.forward, checkpointing=checkpointing, accumulates=batch.accumulates
            )
            for batch in work.heaviest(micro_tokens)
        ]
        return replace(
            self.bare,
            micro_tokens=micro_tokens,
            activation_checkpointing=checkpointing,
            work_bytes=max(*training, self.untrained_bytes),
        )


def _chosen(desk: _Desk, kinds: Sequence[bool], given: int | None) -> MemoryPlan:
    """The first plan that fits of those to be preferred, else the one that needs least."""
    wanted, smallest = desk.bare.micro_tokens, given or desk.work.longest_row
    plan = desk.plan(wanted, kinds[0])
    if plan.fits:
        return plan
    # Where nothing fits, that is told here, after two rehearsals: settings that would fit are found by
    # planning with many that do not.
    least = desk.plan(smallest, kinds[-1])
    if not least.fits:
        return min(plan, least, key=lambda one: one.needed_bytes)
    for checkpointing in kinds[:-1]:
        enough = max(smallest, min(wanted, ENOUGH_TOKENS))
        if desk.plan(enough, checkpointing).fits:
            return _largest(desk, enough, checkpointing)
    return _largest(desk, smallest, kinds[-1])


def _largest(desk: _Desk, smallest: int, checkpointing: bool) -> MemoryPlan:
    """The plan of the largest micro-batch that fits, by halves of what is wanted; `smallest` does."""
    size = desk.bare.micro_tokens
    while size > smallest and not desk.plan(size, checkpointing).fits:
        size //= 2
    return desk.plan(max(size, smallest), checkpointing)


def _trained_bytes(policy: Policy, work: Work) -> int:
    frozen = 0 if work.head_trained else own_head_bytes(policy.causal_lm)
    return weight_bytes(policy.model, trained=True) - frozen


def _sampling_bytes(policy: Policy, answers: int, positions: int) -> int:
    """Keys and values of the answers that are written side by side, logits, the copies of weights."""
    config = policy.causal_lm.config.get_text_config()
    size = policy.compute_dtype.itemsize
    heads = config.to_dict().get("num_key_value_heads") or config.num_attention_heads
    width = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
    rows = min(answers, BATCH)
    cache = 2 * config.num_hidden_layers * heads * width * size * rows * (positions + COLUMNS)
    copies = weight_bytes(policy.model) // 2 if policy.compute_dtype == torch.bfloat16 else 0
    return cache + LOGITS * 4 * rows * config.vocab_size + copies


# --- what there is -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Memory:
    """What there is when a run plans."""

    resident_bytes: int
    """Held by this process."""
    available_bytes: int
    """That, and what is free."""

    def with_more(self, size: int) -> Memory:
        """After so many bytes more have been taken."""
        return replace(self, resident_bytes=self.resident_bytes + size)


def present_memory(device: torch.device) -> Memory:
    """Of the device on CUDA, of this process elsewhere."""
    if device.type == "cuda":
        free, held = torch.cuda.mem_get_info(device)[0], torch.cuda.memory_reserved(device)
        return Memory(torch.cuda.memory_allocated(device), free + held)
    held = _status_bytes("VmRSS") or _most_resident_bytes()
    return Memory(held, free_memory() + held)


def give_freed_memory_back() -> None:
    """Have glibc map every tensor of a MiB or more by itself, so that it is gone when it is freed.

    Left alone it keeps them in a heap that fragments: LoRA on SmolLM2's shape (float32, 1,933 tokens) took
    5.4 GB for 4.0 GB that were alive at most. With huge pages the time is the same (processor seconds of a
    step of 10 layers: 2.2 and 2.3 in bfloat16, 4.9 and 5.0 in float32). Other systems go on as they do.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # not every libc of Linux is glibc
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


def peak_memory_gb(device: torch.device) -> float:
    """Peak so far of this process: device memory on CUDA, resident memory elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return (_status_bytes("VmHWM") or _most_resident_bytes()) / 1e9


def _status_bytes(name: str) -> int | None:
    """A figure of this process from Linux; None elsewhere."""
    for line in STATUS.read_text().splitlines() if STATUS.exists() else ():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _most_resident_bytes() -> int:
    """On Linux it would begin with what the parent process held."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --- when it runs out all the same ---------------------------------------------------------------------


def halved(plan: MemoryPlan, *, longest_row: int) -> MemoryPlan:
    """The plan with half the micro-batch. Raises OutOfMemoryError when single rows were already too much."""
    if plan.micro_tokens <= longest_row:
        raise OutOfMemoryError(
            f"one row of {longest_row} tokens does not fit in memory",
            "try adapter=lora, hardware.activation_checkpointing=true, train.dtype=bfloat16,",
            "or a smaller model",
            f"or shorter rows: train.max_length={max(8, longest_row // 4)}",
        )
    return replace(plan, micro_tokens=max(longest_row, plan.micro_tokens // 2))
