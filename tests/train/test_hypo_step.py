"""HyPO's gradient on a small real Llama: against plain passes, against enumeration, however it is split."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn.functional import softplus
from transformers import LlamaForCausalLM

from alignctl.algos import pair_loss
from alignctl.config import DpoConfig, Reference
from alignctl.models.live_reference import LiveReference
from alignctl.models.packing import micro_batches
from alignctl.models.policy import Policy, set_attention
from alignctl.records import Example, Layout, Message, Row, Sampled
from alignctl.train.hypo_step import hypo_backward, joint_rows
from alignctl.train.step import pair_backward

Tiny = Callable[..., LlamaForCausalLM]
MakeRows = Callable[..., list[Example]]
Gradients = dict[str, Tensor]

BETA, LAMBDA = 0.1, 0.3
FROZEN = Reference(kind="frozen", path=None, members=(), weights=None, alpha=None)
DPO = pair_loss(DpoConfig(name="dpo", beta=BETA, label_noise=0.0, reduction="sum", reference=FROZEN))
ONE_ROW, ALL_ROWS = 1, 10_000


def policy_of(model, layout: Layout = "shared") -> Policy:
    policy = Policy(model, layout, torch.float64, torch.device("cpu"))
    set_attention(policy.causal_lm, layout)
    return policy


def answered(examples: Sequence[Example]) -> Sampled:
    """These branches as if the policy had just sampled them; the ends alternate."""
    rows = tuple(Row(example.id, (Message("user", example.id),), ()) for example in examples)
    total = sum(len(example.branches) for example in examples)
    return Sampled(tuple(examples), rows, ("",) * total, tuple(n % 2 == 0 for n in range(total)))


@pytest.fixture
def pairs(make_rows: MakeRows) -> list[Example]:
    """Five pairs, the second and the fourth with one prompt, with soft labels and weights."""
    rows = make_rows([(3, 4, 2), (9, 1, 7), (1, 6, 6), (9, 3, 3), (14, 5, 6)], seed=5)
    rows[3] = replace(rows[3], prompt=rows[1].prompt)
    labels = [(1.0, 1.0), (0.75, 2.0), (0.4, 0.5), (1.0, 1.5), (0.9, 1.0)]
    return [replace(row, p_chosen=p, weight=w) for row, (p, w) in zip(rows, labels, strict=True)]


@pytest.fixture
def answers(pairs: list[Example], make_rows: MakeRows) -> dict[str, Sampled]:
    """Two answers each to prompts of the first pairs, to prompts of no pair, or to some of both."""
    drawn = make_rows([(1, 3, 5), (1, 2, 1), (1, 4, 4), (1, 1, 6)], seed=6)
    own = [replace(answer, prompt=pair.prompt) for answer, pair in zip(drawn, pairs, strict=False)]
    apart = make_rows([(4, 3, 5), (7, 1, 2)], seed=7)
    return {
        "own": answered(own),
        "apart": answered(apart),
        "mixed": answered([apart[0], own[3], own[0], own[1]]),
    }


# --- the same, written out -----------------------------------------------------------------------------


def plain_tokens(model, prompt: np.ndarray, branch: np.ndarray) -> Tensor:
    """[t, V] log-probabilities of every token of one branch, from one pass over one sequence."""
    ids = torch.tensor([[*prompt.tolist(), *branch.tolist()]])
    logps = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    return logps[len(prompt) - 1 : -1]


def plain_sum(model, prompt: np.ndarray, branch: np.ndarray) -> Tensor:
    return plain_tokens(model, prompt, branch).gather(1, torch.tensor(branch.tolist())[:, None]).sum()


def plain_dpo(model, pairs: Sequence[Example], ref_sums: Tensor) -> Tensor:
    losses = []
    for pair, ref in zip(pairs, ref_sums, strict=True):
        chosen, rejected = (plain_sum(model, pair.prompt, branch) for branch in pair.branches)
        z = BETA * ((chosen - ref[0]) - (rejected - ref[1]))
        losses.append(pair.weight * (pair.p_chosen * softplus(-z) + (1 - pair.p_chosen) * softplus(z)))
    return torch.stack(losses).mean()


def plain_online(model, reference, sampled: Sampled, estimator: str) -> tuple[Tensor, list[list[float]]]:
    """The mean surrogate over all answers, and each answer's nats by prompt."""
    losses, nats = [], []
    for example in sampled.examples:
        found = []
        for branch in example.branches:
            p = plain_tokens(model, example.prompt, branch)
            with torch.no_grad():
                q = plain_tokens(reference, example.prompt, branch)
            token = torch.tensor(branch.tolist())[:, None]
            logp, ratio = p.gather(1, token)[:, 0], (p - q).gather(1, token).detach().sum()
            found.append((logp, (p.exp() * (p - q)).sum(-1), ratio))
        if estimator == "full":
            for logp, kl, _ in found:
                later = [kl[t + 1 :].sum().detach() for t in range(len(kl))]
                losses.append(kl.sum() + sum(a * b for a, b in zip(logp, later, strict=True)))
            nats.append([float(kl.detach().sum()) for _, kl, _ in found])
        else:
            (first, _, one), (second, _, other) = found
            losses += [first.sum() * (one - other), second.sum() * (other - one)]
            nats.append([float(one), float(other)])
    return torch.stack(losses).mean(), nats


