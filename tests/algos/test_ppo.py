"""PPO's functions against tables worked out by hand or by plain loops."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from alignctl.algos import ppo


def table(rows: list[list[float]]) -> Tensor:
    """Rows of unequal lengths, the rest filled with a number that would show wherever it is read."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[777.0] * (longest - len(row))] for row in rows], dtype=torch.float64)


def mask_of(rows: list[list[float]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[place < len(row) for place in range(longest)] for row in rows])


def rows_of(values: Tensor, mask: Tensor) -> list[list[float]]:
    """Back to rows of unequal lengths; what lies outside the mask has to be 0."""
    assert bool((values[~mask] == 0).all())
    return [row[kept].tolist() for row, kept in zip(values, mask, strict=True)]


LOG_RATIOS = [[0.5, -1.0, 2.0], [0.25], [1.0, 1.0]]
MASK = mask_of(LOG_RATIOS)
VALUES = [[0.1, 0.4, -0.2], [0.3], [-0.5, 0.7]]


def test_every_token_pays_for_its_log_ratio_and_the_last_one_gets_the_score() -> None:
    rewards = ppo.token_rewards(torch.tensor([10.0, -3.0, 0.5]), table(LOG_RATIOS), MASK, beta=0.1)
    expected = [[-0.05, 0.1, 10 - 0.2], [-3 - 0.025], [-0.1, 0.5 - 0.1]]
    assert rows_of(rewards, MASK) == [pytest.approx(row, abs=1e-12) for row in expected]


def gae_by_definition(
    rewards: list[float], values: list[float], gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """A_t as the double sum of its definition, one answer at a time."""
    following = [*values[1:], 0.0]
    errors = [r + gamma * after - v for r, after, v in zip(rewards, following, values, strict=True)]
    places = range(len(errors))
    advantages = [sum((gamma * lam) ** (later - t) * errors[later] for later in places[t:]) for t in places]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0), (0.0, 0.9)])
def test_gae_is_the_decayed_sum_of_errors_on_rows_of_every_length(gamma: float, lam: float) -> None:
    rewards = [[0.3, -0.1, 2.0], [1.5], [0.0, -1.0]]
    advantages, returns = ppo.gae(table(rewards), table(VALUES), MASK, gamma, lam)
    expected = [gae_by_definition(r, v, gamma, lam) for r, v in zip(rewards, VALUES, strict=True)]
    assert rows_of(advantages, MASK) == [pytest.approx(a, abs=1e-12) for a, _ in expected]
    assert rows_of(returns, MASK) == [pytest.approx(r, abs=1e-12) for _, r in expected]


def test_gae_by_hand() -> None:
    advantages, returns = ppo.gae(table([[0.0, 1.0]]), table([[0.5, 0.25]]), mask_of([[0, 0]]), 1.0, 0.5)
    # Errors: 0 + 0.25 - 0.5 = -0.25 and 1 + 0 - 0.25 = 0.75.
    assert advantages.tolist() == [[-0.25 + 0.5 * 0.75, 0.75]]
    assert returns.tolist() == [[0.625, 1.0]]


def test_undecayed_and_undiscounted_advantages_are_rewards_to_come_minus_values() -> None:
    rewards = [[0.3, -0.1, 2.0], [1.5], [0.0, -1.0]]
    advantages, returns = ppo.gae(table(rewards), table(VALUES), MASK, 1.0, 1.0)
    to_come = [[2.2, 1.9, 2.0], [1.5], [-1.0, -1.0]]
    assert rows_of(returns, MASK) == [pytest.approx(row, abs=1e-12) for row in to_come]
    minus = [[r - v for r, v in zip(*pair, strict=True)] for pair in zip(to_come, VALUES, strict=True)]
    assert rows_of(advantages, MASK) == [pytest.approx(row, abs=1e-12) for row in minus]


def test_the_return_of_an_answer_is_its_score_minus_its_summed_kl() -> None:
    totals = ppo.total_returns(torch.tensor([10.0, -3.0, 0.5]), table(LOG_RATIOS), MASK, beta=0.1)
    assert totals.tolist() == pytest.approx([10 - 0.15, -3 - 0.025, 0.5 - 0.2], abs=1e-12)


