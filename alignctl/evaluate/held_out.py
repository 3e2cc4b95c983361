"""Evaluation while training: held-out pairs, and the model's own answers to held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alignctl.algos import PairLoss
from alignctl.algos.bradley_terry import RewardLoss, reward_metrics, reward_pairs
from alignctl.algos.pairs import outcomes, pair_metrics, pair_view, row_weights
from alignctl.algos.sft import row_losses, row_metrics
from alignctl.evaluate.statistics import (
    Estimate,
    Quotient,
    mean_interval,
    named_errors,
    quotient_interval,
    share,
)
from alignctl.records import Example, GoldScore, Row, Scores


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured at one step: the line for metrics.jsonl and the figures with intervals."""

    metrics: dict[str, float]
    estimates: dict[str, Estimate]


@torch.no_grad()
def evaluate_pairs(
    examples: Sequence[Example], policy: Scores, reference: Scores, loss: PairLoss
) -> Evaluation:
    """Exact means over the held-out pairs from branch scores of policy and reference, [n, 2] each.

    Entropy and mass are means over the positions of the chosen completions, likelihoods means over pairs of
    per-token means (arXiv 2410.11677). Standard errors are over prompts.
    """
    pairs = pair_view(examples, policy.sums, reference.sums)
    out = loss(pairs)
    weights = row_weights(examples, out.losses)
    losses = Quotient((out.losses * weights).double().cpu().numpy(), np.ones(len(examples)))
    prompts = prompt_numbers(examples)
    metrics = {
        **pair_metrics(pairs, out, weights),
        **named_errors({"loss": losses.error(prompts)}),
        **_top_metrics(policy, prompts),
    }
    estimates = {
        "loss": mean_interval(losses.numerators),
        "rewards/accuracies": share(outcomes(out.reward_chosen - out.reward_rejected)),
        "accuracy_logp": share(outcomes(pairs.chosen - pairs.rejected)),
        "rewards/margins": mean_interval((out.reward_chosen - out.reward_rejected).tolist()),
        "likelihood/chosen": mean_interval((pairs.chosen / pairs.chosen_tokens).tolist()),
    }
    return Evaluation(metrics, estimates)


def evaluate_given_answers(examples: Sequence[Example], policy: Scores) -> Evaluation:
    """Loss per answer token over held-out rows of one answer, from its scores [n, 1]; entropy and mass as for
    pairs. The interval of the loss is that of a ratio, from the rows' residuals."""
    sums, counts = policy.sums[:, 0].double(), policy.counts[:, 0].double()
    weights, prompts = row_weights(examples, sums), prompt_numbers(examples)
    losses = Quotient((row_losses(sums) * weights).numpy(), counts.numpy())
    metrics = {
        **row_metrics(sums, counts, weights),
        **named_errors({"loss": losses.error(prompts)}),
        **_top_metrics(policy, prompts),
    }
    estimates = {
        "loss": quotient_interval(losses),
        "likelihood/chosen": mean_interval((sums / counts).tolist()),
    }
    return Evaluation(metrics, estimates)


def prompt_numbers(examples: Sequence[Example]) -> np.ndarray:
    """int64 [n]: which of the distinct prompts, from 0, each row has."""
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(row.prompt.tobytes(), len(numbers)) for row in examples])


def _top_metrics(policy: Scores, prompts: np.ndarray) -> dict[str, float]:
    """Top-10 entropy and mass over the positions of first branches; nothing where they were not scored."""
    if policy.top_entropy is None or policy.top_mass is None:
        return {}
    tokens = policy.counts[:, 0].double().numpy()
    quotients = {
        "entropy/top10": Quotient(policy.top_entropy[:, 0].double().numpy(), tokens),
        "mass/top10": Quotient(policy.top_mass[:, 0].double().numpy(), tokens),
    }
    metrics = {name: quotient.value for name, quotient in quotients.items()}
    return metrics | named_errors({name: quotient.error(prompts) for name, quotient in quotients.items()})


def evaluate_rewards(examples: Sequence[Example], rewards: Tensor, loss: RewardLoss) -> Evaluation:
    """Loss and accuracy of a reward model over the held-out pairs, from its scores [n, 2]."""
    out = loss(reward_pairs(examples, rewards))
    weights = row_weights(examples, out.losses)
    losses = Quotient((out.losses * weights).double().cpu().numpy(), np.ones(len(examples)))
    margins = out.reward_chosen - out.reward_rejected
    estimates = {
        "loss": mean_interval(losses.numerators),
        "rewards/accuracies": share(outcomes(margins)),
        "rewards/margins": mean_interval(margins.tolist()),
    }
    errors = named_errors({"loss": losses.error(prompt_numbers(examples))})
    return Evaluation({**reward_metrics(out, weights), **errors}, estimates)


def evaluate_answers(
    rows: Sequence[Row], answers: Sequence[str], gold: Callable[[Row, str], GoldScore]
) -> Evaluation:
    """Gold scores of freshly sampled answers."""
    scores = [gold(row, answer) for row, answer in zip(rows, answers, strict=True)]
    total = mean_interval([score.total for score in scores], bounds=(0.0, 1.0))
    form = mean_interval([score.form for score in scores], bounds=(0.0, 1.0))
    content = mean_interval([score.content for score in scores], bounds=(0.0, 1.0))
    # One answer to a prompt, so answers are independent.
    totals = Quotient(np.array([score.total for score in scores]), np.ones(len(scores)))
    return Evaluation(
        metrics={
            "gold/mean": total.value,
            "gold/form": form.value,
            "gold/content": content.value,
            **named_errors({"gold/mean": totals.error(np.arange(len(scores)))}),
        },
        estimates={"gold/mean": total, "gold/form": form, "gold/content": content},
    )


def joined(parts: Sequence[Evaluation]) -> Evaluation:
    """Several evaluations of the same step as one."""
    return Evaluation(
        metrics={name: value for part in parts for name, value in part.metrics.items()},
        estimates={name: value for part in parts for name, value in part.estimates.items()},
    )