def gradients(model) -> Gradients:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def difference(left: Gradients, right: Gradients) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def sums_of(model, pairs: Sequence[Example]) -> Tensor:
    with torch.no_grad():
        return torch.tensor([[plain_sum(model, pair.prompt, b) for b in pair.branches] for pair in pairs])


def found_gradients(policy: Policy, reference: LiveReference, pairs, ref_sums, sampled, **changes):
    settings = {"lambda_": LAMBDA, "estimator": "full", "samples": 2, "micro_tokens": ALL_ROWS} | changes
    policy.model.zero_grad()
    metrics = hypo_backward(policy, reference, DPO, pairs, ref_sums, sampled, **settings)
    return gradients(policy.model), metrics


# --- packed is plain -----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["own", "apart", "mixed"])
@pytest.mark.parametrize("estimator", ["full", "rloo"])
@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_one_packed_pass_is_many_plain_ones(
    tiny: Tiny, pairs: list[Example], answers: dict[str, Sampled], which: str, estimator: str, layout: Layout
) -> None:
    plain, other, sampled = tiny(), tiny(seed=1), answers[which]
    ref_sums = sums_of(other, pairs)
    dpo = plain_dpo(plain, pairs, ref_sums)
    online, nats = plain_online(plain, other, sampled, estimator)
    (dpo + LAMBDA * online).backward()
    reference = LiveReference(policy_of(other, layout), adapter_off=False)
    found, metrics = found_gradients(
        policy_of(tiny(), layout), reference, pairs, ref_sums, sampled, estimator=estimator, micro_tokens=40
    )
    assert difference(found, gradients(plain)) < 1e-10
    by_prompt, lengths = np.array(nats), [len(b) for e in sampled.examples for b in e.branches]
    assert metrics["loss/pairs"] == pytest.approx(float(dpo.detach()), rel=1e-12)
    assert metrics["kl/sequence"] == pytest.approx(by_prompt.mean(), rel=1e-10)
    assert metrics["loss"] == pytest.approx(float(dpo.detach()) + LAMBDA * by_prompt.mean(), rel=1e-10)
    assert metrics["kl/token"] == pytest.approx(by_prompt.sum() / sum(lengths), rel=1e-10)
    spread = by_prompt.mean(1).std(ddof=1) / math.sqrt(len(by_prompt))
    assert metrics["kl/sequence_se"] == pytest.approx(spread, rel=1e-9)
    assert metrics["response_length"] == pytest.approx(np.mean(lengths))
    assert metrics["eos_rate"] == 0.5


