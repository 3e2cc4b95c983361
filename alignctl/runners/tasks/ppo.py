"""PPO and SALSA-PPO: answers sampled at every step, scored, and learnt from; the reference may be a soup.

A step is a closed form of (weights, moments, seed, step, carried), so the run can be stopped anywhere. What
has to be measured once, the scale of a reward that is normalised, is measured on the starting policy and kept
in run.json.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from alignctl.config import NoAdapter, PpoConfig
from alignctl.evaluate.held_out import Evaluation, joined
from alignctl.evaluate.rewards import Reward, scale_of
from alignctl.evaluate.statistics import mean_interval
from alignctl.models.critic import Critic, separate_critic, trained_modules, trunk_critic
from alignctl.models.live_reference import LiveReference
from alignctl.models.load import load_start
from alignctl.records import Example, Sampled
from alignctl.report.terminal import Report
from alignctl.runners.checkpoints import write_model
from alignctl.runners.preparation import policy_of, scoring_tokens
from alignctl.runners.references import find_reference, frozen
from alignctl.runners.rewards import critic_start, open_reward
from alignctl.runners.tasks.answers import answer_held_out, judged
from alignctl.runners.tasks.task import Setup, StepPlan
from alignctl.train.ppo_step import ppo_optimiser, ppo_step
from alignctl.train.sampling import sample_answers
from alignctl.train.schedule import batch_indices, derived_seed
from alignctl.train.signals import leave_if_stopped
from alignctl.train.step import StepOut

PROMPTS_TO_NORMALISE = 64


@dataclass(frozen=True, slots=True, eq=False)
class PpoTask:
    """The policy, what it is held against, what scores its answers, and its critic."""

    setup: Setup
    algo: PpoConfig
    reference: LiveReference
    reward: Reward
    scale: tuple[float, float]
    """Mean and spread that scores are normalised by; (0, 1) where they are optimised as they are."""
    critic: Critic | None
    trained: nn.Module
    """Policy and critic."""
    optimiser: torch.optim.Optimizer
    fingerprints: Mapping[str, str]
    unit: str = "prompts"

    def examples(self, step: int) -> Sequence[Example]:
        """The prompts of a step, as rows without answers."""
        rows = self.setup.data.rows
        return [rows[place] for place in self.setup.places(step, len(rows))]

    def step(self, plan: StepPlan) -> StepOut:
        """Sample, score, and update on the answers."""
        setup, config = self.setup, self.setup.config
        places = setup.places(plan.step, len(setup.data.rows))
        k, seed = self.algo.samples, config.seed
        sampled = answer(setup, self.algo, places, samples=k, seed=seed, step=plan.step)
        scores = torch.tensor(score(self.reward, sampled, setup), dtype=torch.float64)
        mean, sd = self.scale
        out = ppo_step(
            setup.start.policy,
            self.reference,
            self.critic,
            self.optimiser,
            sampled,
            (scores - mean) / sd,
            self.algo,
            step=plan.step,
            lr=plan.lr,
            micro_tokens=plan.micro_tokens,
            scoring_tokens=scoring_tokens(setup.start.policy.device),
            max_grad_norm=config.train.max_grad_norm,
            seed=config.seed,
            carried=plan.carried,
        )
        # As the reward says it: `score/mean` is what is optimised.
        return replace(out, metrics={**out.metrics, "reward/mean": float(scores.mean())})

    def evaluate(self, step: int, report: Report) -> Evaluation | None:
        """Reward and gold score of answers to held-out prompts."""
        setup, parts = self.setup, []
        answers = answer_held_out(setup, step, report)
        if answers.texts:
            scores = self.reward.score(setup.data.asked.rows, answers.texts, partial(report, "rewards"))
            reward = mean_interval(scores)
            parts.append(Evaluation({"reward/mean": reward.value}, {"reward/mean": reward}))
        parts += judged(setup, answers, self.reference, report)
        return joined(parts) if parts else None

    def export(self, directory: Path) -> None:
        """The policy, or its adapter; the critic stays in the checkpoints."""
        write_model(self.setup.start.loaded, self.setup.data.tokenizer, directory)


def answer(
    setup: Setup, algo: PpoConfig, places: Sequence[int], *, samples: int, seed: int, step: int
) -> Sampled:
    """Answers of the present weights to some of the unlabelled prompts."""
    data = setup.data
    return sample_answers(
        setup.start.policy,
        [data.unlabelled.rows[place] for place in places],
        [data.unlabelled.ids[place] for place in places],
        data.decode,
        samples=samples,
        stop=data.stop,
        max_new_tokens=algo.max_new_tokens,
        seed=seed,
        step=step,
        progress=partial(setup.panel.working, "answers"),
    )


def score(reward: Reward, sampled: Sampled, setup: Setup) -> list[float]:
    """A score per answer."""
    samples = len(sampled.texts) // len(sampled.rows)
    rows = [row for row in sampled.rows for _ in range(samples)]
    return reward.score(rows, sampled.texts, partial(setup.panel.working, "rewards"))


def open_ppo_task(setup: Setup, algo: PpoConfig) -> PpoTask:
    """Load reference, reward and critic; the reward's scale is measured before the first step."""
    config, start = setup.config, setup.start
    found = find_reference(algo.reference, config, start, setup.data, setup.panel.note)
    reward = open_reward(
        config.reward,
        setup.data.gold,
        device=start.policy.device,
        dtype=start.policy.compute_dtype,
        say=setup.panel.note,
    )
    scale = _scale(setup, algo, reward) if config.reward.normalise else (0.0, 1.0)
    critic = _critic(setup, algo, *scale)
    return PpoTask(
        setup=setup,
        algo=algo,
        reference=frozen(found, start),
        reward=reward,
        scale=scale,
        critic=critic,
        trained=trained_modules(start.policy, critic),
        optimiser=ppo_optimiser(start.policy, critic, algo, weight_decay=config.train.weight_decay),
        fingerprints={
            "model": start.fingerprint,
            "reference": found.fingerprint,
            "reward": reward.fingerprint,
        },
    )


