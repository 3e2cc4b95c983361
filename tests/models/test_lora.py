from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from alignctl.models.lora import fuse_adapters

SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
MODELS = {  # Qwen2's queries, keys and values have biases
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
}
LINEAR = 2 * 7


def adapted(kind: str, **options: Any) -> PeftModel:
    torch.manual_seed(0)
    lora = LoraConfig(
        r=4, lora_alpha=6, target_modules="all-linear", **{"init_lora_weights": False} | options
    )
    return get_peft_model(MODELS[kind](), lora).double()  # type: ignore[return-value]


def found(model: nn.Module, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    logits = model(input_ids=ids, use_cache=False).logits
    logits.double().square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_a_share_added_in_place_is_the_one_that_peft_adds(kind: str, checkpointing: bool) -> None:
    model = adapted(kind)
    fused = deepcopy(model)
    assert fuse_adapters(fused) == LINEAR
    if checkpointing:
        fused.train().enable_input_require_grads()
        fused.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(1))

    expected, expected_gradients = found(model, ids)
    logits, gradients = found(fused, ids)

    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    assert gradients.keys() == expected_gradients.keys()
    assert len(gradients) == 2 * LINEAR
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-10, atol=1e-12)


def test_a_frozen_layer_under_autocast_stays_within_bfloat16s_rounding() -> None:
    model = adapted("llama").float()
    fused = deepcopy(model)
    fuse_adapters(fused)
    ids = torch.arange(12)[None]
    with torch.autocast("cpu", torch.bfloat16):
        expected, expected_gradients = found(model, ids)
        logits, gradients = found(fused, ids)
    torch.testing.assert_close(logits, expected, rtol=0.02, atol=0.02)
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected_gradients[name]).norm() < 0.05 * expected_gradients[name].norm()


def test_adapters_switched_off_leave_the_layers_own_result() -> None:
    model = adapted("llama")
    ids = torch.arange(12)[None]
    with torch.no_grad(), model.disable_adapter():
        expected = model(input_ids=ids).logits
        fuse_adapters(model)
        assert torch.equal(model(input_ids=ids).logits, expected)


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"lora_bias": True}, {"use_dora": True}])
def test_other_adapters_stay_as_they_are(options: dict[str, Any]) -> None:
    assert fuse_adapters(adapted("llama", init_lora_weights=True, **options)) == 0


def test_what_is_saved_is_the_same() -> None:
    model = adapted("llama")
    before = get_peft_model_state_dict(deepcopy(model))
    fuse_adapters(model)
    assert fuse_adapters(model) == 0
    after = get_peft_model_state_dict(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("safe", [False, True])
def test_merged_and_unmerged_is_as_of_peft(safe: bool) -> None:
    model = adapted("qwen2")
    fused = deepcopy(model)
    fuse_adapters(fused)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        adapters_on = fused(input_ids=ids).logits
        fused.merge_adapter(safe_merge=safe)
        torch.testing.assert_close(fused(input_ids=ids).logits, adapters_on, rtol=1e-12, atol=1e-12)
        fused.unmerge_adapter()
        torch.testing.assert_close(fused(input_ids=ids).logits, adapters_on, rtol=1e-12, atol=1e-12)
        found = fused.merge_and_unload(safe_merge=safe).state_dict()
        expected = model.merge_and_unload(safe_merge=safe).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-12)