def test_an_answer_is_measured_against_the_mean_of_its_prompts_others() -> None:
    advantages = ppo.leave_one_out(torch.tensor([3.0, 6.0, 9.0, 1.0, 1.0, 4.0]), 3)
    assert advantages.tolist() == [3 - 7.5, 6 - 6, 9 - 4.5, 1 - 2.5, 1 - 2.5, 4 - 1]
    assert ppo.leave_one_out(torch.tensor([2.0, 5.0]), 2).tolist() == [-3, 3]


def test_whitened_values_have_mean_0_and_variance_1_over_the_mask_alone() -> None:
    values = [[1.0, 5.0, -2.0], [0.5], [4.0, 4.0]]
    white = rows_of(ppo.whiten(table(values), MASK), MASK)
    flat = [value for row in values for value in row]
    mean, spread = statistics.fmean(flat), statistics.pstdev(flat)
    assert white == [pytest.approx([(v - mean) / spread for v in row], rel=1e-8) for row in values]


def test_values_that_are_all_alike_become_0_when_whitened() -> None:
    alike = torch.full((2, 3), 0.3, dtype=torch.float32)
    assert ppo.whiten(alike, torch.ones(2, 3, dtype=torch.bool)).abs().max() < 1e-6
    alone = ppo.whiten(torch.tensor([[5.0, 1.0]]), torch.tensor([[True, False]]))
    assert alone.tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (6.0, 1.0),
        (6.6, 1 + 0.25 * 0.1),
        (5.4, 1 - 0.25 * 0.1),
        (60.0, 1.05),
        (-1.0, 0.95),
    ],
)
def test_beta_follows_the_kl_and_at_most_by_a_twentieth(kl: float, factor: float) -> None:
    assert ppo.adapted_beta(0.2, kl, target=6.0) == pytest.approx(0.2 * factor, rel=1e-12)


# --- losses --------------------------------------------------------------------------------------------

RATIOS = [[1.0, 1.5, 0.5], [1.1], [1.5, 0.5]]
ADVANTAGES = [[2.0, 2.0, 2.0], [-1.0], [-2.0, -2.0]]


def of_ratios(ratios: list[list[float]]) -> tuple[Tensor, Tensor]:
    """New and old log-probabilities with these ratios."""
    old = table([[-1.0 - 0.5 * place for place in range(len(row))] for row in ratios])
    return old + table(ratios).log(), old


def test_policy_losses_are_the_worse_of_free_and_clipped() -> None:
    logps, old = of_ratios(RATIOS)
    losses = ppo.policy_losses(logps, old, table(ADVANTAGES), MASK, clip=0.2)
    # Gains count up to 1.2, what got worse counts in full: a bad token likelier, a good one less so.
    expected = [[-2.0, -2.4, -1.0], [1.1], [3.0, 1.6]]
    assert rows_of(losses, MASK) == [pytest.approx(row, abs=1e-12) for row in expected]


def test_clipping_stops_the_gradient_only_where_there_is_nothing_to_gain() -> None:
    logps, old = of_ratios(RATIOS)
    logps.requires_grad_()
    ppo.policy_losses(logps, old, table(ADVANTAGES), MASK, clip=0.2).sum().backward()
    assert logps.grad is not None
    expected = [[-2.0, 0.0, -1.0], [1.1], [3.0, 0.0]]
    assert rows_of(logps.grad, MASK) == [pytest.approx(row, abs=1e-12) for row in expected]


def test_the_critic_is_regressed_on_returns_and_its_gain_is_clipped() -> None:
    mask = torch.ones(1, 5, dtype=torch.bool)
    values = torch.tensor([[1.0, 1.5, 0.1, 1.5, 1.1]], dtype=torch.float64, requires_grad=True)
    old = torch.ones(1, 5, dtype=torch.float64)
    returns = torch.tensor([[3.0, 3.0, 3.0, 0.0, 1.0]], dtype=torch.float64)
    losses = ppo.value_losses(values, old, returns, mask, clip=0.2)
    # The second moved 0.5 towards its return and counts as 1.2; the third and fourth moved away, in full.
    expected = [0.5 * 4.0, 0.5 * 1.8**2, 0.5 * 2.9**2, 0.5 * 1.5**2, 0.5 * 0.01]
    assert losses[0].tolist() == pytest.approx(expected, abs=1e-12)
    losses.sum().backward()
    assert values.grad is not None
    assert values.grad[0].tolist() == pytest.approx([-2.0, 0.0, -2.9, 1.5, 0.1], abs=1e-12)


