"""The memory plan: what is decided from the estimate, what is kept as given, when nothing fits.

Models stand on the meta device, where weights have a size and no bytes; memory is as large as a test says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alignctl.errors import OutOfMemoryError
from alignctl.models.memory import (
    CPU_MICRO_TOKENS,
    USABLE,
    Memory,
    MemoryPlan,
    MicroBatch,
    Work,
    halved,
    peak_memory_gb,
    plan_memory,
    present_memory,
)
from alignctl.models.packing import pack
from alignctl.models.policy import Policy, branch_logps, set_attention
from alignctl.records import Example

CPU = torch.device("cpu")
VOCABULARY = 100
ROW = 200
PLENTY = Memory(resident_bytes=10**9, available_bytes=10**12)


def policy_of(*, dtype: torch.dtype = torch.float32, layers: int = 8, hidden: int = 64) -> Policy:
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=hidden,
                intermediate_size=4 * hidden,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=10**7,
            )
        )
    set_attention(model, "shared")
    return Policy(model, "shared", dtype, CPU)


def forward(policy: Policy, rows: Sequence[Example]) -> torch.Tensor:
    return branch_logps(policy, pack(rows, policy.layout))


def work_of(step: int = 3000, longest: int = ROW, **changes: object) -> Work:
    """Steps of `step` tokens, of which as many as are asked for go through the model together."""

    def heaviest(budget: int) -> list[MicroBatch]:
        size = max(longest, min(step, budget))
        parts = [min(longest, size - start) for start in range(0, size, longest)]
        rows = [
            Example("", np.full(n // 2, number, np.int32), (np.ones(n - n // 2, np.int32),))
            for number, n in enumerate(parts)
        ]
        return [MicroBatch(rows, accumulates=budget < step)]

    work = Work(
        heaviest=heaviest,
        forward=forward,
        scored=[Example("", np.ones(20, np.int32), (np.ones(20, np.int32),))],
        score=forward,
        longest_row=longest,
        step_tokens=step,
    )
    return replace(work, **changes)  # type: ignore[arg-type]


def planned(
    policy: Policy | None = None,
    work: Work | None = None,
    memory: Memory = PLENTY,
    *,
    micro: int | None = None,
    checkpointing: bool | None = None,
) -> MemoryPlan:
    return plan_memory(
        policy or policy_of(),
        work or work_of(),
        memory,
        micro_tokens=micro,
        activation_checkpointing=checkpointing,
    )


def room_for(plan: MemoryPlan, share: float = 1.0) -> Memory:
    """What has to be there for a plan of so many bytes to fit, or for a share of it."""
    return Memory(plan.resident_bytes, int(plan.needed_bytes * share / USABLE) + 1)


def test_a_small_step_is_computed_at_once_and_keeps_its_activations():
    plan = planned()
    assert (plan.micro_tokens, plan.activation_checkpointing, plan.fits) == (3000, False, True)
    assert plan.needed_bytes == 10**9 + plan.state_bytes + plan.work_bytes


def test_a_large_step_is_cut_at_the_devices_measure():
    assert planned(work=work_of(step=10**6)).micro_tokens == CPU_MICRO_TOKENS


def test_given_values_are_kept_whether_they_fit_or_not():
    assert planned(micro=77).micro_tokens == 77
    assert planned(checkpointing=True).activation_checkpointing
    tight = room_for(planned(micro=500))
    large = planned(memory=tight, micro=3000)
    assert (large.micro_tokens, large.fits) == (3000, False)
    assert not planned(memory=tight, checkpointing=False).activation_checkpointing


def test_recomputing_and_bfloat16_need_less():
    plain = planned(checkpointing=False).work_bytes
    assert planned(checkpointing=True).work_bytes < plain / 2
    assert planned(policy_of(dtype=torch.bfloat16)).work_bytes < plain


def test_the_micro_batch_shrinks_to_what_fits_before_anything_is_recomputed():
    plan = planned(memory=room_for(planned(), 0.9999))
    assert (plan.micro_tokens, plan.activation_checkpointing, plan.fits) == (1500, False, True)


def test_activations_are_recomputed_where_a_thousand_tokens_would_not_fit_otherwise():
    recomputed, plain = planned(checkpointing=True), planned(micro=1024, checkpointing=False)
    assert recomputed.needed_bytes < plain.needed_bytes
    plan = planned(memory=room_for(plain, 0.9999))
    assert (plan.activation_checkpointing, plan.fits) == (True, True)


def test_a_model_that_cannot_recompute_is_planned_without():
    policy = policy_of()
    policy.causal_lm.supports_gradient_checkpointing = False
    plan = planned(policy, memory=room_for(planned(micro=ROW, checkpointing=False)))
    assert (plan.micro_tokens, plan.activation_checkpointing, plan.fits) == (ROW, False, True)
    assert plan.uncounted == ""


def test_where_nothing_fits_the_plan_is_the_one_that_needs_least():
    least = planned(micro=ROW, checkpointing=True)
    plan = planned(memory=room_for(least, 0.9999))
    assert (plan.micro_tokens, plan.activation_checkpointing, plan.fits) == (ROW, True, False)
    assert plan.needed_bytes == least.needed_bytes


def test_trained_weights_bring_two_moments_and_others_bring_nothing():
    weights = sum(p.numel() * 4 for p in policy_of().model.parameters())
    assert planned().state_bytes == 2 * weights
    frozen = policy_of()
    frozen.model.requires_grad_(False)
    frozen.causal_lm.get_output_embeddings().weight.requires_grad_(True)
    assert planned(frozen).state_bytes == 2 * VOCABULARY * 64 * 4
    assert planned(work=work_of(beside_bytes=12345)).state_bytes == 2 * weights + 12345


def test_a_step_in_parts_holds_the_gradients_of_the_parts_before():
    weights = sum(p.numel() * 4 for p in policy_of().model.parameters())
    one, several = planned(work=work_of(step=400), micro=400), planned(work=work_of(step=401), micro=400)
    assert one.work_bytes < several.work_bytes <= one.work_bytes + weights


def test_sampling_counts_where_it_takes_more_than_a_step():
    """8 layers, keys and values of 4 heads of 16, float32, 128 answers side by side at most."""
    answered = planned(work=work_of(sampled=(1000, 4936))).work_bytes
    assert answered >= 128 * 5000 * 8 * 2 * 4 * 16 * 4
    assert answered == planned(work=work_of(sampled=(128, 4936))).work_bytes
    assert planned(work=work_of(sampled=(1, 10))).work_bytes == planned().work_bytes


def test_passes_that_cannot_be_counted_leave_weights_gradients_and_moments():
    def by_value(policy: Policy, rows: Sequence[Example]) -> torch.Tensor:
        return forward(policy, rows) * float(forward(policy, rows).sum())

    weights = sum(p.numel() * 4 for p in policy_of().model.parameters())
    plan = planned(work=work_of(forward=by_value))
    assert plan.needed_bytes == 10**9 + 3 * weights
    assert "LlamaForCausalLM" in plan.uncounted
    assert planned().uncounted == ""


# --- what there is -------------------------------------------------------------------------------------


def test_what_a_process_holds_is_part_of_what_it_can_have():
    before = present_memory(CPU)
    block = torch.ones(256 * 2**20, dtype=torch.uint8)
    after = present_memory(CPU)
    assert block.sum() > 0
    assert 240 * 2**20 < after.resident_bytes - before.resident_bytes < 280 * 2**20
    assert after.available_bytes > after.resident_bytes
    assert after.with_more(7) == Memory(after.resident_bytes + 7, after.available_bytes)


def test_peak_memory_never_falls():
    before = peak_memory_gb(CPU)
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    after = peak_memory_gb(CPU)
    assert block.sum() > 0
    assert 0.05 < before <= after


# --- when it runs out all the same ---------------------------------------------------------------------


def test_halving_stops_at_the_longest_row():
    plan = planned()
    first = halved(plan, longest_row=900)
    second = halved(first, longest_row=900)
    assert (first.micro_tokens, second.micro_tokens) == (1500, 900)
    assert first.activation_checkpointing == plan.activation_checkpointing
    with pytest.raises(OutOfMemoryError, match="one row of 900 tokens does not fit") as refusal:
        halved(second, longest_row=900)
    assert refusal.value.exit_code == 4
    assert "train.max_length=225" in " ".join(refusal.value.hints)
