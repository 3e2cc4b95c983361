"""Proximal policy optimisation on sampled answers (arXiv 1707.06347, 2009.01325) and RLOO (arXiv 2402.14740).

Everything here is a pure function of K answers, padded on the right to L tokens, with a bool mask [K, L]
whose rows are True on an answer's tokens, at least one each. Losses come per token: whoever sums them divides
by the number of tokens of the whole update, so that neither padding nor micro-batches matter. Details follow
arXiv 2403.17031 where it names them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMALLEST_VARIANCE = 1e-8
KL_ERROR_LIMIT = 0.2
KL_GAIN = 0.25


# --- rewards and advantages ----------------------------------------------------------------------------


def token_rewards(scores: Tensor, log_ratios: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Reward of each token, [K, L]: -beta times its log-ratio, and the answer's score [K] at its last token.

    The log-ratio log pi - log ref is the estimator k1: unbiased in the reward, which is not differentiated.
    """
    penalties = torch.where(mask, -beta * log_ratios, 0.0)
    last = mask.sum(dim=1, keepdim=True) - 1
    return penalties.scatter_add(1, last, scores[:, None].to(penalties))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns [K, L] by generalised advantage estimation (arXiv 1506.02438), 0 off the mask.

    `values` stand before each token. After the last token the value is 0, for an answer that was cut short
    as well: its score was given to the text as it stands, nothing follows, and a value put there would credit
    it with tokens that were never written.
    """
    values = torch.where(mask, values, 0.0)
    rewards = torch.where(mask, rewards, 0.0)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    errors = rewards + gamma * following - values
    advantages = torch.zeros_like(errors)
    running = torch.zeros_like(errors[:, 0])
    for place in reversed(range(errors.shape[1])):
        running = errors[:, place] + gamma * lam * running
        advantages[:, place] = running
    return advantages, advantages + values


def total_returns(scores: Tensor, log_ratios: Tensor, mask: Tensor, beta: float) -> Tensor:
    """What an answer is worth as a whole, [K]: its score minus beta times the sum of its log-ratios."""
    return scores.to(log_ratios) - beta * torch.where(mask, log_ratios, 0.0).sum(dim=1)


def leave_one_out(returns: Tensor, samples: int) -> Tensor:
    """Advantage of each answer, [K]: its return minus the mean of its prompt's other answers.

    Answers of one prompt stand together, `samples` (two or more) of them.
    """
    groups = returns.view(-1, samples)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (samples - 1)
    return (groups - others).flatten()


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Values [K, L] with mean 0 and variance 1 over the mask, 0 outside it.

    The variance is that of the tokens at hand (divided by n, not n - 1), so one token is no special case.
    Values that are all alike become 0, not noise.
    """
    taken = values[mask].double()
    centred = taken - taken.mean()
    scaled = centred / (centred.square().mean() + SMALLEST_VARIANCE).sqrt()
    return torch.zeros_like(values).masked_scatter(mask, scaled.to(values.dtype))


def adapted_beta(beta: float, kl: float, target: float) -> float:
    """The next step's beta, steered so that the KL per answer comes to `target` nats (arXiv 1909.08593).

    The relative error counts up to 0.2 either way. The paper moves beta by 0.1 of it at each of thousands of
    updates; runs here have tens to hundreds of steps, so it is 0.25: at most 5 % a step, a doubling in 14.
    """
    error = max(-KL_ERROR_LIMIT, min(KL_ERROR_LIMIT, (kl - target) / target))
    return beta * (1 + KL_GAIN * error)


# --- losses --------------------------------------------------------------------------------------------


def policy_losses(logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> Tensor:
    """Clipped surrogate loss per token, [K, L], in its pessimistic form: the larger of free and clipped."""
    free, clipped = _surrogates(logps, old_logps, advantages, mask, clip)
    return torch.where(mask, torch.maximum(free, clipped), 0.0)


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Tensor:
    """Half the squared error of the critic per token, [K, L]: the larger of free and clipped.

    Clipped values are at most `clip` away from the old ones.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    return torch.where(mask, 0.5 * torch.maximum((values - returns).square(), (near - returns).square()), 0.0)


def _surrogates(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    ratios = torch.where(mask, logps - old_logps, 0.0).exp()
    return -advantages * ratios, -advantages * ratios.clamp(1 - clip, 1 + clip)


# --- what an update looks like -------------------------------------------------------------------------


@torch.no_grad()
def update_metrics(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> dict[str, float]:
    """How far the policy has moved from the one that sampled, over the tokens of the mask.

    `ratio` and `ratio/deviation` are the means of the ratio and of its distance from 1; `clip_fraction` is
    the share of tokens whose gradient the clipping stops; `approx_kl` estimates KL(old || new) per token by
    ratio - 1 - log ratio (k3), never negative.
    """
    moved = (logps - old_logps)[mask].double()
    ratios = moved.exp()
    free, clipped = _surrogates(logps, old_logps, advantages, mask, clip)
    return {
        "ratio": float(ratios.mean()),
        "ratio/deviation": float((ratios - 1).abs().mean()),
        "clip_fraction": float((clipped > free)[mask].double().mean()),
        "approx_kl": float((ratios - 1 - moved).mean()),
    }


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the mask; NaN where the returns do not vary."""
    taken = returns[mask].double()
    variance = float(taken.var(correction=0))
    rest = float((taken - values[mask].double()).var(correction=0))
    return 1 - rest / variance if variance > 0 else math.nan
