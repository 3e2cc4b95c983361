"""One optimiser step on a small real Llama: its gradient, its metrics, and what it refuses to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus
from transformers import LlamaForCausalLM

from alignctl.algos import PairLoss, pair_loss
from alignctl.config import DpoConfig, HingeConfig, IpoConfig, Reference, SlicConfig
from alignctl.models import attention
from alignctl.models.packing import micro_batches
from alignctl.models.policy import Policy
from alignctl.models.scoring import score
from alignctl.records import Example
from alignctl.train.optimiser import build_optimiser, trained_parameters
from alignctl.train.step import optimiser_step, pair_backward

NewPolicy = Callable[..., Policy]
PlainLogps = Callable[..., Tensor]
Spoil = Callable[[Tensor], tuple[Tensor, list[Example]]]

BETA = 0.1
FROZEN = Reference(kind="frozen", path=None, members=(), weights=None, alpha=None)
DPO: PairLoss = pair_loss(
    DpoConfig(name="dpo", beta=BETA, label_noise=0.0, reduction="sum", reference=FROZEN)
)
LOSSES: dict[str, PairLoss] = {
    "dpo": DPO,
    "ipo": pair_loss(IpoConfig(name="ipo", tau=0.2, reduction="mean", reference=FROZEN)),
    "hinge": pair_loss(HingeConfig(name="hinge", beta=0.1, reduction="sum", reference=FROZEN)),
    "slic": pair_loss(SlicConfig(name="slic", gamma=1.0, alpha=0.5, reference=FROZEN)),
}
ONE_ROW, ALL_ROWS = 1, 10_000


def ragged_rows() -> list[Example]:
    """Six pairs of every size, with soft labels and weights."""
    generator = np.random.default_rng(5)
    lengths = [(3, 4, 2), (9, 1, 7), (1, 12, 12), (5, 3, 3), (2, 8, 1), (14, 5, 6)]
    labels = [(1.0, 1.0), (0.75, 1.0), (1.0, 2.0), (0.4, 0.5), (1.0, 1.5), (0.9, 1.0)]
    return [
        Example(
            id=f"row {number}",
            prompt=generator.integers(3, 61, size=prompt).astype(np.int32),
            branches=tuple(generator.integers(3, 61, size=n).astype(np.int32) for n in branches),
            p_chosen=p,
            weight=weight,
        )
        for number, ((prompt, *branches), (p, weight)) in enumerate(zip(lengths, labels, strict=True))
    ]


ROWS = ragged_rows()


@pytest.fixture
def new_policy(tiny: Callable[..., LlamaForCausalLM]) -> NewPolicy:
    """Makes the same model again for each of two ways that are compared; float64 throughout by default."""

    def make(*, seed: int = 0, dtype: torch.dtype = torch.float64) -> Policy:
        model = tiny(seed=seed, dtype=dtype)
        model.set_attn_implementation(attention.NAME)
        return Policy(model, "shared", dtype, torch.device("cpu"))

    return make


@pytest.fixture
def reference(new_policy: NewPolicy) -> Tensor:
    """Float64 [B, 2] under another model, so that margins are not zero."""
    return score(new_policy(seed=1), ROWS, token_budget=ALL_ROWS, with_top=False).sums


def gradients(policy: Policy) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}


def difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def weights(policy: Policy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def moments(policy: Policy, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name, parameter in trained_parameters(policy.model).items()
        for key, value in optimiser.state[parameter].items()
    }


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def step(
    policy: Policy,
    optimiser: torch.optim.Optimizer,
    ref: Tensor,
    rows: Sequence[Example] = ROWS,
    *,
    lr: float = 1e-2,
    max_grad_norm: float = 1.0,
) -> tuple[dict[str, float], bool]:
    backward = partial(pair_backward, policy, DPO, rows, ref, micro_tokens=30)
    return optimiser_step(optimiser, backward, lr=lr, max_grad_norm=max_grad_norm)


def plain_dpo(policy: Policy, ref: Tensor, plain_logps: PlainLogps) -> Tensor:
    """The weighted mean DPO loss written out, from one plain forward pass for each of the twelve answers."""
    policy.causal_lm.set_attn_implementation("sdpa")
    logps = plain_logps(policy.model, ROWS).view(-1, 2)
    p, weight = torch.tensor([(row.p_chosen, row.weight) for row in ROWS], dtype=torch.float64).T
    z = BETA * ((logps[:, 0] - ref[:, 0]) - (logps[:, 1] - ref[:, 1]))
    # -log sigmoid(z) = softplus(-z)
    return (weight * (p * softplus(-z) + (1 - p) * softplus(z))).sum() / 6


# --- the gradient --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_does_not_depend_on_the_micro_batch(
    name: str, new_policy: NewPolicy, reference: Tensor
) -> None:
    longest = max(row.tokens for row in ROWS)
    budgets = (ONE_ROW, longest, 2 * longest, ALL_ROWS)
    groups = [len(micro_batches(ROWS, token_budget=budget, layout="shared")) for budget in budgets]
    assert groups[0] == 6
    assert groups[-1] == 1
    assert len(set(groups)) == 4, "four different splits"
    found, metrics = [], []
    for budget in budgets:
        policy = new_policy()
        metrics.append(pair_backward(policy, LOSSES[name], ROWS, reference, micro_tokens=budget))
        found.append(gradients(policy))
    assert max(float(g.abs().max()) for g in found[0].values()) > 1e-3
    for other, measured in zip(found[1:], metrics[1:], strict=True):
        assert difference(found[0], other) < 1e-10
        assert measured == pytest.approx(metrics[0], rel=1e-10, abs=1e-10)


def test_gradient_and_loss_are_those_of_a_plain_loop(
    new_policy: NewPolicy, reference: Tensor, plain_logps: PlainLogps
) -> None:
    policy, plain = new_policy(), new_policy()
    metrics = pair_backward(policy, DPO, ROWS, reference, micro_tokens=30)
    loss = plain_dpo(plain, reference, plain_logps)
    loss.backward()
    assert metrics["loss"] == pytest.approx(float(loss.detach()), abs=1e-10)
    assert difference(gradients(policy), gradients(plain)) < 1e-10


def test_each_row_adds_its_weight_times_its_own_gradient_over_all_rows(
    new_policy: NewPolicy, reference: Tensor
) -> None:
    policy = new_policy()
    pair_backward(policy, DPO, ROWS, reference, micro_tokens=ALL_ROWS)
    together = gradients(policy)
    expected = {name: torch.zeros_like(gradient) for name, gradient in together.items()}
    for number, row in enumerate(ROWS):
        alone = new_policy()
        pair_backward(alone, DPO, [replace(row, weight=1.0)], reference[[number]], micro_tokens=ALL_ROWS)
        for name, gradient in gradients(alone).items():
            expected[name] += row.weight * gradient / len(ROWS)
    assert difference(together, expected) < 1e-10


def test_a_row_of_weight_zero_adds_nothing_but_counts(new_policy: NewPolicy, reference: Tensor) -> None:
    with_zero, without = new_policy(), new_policy()
    muted = [*ROWS[:5], replace(ROWS[5], weight=0.0)]
    pair_backward(with_zero, DPO, muted, reference, micro_tokens=ONE_ROW)
    pair_backward(without, DPO, ROWS[:5], reference[:5], micro_tokens=ONE_ROW)
    rescaled = {name: gradient * 5 / 6 for name, gradient in gradients(without).items()}
    assert difference(gradients(with_zero), rescaled) < 1e-10


def test_the_order_of_the_rows_does_not_matter(new_policy: NewPolicy, reference: Tensor) -> None:
    forward, reverse = new_policy(), new_policy()
    metrics = pair_backward(forward, DPO, ROWS, reference, micro_tokens=30)
    reversed_metrics = pair_backward(reverse, DPO, ROWS[::-1], reference.flip(0), micro_tokens=30)
    assert difference(gradients(forward), gradients(reverse)) < 1e-10
    assert reversed_metrics == pytest.approx(metrics, rel=1e-10, abs=1e-10)


def test_float32_gives_the_same_gradient_within_its_rounding(
    new_policy: NewPolicy, reference: Tensor
) -> None:
    single, double = new_policy(dtype=torch.float32), new_policy()
    pair_backward(single, DPO, ROWS, reference, micro_tokens=30)
    pair_backward(double, DPO, ROWS, reference, micro_tokens=30)
    largest = max(float(gradient.abs().max()) for gradient in gradients(double).values())
    rounded = {name: gradient.double() for name, gradient in gradients(single).items()}
    assert difference(rounded, gradients(double)) < 1e-4 * largest


def test_metrics_are_hand_sums_over_the_rows(
    new_policy: NewPolicy, reference: Tensor, plain_logps: PlainLogps
) -> None:
    with torch.no_grad():
        policy = new_policy()
        policy.causal_lm.set_attn_implementation("sdpa")
        logps = plain_logps(policy.model, ROWS).view(-1, 2).tolist()
    refs = reference.tolist()
    lengths = [[len(branch) for branch in row.branches] for row in ROWS]
    r = [
        (good - ref_good, bad - ref_bad) for (good, bad), (ref_good, ref_bad) in zip(logps, refs, strict=True)
    ]

    def over_rows(values: Sequence[float]) -> float:
        return math.fsum(values) / 6

    def dpo(row: Example, z: float) -> float:
        loss = row.p_chosen * math.log1p(math.exp(-z)) + (1 - row.p_chosen) * math.log1p(math.exp(z))
        return row.weight * loss

    expected = {
        "loss": over_rows([dpo(row, BETA * (good - bad)) for row, (good, bad) in zip(ROWS, r, strict=True)]),
        "rewards/chosen": over_rows([BETA * good for good, _ in r]),
        "rewards/rejected": over_rows([BETA * bad for _, bad in r]),
        "rewards/margins": over_rows([BETA * (good - bad) for good, bad in r]),
        "rewards/accuracies": over_rows([float(good > bad) for good, bad in r]),
        "logps/chosen": over_rows([good for good, _ in logps]),
        "logps/rejected": over_rows([bad for _, bad in logps]),
        "accuracy_logp": over_rows([float(good > bad) for good, bad in logps]),
        "likelihood/chosen": over_rows([good / n for (good, _), (n, _) in zip(logps, lengths, strict=True)]),
        "likelihood/rejected": over_rows([bad / n for (_, bad), (_, n) in zip(logps, lengths, strict=True)]),
        "displacement": over_rows([float(good < 0) for good, _ in r]),
    }
    metrics = pair_backward(new_policy(), DPO, ROWS, reference, micro_tokens=30)
    assert metrics == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert 0 < metrics["rewards/accuracies"] < 1


# --- the update ----------------------------------------------------------------------------------------


def test_clipping_scales_the_whole_gradient_to_the_norm(new_policy: NewPolicy, reference: Tensor) -> None:
    policy = new_policy()
    pair_backward(policy, DPO, ROWS, reference, micro_tokens=30)
    gradient = gradients(policy)
    norm = math.sqrt(math.fsum(float(part.square().sum()) for part in gradient.values()))
    for limit in (norm / 10, 10 * norm):
        policy = new_policy()
        before = weights(policy)
        optimiser = torch.optim.SGD(policy.model.parameters(), lr=0.0)
        metrics, _ = step(policy, optimiser, reference, lr=0.25, max_grad_norm=limit)
        scale = min(1.0, limit / (norm + 1e-6))
        expected = {name: before[name] - 0.25 * scale * part for name, part in gradient.items()}
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-9), "the norm before clipping"
        assert difference(weights(policy), expected) < 1e-10


def test_the_learning_rate_is_set_and_reported_and_the_gradient_is_freed(
    new_policy: NewPolicy, reference: Tensor
) -> None:
    policy = new_policy()
    before = weights(policy)
    optimiser = build_optimiser(policy.model, weight_decay=0.0)
    metrics, applied = step(policy, optimiser, reference, lr=3e-4)
    assert applied
    assert metrics["lr"] == 3e-4
    assert [group["lr"] for group in optimiser.param_groups] == [3e-4]
    assert gradients(policy) == {}
    # Adam's first update is the learning rate, in every weight whose gradient is clear of its epsilon.
    moved = difference(weights(policy), before)
    assert moved == pytest.approx(3e-4, rel=1e-3)
    step(policy, optimiser, reference, lr=1e-4)
    assert [group["lr"] for group in optimiser.param_groups] == [1e-4]


def test_a_gradient_left_by_a_step_that_broke_off_does_not_count(
    new_policy: NewPolicy, reference: Tensor
) -> None:
    # Out of memory may strike between two micro-batches; the step is then done again from its first row.
    policy, untroubled = new_policy(), new_policy()
    pair_backward(policy, DPO, ROWS[:2], reference[:2], micro_tokens=30)
    for one in (policy, untroubled):
        step(one, build_optimiser(one.model, weight_decay=0.0), reference)
    assert same_bits(weights(policy), weights(untroubled))


def test_steps_are_adamw_by_the_book(
    new_policy: NewPolicy, reference: Tensor, plain_logps: PlainLogps
) -> None:
    policy = new_policy()
    optimiser = build_optimiser(policy.model, weight_decay=0.1)
    plain = new_policy()
    by_hand = torch.optim.AdamW(plain.model.parameters(), lr=0.0, weight_decay=0.1, foreach=False)
    losses = []
    for lr in (1e-3, 3e-3, 2e-3, 1e-3):
        losses.append(step(policy, optimiser, reference, lr=lr)[0]["loss"])
        by_hand.zero_grad()
        plain_dpo(plain, reference, plain_logps).backward()
        torch.nn.utils.clip_grad_norm_(plain.model.parameters(), 1.0)
        by_hand.param_groups[0]["lr"] = lr
        by_hand.step()
    assert difference(weights(policy), weights(plain)) < 1e-9
    assert losses == sorted(losses, reverse=True), "the loss falls"
    assert difference(weights(policy), weights(new_policy())) > 1e-3


def test_a_second_run_of_the_same_steps_has_the_same_bits(new_policy: NewPolicy, reference: Tensor) -> None:
    ends = []
    for _ in range(2):
        policy = new_policy(dtype=torch.float32)
        optimiser = build_optimiser(policy.model, weight_decay=0.0)
        for _ in range(3):
            step(policy, optimiser, reference)
        ends.append((weights(policy), moments(policy, optimiser)))
    assert same_bits(ends[0][0], ends[1][0])
    assert same_bits(ends[0][1], ends[1][1])


# --- what is not finite changes nothing ----------------------------------------------------------------


def spoilt_reference(*places: tuple[int, int, float]) -> Spoil:
    """Makes a step whose reference has these values at (row, side)."""

    def spoil(ref: Tensor) -> tuple[Tensor, list[Example]]:
        ref = ref.clone()
        for row, side, value in places:
            ref[row, side] = value
        return ref, ROWS

    return spoil


def spoilt_weight(value: float) -> Spoil:
    """Makes a step whose first row weighs this much."""
    return lambda ref: (ref, [replace(ROWS[0], weight=value), *ROWS[1:]])


SPOILT: dict[str, Spoil] = {
    "NaN reference": spoilt_reference((2, 1, math.nan)),
    "infinite reference of chosen": spoilt_reference((0, 0, math.inf)),
    "minus infinite reference of chosen": spoilt_reference((0, 0, -math.inf)),
    "infinite reference of rejected": spoilt_reference((5, 1, math.inf)),
    "infinities of both signs": spoilt_reference((0, 0, math.inf), (1, 0, -math.inf)),
    "NaN weight": spoilt_weight(math.nan),
    "infinite weight": spoilt_weight(math.inf),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=list(SPOILT))
def test_a_batch_that_is_not_finite_touches_neither_weights_nor_moments(
    spoil: Spoil, new_policy: NewPolicy, reference: Tensor
) -> None:
    policy, untroubled = new_policy(), new_policy()
    optimiser, other = (build_optimiser(p.model, weight_decay=0.1) for p in (policy, untroubled))
    step(policy, optimiser, reference)
    before = weights(policy), moments(policy, optimiser)
    metrics, applied = step(policy, optimiser, *spoil(reference))
    assert not applied
    assert not math.isfinite(metrics["loss"])
    assert same_bits(weights(policy), before[0])
    assert same_bits(moments(policy, optimiser), before[1])
    assert gradients(policy) == {}
    # And the next good step is the one that would have come without it.
    step(policy, optimiser, reference)
    step(untroubled, other, reference)
    step(untroubled, other, reference)
    assert same_bits(weights(policy), weights(untroubled))


def test_a_finite_loss_with_a_gradient_that_overflows_is_not_applied(
    new_policy: NewPolicy, reference: Tensor
) -> None:
    policy = new_policy(dtype=torch.float32)
    optimiser = build_optimiser(policy.model, weight_decay=0.0)
    before = weights(policy)
    heavy = [replace(ROWS[0], weight=1e30), *ROWS[1:]]
    metrics, applied = step(policy, optimiser, reference, heavy)
    assert math.isfinite(metrics["loss"])
    assert not math.isfinite(metrics["grad_norm"])
    assert not applied
    assert same_bits(weights(policy), before)


def test_broken_weights_are_noticed(new_policy: NewPolicy, reference: Tensor) -> None:
    policy = new_policy(dtype=torch.float32)
    optimiser = build_optimiser(policy.model, weight_decay=0.0)
    with torch.no_grad():
        next(iter(policy.model.parameters()))[7] = math.inf
    before = weights(policy)
    _, applied = step(policy, optimiser, reference)
    assert not applied
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())
