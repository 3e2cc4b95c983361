"""The KL divergence to the reference on the policy's own answers, as HyPO adds it to DPO (arXiv 2406.01462).

A sampled answer's log-ratio has the right mean, but the gradient of that mean is not the mean of its
gradient: the answers themselves depend on the weights. Each estimator is a surrogate per answer whose
gradient, averaged over answers drawn at temperature 1 and top_p 1, is that of KL(pi || ref) exactly:

- full: sum_t KL_t + sum_t log pi(y_t) sg(sum_{s>t} KL_s), with KL_t over the whole vocabulary. What follows a
  token is all that its choice can change. The default: no sampling noise is left within a position.
- rloo: sum_t log pi(y_t) sg(R - mean of the other samples' R), R = sum_t (log pi - log ref)(y_t); the
  paper's, with the leave-one-out baseline of arXiv 2402.14740. One sample has no others: no baseline then.

sg is the stopped gradient. Unfit as losses, though often seen: the log-ratio itself (its gradient is zero on
average), its k3 form, and the sum of KL_t without the second term.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from alignctl.algos.pairs import mean
from alignctl.records import OnlineTokens

Estimator = Literal["full", "rloo"]


@dataclass(frozen=True, slots=True, eq=False)
class OnlineKl:
    """What K sampled answers say of KL(pi || ref)."""

    losses: Tensor
    """float [K], differentiable: the surrogate. Its gradient is what it is for, its value means nothing."""
    sequence: Tensor
    """float [K], detached: the divergence as one answer shows it, in nats. full: sum of KL_t, which has the
    same mean as the log-ratio and less variance; rloo: the log-ratio."""
    per_token: Tensor
    """float [N], detached: its terms, KL_t or log pi - log ref."""


def online_kl(tokens: OnlineTokens, *, samples: int, estimator: Estimator) -> OnlineKl:
    """One surrogate per answer; every prompt has `samples` answers, which stand together.

    Raises ValueError when the answers are not whole prompts'.
    """
    if len(tokens.counts) % samples:
        raise ValueError(f"{len(tokens.counts)} answers are not {samples} for each prompt")
    return _full(tokens) if estimator == "full" else _rloo(tokens, samples)


def _full(tokens: OnlineTokens) -> OnlineKl:
    assert tokens.kl is not None
    terms = tokens.kl.detach()
    losses = _per_answer(tokens.kl + tokens.logps * _later(terms, tokens), tokens)
    return OnlineKl(losses, _per_answer(terms, tokens), terms)


def _rloo(tokens: OnlineTokens, samples: int) -> OnlineKl:
    assert tokens.ref_logps is not None
    terms = tokens.logps.detach() - tokens.ref_logps.detach()
    ratios = _per_answer(terms, tokens)
    advantage = _without_mean_of_others(ratios.view(-1, samples)).flatten()
    return OnlineKl(_per_answer(tokens.logps, tokens) * advantage, ratios, terms)


def _without_mean_of_others(values: Tensor) -> Tensor:
    """values [prompts, k] minus the mean of the same prompt's others; as they are for k = 1."""
    k = values.shape[1]
    return values if k == 1 else (values - values.mean(1, keepdim=True)) * (k / (k - 1))


def _later(terms: Tensor, tokens: OnlineTokens) -> Tensor:
    """Per token, the sum of the terms that follow it in its own answer, [N]."""
    running = terms.double().cumsum(0)
    last = tokens.counts.cumsum(0) - 1
    return (running[last][tokens.branch] - running).to(terms.dtype)


def _per_answer(values: Tensor, tokens: OnlineTokens) -> Tensor:
    """Sums [K] over each answer's tokens, differentiable; added up in float64 and rounded once."""
    sums = torch.zeros(len(tokens.counts), dtype=torch.float64, device=values.device)
    return sums.index_add(0, tokens.branch, values.double()).to(values.dtype)


def kl_metrics(sequence: Tensor, counts: Tensor, *, samples: int) -> dict[str, float]:
    """KL per answer and per token in nats, from `sequence` [K] and the answers' `counts` of tokens [K].

    kl/token is all nats over all tokens, so long answers count for more. Standard errors take prompts for
    independent, not the answers of one; of a single prompt there are none, and the keys are absent.
    """
    nats, lengths = sequence.double().view(-1, samples), counts.double().view(-1, samples)
    per_token = mean(nats.flatten()) / mean(lengths.flatten())
    metrics = {"kl/sequence": mean(nats.flatten()), "kl/token": per_token}
    if len(nats) == 1:
        return metrics
    by_prompt = nats.mean(1)
    # The ratio of two means, linearised: what a prompt's nats are over what its tokens would have.
    excess = (nats - per_token * lengths).mean(1) / mean(lengths.flatten())
    return {
        **metrics,
        "kl/sequence_se": _standard_error(by_prompt),
        "kl/token_se": _standard_error(excess),
    }


def _standard_error(values: Tensor) -> float:
    """Of the mean of independent values, two or more."""
    centre = mean(values)
    variance = mean((values - centre) ** 2) * len(values) / (len(values) - 1)
    return math.sqrt(variance / len(values))
