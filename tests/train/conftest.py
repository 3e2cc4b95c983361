"""A real Llama of three tokens, whose every answer can be written down."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from alignctl.config import PpoConfig, Reference
from alignctl.models.critic import Critic
from alignctl.models.live_reference import LiveReference
from alignctl.models.policy import Policy, set_attention
from alignctl.records import Example, Experience, Layout, Sampled

STOP, LONGEST = 2, 3
PROMPT = (1, 0, 1)
ANSWERS = tuple(
    answer
    for length in (1, 2, 3)
    for answer in itertools.product(range(3), repeat=length)
    if STOP not in answer[:-1] and (answer[-1] == STOP or length == LONGEST)
)
CONFIG = PpoConfig(
    name="ppo",
    beta=0.3,
    kl_target=None,
    samples=2,
    max_new_tokens=LONGEST,
    missing_end_score=None,
    critic="none",
    critic_lr_scale=10.0,
    critic_weight=0.1,
    critic_warmup=0,
    gamma=1.0,
    gae_lambda=0.95,
    whiten=False,
    epochs=1,
    minibatches=1,
    clip=0.2,
    value_clip=0.2,
    stop_length=0.25,
    lr_scale=1.0,
    reference=Reference(kind="frozen", path=None, members=(), weights=None, alpha=None),
)


@pytest.fixture
def three(tiny: Callable[..., LlamaForCausalLM]) -> SimpleNamespace:
    """Vocabulary {0, 1, 2}: 2 ends an answer, 0 is what a padded row would be filled with.

    Answers have up to three tokens: 15 in all, 8 of them cut. Everything is float64.
    """

    def model(*, seed: int = 0) -> LlamaForCausalLM:
        made = tiny(seed=seed)
        made.resize_token_embeddings(3)
        return made

    return SimpleNamespace(
        prompt=PROMPT,
        answers=ANSWERS,
        config=CONFIG,
        gae=lambda **changes: CONFIG.model_copy(update={"critic": "separate", **changes}),
        mixed=_sampled(
            [[(0, 1, 2), (2,)], [(1, 1, 1), (0, 0, 0)], [(1, 2), (0, 2)], [(0, 1, 0), (1, 2)], [(2,), (2,)]]
        ),
        mixed_scores=torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0, 0.7, 0.0, 1.5, 0.2, -0.4], dtype=torch.float64),
        model=model,
        policy=_policy,
        reference=_reference,
        sampled=_sampled,
        answers_in=_answers_in,
        token_logps=_token_logps,
        plain_values=_plain_values,
        drawn=_drawn,
        rows=_rows,
    )


def _policy(model: LlamaForCausalLM, layout: Layout = "shared") -> Policy:
    set_attention(model, layout)
    return Policy(model, layout, torch.float64, torch.device("cpu"))


def _reference(model: LlamaForCausalLM, layout: Layout = "shared") -> LiveReference:
    return LiveReference(_policy(model, layout), adapter_off=False)


def _sampled(groups: Sequence[Sequence[tuple[int, ...]]]) -> Sampled:
    """As if every group of answers had been sampled for the prompt."""
    examples = tuple(
        Example(
            id=f"prompt {number}",
            prompt=np.array(PROMPT, dtype=np.int32),
            branches=tuple(np.array(answer, dtype=np.int32) for answer in group),
        )
        for number, group in enumerate(groups)
    )
    answers = [answer for group in groups for answer in group]
    ended = tuple(answer[-1] == STOP for answer in answers)
    return Sampled(examples=examples, rows=(), texts=("",) * len(answers), ended=ended)


def _answers_in(sampled: Sampled) -> list[tuple[int, ...]]:
    return [tuple(branch.tolist()) for example in sampled.examples for branch in example.branches]


def _token_logps(model: LlamaForCausalLM, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """The plain way: one sequence, whole logits."""
    ids = torch.tensor([[*prompt, *answer]])
    logps = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    return torch.stack([logps[len(prompt) - 1 + place, token] for place, token in enumerate(answer)])


def _plain_values(critic: Critic, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Values before each token, of a critic of its own, one sequence at a time."""
    assert critic.own is not None
    set_attention(critic.own.causal_lm, "padded")
    ids = torch.tensor([[*prompt, *answer]])
    states = critic.own.causal_lm.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
    set_attention(critic.own.causal_lm, critic.own.layout)
    return (states @ critic.head.weight[0] + critic.head.bias[0])[len(prompt) - 1 : -1]


def _drawn(critic: Critic) -> Critic:
    """The critic with a head that says something."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        critic.head.weight.copy_(torch.randn(1, 32, generator=generator, dtype=torch.float64) / 4)
        critic.head.bias.fill_(0.2)
    return critic


def _rows(values: Tensor, experience: Experience) -> list[list[float]]:
    """A table's rows without what lies outside the mask, which has to be 0."""
    mask = experience.mask
    assert bool((values[~mask] == 0).all())
    return [row[kept].tolist() for row, kept in zip(values, mask, strict=True)]
