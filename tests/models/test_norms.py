from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from alignctl.models.norms import FusedRmsNorm, fuse_norms


def holder(norm: nn.Module, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    nn.init.normal_(norm.get_parameter("weight"), mean=1.0)
    return nn.ModuleDict({"norm": norm})


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma2RMSNorm])
def test_a_fused_norm_has_the_outputs_and_gradients_of_the_models_own(kind: type[nn.Module]) -> None:
    model = holder(kind(24, eps=1e-5))
    own = model["norm"]
    assert fuse_norms(model) == 1
    assert isinstance(model["norm"], FusedRmsNorm)
    assert model["norm"].weight is own.weight
    found = []
    for norm in (own, model["norm"]):
        x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
        own.weight.grad = None
        y = norm(x)
        (y * torch.linspace(-1, 1, 24)).square().sum().backward()
        found.append((y.detach(), x.grad, own.weight.grad.clone()))
    for expected, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_the_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    norm = FusedRmsNorm(nn.Parameter(torch.randn(6, dtype=torch.float64)), eps=1e-3, offset=1.0)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(norm, {"weight": w}, (x,)), (x, norm.weight)
    )


def test_under_autocast_the_result_is_rounded_once_and_the_weight_keeps_its_gradient_in_float32() -> None:
    torch.manual_seed(0)
    norm = FusedRmsNorm(nn.Parameter(torch.randn(32)), eps=1e-5, offset=0.0)
    x = torch.randn(1, 7, 32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, norm(x).bfloat16())
    y.float().sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is not None
    assert x.grad.dtype == norm.weight.grad.dtype == torch.float32


def test_only_the_input_and_one_number_a_token_are_kept_for_the_backward_pass() -> None:
    norm = FusedRmsNorm(nn.Parameter(torch.ones(32)), eps=1e-5, offset=0.0)
    x = torch.randn(1, 7, 32, requires_grad=True)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in (x.data_ptr(), norm.weight.data_ptr()):
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm(x)
    assert kept == [7]


class ScaledRMSNorm(LlamaRMSNorm):
    """Called an RMS norm, and computing something else."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) * 1.01


class GatedRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(hidden_states) * gate


@pytest.mark.parametrize(
    "norm", [ScaledRMSNorm(8), GatedRMSNorm(8), nn.LayerNorm(8), LlamaRMSNorm(8).double()]
)
def test_what_is_no_plain_rms_norm_stays_as_it_is(norm: nn.Module) -> None:
    model = holder(norm)
    assert fuse_norms(model) == 0
    assert model["norm"] is norm


def test_all_norms_of_a_model_are_found_those_on_heads_too() -> None:
    shape = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    # Two norms a layer and one at the end; Qwen 3 has two more on queries and keys, Gemma 2 after each part.
    assert fuse_norms(Qwen3ForCausalLM(Qwen3Config(**shape))) == 2 * 4 + 1
    assert fuse_norms(Gemma2ForCausalLM(Gemma2Config(**shape))) == 2 * 4 + 1
