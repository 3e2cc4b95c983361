"""What may go wrong in learning from a reward, as the metrics of a step show it: alarms, and one stop.

Watched are length, KL, perplexity and entropy of the policy's own answers (arXiv 2307.04964), most of them
against their values at the first step, which a run hands on from step to step. The thresholds are this
project's: wide enough that a run which learns does not meet them. An alarm's text is the same at every step.
Apart from rule.py because a rollout shows in a step, for nothing, what else takes an evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from alignctl.config import PpoConfig

RATIO_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Mean distance from 1 of the ratios before the first update. Rounding alone stays below: 0.04 for SmolLM2 in
bfloat16, whose logits are rounded before the log-softmax, and 3e-7 in float32."""
FAR = 30.0
"""Nats per answer from which on the reference no longer holds the policy."""
TARGETS_MISSED = 3.0
"""Times algo.kl_target."""
AWAY_AT_START = 1.0
"""Nats per answer at the first step that are worth a word."""
PERPLEXITY_GROWTH = 2.0
ENTROPY_LEFT = 0.25
AT_START = {
    "length_at_start": "response_length",
    "perplexity_at_start": "perplexity",
    "entropy_at_start": "entropy/top10",
}
"""Name handed on -> metric of the first step."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What a step tells the user, and why the run should end, if it should."""

    alarms: tuple[str, ...]
    stop: str | None


def at_start(metrics: Mapping[str, float], carried: Mapping[str, float]) -> dict[str, float]:
    """What the first step looked like: as handed on, or from the present metrics where nothing was."""
    seen = {name: carried.get(name, metrics[metric]) for name, metric in AT_START.items()}
    return {name: value for name, value in seen.items() if math.isfinite(value)}


def watch(
    metrics: Mapping[str, float],
    start: Mapping[str, float],
    config: PpoConfig,
    *,
    first: bool,
    dtype: torch.dtype,
) -> Watch:
    """Alarms and stop of a step; `start` is what `at_start` gave, `first` whether this step is the first."""
    alarms = [
        *_kl_alarms(metrics, config, first=first),
        *_text_alarms(metrics, start),
        *_score_alarms(metrics, config),
        *_update_alarms(metrics, dtype),
    ]
    return Watch(tuple(alarms), _collapse(metrics, start, config))


def kl_limit(config: PpoConfig) -> float:
    """Nats per answer above which the reward may be exploited."""
    return FAR if config.kl_target is None else TARGETS_MISSED * config.kl_target


def _kl_alarms(metrics: Mapping[str, float], config: PpoConfig, *, first: bool) -> list[str]:
    kl, error = metrics["kl/sequence"], metrics.get("kl/sequence_se", math.nan)
    alarms = []
    limit = kl_limit(config)
    if first and kl > AWAY_AT_START:
        alarms.append(
            f"the starting policy is more than {AWAY_AT_START:g} nat per answer away from its reference: "
            f"with algo.beta={config.beta:g} every token costs from the first step on, and short answers "
            "cost least; watch response_length"
        )
    elif kl > limit:
        alarms.append(
            f"KL to the reference is above {limit:g} nats per answer: the reward may be exploited; "
            "read samples.jsonl, or take a higher algo.beta or algo.kl_target=N"
        )
    if kl < -1 and kl + 3 * error < 0:
        alarms.append(
            "KL to the reference is below zero by more than three standard errors, which it cannot be for "
            "answers sampled from the policy as it is scored"
        )
    return alarms


def _text_alarms(metrics: Mapping[str, float], start: Mapping[str, float]) -> list[str]:
    alarms = []
    if metrics["perplexity"] > PERPLEXITY_GROWTH * start.get("perplexity_at_start", math.inf):
        alarms.append(
            f"the perplexity of the policy's own answers is more than {PERPLEXITY_GROWTH:g} times that of "
            "the first step: tokens are becoming random; a lower train.lr or a higher algo.beta is the usual "
            "cure"
        )
    if metrics["entropy/top10"] < ENTROPY_LEFT * start.get("entropy_at_start", 0.0):
        alarms.append(
            f"the entropy of the policy is below {ENTROPY_LEFT:g} times that of the first step: answers are "
            "becoming one answer; a lower train.lr or a higher algo.beta is the usual cure"
        )
    return alarms


def _score_alarms(metrics: Mapping[str, float], config: PpoConfig) -> list[str]:
    if metrics["eos_rate"] == 0 and config.missing_end_score is not None:
        return [
            f"no answer of a step came to its end in algo.max_new_tokens={config.max_new_tokens}, so all got "
            "algo.missing_end_score and nothing tells them apart; raise algo.max_new_tokens, or start from a "
            "model that ends its answers (algo=sft)"
        ]
    if metrics["score/std"] == 0:
        return ["all answers of a step had the same score: there is nothing in it to learn but the KL"]
    return []


def _update_alarms(metrics: Mapping[str, float], dtype: torch.dtype) -> list[str]:
    alarms = []
    if "updates/skipped" in metrics:
        alarms.append("an update within a step was not finite and changed nothing; others were made")
    tolerance = RATIO_TOLERANCE[dtype]
    if metrics.get("ratio/deviation", 0.0) > tolerance:
        alarms.append(
            f"the ratios before the first update of a step are not 1 (off by more than {tolerance:g} on "
            "average): the policy that is trained is not the one that was scored; dropout is the usual cause"
        )
    return alarms


def _collapse(metrics: Mapping[str, float], start: Mapping[str, float], config: PpoConfig) -> str | None:
    length, before = metrics["response_length"], start["length_at_start"]
    if length >= config.stop_length * before:
        return None
    return (
        f"answers are down to {length:.1f} tokens from {before:.1f} at the first step, below "
        f"algo.stop_length={config.stop_length:g} of it. KL to the reference ({metrics['kl/sequence']:.2f} "
        "nats per answer) is summed over tokens, so it taxes length, the more so when the starting policy is "
        "not the reference; or the reward likes short answers. Ways on: a lower algo.beta, algo.kl_target=N, "
        "a start from the reference (salsa-ppo: algo.policy_init=soup), algo.missing_end_score for answers "
        "that are cut"
    )
