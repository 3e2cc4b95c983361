"""Sampled answers: how they are told apart, and that they come from the policy itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaForCausalLM

from alignctl.models.generation import sample
from alignctl.models.policy import Policy, set_attention
from alignctl.records import Message, Row
from alignctl.train.sampling import sample_answers

VOCABULARY, STOP, LONGEST = 4, 3, 2
PROMPTS = [np.array(ids, dtype=np.int32) for ids in ([2, 0, 1], [1], [0, 0, 2, 2, 1])]
ROWS = [Row(f"row {n}", (Message("user", f"question {n}"),), ()) for n in range(len(PROMPTS))]


@pytest.fixture
def policy(tiny: Callable[..., LlamaForCausalLM]) -> Policy:
    """The tiny Llama with four tokens, the last of which ends an answer."""
    model = tiny()
    model.resize_token_embeddings(VOCABULARY)
    with torch.no_grad():  # far from uniform, so that a temperature shows
        model.get_input_embeddings().weight.mul_(1.4)
    found = Policy(model, "shared", torch.float64, torch.device("cpu"))
    set_attention(model, "shared")
    return found


def draw(policy: Policy, *, samples: int = 4, seed: int = 0, step: int = 1, rows=ROWS, prompts=PROMPTS):
    def decode(ids: np.ndarray) -> str:
        return " ".join(map(str, ids))

    return sample_answers(
        policy,
        rows,
        prompts,
        decode,
        samples=samples,
        stop=(STOP,),
        max_new_tokens=LONGEST,
        seed=seed,
        step=step,
    )


def as_lists(sampled) -> list[list[list[int]]]:
    return [[branch.tolist() for branch in example.branches] for example in sampled.examples]


def test_answers_lie_by_prompt_with_text_and_end(policy: Policy) -> None:
    sampled = draw(policy)
    assert sampled.rows == tuple(ROWS)
    assert [example.id for example in sampled.examples] == ["row 0", "row 1", "row 2"]
    assert all(
        np.array_equal(example.prompt, prompt)
        for example, prompt in zip(sampled.examples, PROMPTS, strict=True)
    )
    branches = [branch.tolist() for example in sampled.examples for branch in example.branches]
    assert [len(example.branches) for example in sampled.examples] == [4, 4, 4]
    assert list(sampled.texts) == [" ".join(map(str, branch)) for branch in branches]
    assert list(sampled.ended) == [branch[-1] == STOP for branch in branches]
    assert set(sampled.ended) == {True, False}
    assert all(STOP not in branch[:-1] and len(branch) <= LONGEST for branch in branches)


def test_a_step_is_drawn_again_alike_and_others_differ(policy: Policy) -> None:
    first = as_lists(draw(policy, samples=30))
    assert as_lists(draw(policy, samples=30)) == first
    assert as_lists(draw(policy, samples=30, step=2)) != first
    assert as_lists(draw(policy, samples=30, seed=1)) != first


def test_training_does_not_draw_the_numbers_of_an_evaluation_at_the_same_step(policy: Policy) -> None:
    evaluation = sample(
        policy, PROMPTS, samples=30, stop=(STOP,), max_new_tokens=LONGEST, temperature=1.0, seed=0, step=1
    )
    training = [branch for example in draw(policy, samples=30).examples for branch in example.branches]
    assert [a.tolist() for a in training] != [a.tolist() for a in evaluation]


def test_answers_are_as_frequent_as_the_policy_says(policy: Policy) -> None:
    """All 13 answers of up to two tokens, weighed one by one and counted among 6,000 draws."""
    answers = [(STOP,), *itertools.product(range(STOP), range(VOCABULARY))]
    prompt, model = PROMPTS[0], policy.causal_lm
    model.set_attn_implementation("sdpa")
    chances = []
    with torch.no_grad():
        for answer in answers:
            ids = torch.tensor([[*prompt.tolist(), *answer]])
            logps = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            taken = logps[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])
            chances.append(float(taken.sum().exp()))
    set_attention(model, "shared")
    assert sum(chances) == pytest.approx(1, abs=1e-12)
    sampled = draw(policy, samples=6000, rows=ROWS[:1], prompts=[prompt])
    drawn = [tuple(branch.tolist()) for branch in sampled.examples[0].branches]
    counts = [drawn.count(answer) for answer in answers]
    assert sum(counts) == 6000
    expected = 6000 * np.array(chances)
    assert expected.min() > 5
    assert stats.chisquare(counts, expected * (6000 / expected.sum())).pvalue > 1e-3
    # The same test tells a temperature of 0.9 apart.
    cooler = expected ** (1 / 0.9)
    assert stats.chisquare(counts, cooler * (6000 / cooler.sum())).pvalue < 1e-9