def test_what_lies_outside_the_mask_has_neither_loss_nor_gradient() -> None:
    logps, old = of_ratios(RATIOS)
    logps = torch.where(MASK, logps, 1e6).requires_grad_()
    values = table(VALUES).requires_grad_()
    policy = ppo.policy_losses(logps, old, table(ADVANTAGES), MASK, clip=0.2)
    critic = ppo.value_losses(values, table(VALUES) + 0.1, table(ADVANTAGES), MASK, clip=0.2)
    rows_of(policy.detach(), MASK)
    rows_of(critic.detach(), MASK)
    (policy.sum() + critic.sum()).backward()
    assert logps.grad is not None
    assert values.grad is not None
    assert bool((logps.grad[~MASK] == 0).all())
    assert bool((values.grad[~MASK] == 0).all())


# --- what an update looks like -------------------------------------------------------------------------


def test_update_metrics_over_the_tokens_of_the_mask() -> None:
    logps, old = of_ratios(RATIOS)
    metrics = ppo.update_metrics(logps, old, table(ADVANTAGES), MASK, clip=0.2)
    ratios = [1.0, 1.5, 0.5, 1.1, 1.5, 0.5]
    assert metrics == pytest.approx(
        {
            "ratio": 6.1 / 6,
            "ratio/deviation": (0 + 0.5 + 0.5 + 0.1 + 0.5 + 0.5) / 6,
            # The second and the sixth token: as in the gradient above.
            "clip_fraction": 2 / 6,
            "approx_kl": sum(ratio - 1 - math.log(ratio) for ratio in ratios) / 6,
        },
        rel=1e-12,
    )


def test_explained_variance_is_1_for_the_returns_themselves_and_0_for_a_constant() -> None:
    returns = [[1.0, 2.0, 4.0], [0.0], [3.0, -1.0]]
    assert ppo.explained_variance(table(returns), table(returns), MASK) == 1
    assert ppo.explained_variance(torch.full((3, 3), 5.0), table(returns), MASK) == pytest.approx(0)
    rest = [
        r - v for row, other in zip(returns, VALUES, strict=True) for r, v in zip(row, other, strict=True)
    ]
    flat = [value for row in returns for value in row]
    expected = 1 - statistics.pvariance(rest) / statistics.pvariance(flat)
    assert ppo.explained_variance(table(VALUES), table(returns), MASK) == pytest.approx(expected)
    assert math.isnan(ppo.explained_variance(table(VALUES), torch.ones(3, 3), MASK))


# --- what a small change would leave unseen ------------------------------------------------------------


def test_an_answer_of_one_token_has_one_error() -> None:
    advantages, returns = ppo.gae(table([[2.0]]), table([[0.5]]), mask_of([[0]]), 1.0, 0.95)
    assert (advantages.tolist(), returns.tolist()) == ([[1.5]], [[2.0]])


def test_whitening_gives_way_where_the_variance_is_as_small_as_its_floor() -> None:
    values = torch.tensor([[1e-4, -1e-4]], dtype=torch.float64)
    white = ppo.whiten(values, torch.ones(1, 2, dtype=torch.bool))
    assert white.tolist() == [pytest.approx([0.5**0.5, -(0.5**0.5)], rel=1e-9)]


def test_a_ratio_is_the_new_policy_over_the_old() -> None:
    # 1.22 is clipped at 0.2; its inverse, 0.82, would not be.
    new, old = table([[math.log(1.22)]]), table([[0.0]])
    metrics = ppo.update_metrics(new, old, table([[1.0]]), mask_of([[0]]), 0.2)
    assert metrics["clip_fraction"] == 1.0
    assert metrics["ratio"] == pytest.approx(1.22, rel=1e-12)


def test_variance_is_explained_however_small_it_is() -> None:
    returns = table([[0.0, 0.1]])
    assert ppo.explained_variance(returns, returns, mask_of([[0, 0]])) == 1.0
