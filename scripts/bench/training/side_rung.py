"""A rung of the ablation ladder: DPO steps with each part of the engine switched on or off by itself.

What is switched are alignctl's own functions; the head on every position is the one thing written here. No
gate asks whether the model can share prompts: the controller compares every rung's loss and gradient norm.
Decisions. Every rung forwards `MICRO_PAIRS` pairs at a time, so that rungs differ in their parts alone, and
a pass over the reference runs through the same layout and head as the steps after it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from worker import BETA, CLIP, MICRO_PAIRS, Job, Pair, Timeline, main, now

from alignctl.models import packing
from alignctl.models.norms import fuse_norms
from alignctl.models.packing import pack
from alignctl.models.policy import (
    Policy,
    branch_logps,
    completion_hidden,
    head_parameters,
    set_attention,
    sum_by_branch,
)
from alignctl.records import Example, Layout, PackedBatch
from alignctl.train.optimiser import build_optimiser
from alignctl.train.step import optimiser_step

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Rung:
    """Which parts are on."""

    layout: Layout
    cached: bool
    """The reference is scored once, before training; else at every step, by a second model."""
    completion_head: bool
    """The head on completion positions, in chunks; else on all, as one tensor of logits."""
    stem: bool = False
    """What all prompts of a forward begin with is read once; else with each."""
    fused_norms: bool = False
    checkpointing: bool = False


FULL = Rung("shared", cached=True, completion_head=True, stem=True, fused_norms=True)
RUNGS = {
    "rung-padded": Rung("padded", cached=False, completion_head=False),
    "rung-cached": Rung("padded", cached=True, completion_head=False),
    "rung-head": Rung("padded", cached=True, completion_head=True),
    "rung-packed": Rung("packed", cached=True, completion_head=True),
    "rung-shared": Rung("shared", cached=True, completion_head=True),
    "rung-stem": Rung("shared", cached=True, completion_head=True, stem=True),
    "rung-full": FULL,
    "rung-without-cache": replace(FULL, cached=False),
    "rung-without-head": replace(FULL, completion_head=False),
    "rung-checkpointing": replace(FULL, checkpointing=True),
}
"""By the name of the side: first from the padded loop up, then one part less than the whole."""
SHORTEST_STEM = packing.SHORTEST_STEM


def load(job: Job, rung: Rung) -> Policy:
    """Float32 weights in the rung's layout, on the accelerator where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    model.to(device)
    set_attention(model, rung.layout)
    if rung.fused_norms:
        fuse_norms(model)
    if rung.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Policy(model.train(), rung.layout, DTYPES[job.case.dtype], device)


def beside(policy: Policy) -> Policy:
    """A frozen copy, in memory for as long as it is asked."""
    assert isinstance(policy.model, PreTrainedModel)
    return replace(policy, model=copy.deepcopy(policy.model).requires_grad_(False))


def train(job: Job, batches: Sequence[Sequence[Pair]]) -> Timeline:
    """One pass over the batches."""
    rung = RUNGS[job.side]
    packing.SHORTEST_STEM = SHORTEST_STEM if rung.stem else sys.maxsize
    policy = load(job, rung)
    steps = [micro_batches(batch, policy) for batch in batches]
    begin = now()
    reference = policy if rung.cached else beside(policy)
    cached = [[ref_logps(reference, part, rung) for part in step] for step in steps] if rung.cached else []
    scored = now()
    optimiser = build_optimiser(policy.model, weight_decay=0.0)
    training, ends, done = now(), [], []
    for number, step in enumerate(steps):
        backward = partial(
            add_gradients,
            policy,
            step,
            cached[number] if rung.cached else None,
            reference,
            rung,
            pairs=len(batches[number]),
        )
        metrics, applied = optimiser_step(optimiser, backward, lr=job.lr, max_grad_norm=CLIP)
        assert applied
        done.append(metrics)
        ends.append(now())
    return Timeline(
        training=training,
        reference=scored - begin if rung.cached else 0.0,
        ends=tuple(ends),
        loss=tuple(one["loss"] for one in done),
        grad_norm=tuple(one["grad_norm"] for one in done),
        padded=tuple(sum(part.ids.numel() for part in step) for step in steps),
    )


def micro_batches(pairs: Sequence[Pair], policy: Policy) -> list[PackedBatch]:
    """The forwards of one step."""
    examples = [Example("", pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs]
    return [
        pack(examples[start : start + MICRO_PAIRS], policy.layout).to(policy.device)
        for start in range(0, len(examples), MICRO_PAIRS)
    ]


def add_gradients(
    policy: Policy,
    step: Sequence[PackedBatch],
    cached: Sequence[Tensor] | None,
    reference: Policy,
    rung: Rung,
    *,
    pairs: int,
) -> dict[str, float]:
    """Add the gradient of the step's mean DPO loss; returns the loss."""
    total = 0.0
    for number, batch in enumerate(step):
        ref = ref_logps(reference, batch, rung) if cached is None else cached[number]
        chosen, rejected = (logps(policy, batch, rung) - ref).view(-1, 2).unbind(1)
        loss = -F.logsigmoid(BETA * (chosen - rejected)).sum() / pairs
        loss.backward()
        total += float(loss.detach())
    return {"loss": total}


@torch.no_grad()
def ref_logps(reference: Policy, batch: PackedBatch, rung: Rung) -> Tensor:
    """The same without gradients."""
    return logps(reference, batch, rung)


def logps(policy: Policy, batch: PackedBatch, rung: Rung) -> Tensor:
    """Summed log-probability of each answer: float [K]."""
    if rung.completion_head:
        return branch_logps(policy, batch)
    return sum_by_branch(whole_head_logps(policy, batch), batch)


def whole_head_logps(policy: Policy, batch: PackedBatch) -> Tensor:
    """Float [N] from the logits of every position, pads and prompts included."""
    everywhere = torch.arange(batch.ids.numel(), device=policy.device)
    hidden = completion_hidden(policy, replace(batch, score_index=everywhere))
    weight, bias = head_parameters(policy.causal_lm)
    compute_bias = None if bias is None else bias.to(hidden.dtype)
    logits = F.linear(hidden, weight.to(hidden.dtype), compute_bias)
    return logits.float().log_softmax(-1)[batch.score_index, batch.targets]


if __name__ == "__main__":
    main(train)
