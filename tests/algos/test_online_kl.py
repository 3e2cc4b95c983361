"""The online KL estimators on a model so small that every answer can be written down and weighed.

Four tokens and a stop token, answers of up to three tokens: 85 answers in all. The exact divergence is a sum
over them, and autograd through that sum is the gradient that an estimator has to have on average.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alignctl.algos.online_kl import kl_metrics, online_kl
from alignctl.records import OnlineTokens

VOCABULARY, STOP, LONGEST = 5, 4, 3


def every_answer() -> list[tuple[int, ...]]:
    """Ending with the stop token, or cut at the longest length."""
    found = []
    for length in range(1, LONGEST + 1):
        for body in itertools.product(range(STOP), repeat=length - 1):
            lasts = range(VOCABULARY) if length == LONGEST else [STOP]
            found += [(*body, last) for last in lasts]
    return found


ANSWERS = every_answer()


class Recurrent(nn.Module):
    """log pi(. | prefix) from a small recurrent cell: what comes later depends on every token before."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(VOCABULARY + 1, 6, dtype=torch.float64)
            self.cell = nn.GRUCell(6, 7, dtype=torch.float64)
            self.head = nn.Linear(7, VOCABULARY, dtype=torch.float64)
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.mul_(1.5)

    def forward(self, answer: tuple[int, ...]) -> Tensor:
        """[t, V] log-probabilities, the first before any token."""
        state, rows = torch.zeros(1, 7, dtype=torch.float64), []
        for token in (VOCABULARY, *answer[:-1]):
            state = self.cell(self.embedding(torch.tensor([token])), state)
            rows.append(self.head(state)[0].log_softmax(-1))
        return torch.stack(rows)


@dataclass(frozen=True, slots=True, eq=False)
class Enumerated:
    """Tokens of all answers, one answer after another."""

    policy: Recurrent
    logps: Tensor
    ref_logps: Tensor
    kl: Tensor
    counts: Tensor

    def chosen(self, answers: list[int]) -> OnlineTokens:
        """The tokens of these answers, as if they had been sampled."""
        starts = (self.counts.cumsum(0) - self.counts).tolist()
        places = [starts[a] + t for a in answers for t in range(int(self.counts[a]))]
        counts = self.counts[answers]
        branch = torch.arange(len(answers)).repeat_interleave(counts)
        return OnlineTokens(self.logps[places], self.ref_logps[places], self.kl[places], branch, counts)

    @property
    def sums(self) -> Tensor:
        """log pi of each answer."""
        return torch.stack([part.sum() for part in self.logps.split(self.counts.tolist())])

    def gradient(self, value: Tensor) -> Tensor:
        """Of every parameter, in one vector."""
        parts = torch.autograd.grad(value, list(self.policy.parameters()), retain_graph=True)
        return torch.cat([part.flatten() for part in parts])


@pytest.fixture(scope="module")
def toy() -> Enumerated:
    policy, reference = Recurrent(0), Recurrent(1)
    logps, ref_logps, kl = [], [], []
    for answer in ANSWERS:
        p, q = policy(answer), reference(answer).detach()
        token = torch.tensor(answer)[:, None]
        logps.append(p.gather(1, token)[:, 0])
        ref_logps.append(q.gather(1, token)[:, 0])
        kl.append((p.exp() * (p - q)).sum(-1))
    counts = torch.tensor([len(answer) for answer in ANSWERS])
    return Enumerated(policy, torch.cat(logps), torch.cat(ref_logps), torch.cat(kl), counts)


def divergence(toy: Enumerated) -> Tensor:
    """KL(pi || ref) over whole answers, differentiable."""
    ref = torch.stack([part.sum() for part in toy.ref_logps.split(toy.counts.tolist())])
    return (toy.sums.exp() * (toy.sums - ref)).sum()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def groups(samples: int) -> tuple[list[int], Tensor]:
    """Every tuple of `samples` answers, end to end, as prompts that were answered so often."""
    tuples = list(itertools.product(range(len(ANSWERS)), repeat=samples))
    return [answer for group in tuples for answer in group], torch.tensor(tuples)