@pytest.mark.parametrize("which", ["own", "apart", "mixed"])
@pytest.mark.parametrize("estimator", ["full", "rloo"])
def test_the_gradient_does_not_depend_on_the_micro_batch(
    tiny: Tiny, pairs: list[Example], answers: dict[str, Sampled], which: str, estimator: str
) -> None:
    policy, other = policy_of(tiny()), policy_of(tiny(seed=1))
    reference, ref_sums = LiveReference(other, adapter_off=False), sums_of(tiny(seed=1), pairs)
    rows = [row.example for row in joint_rows(pairs, answers[which])]
    budgets = (ONE_ROW, 35, 60, ALL_ROWS)
    splits = [micro_batches(rows, token_budget=budget, layout="shared") for budget in budgets]
    assert len(splits[0]) == len(rows)
    assert len({len(split) for split in splits}) >= 3, "three different splits at least"
    found = [
        found_gradients(
            policy, reference, pairs, ref_sums, answers[which], estimator=estimator, micro_tokens=budget
        )
        for budget in budgets
    ]
    assert max(float(g.abs().max()) for g in found[0][0].values()) > 1e-3
    for other_gradients, metrics in found[1:]:
        assert difference(found[0][0], other_gradients) < 1e-10
        assert metrics == pytest.approx(found[0][1], rel=1e-10, abs=1e-12)


def test_an_adapter_is_its_own_reference_when_switched_off(
    tiny: Tiny, pairs: list[Example], answers: dict[str, Sampled]
) -> None:
    def adapted() -> PeftModel:
        torch.manual_seed(3)
        config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        return get_peft_model(tiny(), config).double()  # type: ignore[return-value]

    plain, policy, ref_sums = adapted(), policy_of(adapted()), sums_of(tiny(), pairs)
    online, nats = plain_online(plain, tiny(), answers["mixed"], "full")
    (plain_dpo(plain, pairs, ref_sums) + LAMBDA * online).backward()
    reference = LiveReference(policy, adapter_off=True)
    policy.model.train()
    found, metrics = found_gradients(policy, reference, pairs, ref_sums, answers["mixed"], micro_tokens=40)
    assert set(found) == {name for name, _ in plain.named_parameters() if "lora" in name}
    assert difference(found, gradients(plain)) < 1e-10
    assert metrics["kl/sequence"] == pytest.approx(np.mean(nats), rel=1e-10)
    assert np.mean(nats) > 0.1
    assert policy.model.training


# --- limits --------------------------------------------------------------------------------------------


def test_without_weight_on_kl_it_is_the_gradient_of_the_pairs(
    tiny: Tiny, pairs: list[Example], answers: dict[str, Sampled]
) -> None:
    policy, other = policy_of(tiny()), policy_of(tiny(seed=1))
    reference, ref_sums = LiveReference(other, adapter_off=False), sums_of(tiny(seed=1), pairs)
    found, metrics = found_gradients(policy, reference, pairs, ref_sums, answers["own"], lambda_=0.0)
    policy.model.zero_grad()
    expected = pair_backward(policy, DPO, pairs, ref_sums, micro_tokens=ALL_ROWS)
    assert difference(found, gradients(policy.model)) < 1e-12
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert metrics["loss"] == metrics["loss/pairs"]


def test_at_the_reference_kl_is_nothing_and_dpo_is_ln_2(
    tiny: Tiny, pairs: list[Example], answers: dict[str, Sampled]
) -> None:
    policy, same = policy_of(tiny()), policy_of(tiny())
    ref_sums, hard = sums_of(tiny(), pairs), [replace(pair, weight=1.0) for pair in pairs]
    found, metrics = found_gradients(
        policy, LiveReference(same, adapter_off=False), hard, ref_sums, answers["own"], lambda_=50.0
    )
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-12)
    assert abs(metrics["kl/sequence"]) < 1e-12
    policy.model.zero_grad()
    pair_backward(policy, DPO, hard, ref_sums, micro_tokens=ALL_ROWS)
    assert difference(found, gradients(policy.model)) < 1e-10


def test_the_reference_stays_as_it_is(tiny: Tiny, pairs: list[Example], answers: dict[str, Sampled]) -> None:
    other = tiny(seed=1).train()
    before = copy.deepcopy(other.state_dict())
    reference = LiveReference(policy_of(other), adapter_off=False)
    found_gradients(policy_of(tiny()), reference, pairs, sums_of(tiny(seed=1), pairs), answers["mixed"])
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
    assert all(parameter.grad is None for parameter in other.parameters())
    assert other.training


