"""From sampled answers and their scores to what a policy-gradient update looks at.

All log-probabilities are those of the training forward pass, packed, the prompt read once for its answers:
generation runs other kernels, and in bfloat16 that alone would spoil the ratios (arXiv 2403.17031). Masks
come from lengths, never from an id, since padding and end of turn may be the same token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignctl.algos import ppo
from alignctl.config import PpoConfig
from alignctl.models.critic import Critic
from alignctl.models.head import token_scores
from alignctl.models.live_reference import LiveReference
from alignctl.models.packing import micro_batches, pack
from alignctl.models.policy import Policy, completion_hidden, completion_logps, evaluating, head_parameters
from alignctl.records import Example, Experience, PackedBatch, Sampled


def collect(
    policy: Policy,
    reference: LiveReference,
    critic: Critic | None,
    sampled: Sampled,
    scores: Tensor,
    config: PpoConfig,
    beta: float,
    *,
    token_budget: int,
) -> tuple[Experience, dict[str, float]]:
    """Experience of K answers and the metrics of the rollout; nothing is trained.

    `scores` [K] are on the scale of `missing_end_score`, which takes the place of the score of an answer
    without an end. Kullback-Leibler figures are Monte Carlo means of log pi - log ref, with standard errors
    over prompts, as answers to one prompt are alike; with a single prompt there is none.
    """
    mask = answer_mask(sampled.examples, policy.device)
    own = _own_pass(policy, critic, sampled.examples, mask, token_budget)
    log_ratios = own.logps - _reference_logps(reference, sampled.examples, mask, token_budget)
    counted = _counted_scores(scores.to(own.logps), sampled.ended, config.missing_end_score)
    if critic is None:
        totals = ppo.total_returns(counted, log_ratios, mask, beta)
        alone = ppo.leave_one_out(totals, config.samples)
        advantages, returns = (torch.where(mask, part[:, None], 0.0) for part in (alone, totals))
    else:
        rewards = ppo.token_rewards(counted, log_ratios, mask, beta)
        advantages, returns = ppo.gae(rewards, own.values, mask, config.gamma, config.gae_lambda)
    if config.whiten:
        advantages = ppo.whiten(advantages, mask)
    experience = Experience(mask, own.logps, own.values, advantages, returns)
    metrics = {
        "reward/mean": float(scores.double().mean()),
        "score/mean": float(counted.double().mean()),
        "score/std": float(counted.double().std(correction=0)),
        "beta": beta,
        **_kl_metrics(log_ratios, mask, config.samples),
        "response_length": int(mask.sum()) / len(mask),
        "eos_rate": sum(sampled.ended) / len(sampled.ended),
        **_own_metrics(own, mask),
    }
    return experience, metrics if critic is None else {**metrics, **_critic_metrics(experience)}


def answers_of(experience: Experience, prompts: Sequence[int], samples: int) -> Experience:
    """The answers to some of the prompts, in the order given; every prompt has `samples` of them."""
    kept = [prompt * samples + place for prompt in prompts for place in range(samples)]
    return Experience(
        mask=experience.mask[kept],
        logps=experience.logps[kept],
        values=experience.values[kept],
        advantages=experience.advantages[kept],
        returns=experience.returns[kept],
    )


def answer_mask(examples: Sequence[Example], device: torch.device) -> Tensor:
    """bool [K, L]: True on the tokens of every branch, L those of the longest."""
    lengths = torch.tensor([len(branch) for example in examples for branch in example.branches])
    return (torch.arange(int(lengths.max())) < lengths[:, None]).to(device)


def table(values: Tensor, mask: Tensor) -> Tensor:
    """Values [N] of completion tokens, branch by branch, laid out as [K, L]; differentiable, 0 outside."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def packed_batches(policy: Policy, examples: Sequence[Example], token_budget: int) -> Iterator[PackedBatch]:
    """Rows in their order as forward passes of `policy`, on its device.

    Whatever the layout, completion tokens come branch by branch, so passes of several models match.
    """
    for group in micro_batches(examples, token_budget=token_budget, layout=policy.layout):
        yield pack([examples[index] for index in group], policy.layout).to(policy.device)