def test_the_toy_has_all_answers_and_policy_and_reference_differ(toy: Enumerated) -> None:
    assert len(ANSWERS) == 85
    assert float(toy.sums.detach().exp().sum()) == pytest.approx(1, abs=1e-12)
    assert float(divergence(toy).detach()) > 0.1


# --- the gradient --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("estimator", "samples"), [("full", 1), ("full", 2), ("rloo", 1), ("rloo", 2)])
def test_expected_gradient_is_that_of_the_divergence(toy: Enumerated, estimator, samples: int) -> None:
    answers, tuples = groups(samples)
    weights = toy.sums.detach()[tuples].sum(1).exp()
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    found = online_kl(toy.chosen(answers), samples=samples, estimator=estimator)
    expected_loss = (weights * found.losses.view(-1, samples).mean(1)).sum()
    assert relative(toy.gradient(expected_loss), toy.gradient(divergence(toy))) < 1e-8


def test_expected_value_is_the_divergence(toy: Enumerated) -> None:
    weights, everything = toy.sums.detach().exp(), list(range(len(ANSWERS)))
    exact = float(divergence(toy).detach())
    for estimator in ("full", "rloo"):
        found = online_kl(toy.chosen(everything), samples=1, estimator=estimator)
        assert float((weights * found.sequence).sum()) == pytest.approx(exact, rel=1e-12)
        assert not found.sequence.requires_grad
        assert float((weights.repeat_interleave(toy.counts) * found.per_token).sum()) == pytest.approx(exact)


def test_the_forms_that_are_often_seen_have_another_gradient(toy: Enumerated) -> None:
    """So the law above can fail: each of these is a plausible loss with the right value."""
    weights, exact = toy.sums.detach().exp(), toy.gradient(divergence(toy))

    def error(per_token: Tensor) -> float:
        sums = torch.stack([part.sum() for part in per_token.split(toy.counts.tolist())])
        return relative(toy.gradient((weights * sums).sum()), exact)

    ratio = toy.logps - toy.ref_logps
    assert error(ratio) == pytest.approx(1, abs=1e-8), "k1 as a loss: no gradient at all"
    assert error(torch.expm1(-ratio) + ratio) > 0.1, "k3 as a loss"
    assert error(toy.kl) > 0.005, "no score term"


def variance(toy: Enumerated, estimator, samples: int) -> float:
    """Of the gradient of the head's weight that one prompt's answers give, summed over its elements."""
    weights, head = toy.sums.detach().exp(), toy.policy.head.weight

    def table(values: Tensor) -> Tensor:
        rows = torch.eye(len(values), dtype=values.dtype)
        return torch.autograd.grad(values, head, rows, retain_graph=True, is_grads_batched=True)[0].flatten(1)

    if estimator == "full":
        losses = online_kl(toy.chosen(list(range(len(ANSWERS)))), samples=1, estimator="full").losses
        each = table(losses)
        return float((weights * (each - weights @ each).square().sum(1)).sum()) / samples
    assert samples == 2
    scores = table(toy.sums)
    ratio = online_kl(toy.chosen(list(range(len(ANSWERS)))), samples=1, estimator="rloo").sequence
    # (1/2) sum over both of (R_i - R_j) grad log pi(y_i)
    first, second = torch.tensor(list(itertools.product(range(len(ANSWERS)), repeat=2))).T
    both = (ratio[first] - ratio[second])[:, None] * (scores[first] - scores[second]) / 2
    chance = weights[first] * weights[second]
    centre = chance @ both
    return float((chance * (both - centre).square().sum(1)).sum())


def test_the_whole_vocabulary_has_much_less_variance_than_the_sampled_token(toy: Enumerated) -> None:
    assert variance(toy, "rloo", 2) > 10 * variance(toy, "full", 2)


# --- by hand -------------------------------------------------------------------------------------------


