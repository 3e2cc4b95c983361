"""Alarms of PPO and the stop, each with its cause."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from alignctl.train.watch.rollouts import at_start, watch

HEALTHY = {
    "response_length": 40.0,
    "kl/sequence": 3.0,
    "kl/sequence_se": 0.5,
    "perplexity": 4.0,
    "entropy/top10": 1.2,
    "eos_rate": 0.9,
    "score/std": 0.4,
    "ratio/deviation": 1e-7,
}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, None),
        ({"kl/sequence": 31.0}, "above 30 nats"),
        ({"kl/sequence": -2.0}, "below zero"),
        ({"kl/sequence": -2.0, "kl/sequence_se": 1.0}, None),
        ({"perplexity": 8.1}, "becoming random"),
        ({"entropy/top10": 0.29}, "becoming one answer"),
        ({"eos_rate": 0.0, "score/std": 0.0}, "algo.max_new_tokens"),
        ({"score/std": 0.0}, "same score"),
        ({"ratio/deviation": 2e-3}, "not 1"),
        ({"updates/skipped": 1.0}, "not finite"),
        ({"ratio/deviation": math.nan, "perplexity": math.nan, "kl/sequence": math.nan}, None),
    ],
)
def test_each_alarm_has_its_cause(
    three: SimpleNamespace, changes: dict[str, float], word: str | None
) -> None:
    config = three.config.model_copy(update={"missing_end_score": -1.0})
    start = at_start(HEALTHY, {})
    found = watch({**HEALTHY, **changes}, start, config, first=False, dtype=torch.float32)
    assert found.stop is None
    assert len(found.alarms) == (word is not None)
    assert word is None or word in found.alarms[0]


def test_a_start_away_from_the_reference_is_told_at_the_first_step_alone(three: SimpleNamespace) -> None:
    start = at_start(HEALTHY, {})
    first, later = (
        watch(HEALTHY, start, three.config, first=first, dtype=torch.float32) for first in (True, False)
    )
    assert "away from its reference" in first.alarms[0]
    assert later.alarms == ()


def test_a_kl_target_moves_the_alarm(three: SimpleNamespace) -> None:
    config = three.config.model_copy(update={"kl_target": 0.5})
    found = watch(HEALTHY, at_start(HEALTHY, {}), config, first=False, dtype=torch.float32)
    assert "above 1.5 nats" in found.alarms[0]


@pytest.mark.parametrize(("share", "stops"), [(0.25, True), (0.2, False), (0.0, False)])
def test_a_run_ends_when_its_answers_have_shrunk(three: SimpleNamespace, share: float, stops: bool) -> None:
    config = three.config.model_copy(update={"stop_length": share})
    short = {**HEALTHY, "response_length": 9.0}
    found = watch(short, at_start(HEALTHY, {}), config, first=False, dtype=torch.float32)
    assert (found.stop is not None) is stops
    if found.stop:
        for word in ("9.0 tokens from 40.0", "algo.stop_length=0.25", "3.00 nats", "algo.policy_init=soup"):
            assert word in found.stop
