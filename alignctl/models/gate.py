"""Which layout a model can be run in, decided by its config and then proved on the model itself.

Sharing a prompt is exact only where attention is the sole place in which tokens meet, and only without
dropout. The config rules out what a short proof cannot show (windows); the proof rules out what a config
does not say (soft caps, sinks, position biases, scaled logits): the same few tokens go through our
forward pass and through the model's own, and the log-probabilities have to agree.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignctl.errors import SetupError
from alignctl.models import attention
from alignctl.models.lora import fuse_adapters
from alignctl.models.norms import fuse_norms
from alignctl.models.packing import pack
from alignctl.models.policy import Policy, branch_logps, causal_lm, evaluating, set_attention
from alignctl.records import Example, Layout

TOLERANCE = 1e-3
"""Nats per branch of a few tokens in float32; the two sides differ by rounding alone, some 1e-5."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The chosen layout and, where it is not the fastest, why."""

    layout: Layout
    reason: str


def choose_layout(
    model: PreTrainedModel | PeftModel, *, max_length: int, adapter_dropout: float, device: torch.device
) -> Gate:
    """The fastest layout that is exact for this model, its attention and norms set up accordingly.

    Raises SetupError when not even the padded layout reproduces the model's own log-probabilities.
    """
    lm = causal_lm(model)
    if type(lm.get_output_embeddings()) is not nn.Linear:
        raise SetupError(
            f"{type(lm).__name__} has no plain linear vocabulary head",
            "alignctl scores completions with the head's weight; leave it out of adapter.targets",
        )
    if "past_key_values" not in inspect.signature(lm.forward).parameters:
        raise SetupError(
            f"{type(lm).__name__} keeps its past in no key-value cache",
            "alignctl samples with one; models with attention layers, hybrids among them, have it",
        )
    with evaluating(model):
        expected = _own_logps(lm, device)
        # After the model's own result and before ours, so that the proof covers it.
        fuse_norms(lm)
        if isinstance(model, PeftModel):
            fuse_adapters(model)
        _refuse_capped_logits(lm)
        reason = _window_reason(lm, max_length) or _mismatch(model, expected, "shared", device)
        if not reason and adapter_dropout == 0:
            return Gate("shared", "")
        if not reason:
            return Gate("packed", "adapter.dropout is above 0: one prompt cannot be dropped out twice")
        padded_reason = _mismatch(model, expected, "padded", device)
    if padded_reason:
        raise SetupError(
            f"{type(lm).__name__} cannot be scored by its hidden states and head: {padded_reason}",
            "its logits are probably scaled or capped after the head, which alignctl does not reproduce",
        )
    return Gate("padded", reason)


def _refuse_capped_logits(lm: PreTrainedModel) -> None:
    """By the config: a cap far above the proof's logits would pass it, and bend the larger ones later."""
    cap = lm.config.get_text_config().to_dict().get("final_logit_softcapping")
    if cap:
        raise SetupError(
            f"{type(lm).__name__} caps its logits (final_logit_softcapping={cap})",
            "alignctl scores completions with the plain head and does not reproduce the cap",
        )


def _window_reason(lm: PreTrainedModel, max_length: int) -> str:
    config = lm.config.get_text_config().to_dict()
    kinds = set(config.get("layer_types") or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"{type(lm).__name__} has {', '.join(sorted(kinds))} layers"
    window = config.get("sliding_window")
    if window and window < max_length:
        return f"sliding window of {window} tokens is shorter than train.max_length={max_length}"
    return ""


def _row(prompt: Sequence[int], *branches: Sequence[int]) -> Example:
    prompt_ids, *branch_ids = (np.array(ids, dtype=np.int32) for ids in (prompt, *branches))
    return Example("proof", prompt_ids, tuple(branch_ids))


_STEM = (5, 9, 3, 14, 7, 12, 4, 9)
PROOF = (_row((*_STEM, 6, 3), (8, 4, 11, 2), (6, 13, 10)), _row((*_STEM, 11), (2, 7), (3, 5, 8)))
"""Two rows whose prompts begin alike, so that whatever a layout shares is shared."""


@torch.no_grad()
def _own_logps(lm: PreTrainedModel, device: torch.device) -> Tensor:
    """The proof's branches [K], scored one by one from the logits of the model's own forward pass.

    In eager attention, the one form that has everything an architecture asks for. Raises SetupError when
    what the model says of the prompt depends on what follows it.
    """
    lm.set_attn_implementation("eager")
    sums = []
    for row in PROOF:
        prompt, of_prompt = len(row.prompt), []
        for branch in row.branches:
            ids = torch.tensor([[*row.prompt, *branch]], device=device, dtype=torch.int64)
            logps = lm(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
            sums.append(logps[prompt - 1 : -1].gather(1, ids[0, prompt:, None]).sum())
            of_prompt.append(logps[:prompt])
        if not torch.allclose(*of_prompt, rtol=0, atol=TOLERANCE):
            raise SetupError(
                f"{type(lm).__name__} is not causal: what follows a token changes its prediction",
                "alignctl trains causal language models",
            )
    return torch.stack(sums)


def _mismatch(
    model: PreTrainedModel | PeftModel, expected: Tensor, layout: Layout, device: torch.device
) -> str:
    """Empty when our forward pass agrees with the model's own, else what happened."""
    dtype = next(model.parameters()).dtype
    policy = Policy(model, layout, torch.float64 if dtype == torch.float64 else torch.float32, device)
    try:
        set_attention(policy.causal_lm, layout)
        if layout != "padded" and policy.causal_lm.config._attn_implementation != attention.NAME:
            return f"{type(policy.causal_lm).__name__} lets nobody replace its attention"
        batch = pack(PROOF, layout).to(device)
        with torch.no_grad():
            forms = (policy, replace(policy, forward_only=True))
            found = torch.stack([branch_logps(form, batch).double() for form in forms])
    except SetupError as error:
        return error.message
    except Exception as error:  # any model code may run here; whatever it raises means "not this layout"
        return f"{layout} forward pass failed ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    difference = float((found - expected.double()).abs().max())
    return "" if difference <= TOLERANCE else f"{layout} log-probabilities differ by {difference:.2g} nats"