# --- forward passes ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _OwnPass:
    """The policy on its own answers."""

    logps: Tensor
    """float [K, L]."""
    values: Tensor
    """float [K, L]; zeros without a critic."""
    top_entropy: Tensor
    """float [N]: entropy in bits of the ten likeliest tokens."""
    top_mass: Tensor


@torch.no_grad()
def _own_pass(
    policy: Policy, critic: Critic | None, examples: Sequence[Example], mask: Tensor, token_budget: int
) -> _OwnPass:
    scores, values = [], []
    with evaluating(policy.model):
        for batch in packed_batches(policy, examples, token_budget):
            hidden = completion_hidden(policy, batch)
            found = token_scores(hidden, *head_parameters(policy.causal_lm), batch.targets)
            scores.append(torch.stack([found.logps, found.top_entropy, found.top_mass]))
            if critic is not None and critic.own is None:
                values.append(critic(hidden))
    if critic is not None and critic.own is not None:
        with evaluating(critic.own.model):
            for batch in packed_batches(critic.own, examples, token_budget):
                values.append(critic(completion_hidden(critic.own, batch)))
    logps, entropy, mass = torch.cat(scores, dim=1)
    old_values = torch.cat(values).to(logps) if values else torch.zeros_like(logps)
    return _OwnPass(table(logps, mask), table(old_values, mask), entropy, mass)


def _reference_logps(
    reference: LiveReference, examples: Sequence[Example], mask: Tensor, token_budget: int
) -> Tensor:
    """float [K, L]."""
    with reference.active() as model:
        parts = [completion_logps(model, batch) for batch in packed_batches(model, examples, token_budget)]
    return table(torch.cat(parts).to(mask.device), mask)


def _counted_scores(scores: Tensor, ended: Sequence[bool], missing_end_score: float | None) -> Tensor:
    """Scores [K] as they are optimised."""
    if missing_end_score is None:
        return scores
    return torch.where(torch.tensor(ended, device=scores.device), scores, missing_end_score)


# --- metrics of the rollout ----------------------------------------------------------------------------


def _kl_metrics(log_ratios: Tensor, mask: Tensor, samples: int) -> dict[str, float]:
    per_prompt = log_ratios.double().sum(dim=1).view(-1, samples).sum(dim=1)
    tokens = mask.double().sum(dim=1).view(-1, samples).sum(dim=1)
    answers = torch.full_like(tokens, samples)
    metrics = {}
    for name, weights in (("kl/sequence", answers), ("kl/token", tokens)):
        ratio = per_prompt.sum() / weights.sum()
        metrics[name] = float(ratio)
        if len(weights) > 1:
            # Standard error of a ratio of sums over prompts: the residuals' spread over the total weight.
            rest = (per_prompt - ratio * weights).square().sum()
            spread = (rest * len(weights) / (len(weights) - 1)).sqrt()
            metrics[f"{name}_se"] = float(spread / weights.sum())
    return metrics


def _own_metrics(own: _OwnPass, mask: Tensor) -> dict[str, float]:
    """Means over all sampled tokens; log perplexity is the entropy of the policy as its samples show it."""
    return {
        "entropy/top10": float(own.top_entropy.double().mean()),
        "mass/top10": float(own.top_mass.double().mean()),
        "perplexity": float(own.logps[mask].double().mean().neg().exp()),
    }


def _critic_metrics(experience: Experience) -> dict[str, float]:
    explained = ppo.explained_variance(experience.values, experience.returns, experience.mask)
    found = {
        "value/mean": float(experience.values[experience.mask].double().mean()),
        "value/explained_variance": explained,
    }
    return {name: value for name, value in found.items() if not math.isnan(value)}
