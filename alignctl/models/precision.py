"""A model made ready for autocast: nothing cast more often than its value changes.

A frozen float32 weight would be rounded to bfloat16 anew in every forward pass; rounded once it gives the
same numbers in half the memory. Only plain linear layers: norms and embeddings stay in float32 under
autocast, and a head tied to the embedding with them. PEFT casts the input of every adapter to float32, the
dtype of its weights, for autocast to cast it back; that detour is left out.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from alignctl.models.policy import causal_lm


def settle_precision(model: PreTrainedModel | PeftModel, dtype: torch.dtype) -> None:
    """Prepare a model that computes in `dtype`: under autocast for bfloat16, as it is otherwise."""
    if dtype != torch.bfloat16:
        return
    embedding = causal_lm(model).get_input_embeddings().weight
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
        if isinstance(module, nn.Linear) and module.weight is not embedding:
            _round_frozen(module, dtype)


def settled_bytes(model: PreTrainedModel | PeftModel, dtype: torch.dtype) -> int:
    """What a frozen copy of the model takes once it is prepared for `dtype`."""
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    if dtype != torch.bfloat16:
        return whole
    embedding = causal_lm(model).get_input_embeddings().weight
    linear = {
        parameter
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.weight is not embedding
        for parameter in module.parameters(recurse=False)
        if parameter.dtype == torch.float32
    }
    return whole - sum(2 * parameter.numel() for parameter in linear)


def _round_frozen(linear: nn.Linear, dtype: torch.dtype) -> None:
    for parameter in linear.parameters(recurse=False):
        if not parameter.requires_grad and parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(dtype)
