from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from alignctl.models.gate import choose_layout
from alignctl.models.packing import pack
from alignctl.models.policy import Policy, branch_logps, causal_lm
from alignctl.models.precision import settle_precision, settled_bytes
from alignctl.records import Example

ROW = Example(
    id="row",
    prompt=np.array([3, 4, 5], dtype=np.int32),
    branches=(np.array([6, 7], dtype=np.int32), np.array([8, 9, 10, 2], dtype=np.int32)),
)


def adapted(*, tied: bool) -> PeftModel:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    base = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=tied))
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(base, lora)  # type: ignore[return-value]


def gradients(model: PeftModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    policy = Policy(model, "shared", torch.bfloat16, torch.device("cpu"))
    logps = branch_logps(policy, pack([ROW], "shared"))
    logps.sum().backward()
    return logps.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tied", [True, False])
def test_frozen_weights_are_halved_and_nothing_else_changes(tied: bool) -> None:
    plain, settled = adapted(tied=tied), adapted(tied=tied)
    for model in (plain, settled):
        choose_layout(model, max_length=64, adapter_dropout=0.0, device=torch.device("cpu"))
    settle_precision(settled, torch.bfloat16)
    lm = causal_lm(settled)
    layer = lm.get_decoder().layers[0].mlp.up_proj
    assert layer.base_layer.weight.dtype == torch.bfloat16
    assert layer.lora_A["default"].weight.dtype == torch.float32
    assert lm.get_input_embeddings().weight.dtype == torch.float32
    assert lm.get_output_embeddings().weight.dtype == (torch.float32 if tied else torch.bfloat16)

    (logps, grads), (expected, expected_grads) = gradients(settled), gradients(plain)
    # PEFT's detour over float32 rounds nothing, so the forward pass has the same bits.
    assert torch.equal(logps, expected)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, expected_grads[name], rtol=0.03, atol=0.03 * float(grad.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_autocast_the_weights_stay_as_they_are(dtype: torch.dtype) -> None:
    model = adapted(tied=False).to(dtype)
    settle_precision(model, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_weights_that_are_trained_stay_in_float32() -> None:
    torch.manual_seed(0)
    model = causal_lm(adapted(tied=False)).requires_grad_(True)
    settle_precision(model, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_of_a_settled_copy_are_known_before_it_is_made(tied: bool, dtype: torch.dtype) -> None:
    model = adapted(tied=tied)
    model.requires_grad_(False)
    known = settled_bytes(model.merge_and_unload(), dtype)
    settled = model.merge_and_unload()
    settle_precision(settled, dtype)
    assert known == sum(p.numel() * p.element_size() for p in settled.parameters())
