"""The gradient of a reward model's step against a plain loop, however its pairs are split."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from alignctl.algos.bradley_terry import reward_loss
from alignctl.config import RewardModelConfig
from alignctl.models.policy import Policy, set_attention
from alignctl.models.reward_model import RewardModel, start_reward_model
from alignctl.records import Example, Layout
from alignctl.train.optimiser import build_optimiser
from alignctl.train.reward_step import reward_backward
from alignctl.train.step import optimiser_step

LAYOUTS: tuple[Layout, ...] = ("shared", "packed", "padded")
TREES = [(3, 4, 2), (9, 1, 7), (1, 12, 12), (5, 3, 3), (2, 8, 1), (14, 5, 6)]
LABELS = [
    (1.0, 0.0, 1.0),
    (0.75, 1.0, 1.0),
    (1.0, 0.5, 2.0),
    (0.4, 2.0, 0.5),
    (1.0, 0.0, 1.5),
    (0.0, 1.0, 1.0),
]
"""p_chosen, margin, weight."""
NOISE = 0.1
LOSS = reward_loss(RewardModelConfig(name="reward", label_noise=NOISE, lr_scale=1.0))


@pytest.fixture
def rows(make_rows: Callable[..., list[Example]]) -> list[Example]:
    return [
        replace(row, p_chosen=p, margin=margin, weight=weight)
        for row, (p, margin, weight) in zip(make_rows(TREES), LABELS, strict=True)
    ]


@pytest.fixture
def new_model(tiny: Callable[..., LlamaForCausalLM]) -> Callable[..., tuple[RewardModel, Policy]]:
    def make(layout: Layout = "shared") -> tuple[RewardModel, Policy]:
        policy = Policy(tiny(), layout, torch.float64, torch.device("cpu"))
        set_attention(policy.causal_lm, layout)
        return start_reward_model(policy, seed=1), policy

    return make


def gradients(made: RewardModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


def plain_step(
    made: RewardModel, policy: Policy, rows: list[Example]
) -> tuple[float, list[tuple[float, float]]]:
    """Loss with its gradient, and the scores: one sequence at a time, the loss written out."""
    set_attention(policy.causal_lm, "padded")
    total, scores = torch.zeros((), dtype=torch.float64), []
    for row in rows:
        pair = []
        for branch in row.branches:
            ids = torch.tensor([[*row.prompt.tolist(), *branch.tolist()]])
            hidden = policy.causal_lm.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
            pair.append(hidden @ made.score.weight[0])
        lead = pair[0] - pair[1]
        p = row.p_chosen * (1 - NOISE) + (1 - row.p_chosen) * NOISE
        right, wrong = ((1 + (row.margin - sign * lead).exp()).log() for sign in (1, -1))
        total = total + row.weight * (p * right + (1 - p) * wrong) / len(rows)
        scores.append((pair[0].item(), pair[1].item()))
    total.backward()
    return total.item(), scores


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("micro_tokens", [1, 45, 10_000])
def test_gradient_and_metrics_are_those_of_a_plain_loop(new_model, rows, layout, micro_tokens) -> None:
    plain, policy = new_model()
    loss, scores = plain_step(plain, policy, rows)
    expected = gradients(plain)
    made, policy = new_model(layout)
    metrics = reward_backward(made, policy, LOSS, rows, micro_tokens=micro_tokens)
    found = gradients(made)
    assert found.keys() == expected.keys()
    assert "score.weight" in found
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-10
    assert metrics["loss"] == pytest.approx(loss, abs=1e-12)
    assert metrics["rewards/chosen"] == pytest.approx(sum(a for a, _ in scores) / 6, abs=1e-10)
    assert metrics["rewards/rejected"] == pytest.approx(sum(b for _, b in scores) / 6, abs=1e-10)
    assert metrics["rewards/accuracies"] == pytest.approx(sum(a > b for a, b in scores) / 6)


def test_doubling_every_row_changes_no_gradient(new_model, rows) -> None:
    found = []
    for given in (rows, [*rows, *rows]):
        made, policy = new_model()
        reward_backward(made, policy, LOSS, given, micro_tokens=60)
        found.append(gradients(made))
    assert max(float((found[0][name] - found[1][name]).abs().max()) for name in found[0]) < 1e-12


def test_steps_learn_to_tell_the_answers_apart(new_model, rows) -> None:
    hard = [replace(row, p_chosen=1.0, margin=0.0, weight=1.0) for row in rows]
    made, policy = new_model()
    optimiser = build_optimiser(made, weight_decay=0.0)
    loss = reward_loss(RewardModelConfig(name="reward", label_noise=0.0, lr_scale=1.0))
    lines = []
    for _ in range(25):
        backward = partial(reward_backward, made, policy, loss, hard, micro_tokens=60)
        metrics, applied = optimiser_step(optimiser, backward, lr=1e-2, max_grad_norm=1.0)
        assert applied
        lines.append(metrics)
    assert lines[-1]["rewards/accuracies"] == 1.0
    assert lines[-1]["loss"] < 0.1 * lines[0]["loss"]


def test_a_broken_score_moves_nothing(new_model, rows) -> None:
    made, policy = new_model()
    with torch.no_grad():
        made.score.weight[0, 0] = math.nan
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    optimiser = build_optimiser(made, weight_decay=0.0)
    backward = partial(reward_backward, made, policy, LOSS, rows, micro_tokens=60)
    metrics, applied = optimiser_step(optimiser, backward, lr=1e-2, max_grad_norm=1.0)
    assert not applied
    assert math.isnan(metrics["loss"])
    assert all(torch.equal(p, before[name]) or name == "score.weight" for name, p in made.named_parameters())
    assert torch.equal(made.score.weight[0, 1:], before["score.weight"][0, 1:])