def by_hand() -> OnlineTokens:
    """Four answers of 2, 1, 3 and 1 tokens: two prompts, two answers each."""
    logps = torch.tensor([-1.0, -2, -0.5, -3, -1, -2, -0.25], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([-2.0, -1, -1.5, -3, -2, -4, -0.5], dtype=torch.float64)
    kl = torch.tensor([0.5, 0.25, 1, 2, 3, 4, 8], dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([2, 1, 3, 1])
    return OnlineTokens(logps, ref, kl, torch.arange(4).repeat_interleave(counts), counts)


def test_full_by_hand() -> None:
    tokens = by_hand()
    found = online_kl(tokens, samples=2, estimator="full")
    assert found.sequence.tolist() == [0.75, 1, 9, 8]
    assert found.per_token.tolist() == [0.5, 0.25, 1, 2, 3, 4, 8]
    later = [0.25, 0, 0, 7, 4, 0, 0]
    assert found.losses.tolist() == [0.75 - 0.25, 1, 9 - 3 * 7 - 1 * 4, 8]
    found.losses.sum().backward()
    assert tokens.logps.grad is not None
    assert tokens.kl is not None
    assert tokens.kl.grad is not None
    assert tokens.logps.grad.tolist() == later
    assert tokens.kl.grad.tolist() == [1.0] * 7


def test_rloo_by_hand() -> None:
    tokens = by_hand()
    found = online_kl(tokens, samples=2, estimator="rloo")
    assert found.sequence.tolist() == [0, 1, 3, 0.25]
    assert found.per_token.tolist() == [1, -1, 1, 0, 1, 2, 0.25]
    found.losses.sum().backward()
    assert tokens.logps.grad is not None
    assert tokens.logps.grad.tolist() == [-1, -1, 1, 2.75, 2.75, 2.75, -2.75]


def test_rloo_of_three_leaves_the_answer_itself_out_of_its_baseline() -> None:
    logps = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([-1.0, -2, -6], dtype=torch.float64)
    tokens = OnlineTokens(logps, ref, None, torch.arange(3), torch.ones(3, dtype=torch.int64))
    online_kl(tokens, samples=3, estimator="rloo").losses.sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5])


def test_rloo_of_one_has_no_baseline() -> None:
    tokens = by_hand()
    online_kl(tokens, samples=1, estimator="rloo").losses.sum().backward()
    assert tokens.logps.grad is not None
    assert tokens.logps.grad.tolist() == [0, 0, 1, 3, 3, 3, 0.25]


def test_answers_that_are_not_whole_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="4 answers are not 3 for each prompt"):
        online_kl(by_hand(), samples=3, estimator="full")


# --- metrics -------------------------------------------------------------------------------------------


def test_metrics_by_hand() -> None:
    sequence = torch.tensor([1.0, 3, 4, 8, 0, 2], dtype=torch.float64)
    counts = torch.tensor([2, 2, 4, 8, 1, 3])
    found = kl_metrics(sequence, counts, samples=2)
    means = [2, 6, 1]
    assert found["kl/sequence"] == 3
    assert found["kl/sequence_se"] == pytest.approx(np.std(means, ddof=1) / math.sqrt(3))
    assert found["kl/token"] == pytest.approx(18 / 20)


def test_standard_error_of_the_ratio_is_what_repeated_draws_show() -> None:
    """Prompts of their own difficulty, and nats that grow with the length: the spread of 4,000 runs."""
    random = np.random.default_rng(0)
    prompts, samples, runs = 40, 2, 4000
    length = random.integers(4, 40, (runs, prompts, samples))
    rate = random.gamma(4.0, 0.01, (runs, prompts, 1))
    nats = rate * length + random.normal(0, 0.1, length.shape)
    spread = (nats.sum((1, 2)) / length.sum((1, 2))).std()
    first = [
        kl_metrics(torch.tensor(n.ravel()), torch.tensor(c.ravel()), samples=samples)
        for n, c in zip(nats[:200], length[:200], strict=True)
    ]
    assert np.mean([one["kl/token_se"] for one in first]) == pytest.approx(spread, rel=0.05)
    sequence_spread = nats.mean((1, 2)).std()
    assert np.mean([one["kl/sequence_se"] for one in first]) == pytest.approx(sequence_spread, rel=0.05)
    independent = np.mean([n.std(ddof=1) / math.sqrt(n.size) for n in nats[:200]])
    assert independent < 0.95 * sequence_spread, "answers of one prompt are not independent"


def test_one_prompt_alone_has_no_standard_error() -> None:
    found = kl_metrics(torch.tensor([1.0, 2.0]), torch.tensor([3, 3]), samples=2)
    assert found == {"kl/sequence": 1.5, "kl/token": 0.5}
