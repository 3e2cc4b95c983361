"""The memory plan of a run: whether it fits, and what would where it does not.

Decision: a refusal names a setting only after planning with it, so what it names fits, and says how much it
needs. A model whose weights, gradients and moments are too much by themselves is refused before it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch

from alignctl.config import (
    AdapterConfig,
    HypoConfig,
    LoraAdapter,
    NoAdapter,
    PpoConfig,
    TrainConfig,
    model_name,
)
from alignctl.errors import OutOfMemoryError
from alignctl.models.load import skeleton
from alignctl.models.memory import USABLE, Memory, MemoryPlan, plan_memory, present_memory
from alignctl.models.policy import Policy, set_attention
from alignctl.models.precision import settle_precision
from alignctl.models.rehearsal import weight_bytes
from alignctl.records import Layout
from alignctl.runners.preparation import resolve_device, resolve_dtype
from alignctl.runners.training_data import TrainingData
from alignctl.runners.workload import kept_for_the_watch_alone, work_of
from alignctl.train.run_directory import RunDirectory

T = TypeVar("T")
LORA = LoraAdapter(kind="lora", r=16, alpha=32, dropout=0, targets="all-linear", lr_scale=10)
"""What `adapter=lora` means."""
LENGTHS = 64
"""A named train.max_length is a multiple of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A run as it is asked for, or with some settings changed."""

    config: TrainConfig
    data: TrainingData
    policy: Policy
    memory: Memory
    micro_tokens: int | None
    checkpointing: bool | None
    max_length: int | None = None
    """Rows are cut to it; None where they stay as they are."""
    words: tuple[str, ...] = ()
    """The changed settings as they are typed."""

    def plan(self) -> MemoryPlan:
        """What it needs, whether it fits or not."""
        return plan_memory(
            self.policy,
            work_of(self.config, self.data, self.policy, self.max_length),
            self.memory,
            micro_tokens=self.micro_tokens,
            activation_checkpointing=self.checkpointing,
        )


def memory_plan(
    config: TrainConfig, data: TrainingData, policy: Policy, directory: RunDirectory
) -> MemoryPlan:
    """Decided at the run's start and kept: a resume must not decide otherwise.

    Raises OutOfMemoryError where it does not fit, with settings that do.
    """
    decided, hardware = directory.record.get("decided", {}), config.hardware
    asked = Asked(
        config,
        data,
        policy,
        present_memory(policy.device),
        micro_tokens=decided.get("micro_tokens", _given(hardware.micro_tokens)),
        checkpointing=decided.get("activation_checkpointing", _given(hardware.activation_checkpointing)),
    )
    plan = asked.plan()
    if not plan.fits:
        raise refusal(asked, plan.needed_bytes)
    directory.update(
        decided={
            **decided,
            "micro_tokens": plan.micro_tokens,
            "activation_checkpointing": plan.activation_checkpointing,
            "dtype": str(policy.compute_dtype).removeprefix("torch."),
            "layout": policy.layout,
            "device": policy.device.type,
        },
        memory_estimate_gb=round(plan.needed_bytes / 1e9, 3),
    )
    return plan


def refuse_too_large(config: TrainConfig, data: TrainingData) -> None:
    """Before a weight is loaded: raise OutOfMemoryError where weights, gradients and moments are too much."""
    device, hardware = resolve_device(config.hardware), config.hardware
    policy = bare_policy(data, config.adapter, "shared", resolve_dtype(config, device), device)
    memory = present_memory(device).with_more(weight_bytes(policy.model))
    least = memory.resident_bytes + 3 * weight_bytes(policy.model, trained=True)
    if least <= USABLE * memory.available_bytes:
        return
    micro, checkpointing = _given(hardware.micro_tokens), _given(hardware.activation_checkpointing)
    raise refusal(Asked(config, data, policy, memory, micro, checkpointing), least)


def bare_policy(
    data: TrainingData, adapter: AdapterConfig, layout: Layout, dtype: torch.dtype, device: torch.device
) -> Policy:
    """The run's model as it would train with these settings, its weights not loaded."""
    bare = skeleton(data.source, adapter)
    settle_precision(bare, dtype)
    policy = Policy(bare, layout, dtype, device)
    set_attention(policy.causal_lm, layout)
    return policy


def _given(value: T | Literal["auto"]) -> T | None:
    return None if value == "auto" else value  # type: ignore[return-value]


# --- what would fit ------------------------------------------------------------------------------------


def refusal(asked: Asked, needed: int) -> OutOfMemoryError:
    """The error of a run that needs so many bytes, with the settings that fit."""
    available = asked.memory.available_bytes
    message = (
        f"training {model_name(asked.config)} like this needs about {_gb(needed)} GB, and a run may fill "
        f"{_gb(int(USABLE * available))} GB of the {_gb(available)} GB that are free"
    )
    found = [line for change in changes(asked) if (line := _line(change))]
    if not found:
        found = [line for change in _combined(asked) if (line := _line(change))][:1]
    if not found:
        return OutOfMemoryError(message, "no setting makes it fit: take a smaller model or a larger machine")
    return OutOfMemoryError(message, "what fits:", *found)


def _line(change: Asked) -> str:
    """The change in words and what it needs; empty where it does not fit."""
    plan = change.plan()
    if not plan.fits or plan.uncounted:
        return ""
    words = [word.format(micro_tokens=plan.micro_tokens) for word in change.words]
    return f"{' '.join(words)}  (about {_gb(plan.needed_bytes)} GB)"


