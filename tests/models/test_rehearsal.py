"""What is counted on tensors without bytes is what the same pass takes with them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig, Qwen3Config

from alignctl.models.attention import LONGEST_PLAIN_ROW
from alignctl.models.packing import pack
from alignctl.models.policy import Policy, branch_logps, head_parameters, set_attention
from alignctl.models.rehearsal import NotRehearsed, ghost_of, scoring_bytes, training_bytes
from alignctl.records import Example

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 700,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
}


def llama(layers: int = 5, **changes: object) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_hidden_layers": layers, **changes}))


def adapted(layers: int = 5):
    return get_peft_model(llama(layers), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))


def policy_of(model, *, layout="shared", dtype=torch.float32) -> Policy:
    policy = Policy(model.train(), layout, dtype, CPU)
    set_attention(policy.causal_lm, layout)
    return policy


def rows(*trees: Sequence[int]) -> list[Example]:
    return [
        Example("row", np.ones(tree[0], np.int32), tuple(np.ones(length, np.int32) for length in tree[1:]))
        for tree in trees
    ]


SHORT = rows((30, 20, 25), (40, 10, 12), (25, 30, 5))
LONG = rows((LONGEST_PLAIN_ROW, 20, 25), (40, 10, 12))


def forward(policy: Policy, examples: Sequence[Example]) -> torch.Tensor:
    return branch_logps(policy, pack(examples, policy.layout))


class Storages(TorchDispatchMode):
    """Every storage that comes up, by its size, until it goes."""

    def __init__(self, known):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.alive: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    weakref.finalize(storage, self.alive.pop, storage._cdata, None)
                self.alive[storage._cdata] = storage.nbytes()
        self.most = max(self.most, sum(self.alive.values()))
        return made


def really(policy: Policy, examples: Sequence[Example], *, checkpointing: bool, accumulates: bool) -> int:
    """Most bytes in a real pass, gradients included."""
    model, left = policy.model, 0
    if checkpointing:
        policy.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    for parameter in model.parameters():
        if accumulates and parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
            left += parameter.numel() * 4
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    with Storages([*model.parameters(), *model.buffers(), *gradients]) as count:
        forward(policy, examples).sum().backward()
    return left + count.most


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("accumulates", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [llama, adapted])
def test_a_ghost_needs_what_the_model_takes(make, dtype, accumulates, checkpointing):
    policy = policy_of(make(), dtype=dtype)
    how = {"checkpointing": checkpointing, "accumulates": accumulates}
    counted = training_bytes(ghost_of(policy), SHORT, forward, **how)
    assert counted == pytest.approx(really(policy, SHORT, **how), rel=0.01)


@pytest.mark.parametrize(
    ("layout", "examples"), [("packed", SHORT), ("padded", SHORT), ("shared", LONG), ("padded", LONG)]
)
def test_so_it_does_in_other_layouts_and_with_long_rows(layout, examples):
    policy = policy_of(llama(), layout=layout)
    counted = training_bytes(ghost_of(policy), examples, forward, checkpointing=False, accumulates=False)
    taken = really(policy, examples, checkpointing=False, accumulates=False)
    assert counted == pytest.approx(taken, rel=0.01)


def test_layers_that_differ_are_all_run():
    model = llama(4)
    model.model.layers[1].requires_grad_(False)
    policy = policy_of(model)
    ghost = ghost_of(policy)
    assert (len(ghost.layers), ghost.left_out) == (0, 0)
    how = {"checkpointing": False, "accumulates": False}
    assert training_bytes(ghost, SHORT, forward, **how) == pytest.approx(
        really(policy, SHORT, **how), rel=0.01
    )


def test_scoring_takes_what_a_pass_without_gradients_takes():
    policy = policy_of(llama(), dtype=torch.bfloat16)
    with torch.no_grad(), Storages([*policy.model.parameters(), *policy.model.buffers()]) as count:
        forward(policy, SHORT)
    assert scoring_bytes(ghost_of(policy), SHORT, forward) == pytest.approx(count.most, rel=0.01)


def test_experts_are_counted_too():
    """Of four experts two read each token; in float32, whose rule of shapes PyTorch lacks."""
    model = AutoModelForCausalLM.from_config(
        MixtralConfig(**SIZES, num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2)
    )
    policy = policy_of(model)
    how = {"checkpointing": False, "accumulates": False}
    counted = training_bytes(ghost_of(policy), SHORT, forward, **how)
    assert counted == pytest.approx(really(policy, SHORT, **how), rel=0.1)


def test_a_model_without_weights_is_counted_like_one_with_them():
    how = {"checkpointing": False, "accumulates": False}
    with torch.device("meta"):
        bare = policy_of(llama())
    full = policy_of(llama())
    counted = [training_bytes(ghost_of(policy), SHORT, forward, **how) for policy in (bare, full)]
    assert counted[0] == counted[1]
    assert all(parameter.is_meta for parameter in bare.model.parameters())


def test_a_pass_of_terabytes_is_counted_in_no_room():
    """A row of a million tokens: its mask alone would take 4 TB."""
    with torch.device("meta"):
        policy = policy_of(llama())
    huge = rows((1_000_000, 10, 10))
    counted = training_bytes(ghost_of(policy), huge, forward, checkpointing=True, accumulates=False)
    assert counted > 4e12


def test_the_model_is_left_as_it_was():
    policy = policy_of(llama())
    before = {name: parameter.clone() for name, parameter in policy.model.named_parameters()}
    training_bytes(ghost_of(policy), SHORT, forward, checkpointing=True, accumulates=True)
    assert not policy.causal_lm.is_gradient_checkpointing
    assert len(policy.causal_lm.model.layers) == 5
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    assert all(not module._forward_hooks for module in policy.model.modules())


def test_a_head_that_is_not_trained_has_no_gradient_unless_it_is_the_embedding():
    own, tied = (policy_of(llama(tie_word_embeddings=tie)) for tie in (False, True))
    weight, _ = head_parameters(own.causal_lm)
    size = weight.numel() * 4
    assert ghost_of(own).trained_bytes - ghost_of(own, head_trained=False).trained_bytes == size
    assert ghost_of(tied).trained_bytes == ghost_of(tied, head_trained=False).trained_bytes
    assert weight.requires_grad


def test_what_cannot_be_run_without_bytes_says_why():
    def by_value(policy: Policy, examples: Sequence[Example]) -> torch.Tensor:
        return forward(policy, examples) * forward(policy, examples).sum().item()

    policy = policy_of(llama(2))
    with pytest.raises(NotRehearsed, match="LlamaForCausalLM: "):
        training_bytes(ghost_of(policy), SHORT, by_value, checkpointing=False, accumulates=False)


def test_other_architectures_fit_as_well():
    model = AutoModelForCausalLM.from_config(Qwen3Config(**SIZES, num_hidden_layers=4))
    policy = policy_of(model, dtype=torch.bfloat16)
    how = {"checkpointing": False, "accumulates": False}
    counted = training_bytes(ghost_of(policy), SHORT, forward, **how)
    assert counted == pytest.approx(really(policy, SHORT, **how), rel=0.01)
