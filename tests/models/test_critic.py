"""The critic: where its values are read, what they start from, and what its gradient reaches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from alignctl.models.critic import separate_critic, trained_modules, trunk_critic
from alignctl.models.packing import pack
from alignctl.models.policy import Policy, completion_hidden, set_attention
from alignctl.records import Example, Layout
from alignctl.train.optimiser import trained_parameters

TREES = [(4, 3, 1), (1, 5, 2)]


@pytest.fixture
def policy(tiny: Callable[..., LlamaForCausalLM]) -> Callable[..., Policy]:
    """Makes the same model again at every call."""

    def make(*, layout: Layout = "shared", tied: bool = True, seed: int = 0) -> Policy:
        model = tiny(tied=tied, seed=seed)
        set_attention(model, layout)
        return Policy(model, layout, torch.float64, torch.device("cpu"))

    return make


def plain_values(model: LlamaForCausalLM, head: nn.Linear, rows: list[Example]) -> Tensor:
    """The head on the state before each token, one sequence at a time."""
    found = []
    for row in rows:
        for branch in row.branches:
            ids = torch.tensor([[*row.prompt.tolist(), *branch.tolist()]])
            states = model.model(input_ids=ids, use_cache=False).last_hidden_state[0]
            before = states[len(row.prompt) - 1 : -1]
            found.append(before @ head.weight[0] + (0.0 if head.bias is None else head.bias[0]))
    return torch.cat(found)


def drawn_score(*, bias: bool = False) -> nn.Linear:
    score = nn.Linear(32, 1, bias=bias, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in score.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return score


def test_a_critic_starts_at_zero_and_draws_nothing_from_the_process(policy: Callable[..., Policy]) -> None:
    rows = torch.randn(7, 32, dtype=torch.float64)
    before = torch.get_rng_state()
    critics = [trunk_critic(policy()), separate_critic(policy(seed=1), None)]
    assert bool((torch.get_rng_state() == before).all())
    for critic in critics:
        assert critic(rows).tolist() == [0.0] * 7


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_values_stand_before_each_token_in_every_layout(
    policy: Callable[..., Policy],
    tiny: Callable[..., LlamaForCausalLM],
    make_rows: Callable[..., list[Example]],
    layout: Layout,
) -> None:
    rows = make_rows(TREES)
    own, score = policy(layout=layout), drawn_score()
    critic = separate_critic(own, score)
    values = critic(completion_hidden(own, pack(rows, layout)))
    torch.testing.assert_close(values, plain_values(tiny(), score, rows), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", [False, True])
def test_a_critic_from_a_reward_model_starts_on_the_scale_of_normalised_scores(
    policy: Callable[..., Policy], bias: bool
) -> None:
    score = drawn_score(bias=bias)
    hidden = torch.randn(5, 32, dtype=torch.float64)
    critic = separate_critic(policy(), score, mean=2.5, std=0.5)
    torch.testing.assert_close(critic(hidden), (score(hidden)[:, 0] - 2.5) / 0.5)
    with torch.no_grad():
        critic.head.weight.zero_()
    assert float(score.weight.abs().sum().detach()) > 0, "the reward model's own score is left alone"


def test_values_are_in_the_heads_own_precision(policy: Callable[..., Policy]) -> None:
    critic = separate_critic(policy(), drawn_score())
    assert critic(torch.ones(2, 32, dtype=torch.bfloat16)).dtype == torch.float64


def test_the_gradient_of_a_head_on_the_trunk_reaches_the_policy(
    policy: Callable[..., Policy], make_rows: Callable[..., list[Example]]
) -> None:
    trunk = policy()
    critic = trunk_critic(trunk)
    with torch.no_grad():
        critic.head.weight.fill_(0.1)
    critic(completion_hidden(trunk, pack(make_rows(TREES), "shared"))).sum().backward()
    layer = trunk.causal_lm.get_parameter("model.layers.0.mlp.up_proj.weight")
    assert layer.grad is not None
    assert float(layer.grad.abs().sum()) > 0


@pytest.mark.parametrize(("tied", "trained"), [(True, True), (False, False)])
def test_only_what_a_critic_reads_is_trained(
    policy: Callable[..., Policy], tied: bool, trained: bool
) -> None:
    critic = separate_critic(policy(tied=tied), None)
    assert critic.own is not None
    assert critic.own.causal_lm.get_output_embeddings().weight.requires_grad is trained
    assert critic.own.causal_lm.get_input_embeddings().weight.requires_grad


def test_what_is_trained_keeps_its_names(policy: Callable[..., Policy]) -> None:
    alone = trained_parameters(trained_modules(policy(), None))
    on_trunk = trained_parameters(trained_modules(policy(), trunk_critic(policy())))
    separate = trained_parameters(trained_modules(policy(), separate_critic(policy(seed=1), None)))
    names = list(trained_parameters(policy().model))
    head = ["critic.head.weight", "critic.head.bias"]
    assert list(alone) == [f"policy.{name}" for name in names]
    assert list(on_trunk) == [*alone, *head]
    assert list(separate) == [*alone, *head, *(f"critic.trunk.{name}" for name in names)]
