"""The gradient of PPO on a real Llama of three tokens: against plain passes over single sequences, and in
expectation over all 15 answers."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from alignctl.config import PpoConfig
from alignctl.models.critic import Critic, separate_critic, trained_modules, trunk_critic
from alignctl.models.policy import Policy
from alignctl.records import Experience, Layout, Sampled
from alignctl.train.experience import collect
from alignctl.train.ppo_step import minibatch_backward

BETA = 0.3
ALL, ONE = 100_000, 1
"""Micro-batches of everything, and of one prompt."""


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], scale: float = 1.0) -> None:
    """Gradients by name, to 1e-10 of the largest."""
    assert found.keys() == expected.keys()
    size = max(float(gradient.abs().max()) for gradient in expected.values())
    assert size > 1e-6
    for name, gradient in expected.items():
        assert float((found[name] * scale - gradient).abs().max()) < 1e-10 * max(size, 1.0), name


def flat_gradients(loss: Tensor, model: LlamaForCausalLM) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


def update_gradients(
    policy: Policy,
    critic: Critic | None,
    sampled: Sampled,
    experience: Experience,
    config: PpoConfig,
    *,
    micro_tokens: int = ALL,
    trains_policy: bool = True,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    modules = trained_modules(policy, critic)
    modules.zero_grad(set_to_none=True)
    metrics = minibatch_backward(
        policy,
        critic,
        sampled.examples,
        experience,
        config,
        micro_tokens=micro_tokens,
        trains_policy=trains_policy,
    )
    return gradients(modules), metrics


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize("whiten", [False, True])
def test_the_first_gradient_is_the_policy_gradient(
    three: SimpleNamespace, layout: Layout, whiten: bool
) -> None:
    critic = three.drawn(separate_critic(three.policy(three.model(seed=3)), None))
    policy, config = three.policy(three.model(), layout), three.gae(whiten=whiten)
    experience, _ = collect(
        policy,
        three.reference(three.model(seed=1)),
        critic,
        three.mixed,
        three.mixed_scores,
        config,
        BETA,
        token_budget=ALL,
    )
    found, metrics = update_gradients(policy, critic, three.mixed, experience, config)
    model = three.model()
    answers = three.answers_in(three.mixed)
    total = torch.zeros((), dtype=torch.float64)
    for answer, row in zip(answers, three.rows(experience.advantages, experience), strict=True):
        total = (
            total
            + (torch.tensor(row, dtype=torch.float64) * three.token_logps(model, three.prompt, answer)).sum()
        )
    plain = flat_gradients(-total / sum(map(len, answers)), model)
    of_policy = {k: v for k, v in found.items() if k.startswith("policy.")}
    assert_same(of_policy, {f"policy.{k}": v for k, v in plain.items()})
    assert metrics["ratio"] == pytest.approx(1, abs=1e-12)
    assert metrics["ratio/deviation"] < 1e-12
    assert metrics["clip_fraction"] == 0
    assert metrics["approx_kl"] < 1e-20


def test_the_critics_gradient_is_that_of_half_the_squared_error(three: SimpleNamespace) -> None:
    critic = three.drawn(separate_critic(three.policy(three.model(seed=3)), None))
    policy, config = three.policy(three.model()), three.gae()
    experience, _ = collect(
        policy,
        three.reference(three.model(seed=1)),
        critic,
        three.mixed,
        three.mixed_scores,
        config,
        BETA,
        token_budget=ALL,
    )
    found, metrics = update_gradients(policy, critic, three.mixed, experience, config)
    answers = three.answers_in(three.mixed)
    total = torch.zeros((), dtype=torch.float64)
    for answer, row in zip(answers, three.rows(experience.returns, experience), strict=True):
        values = three.plain_values(critic, three.prompt, answer)
        total = total + 0.5 * (values - torch.tensor(row, dtype=torch.float64)).square().sum()
    loss = total / sum(map(len, answers))
    read = {name: p for name, p in critic.named_parameters() if f"critic.{name}" in found}
    plain = torch.autograd.grad(config.critic_weight * loss, list(read.values()))
    expected = {f"critic.{name}": gradient for name, gradient in zip(read, plain, strict=True)}
    assert_same({k: v for k, v in found.items() if k.startswith("critic.")}, expected)
    assert metrics["loss/value"] == pytest.approx(float(loss.detach()), rel=1e-10)
    assert metrics["loss"] == pytest.approx(metrics["loss/policy"] + 0.1 * metrics["loss/value"], rel=1e-12)


@pytest.mark.parametrize("critic_kind", ["none", "trunk", "separate"])
def test_micro_batches_do_not_change_the_gradient(three: SimpleNamespace, critic_kind: str) -> None:
    policy = three.policy(three.model())
    critic = {
        "none": lambda: None,
        "trunk": lambda: three.drawn(trunk_critic(policy)),
        "separate": lambda: three.drawn(separate_critic(three.policy(three.model(seed=3)), None)),
    }[critic_kind]()
    config = three.gae(critic=critic_kind)
    experience, _ = collect(
        policy,
        three.reference(three.model(seed=1)),
        critic,
        three.mixed,
        three.mixed_scores,
        config,
        BETA,
        token_budget=ALL,
    )
    # Somewhere else than where the answers were sampled, so that some ratios are clipped.
    moved = replace(experience, logps=experience.logps + 0.4 * experience.advantages.sign() * experience.mask)
    whole, metrics = update_gradients(policy, critic, three.mixed, moved, config)
    split, same = update_gradients(policy, critic, three.mixed, moved, config, micro_tokens=ONE)
    assert_same(split, whole)
    assert same == pytest.approx(metrics, rel=1e-9)
    assert metrics["ratio/deviation"] > 0


# --- the expected gradient, by enumeration -------------------------------------------------------------


def scores_of(three: SimpleNamespace) -> dict[tuple[int, ...], float]:
    """A score for each of the 15 answers."""
    return {answer: math.sin(3.0 * place) for place, answer in enumerate(three.answers)}


def exact_gradient(three: SimpleNamespace) -> dict[str, Tensor]:
    """Gradient of E[score] - beta KL(pi || ref), the expectation written out over all 15 answers."""
    model, reference = three.model(), three.model(seed=1)
    objective = torch.zeros((), dtype=torch.float64)
    mass = 0.0
    for answer, score in scores_of(three).items():
        logp = three.token_logps(model, three.prompt, answer).sum()
        ref = three.token_logps(reference, three.prompt, answer).sum().detach()
        objective = objective + logp.exp() * (score - BETA * (logp - ref))
        mass += float(logp.detach().exp())
    assert mass == pytest.approx(1, abs=1e-12)
    return flat_gradients(objective, model)


def test_leave_one_out_has_the_exact_gradient_in_expectation(three: SimpleNamespace) -> None:
    pairs = list(itertools.product(three.answers, repeat=2))
    sampled = three.sampled(pairs)
    policy = three.policy(three.model())
    scores = torch.tensor(
        [scores_of(three)[answer] for pair in pairs for answer in pair], dtype=torch.float64
    )
    experience, _ = collect(
        policy,
        three.reference(three.model(seed=1)),
        None,
        sampled,
        scores,
        three.config,
        BETA,
        token_budget=ALL,
    )
    own = experience.logps.sum(dim=1).view(-1, 2).sum(dim=1).exp().repeat_interleave(2)
    # Each pair counts by its probability, and no longer by the tokens it happens to have.
    weighted = replace(experience, advantages=experience.advantages * own[:, None])
    found, _ = update_gradients(policy, None, sampled, weighted, three.config)
    tokens = int(experience.mask.sum())
    expected = exact_gradient(three)
    assert_same(found, {f"policy.{k}": v for k, v in expected.items()}, scale=-tokens / 2)


@pytest.mark.parametrize("critic_kind", ["trunk", "separate"])
def test_with_undecayed_advantages_any_critic_leaves_the_exact_gradient_in_expectation(
    three: SimpleNamespace, critic_kind: str
) -> None:
    sampled = three.sampled([[answer] for answer in three.answers])
    policy = three.policy(three.model())
    critic = trunk_critic(policy)
    if critic_kind == "separate":
        critic = separate_critic(three.policy(three.model(seed=3)), None)
    config = three.gae(samples=1, gae_lambda=1.0, critic_weight=0.0)
    scores = torch.tensor(list(scores_of(three).values()), dtype=torch.float64)
    experience, _ = collect(
        policy,
        three.reference(three.model(seed=1)),
        three.drawn(critic),
        sampled,
        scores,
        config,
        BETA,
        token_budget=ALL,
    )
    assert float(experience.values.abs().max()) > 0.1
    own = experience.logps.sum(dim=1).exp()
    weighted = replace(experience, advantages=experience.advantages * own[:, None])
    found, _ = update_gradients(policy, None, sampled, weighted, config)
    tokens = int(experience.mask.sum())
    expected = exact_gradient(three)
    assert_same(found, {f"policy.{k}": v for k, v in expected.items()}, scale=-tokens)