def _scale(setup: Setup, algo: PpoConfig, reward: Reward) -> tuple[float, float]:
    """Mean and spread of the reward over answers of the starting policy, measured once and kept."""
    decided = setup.directory.record["decided"]
    if "reward_mean" in decided:
        return decided["reward_mean"], decided["reward_sd"]
    rows = len(setup.data.rows)
    size = min(PROMPTS_TO_NORMALISE, rows)
    places = batch_indices(1, rows=rows, batch_size=size, seed=derived_seed("scale", setup.config.seed, 0))
    sampled = answer(setup, algo, places, samples=1, seed=derived_seed("scale", setup.config.seed, 1), step=0)
    leave_if_stopped(setup.stop, "stopped before the first step")
    scores = score(reward, sampled, setup)
    mean = statistics.fmean(scores)
    sd = scale_of(mean, statistics.pstdev(scores))
    setup.panel.note(f"reward of the starting model: mean {mean:.3f}, spread {sd:.3f} over {size} answers")
    setup.directory.update(decided={**decided, "reward_mean": mean, "reward_sd": sd})
    return mean, sd


def _critic(setup: Setup, algo: PpoConfig, mean: float, sd: float) -> Critic | None:
    if algo.critic == "none":
        return None
    if algo.critic == "trunk":
        return trunk_critic(setup.start.policy)
    config, policy = setup.config, setup.start.policy
    own = load_start(setup.data.source, NoAdapter(kind="none"), seed=config.seed)
    head = critic_start(config.reward, own.model, setup.data.tokenizer, setup.panel.note)
    ready = policy_of(
        own, dropout=0.0, max_length=config.train.max_length, device=policy.device, dtype=policy.compute_dtype
    )
    return separate_critic(ready.policy, head, mean=mean, std=sd)
