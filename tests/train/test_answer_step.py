"""Supervised fine-tuning: its loss by hand, its gradient against plain torch, whatever the micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

from alignctl.algos.sft import row_losses, row_metrics
from alignctl.evaluate.held_out import evaluate_given_answers
from alignctl.models.policy import Policy, set_attention
from alignctl.models.scoring import score
from alignctl.records import Example
from alignctl.train.answer_step import answer_backward

TREES = [(5, 3), (1, 9), (12, 1), (4, 6)]


@pytest.fixture
def policy(tiny: Callable[..., LlamaForCausalLM]) -> Policy:
    model = tiny()
    set_attention(model, "shared")
    return Policy(model, "shared", torch.float64, torch.device("cpu"))


@pytest.fixture
def rows(make_rows: Callable[..., list[Example]]) -> list[Example]:
    weights = (1.0, 2.0, 0.5, 1.0)
    return [replace(row, weight=w) for row, w in zip(make_rows(TREES), weights, strict=True)]


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    return found


def test_the_loss_is_a_mean_over_tokens_worked_by_hand() -> None:
    sums = torch.tensor([-2.0, -9.0], dtype=torch.float64)
    metrics = row_metrics(sums, torch.tensor([1, 3]), torch.tensor([1.0, 2.0]))
    assert metrics["loss"] == pytest.approx((1 * 2 + 2 * 9) / 4)
    assert metrics["likelihood/chosen"] == pytest.approx((-2 - 3) / 2)
    assert metrics["logps/chosen"] == pytest.approx(-5.5)
    assert row_losses(sums).tolist() == [2.0, 9.0]


def test_loss_and_gradient_are_those_of_the_plain_model(
    policy: Policy,
    rows: list[Example],
    tiny: Callable[..., LlamaForCausalLM],
    plain_logps: Callable[..., torch.Tensor],
) -> None:
    metrics = answer_backward(policy, rows, micro_tokens=10_000)
    ours = gradients(policy)
    model = tiny()
    weights = torch.tensor([row.weight for row in rows], dtype=torch.float64)
    loss = -(plain_logps(model, rows) * weights).sum() / (3 + 9 + 1 + 6)
    loss.backward()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-12)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_the_gradient_does_not_depend_on_the_micro_batches(policy: Policy, rows: list[Example]) -> None:
    whole = answer_backward(policy, rows, micro_tokens=10_000)
    together = gradients(policy)
    single = answer_backward(policy, rows, micro_tokens=1)
    assert single["loss"] == pytest.approx(whole["loss"], rel=1e-12)
    for name, gradient in gradients(policy).items():
        torch.testing.assert_close(gradient, together[name], rtol=1e-9, atol=1e-12)


def test_the_held_out_loss_is_the_step_s_and_its_interval_that_of_a_ratio(
    policy: Policy, rows: list[Example]
) -> None:
    step = answer_backward(policy, rows, micro_tokens=10_000)
    found = evaluate_given_answers(rows, score(policy, rows, token_budget=64, with_top=True))
    assert found.metrics["loss"] == pytest.approx(step["loss"], rel=1e-9)
    assert found.estimates["loss"].value == pytest.approx(step["loss"], rel=1e-9)
    assert found.estimates["loss"].n == 4
    assert 0 < found.metrics["mass/top10"] <= 1
    low, high = found.estimates["loss"].ci or (0.0, 0.0)
    sums = score(policy, rows, token_budget=64, with_top=False).sums[:, 0].tolist()
    residuals = [
        (-total * row.weight - step["loss"] * len(row.branches[0])) / (19 / 4)
        for total, row in zip(sums, rows, strict=True)
    ]
    spread = (sum(r * r for r in residuals) / 3) ** 0.5 / 2
    assert (high - low) / 2 == pytest.approx(3.1824 * spread, rel=2e-3)
