"""A step of PPO on a real Llama of three tokens: what it moves, what it repeats, what it refuses, what it
hands on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from alignctl.config import PpoConfig
from alignctl.errors import OutOfMemoryError
from alignctl.models.critic import Critic, separate_critic, trained_modules, trunk_critic
from alignctl.models.live_reference import LiveReference
from alignctl.models.policy import Policy, set_attention
from alignctl.records import Experience, Sampled
from alignctl.train.experience import collect
from alignctl.train.optimiser import trained_parameters
from alignctl.train.ppo_step import minibatches, ppo_optimiser, ppo_step, ppo_update
from alignctl.train.step import StepOut

BETA = 0.3
ALL, ONE = 100_000, 1
"""Micro-batches of everything, and of one prompt."""


def one_step(
    three: SimpleNamespace,
    policy: Policy,
    reference: LiveReference,
    critic: Critic | None,
    optimiser: torch.optim.Optimizer,
    config: PpoConfig,
    *,
    sampled: Sampled | None = None,
    scores: Tensor | None = None,
    step: int = 1,
    micro_tokens: int = ALL,
    lr: float = 1e-3,
    carried: dict[str, float] | None = None,
) -> StepOut:
    return ppo_step(
        policy,
        reference,
        critic,
        optimiser,
        sampled or three.mixed,
        three.mixed_scores if scores is None else scores,
        config,
        step=step,
        lr=lr,
        micro_tokens=micro_tokens,
        scoring_tokens=ALL,
        max_grad_norm=1.0,
        seed=5,
        carried=carried or {},
    )


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trained_parameters(module).items()}


def moved(before: dict[str, Tensor], module: torch.nn.Module) -> set[str]:
    return {name for name, p in trained_parameters(module).items() if not torch.equal(before[name], p)}


def test_a_step_raises_the_probability_of_the_better_answer(three: SimpleNamespace) -> None:
    policy, reference = three.policy(three.model()), three.reference(three.model())
    config = three.config.model_copy(update={"beta": 0.0, "epochs": 3, "stop_length": 0.0})
    optimiser = ppo_optimiser(policy, None, config, weight_decay=0.0)
    sampled = three.sampled([[(0, 1, 2), (1, 2)], [(1, 2), (0, 1, 2)]])
    scores = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)

    def logp(answer: tuple[int, ...]) -> float:
        set_attention(policy.causal_lm, "padded")
        found = float(three.token_logps(policy.causal_lm, three.prompt, answer).sum().detach())
        set_attention(policy.causal_lm, "shared")
        return found

    before = logp((0, 1, 2)), logp((1, 2))
    out = one_step(three, policy, reference, None, optimiser, config, sampled=sampled, scores=scores)
    assert out.applied
    assert out.tokens == 2 * (3 + 3 + 2)
    assert logp((0, 1, 2)) > before[0]
    assert logp((1, 2)) < before[1]
    # At its reference the policy has no KL, and before the first update no ratio but 1.
    assert abs(out.metrics["kl/sequence"]) < 1e-12
    assert abs(out.metrics["ratio"] - 1) < 1e-12
    assert out.metrics["approx_kl"] > 0
    assert out.metrics["lr"] == 1e-3
    assert out.alarms == ()
    assert out.stop is None


def critic_of(three: SimpleNamespace, policy: Policy, kind: str) -> Critic | None:
    if kind == "none":
        return None
    return (
        trunk_critic(policy) if kind == "trunk" else separate_critic(three.policy(three.model(seed=3)), None)
    )


@torch.no_grad()
def chances(three: SimpleNamespace, policy: Policy) -> Tensor:
    """Probability of each of the 15 answers."""
    set_attention(policy.causal_lm, "padded")
    logps = [three.token_logps(policy.causal_lm, three.prompt, answer).sum() for answer in three.answers]
    set_attention(policy.causal_lm, "shared")
    return torch.stack(logps).exp()


@pytest.mark.parametrize(("critic_kind", "whiten"), [("none", False), ("trunk", True)])
def test_steps_on_fresh_samples_come_near_the_exact_optimum(
    three: SimpleNamespace, critic_kind: str, whiten: bool
) -> None:
    policy = three.policy(three.model())
    critic = critic_of(three, policy, critic_kind)
    config = three.gae(critic=critic_kind, whiten=whiten, samples=4, epochs=2, stop_length=0.0)
    optimiser = ppo_optimiser(policy, critic, config, weight_decay=0.0)
    start = chances(three, policy)
    scores = (3.0 * torch.arange(len(start), dtype=torch.float64)).sin()
    # No policy has more of score - beta KL than the reference tilted by exp(score / beta).
    best = BETA * float((start * (scores / BETA).exp()).sum().log())
    random = np.random.default_rng(0)

    def missing() -> float:
        own = chances(three, policy)
        return best - float((own * (scores - BETA * (own / start).log())).sum())

    before = missing()
    for step in range(1, 26):
        own = chances(three, policy).numpy()
        drawn = random.choice(len(own), size=(8, 4), p=own / own.sum())
        one_step(
            three,
            policy,
            three.reference(three.model()),
            critic,
            optimiser,
            config,
            sampled=three.sampled([[three.answers[number] for number in group] for group in drawn]),
            scores=scores[torch.from_numpy(drawn.ravel())],
            step=step,
            lr=2e-3,
        )
    assert before > 0.2
    assert 0 <= missing() < before / 4


@pytest.mark.parametrize("critic_kind", ["trunk", "separate"])
def test_warm_up_trains_the_critic_alone(three: SimpleNamespace, critic_kind: str) -> None:
    policy = three.policy(three.model())
    critic = trunk_critic(policy)
    if critic_kind == "separate":
        critic = three.drawn(separate_critic(three.policy(three.model(seed=3)), None))
    config = three.gae(critic=critic_kind, critic_warmup=1, epochs=2)
    optimiser = ppo_optimiser(policy, critic, config, weight_decay=0.1)
    modules, reference = trained_modules(policy, critic), three.reference(three.model(seed=1))
    before = weights(modules)
    out = one_step(three, policy, reference, critic, optimiser, config, step=1)
    changed = moved(before, modules)
    assert out.applied
    assert {"critic.head.weight", "critic.head.bias"} <= changed
    assert all(name.startswith("critic.") for name in changed)
    assert "ratio" not in out.metrics
    one_step(three, policy, reference, critic, optimiser, config, step=2)
    assert moved(before, modules) == set(before)


def test_a_gradient_far_below_adams_epsilon_hardly_moves(three: SimpleNamespace) -> None:
    optimiser = ppo_optimiser(three.policy(three.model()), None, three.config, weight_decay=0.0)
    parameter = optimiser.param_groups[0]["params"][0]
    parameter.grad = torch.full_like(parameter, 1e-7)
    before = parameter.detach().clone()
    optimiser.param_groups[0]["lr"] = 1.0
    optimiser.step()
    # Adam's first step is lr g / (g + eps): a hundredth with epsilon 1e-5, and 0.9 with AdamW's own 1e-8.
    expected = torch.full_like(parameter, 1e-7 / (1e-7 + 1e-5))
    torch.testing.assert_close(before - parameter.detach(), expected, rtol=1e-6, atol=0)


def test_the_critic_learns_at_its_own_rate(three: SimpleNamespace) -> None:
    policy = three.policy(three.model())
    critic = three.drawn(separate_critic(three.policy(three.model(seed=3)), None))
    config = three.gae()
    optimiser = ppo_optimiser(policy, critic, config, weight_decay=0.0)
    before = weights(trained_modules(policy, critic))
    one_step(three, policy, three.reference(three.model(seed=1)), critic, optimiser, config, lr=1e-4)
    after = weights(trained_modules(policy, critic))
    largest = {
        part: max(float((after[name] - before[name]).abs().max()) for name in before if name.startswith(part))
        for part in ("policy.", "critic.")
    }
    # Adam's first step is the learning rate wherever the gradient is well above its epsilon.
    assert largest["policy."] == pytest.approx(1e-4, rel=0.05)
    assert largest["critic."] == pytest.approx(1e-3, rel=0.05)


def test_minibatches_are_all_prompts_once_in_an_order_of_seed_step_and_epoch() -> None:
    found = minibatches(10, 3, seed=1, step=2, epoch=0)
    assert sorted(map(len, found)) == [3, 3, 4]
    assert sorted(prompt for part in found for prompt in part) == list(range(10))
    assert found == minibatches(10, 3, seed=1, step=2, epoch=0)
    others = [(2, 2, 0), (1, 3, 0), (1, 2, 1)]
    orders = [minibatches(10, 3, seed=seed, step=step, epoch=epoch) for seed, step, epoch in others]
    assert len({str(order) for order in [found, *orders]}) == 4
    with pytest.raises(ValueError, match="2 prompts"):
        minibatches(2, 3, seed=1, step=1, epoch=0)


def spoilt(experience: Experience, answers: Sequence[int]) -> Experience:
    advantages = experience.advantages.clone()
    advantages[list(answers)] = math.nan
    return replace(experience, advantages=advantages)


@pytest.mark.parametrize(("bad", "applied", "skipped"), [((0, 1), True, 1), (range(10), False, 5)])
def test_an_update_that_is_not_finite_moves_nothing(
    three: SimpleNamespace, bad: Sequence[int], applied: bool, skipped: int
) -> None:
    policy = three.policy(three.model())
    config = three.config.model_copy(update={"minibatches": 5})
    experience, _ = collect(
        policy,
        three.reference(three.model(seed=1)),
        None,
        three.mixed,
        three.mixed_scores,
        config,
        BETA,
        token_budget=ALL,
    )
    optimiser = ppo_optimiser(policy, None, config, weight_decay=0.0)
    before = weights(policy.model)
    found = ppo_update(
        policy,
        None,
        optimiser,
        three.mixed,
        spoilt(experience, bad),
        config,
        lr=1e-3,
        micro_tokens=ALL,
        max_grad_norm=1.0,
        seed=0,
        step=1,
    )
    assert found.applied is applied
    assert found.metrics["updates/skipped"] == skipped
    assert bool(moved(before, policy.model)) is applied
    assert all(bool(torch.isfinite(p).all()) for p in policy.model.parameters())


def test_a_step_repeats_itself_bit_for_bit(three: SimpleNamespace) -> None:
    ends = []
    for _ in range(2):
        policy = three.policy(three.model())
        critic = trunk_critic(policy)
        config = three.gae(critic="trunk", epochs=2, minibatches=2, whiten=True)
        optimiser = ppo_optimiser(policy, critic, config, weight_decay=0.0)
        out = one_step(
            three, policy, three.reference(three.model(seed=1)), critic, optimiser, config, micro_tokens=ONE
        )
        ends.append((out, weights(trained_modules(policy, critic))))
    (first, before), (second, after) = ends
    assert first.metrics == second.metrics
    assert all(torch.equal(before[name], after[name]) for name in before)


class SmallMemory:
    """Makes a model fail as an accelerator does, on passes of more tokens than fit; the first are spared."""

    def __init__(self, model: LlamaForCausalLM, *, fits: int, spared: int) -> None:
        self.fits, self.spared, self.passes = fits, spared, 0
        model.get_decoder().register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, Tensor]) -> None:
        self.passes += 1
        if self.passes > self.spared and kwargs["input_ids"].numel() > self.fits:
            raise torch.OutOfMemoryError("no memory")


ROW = 9
"""Tokens of the longest row: the prompt of three and two answers of three."""


@pytest.mark.parametrize(
    ("spared", "fits", "goes_on"),
    [
        # The first pass collects, the second is the first update: the loop may repeat the step.
        (1, ROW, False),
        (2, ROW, True),
        (2, 1, False),
    ],
)
def test_memory_that_runs_out_between_updates_does_not_repeat_the_step(
    three: SimpleNamespace, spared: int, fits: int, goes_on: bool
) -> None:
    config = three.config.model_copy(update={"epochs": 2})

    def fresh() -> tuple[Policy, torch.optim.Optimizer]:
        policy = three.policy(three.model())
        return policy, ppo_optimiser(policy, None, config, weight_decay=0.0)

    policy, optimiser = fresh()
    SmallMemory(policy.causal_lm, fits=fits, spared=spared)  # type: ignore[arg-type]
    reference = three.reference(three.model(seed=1))
    if not goes_on:
        expected = OutOfMemoryError if spared == 2 else torch.OutOfMemoryError
        with pytest.raises(expected):
            one_step(three, policy, reference, None, optimiser, config)
        return
    one_step(three, policy, reference, None, optimiser, config)
    other, roomy = fresh()
    one_step(three, other, reference, None, roomy, config)
    for name, weight in weights(other.model).items():
        torch.testing.assert_close(weights(policy.model)[name], weight, rtol=1e-9, atol=1e-9)


# --- what is handed on ---


@torch.no_grad()
def log_ratio(three: SimpleNamespace, answer: tuple[int, ...]) -> float:
    models = (three.model(), three.model(seed=1))
    own, other = (float(three.token_logps(model, three.prompt, answer).sum()) for model in models)
    return own - other


@pytest.mark.parametrize(("target", "factor"), [(1e3, 0.95), (1e-3, 1.05)])
def test_beta_is_handed_on_and_used_where_a_target_is_set(
    three: SimpleNamespace, target: float, factor: float
) -> None:
    policy, reference = three.policy(three.model()), three.reference(three.model(seed=1))
    config = three.config.model_copy(update={"kl_target": target})
    optimiser = ppo_optimiser(policy, None, config, weight_decay=0.0)
    # The answer that the policy likes most beside its reference: far above the one target, below the other.
    liked = max(three.answers, key=lambda answer: log_ratio(three, answer))
    sampled = three.sampled([[liked, liked], [liked, liked]])
    scores = torch.zeros(4, dtype=torch.float64)
    carried = {"length_at_start": 2.5, "beta": 0.7}
    out = one_step(
        three, policy, reference, None, optimiser, config, sampled=sampled, scores=scores, carried=carried
    )
    assert out.metrics["beta"] == 0.7
    assert 0.1 < out.metrics["kl/sequence"] < 100
    assert out.carried["beta"] == pytest.approx(0.7 * factor)
    assert out.carried["length_at_start"] == 2.5


def test_without_a_target_only_the_start_is_handed_on(three: SimpleNamespace) -> None:
    policy, reference = three.policy(three.model()), three.reference(three.model(seed=1))
    optimiser = ppo_optimiser(policy, None, three.config, weight_decay=0.0)
    out = one_step(three, policy, reference, None, optimiser, three.config)
    assert out.carried == {
        "length_at_start": out.metrics["response_length"],
        "perplexity_at_start": out.metrics["perplexity"],
        "entropy_at_start": out.metrics["entropy/top10"],
    }
