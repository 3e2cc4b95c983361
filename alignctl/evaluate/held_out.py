"""Evaluation while training: held-out pairs, and the model's own answers to held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignctl.algos import PairLoss
from alignctl.algos.bradley_terry import RewardLoss, reward_metrics, reward_pairs
from alignctl.algos.pairs import outcomes, pair_metrics, pair_view, row_weights
from alignctl.algos.sft import row_losses, row_metrics
from alignctl.evaluate.statistics import Estimate, mean_interval, share
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
    per-token means (arXiv 2410.11677).
    """
    pairs = pair_view(examples, policy.sums, reference.sums)
    out = loss(pairs)
    weights = row_weights(examples, out.losses)
    metrics = pair_metrics(pairs, out, weights)
    if policy.top_entropy is not None and policy.top_mass is not None:
        tokens = policy.counts[:, 0].sum().item()
        metrics["entropy/top10"] = policy.top_entropy[:, 0].double().sum().item() / tokens
        metrics["mass/top10"] = policy.top_mass[:, 0].double().sum().item() / tokens
    estimates = {
        "loss": mean_interval((out.losses * weights).tolist()),
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
    metrics = row_metrics(sums, counts, row_weights(examples, sums))
    if policy.top_entropy is not None and policy.top_mass is not None:
        tokens = counts.sum().item()
        metrics["entropy/top10"] = policy.top_entropy[:, 0].double().sum().item() / tokens
        metrics["mass/top10"] = policy.top_mass[:, 0].double().sum().item() / tokens
    losses = row_losses(sums) * row_weights(examples, sums)
    residuals = (losses - metrics["loss"] * counts) / counts.mean()
    estimates = {
        "loss": mean_interval((metrics["loss"] + residuals).tolist()),
        "likelihood/chosen": mean_interval((sums / counts).tolist()),
    }
    return Evaluation(metrics, estimates)


def evaluate_rewards(examples: Sequence[Example], rewards: Tensor, loss: RewardLoss) -> Evaluation:
    """Loss and accuracy of a reward model over the held-out pairs, from its scores [n, 2]."""
    out = loss(reward_pairs(examples, rewards))
    weights = row_weights(examples, out.losses)
    margins = out.reward_chosen - out.reward_rejected
    estimates = {
        "loss": mean_interval((out.losses * weights).tolist()),
        "rewards/accuracies": share(outcomes(margins)),
        "rewards/margins": mean_interval(margins.tolist()),
    }
    return Evaluation(reward_metrics(out, weights), estimates)


def evaluate_answers(
    rows: Sequence[Row], answers: Sequence[str], lengths: Sequence[int], gold: Callable[[Row, str], GoldScore]
) -> Evaluation:
    """Gold scores of freshly sampled answers, and their mean length in tokens."""
    scores = [gold(row, answer) for row, answer in zip(rows, answers, strict=True)]
    total = mean_interval([score.total for score in scores], bounds=(0.0, 1.0))
    form = mean_interval([score.form for score in scores], bounds=(0.0, 1.0))
    content = mean_interval([score.content for score in scores], bounds=(0.0, 1.0))
    return Evaluation(
        metrics={
            "gold/mean": total.value,
            "gold/form": form.value,
            "gold/content": content.value,
            "response_length": sum(lengths) / len(lengths),
        },
        estimates={"gold/mean": total, "gold/form": form, "gold/content": content},
    )


def joined(parts: Sequence[Evaluation]) -> Evaluation:
    """Several evaluations of the same step as one."""
    return Evaluation(
        metrics={name: value for part in parts for name, value in part.metrics.items()},
        estimates={name: value for part in parts for name, value in part.estimates.items()},
    )