# --- joint rows ----------------------------------------------------------------------------------------


def test_answers_join_the_pair_of_their_prompt(pairs: list[Example], answers: dict[str, Sampled]) -> None:
    rows = joint_rows(pairs, answers["own"])
    # The second and the fourth pair have one prompt: the answers given to it twice go to one each.
    assert [(row.pair, row.answers, len(row.example.branches)) for row in rows] == [
        (0, 2, 4),
        (1, 2, 4),
        (2, 2, 4),
        (3, 2, 4),
        (4, 0, 2),
    ]
    assert rows[0].example.branches == (*pairs[0].branches, *answers["own"].examples[0].branches)
    assert rows[1].is_own == [False, False, True, True]


def test_answers_to_prompts_of_no_pair_come_last(pairs: list[Example], answers: dict[str, Sampled]) -> None:
    rows = joint_rows(pairs, answers["mixed"])
    assert [(row.pair, row.answers) for row in rows] == [(0, 2), (1, 2), (2, 0), (3, 2), (4, 0), (None, 2)]
    assert rows[-1].example is answers["mixed"].examples[0]
    # Answers go to the pairs of their prompt in order.
    assert rows[1].example.branches[2:] == answers["mixed"].examples[1].branches
    assert rows[3].example.branches[2:] == answers["mixed"].examples[3].branches
    tokens = sum(row.example.tokens for row in rows)
    shared = sum(len(pairs[n].prompt) for n in (0, 1, 3))
    assert tokens == sum(e.tokens for e in (*pairs, *answers["mixed"].examples)) - shared


# --- the law that decides ------------------------------------------------------------------------------

VOCABULARY, STOP = 4, 3


def every_answer(longest: int) -> list[tuple[int, ...]]:
    """Ending with the stop token, or cut at the longest length."""
    found = []
    for length in range(1, longest + 1):
        for body in itertools.product(range(STOP), repeat=length - 1):
            found += [(*body, last) for last in (range(VOCABULARY) if length == longest else [STOP])]
    return found


@pytest.fixture
def small(tiny: Tiny) -> Callable[[int], LlamaForCausalLM]:
    """The tiny Llama with four tokens."""

    def make(seed: int) -> LlamaForCausalLM:
        model = tiny(seed=seed)
        model.resize_token_embeddings(VOCABULARY)
        return model

    return make


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


@pytest.mark.parametrize(("estimator", "samples", "longest"), [("full", 1, 3), ("rloo", 2, 2)])
def test_expected_gradient_is_that_of_dpo_plus_kl(
    small: Callable[[int], LlamaForCausalLM], estimator: str, samples: int, longest: int
) -> None:
    model, other, every = small(0), small(1), [ids(*answer) for answer in every_answer(longest)]
    pairs = [Example("pair", ids(2, 0, 3), (ids(1, 1, 3), ids(0, 3)))]
    prompt, ref_sums = pairs[0].prompt, sums_of(other, pairs)
    logps = torch.stack([plain_sum(model, prompt, answer) for answer in every])
    with torch.no_grad():
        ref_logps = torch.stack([plain_sum(other, prompt, answer) for answer in every])
    weights = logps.detach().exp()
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    (plain_dpo(model, pairs, ref_sums) + LAMBDA * (logps.exp() * (logps - ref_logps)).sum()).backward()
    exact = gradients(model)

    policy, reference = policy_of(small(0)), LiveReference(policy_of(small(1)), adapter_off=False)
    expected = {name: torch.zeros_like(g) for name, g in exact.items()}
    # A prompt's answers come in any order, so each unordered group stands for all of its orders.
    for group in itertools.combinations_with_replacement(range(len(every)), samples):
        orders = len(set(itertools.permutations(group)))
        sampled = answered([Example("asked", prompt, tuple(every[n] for n in group))])
        found, _ = found_gradients(
            policy, reference, pairs, ref_sums, sampled, estimator=estimator, samples=samples
        )
        chance = orders * float(weights[list(group)].prod())
        expected = {name: value + chance * found[name] for name, value in expected.items()}
    for name, gradient in exact.items():
        assert float((expected[name] - gradient).norm()) < 1e-8 * float(gradient.norm()), name