def changes(asked: Asked) -> Iterator[Asked]:
    """One setting changed at a time."""
    if asked.micro_tokens is not None:
        yield _smaller(asked)
    if asked.checkpointing is False:
        yield _recomputing(asked)
    if asked.policy.compute_dtype == torch.float32:
        yield _in_bfloat16(asked)
    if isinstance(asked.config.adapter, NoAdapter):
        yield _with_adapter(asked)
    if kept_for_the_watch_alone(asked.config, asked.data):
        yield unwatched(asked)
    yield from _shorter(asked)


def _combined(asked: Asked) -> Iterator[Asked]:
    """Several at once, the more the later."""
    if asked.micro_tokens is not None:
        asked = _smaller(asked)
    if asked.checkpointing is False:
        asked = _recomputing(asked)
        yield asked
    if isinstance(asked.config.adapter, NoAdapter):
        asked = _with_adapter(asked)
        yield asked
    if asked.policy.compute_dtype == torch.float32:
        asked = _in_bfloat16(asked)
        yield asked
    yield from _shorter(asked)


def _smaller(asked: Asked) -> Asked:
    return replace(asked, micro_tokens=None, words=(*asked.words, "hardware.micro_tokens={micro_tokens}"))


def _recomputing(asked: Asked) -> Asked:
    words = (*asked.words, "hardware.activation_checkpointing=true")
    return replace(asked, checkpointing=True, words=words)


def unwatched(asked: Asked) -> Asked:
    """Without the KL of watched answers, for which the reference would stay in memory."""
    watch = asked.config.watch.model_copy(update={"samples": 0})
    words = ["watch.samples=0"]
    # A rule that reads its own answers has none then.
    if watch.indicator == "sampled":
        watch = watch.model_copy(update={"indicator": "displacement"})
        words.append("watch.indicator=displacement")
    config = asked.config.model_copy(update={"watch": watch})
    return replace(asked, config=config, words=(*asked.words, *words))


def _in_bfloat16(asked: Asked) -> Asked:
    return _rebuilt(asked, asked.config.adapter, torch.bfloat16, "train.dtype=bfloat16")


def _with_adapter(asked: Asked) -> Asked:
    return _rebuilt(asked, LORA, asked.policy.compute_dtype, "adapter=lora")


def _rebuilt(asked: Asked, adapter: AdapterConfig, dtype: torch.dtype, word: str) -> Asked:
    policy = bare_policy(asked.data, adapter, asked.policy.layout, dtype, asked.policy.device)
    return replace(
        asked,
        config=asked.config.model_copy(update={"adapter": adapter}),
        policy=policy,
        memory=asked.memory.with_more(weight_bytes(policy.model) - weight_bytes(asked.policy.model)),
        words=(*asked.words, word),
    )


def _shorter(asked: Asked) -> Iterator[Asked]:
    """Rows cut to the largest multiple of 64 tokens that fits; fewer answers where they are sampled."""
    algo, train = asked.config.algo, asked.config.train
    if isinstance(algo, HypoConfig | PpoConfig):
        least = 2 if isinstance(algo, PpoConfig) and algo.critic == "none" else 1
        for samples in (algo.samples // 2, algo.samples // 4):
            if samples >= least:
                changed = algo.model_copy(update={"samples": samples})
                config = asked.config.model_copy(update={"algo": changed})
                yield replace(asked, config=config, words=(*asked.words, f"algo.samples={samples}"))
        return
    longest = int((asked.data.lengths[:, :1] + asked.data.lengths[:, 1:]).max())
    low, high = train.max_prompt // LENGTHS, (min(longest, train.max_length) - 1) // LENGTHS
    while low < high:
        middle = (low + high + 1) // 2
        if _line(_cut(asked, middle * LENGTHS)):
            low = middle
        else:
            high = middle - 1
    if low * LENGTHS > train.max_prompt:
        yield _cut(asked, low * LENGTHS)


def _cut(asked: Asked, length: int) -> Asked:
    return replace(asked, max_length=length, words=(*asked.words, f"train.max_length={length}"))


# --- in words ------------------------------------------------------------------------------------------


def memory_line(plan: MemoryPlan) -> str:
    """How much is computed at a time, and the memory it is estimated to take."""
    checkpointing = ", activation checkpointing" if plan.activation_checkpointing else ""
    needed = f"about {_gb(plan.needed_bytes)} GB of {_gb(plan.available_bytes)} GB free"
    if plan.uncounted:
        needed = f"{needed} before activations, which could not be counted ({plan.uncounted})"
    return f"{plan.micro_tokens} tokens at a time{checkpointing}, {needed}"


def memory_lines(plan: MemoryPlan) -> list[str]:
    """The same with its parts."""
    needed, available, resident, state, work = (
        f"{size / 1e9:.2f} GB"
        for size in (
            plan.needed_bytes,
            plan.available_bytes,
            plan.resident_bytes,
            plan.state_bytes,
            plan.work_bytes,
        )
    )
    checkpointing = ", with activation checkpointing" if plan.activation_checkpointing else ""
    uncounted = [f"activations could not be counted: {plan.uncounted}"] if plan.uncounted else []
    return [
        f"about {needed} of {available} free",
        f"{resident} with the weights now, {state} for the optimiser and models beside,",
        f"{work} for gradients and {plan.micro_tokens} tokens at a time{checkpointing}",
        *uncounted,
    ]


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f}"
