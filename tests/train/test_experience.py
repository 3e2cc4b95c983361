"""From sampled answers to experience: log-probabilities, advantages and metrics, against plain passes over
single sequences of a real Llama of three tokens."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from alignctl.models.critic import separate_critic
from alignctl.records import Experience, Layout
from alignctl.train.experience import answers_of, collect

BETA = 0.3
ALL, ONE = 100_000, 1
"""Forward passes of everything, and of one prompt."""


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize("budget", [ALL, ONE])
def test_packed_rows_are_scored_as_plain_sequences_whatever_ids_they_hold(
    three: SimpleNamespace, layout: Layout, budget: int
) -> None:
    # The end of a turn stands in the middle of an answer here, and the padding's id everywhere.
    sampled = three.sampled([[(2, 2, 0), (0,)], [(0, 0), (2, 0, 2)]])
    critic = three.drawn(separate_critic(three.policy(three.model(seed=3)), None))
    config = three.config.model_copy(update={"critic": "separate", "gae_lambda": 1.0})
    experience, _ = collect(
        three.policy(three.model(), layout),
        three.reference(three.model(seed=1), "padded"),
        critic,
        sampled,
        torch.zeros(4),
        config,
        BETA,
        token_budget=budget,
    )
    answers = three.answers_in(sampled)
    logps = [three.token_logps(three.model(), three.prompt, answer).detach() for answer in answers]
    other = [three.token_logps(three.model(seed=1), three.prompt, answer).detach() for answer in answers]
    values = [three.plain_values(critic, three.prompt, answer).tolist() for answer in answers]
    to_come = [
        (-BETA * (a - b)).flip(0).cumsum(0).flip(0).tolist() for a, b in zip(logps, other, strict=True)
    ]
    assert experience.mask.sum(dim=1).tolist() == [3, 1, 2, 3]
    assert three.rows(experience.logps, experience) == [pytest.approx(x.tolist(), abs=1e-10) for x in logps]
    assert three.rows(experience.values, experience) == [pytest.approx(x, abs=1e-10) for x in values]
    assert three.rows(experience.returns, experience) == [pytest.approx(x, abs=1e-10) for x in to_come]


def test_without_a_critic_every_token_has_its_answers_advantage(three: SimpleNamespace) -> None:
    sampled = three.sampled([[(0, 1, 2), (2,)], [(1, 1, 1), (0, 2)]])
    scores = torch.tensor([1.0, -0.5, 0.25, 2.0], dtype=torch.float64)
    config = three.config.model_copy(update={"missing_end_score": -1.0})
    experience, metrics = collect(
        three.policy(three.model()),
        three.reference(three.model(seed=1)),
        None,
        sampled,
        scores,
        config,
        BETA,
        token_budget=ALL,
    )
    # The third answer was cut.
    counted = [1.0, -0.5, -1.0, 2.0]
    totals = []
    for answer, score in zip(three.answers_in(sampled), counted, strict=True):
        ratio = three.token_logps(three.model(), three.prompt, answer) - three.token_logps(
            three.model(seed=1), three.prompt, answer
        )
        totals.append(score - BETA * float(ratio.sum().detach()))
    a, b, c, d = totals
    expected = [[a - b] * 3, [b - a], [c - d] * 3, [d - c] * 2]
    assert three.rows(experience.advantages, experience) == [pytest.approx(x, abs=1e-10) for x in expected]
    assert metrics["reward/mean"] == pytest.approx((1.0 - 0.5 + 0.25 + 2.0) / 4)
    assert metrics["score/mean"] == pytest.approx(sum(counted) / 4)
    assert metrics["score/std"] == pytest.approx(np.std(counted))


def test_whitening_is_over_all_tokens_of_the_step(three: SimpleNamespace) -> None:
    policy, reference = three.policy(three.model()), three.reference(three.model(seed=1))
    plain, whitened = (
        collect(
            policy,
            reference,
            None,
            three.mixed,
            three.mixed_scores,
            three.config.model_copy(update={"whiten": whiten}),
            BETA,
            token_budget=ALL,
        )[0]
        for whiten in (False, True)
    )
    taken = plain.advantages[plain.mask].numpy()
    expected = (taken - taken.mean()) / taken.std()
    assert whitened.advantages[plain.mask].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_metrics_of_a_rollout_with_standard_errors_over_prompts(three: SimpleNamespace) -> None:
    _, metrics = collect(
        three.policy(three.model()),
        three.reference(three.model(seed=1)),
        None,
        three.mixed,
        three.mixed_scores,
        three.config,
        BETA,
        token_budget=ALL,
    )
    answers = three.answers_in(three.mixed)
    with torch.no_grad():
        logps = [three.token_logps(three.model(), three.prompt, answer) for answer in answers]
        ratios = [
            float((own - three.token_logps(three.model(seed=1), three.prompt, answer)).sum())
            for own, answer in zip(logps, answers, strict=True)
        ]
    tokens = sum(map(len, answers))
    by_prompt = [sum(ratios[k : k + 2]) for k in range(0, 10, 2)]
    lengths = [sum(map(len, answers[k : k + 2])) for k in range(0, 10, 2)]
    means = [kl / 2 for kl in by_prompt]
    per_token = sum(by_prompt) / tokens
    rest = sum((kl - per_token * n) ** 2 for kl, n in zip(by_prompt, lengths, strict=True))
    surprise = -sum(float(own.sum()) for own in logps) / tokens
    expected = {
        "kl/sequence": sum(ratios) / 10,
        "kl/sequence_se": float(np.std(means, ddof=1)) / math.sqrt(5),
        "kl/token": per_token,
        "kl/token_se": math.sqrt(rest * 5 / 4) / tokens,
        "perplexity": math.exp(surprise),
        "response_length": tokens / 10,
        "eos_rate": 7 / 10,
        "beta": BETA,
        # Three tokens are all there are, so the ten likeliest hold all the probability.
        "mass/top10": 1.0,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert 0 < metrics["entropy/top10"] < math.log2(3)


def test_a_single_prompt_has_no_standard_error(three: SimpleNamespace) -> None:
    _, metrics = collect(
        three.policy(three.model()),
        three.reference(three.model(seed=1)),
        None,
        three.sampled([[(0, 2), (2,)]]),
        torch.zeros(2),
        three.config,
        BETA,
        token_budget=ALL,
    )
    assert "kl/sequence" in metrics
    assert "kl/sequence_se" not in metrics


def test_a_minibatch_is_its_prompts_alone(three: SimpleNamespace) -> None:
    experience, _ = collect(
        three.policy(three.model()),
        three.reference(three.model(seed=1)),
        None,
        three.mixed,
        three.mixed_scores,
        three.config,
        BETA,
        token_budget=ALL,
    )
    part = answers_of(experience, [3, 0], samples=2)
    for name in ("mask", "logps", "values", "advantages", "returns"):
        whole, cut = vars_of(experience)[name], vars_of(part)[name]
        assert cut.tolist() == [whole[k].tolist() for k in (6, 7, 0, 1)], name


def vars_of(experience: Experience) -> dict[str, Tensor]:
    return {
        "mask": experience.mask,
        "logps": experience.logps,
        "values": experience.values,
        "advantages": experience.advantages,
        "returns": experience.returns,
    }


def test_discount_and_decay_are_each_their_own(three: SimpleNamespace) -> None:
    critic = three.drawn(separate_critic(three.policy(three.model(seed=3)), None))
    experience, _ = collect(
        three.policy(three.model()),
        three.reference(three.model(seed=1)),
        critic,
        three.sampled([[(0, 2), (2,)]]),
        torch.tensor([1.0, 0.5]),
        three.gae(gamma=0.5, gae_lambda=0.75),
        0.0,
        token_budget=ALL,
    )
    first, second = three.plain_values(critic, three.prompt, (0, 2)).tolist()
    late = 1.0 - second
    early = 0.5 * second - first + 0.5 * 0.75 * late
    assert experience.advantages[0].tolist() == pytest.approx([early, late], abs=1e-10)
    assert experience.advantages[1].tolist() == pytest.approx([0.5 - first, 0.0], abs=1e-10)
