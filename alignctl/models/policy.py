"""A model ready to be trained or scored, and the one way every part of alignctl runs it forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignctl.models import attention
from alignctl.models.head import TokenScores, token_logps, token_scores
from alignctl.records import Layout, PackedBatch


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """A causal language model with the decisions that its forward pass needs."""

    model: PreTrainedModel | PeftModel
    """What is trained and saved; a PeftModel for adapters."""
    layout: Layout
    compute_dtype: torch.dtype
    device: torch.device
    forward_only: bool = False
    """Attention in the form that is fastest without a backward pass; it rounds otherwise."""

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model itself; adapters live inside its layers."""
        return causal_lm(self.model)


def causal_lm(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model inside a PeftModel, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[return-value]


def head_parameters(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """Weight [V, H] and bias [V] of the vocabulary head."""
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)  # the gate has refused every other head
    return head.weight, head.bias


def branch_logps(policy: Policy, batch: PackedBatch) -> Tensor:
    """Differentiable log-probability of each branch, summed over its tokens: float [K]."""
    return sum_by_branch(completion_logps(policy, batch), batch)


def completion_logps(policy: Policy, batch: PackedBatch) -> Tensor:
    """Differentiable log-probability of each completion token: float [N]."""
    return token_logps(completion_hidden(policy, batch), *head_parameters(policy.causal_lm), batch.targets)


@torch.no_grad()
def branch_scores(policy: Policy, batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Per branch, summed over its tokens: log-probability, top-10 entropy (bits), top-10 mass; float [K]."""
    hidden = completion_hidden(policy, batch)
    scores: TokenScores = token_scores(hidden, *head_parameters(policy.causal_lm), batch.targets)
    logps, entropy, mass = (
        sum_by_branch(part, batch) for part in (scores.logps, scores.top_entropy, scores.top_mass)
    )
    return logps, entropy, mass


def sum_by_branch(values: Tensor, batch: PackedBatch) -> Tensor:
    """Values [N] of completion tokens as sums [K] over branches, differentiable.

    Added up in float64 and rounded once: a float32 running sum over 300 tokens loses 2e-4 nats.
    """
    sums = torch.zeros(len(batch.counts), dtype=torch.float64, device=values.device)
    return sums.index_add(0, batch.branch, values.double()).to(values.dtype)


def completion_hidden(policy: Policy, batch: PackedBatch) -> Tensor:
    """Hidden states [N, H] that predict the completion tokens, in the compute dtype."""
    decoder = policy.causal_lm.get_decoder()
    if batch.layout == "padded":
        assert batch.padding_mask is not None
        # Right-padded rows count their positions themselves, and not every model would let us.
        layout_arguments = {"attention_mask": batch.padding_mask.long()}
    else:
        masks = attention.tree_masks(
            batch.trees,
            stem=batch.stem,
            dtype=policy.compute_dtype,
            device=policy.device,
            forward_only=policy.forward_only,
        )
        layout_arguments = {"position_ids": batch.positions, "tree": masks}
    with autocast(policy):
        hidden: Tensor = decoder(input_ids=batch.ids, use_cache=False, **layout_arguments).last_hidden_state
    # index_select, not indexing: its backward adds in a fixed order, also where branches share a position.
    return hidden.flatten(0, 1).index_select(0, batch.score_index).to(policy.compute_dtype)


def autocast(policy: Policy) -> torch.autocast:
    """bfloat16 matrix products over float32 weights; nothing at all in float32 and float64."""
    return torch.autocast(
        policy.device.type, dtype=torch.bfloat16, enabled=policy.compute_dtype == torch.bfloat16
    )


def set_attention(model: PreTrainedModel, layout: Layout) -> None:
    """The attention a layout runs with: ours over trees, transformers' own over padded rows."""
    if layout != "padded":
        model.set_attn_implementation(attention.NAME)
        return
    try:
        model.set_attn_implementation("sdpa")
    except ValueError:  # the architecture has none
        model.set_attn_implementation("eager")


@contextmanager
def evaluating(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Within it dropout is off; afterwards the model trains again if it did."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def plain_attention(policy: Policy) -> Iterator[None]:
    """Within it the model attends as transformers does it, with a key-value cache if asked: for sampling."""
    set_attention(policy.causal_lm, "padded")
    try:
        with evaluating(policy.model):
            yield
    finally:
        set_attention(policy.causal_lm, policy.layout)
