"""Laws of one step, for every loss on given rows, on drawn rows of ragged lengths in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from alignctl.algos import pair_loss
from alignctl.algos.bradley_terry import reward_loss
from alignctl.config import DpoConfig, HingeConfig, IpoConfig, Reference, RewardModelConfig, SlicConfig
from alignctl.models.policy import Policy, set_attention
from alignctl.models.reward_model import start_reward_model
from alignctl.records import Example
from alignctl.train.answer_step import answer_backward
from alignctl.train.optimiser import build_optimiser, trained_parameters
from alignctl.train.reward_step import reward_backward
from alignctl.train.step import optimiser_step, pair_backward

Tiny = Callable[..., LlamaForCausalLM]
Backward = Callable[..., dict[str, float]]
FROZEN = Reference(kind="frozen", path=None, members=(), weights=None, alpha=None)
ON_PAIRS = {
    "dpo": DpoConfig(name="dpo", beta=0.1, label_noise=0.1, reduction="sum", reference=FROZEN),
    "ipo": IpoConfig(name="ipo", tau=0.2, reduction="mean", reference=FROZEN),
    "hinge": HingeConfig(name="hinge", beta=0.1, reduction="sum", reference=FROZEN),
    "slic": SlicConfig(name="slic", gamma=1.0, alpha=0.5, reference=FROZEN),
}
REWARD = RewardModelConfig(name="reward", label_noise=0.1, lr_scale=1.0)
every_loss = pytest.mark.parametrize("name", [*ON_PAIRS, "sft", "reward"])
quickly = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
ALL_ROWS = 10_000
TREES = st.lists(st.tuples(*[st.integers(1, 9)] * 3), min_size=2, max_size=5)


@dataclass(frozen=True, eq=False)
class Learner:
    """What is trained, and how its gradient on some rows is added up."""

    trained: nn.Module
    backward: Backward

    def gradients(self) -> dict[str, Tensor]:
        """Taken out: the next call begins at zero."""
        parameters = trained_parameters(self.trained)
        found = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        self.trained.zero_grad(set_to_none=True)
        return found


def learner(name: str, tiny: Tiny, seed: int = 0) -> Learner:
    """A model in float64 and a step's backward pass: (rows, their reference [B, 2], micro_tokens=...)."""
    model = tiny(seed=seed)
    set_attention(model, "shared")
    policy = Policy(model, "shared", torch.float64, torch.device("cpu"))
    if name == "sft":
        return Learner(model, lambda rows, _, **words: answer_backward(policy, one_branch(rows), **words))
    if name == "reward":
        scored = start_reward_model(policy, seed=3)
        loss = reward_loss(REWARD)
        return Learner(scored, lambda rows, _, **words: reward_backward(scored, policy, loss, rows, **words))
    return Learner(model, partial(pair_backward, policy, pair_loss(ON_PAIRS[name])))


def one_branch(rows: Sequence[Example]) -> list[Example]:
    return [replace(row, branches=row.branches[:1]) for row in rows]


def labelled(rows: Sequence[Example]) -> tuple[list[Example], Tensor]:
    """Rows with soft labels, weights and margins, and what a reference said of them."""
    random = np.random.default_rng(len(rows))
    drawn = [(random.uniform(0.3, 1), random.uniform(0.5, 2), random.uniform(0, 1)) for _ in rows]
    marked = [replace(r, p_chosen=p, weight=w, margin=m) for r, (p, w, m) in zip(rows, drawn, strict=True)]
    tokens = torch.tensor([[len(branch) for branch in row.branches] for row in rows], dtype=torch.float64)
    return marked, -4.0 * tokens + torch.from_numpy(random.normal(size=(len(rows), 2)))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-4
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) < 1e-10, name


@every_loss
@given(trees=TREES, budget=st.integers(1, 60), data=st.data())
@quickly
def test_neither_order_nor_micro_batches_change_gradient_or_metrics(
    name: str,
    tiny: Tiny,
    make_rows: Callable[..., list[Example]],
    trees: list[tuple[int, ...]],
    budget: int,
    data: st.DataObject,
) -> None:
    rows, reference = labelled(make_rows(trees))
    order = data.draw(st.permutations(range(len(rows))))
    one = learner(name, tiny)
    metrics = one.backward(rows, reference, micro_tokens=ALL_ROWS)
    gradients = one.gradients()
    other = one.backward([rows[place] for place in order], reference[order], micro_tokens=budget)
    assert other == pytest.approx(metrics, rel=1e-10, abs=1e-10)
    assert_same(one.gradients(), gradients)


@every_loss
@given(trees=TREES, times=st.integers(2, 3))
@quickly
def test_every_row_several_times_is_every_row_once(
    name: str,
    tiny: Tiny,
    make_rows: Callable[..., list[Example]],
    trees: list[tuple[int, ...]],
    times: int,
) -> None:
    rows, reference = labelled(make_rows(trees))
    one = learner(name, tiny)
    metrics = one.backward(rows, reference, micro_tokens=30)
    gradients = one.gradients()
    again = one.backward(rows * times, reference.repeat(times, 1), micro_tokens=30)
    assert again == pytest.approx(metrics, rel=1e-10, abs=1e-10)
    assert_same(one.gradients(), gradients)


@every_loss
def test_the_gradient_is_the_slope_of_the_loss_that_is_reported(
    name: str, tiny: Tiny, make_rows: Callable[..., list[Example]]
) -> None:
    """Central differences of the whole step, from weights to the metric, at five drawn parameters."""
    rows, reference = labelled(make_rows([(3, 4, 2), (9, 1, 7), (1, 5, 5)]))
    one, width = learner(name, tiny), 1e-5
    one.backward(rows, reference, micro_tokens=20)
    gradients = one.gradients()
    random = np.random.default_rng(1)
    for key in random.choice(sorted(gradients), 5, replace=False):
        parameter, gradient = trained_parameters(one.trained)[key].data.flatten(), gradients[key].flatten()
        # Rows of the embedding that no token reads have no slope to compare.
        place = int(random.choice(gradient.nonzero()[:, 0].numpy()))
        values = []
        for shift in (width, -2 * width):
            parameter[place] += shift
            values.append(one.backward(rows, reference, micro_tokens=20)["loss"])
        parameter[place] += width
        slope = (values[0] - values[1]) / (2 * width)
        assert slope == pytest.approx(float(gradient[place]), rel=1e-5, abs=1e-8), key


@every_loss
def test_a_row_that_is_not_finite_moves_nothing(
    name: str, tiny: Tiny, make_rows: Callable[..., list[Example]]
) -> None:
    rows, reference = labelled(make_rows([(3, 4, 2), (9, 1, 7)]))
    one = learner(name, tiny)
    optimiser = build_optimiser(one.trained, weight_decay=0.1)
    before = {key: parameter.detach().clone() for key, parameter in one.trained.named_parameters()}
    bad = [replace(rows[0], weight=math.nan), rows[1]]
    steps = {"bad": bad, "good": rows}
    applied = {}
    for word, given_rows in steps.items():
        backward = partial(one.backward, given_rows, reference, micro_tokens=20)
        _, applied[word] = optimiser_step(optimiser, backward, lr=1e-3, max_grad_norm=1.0)
        same = all(torch.equal(p, before[key]) for key, p in one.trained.named_parameters())
        assert same == (word == "bad")
    assert applied == {"bad": False, "good": True}
