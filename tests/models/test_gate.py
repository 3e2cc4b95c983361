"""Which layout real architectures get, why, and that what they get is exact."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model

from alignctl.errors import SetupError
from alignctl.models.gate import choose_layout
from alignctl.models.packing import pack
from alignctl.models.policy import Policy, branch_logps, causal_lm

CPU = torch.device("cpu")
MAX_LENGTH = 64
TREES = [(1, 3, 1), (12, 5, 9), (20, 8, 2)]
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {"head_dim": 8, "sliding_window": 512, "attn_logit_softcapping": None}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
BLOOM = {"vocab_size": 61, "hidden_size": 32, "n_layer": 2, "n_head": 4}
MAMBA = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2}
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
NEOX = {name: SIZES[name] for name in SIZES if name not in ("num_key_value_heads", "pad_token_id")}


def built(model: type[hf.PreTrainedModel], config: hf.PreTrainedConfig) -> hf.PreTrainedModel:
    """Random weights, large enough that every part of the architecture shows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = model(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return made


def gate_of(model, *, adapter_dropout=0.0):
    return choose_layout(model, max_length=MAX_LENGTH, adapter_dropout=adapter_dropout, device=CPU)


def assert_exact(model, layout, rows, plain_logps):
    """Packed as the gate decided, against the model's own eager forward pass, one branch at a time."""
    with torch.no_grad():
        found = branch_logps(Policy(model, layout, torch.float32, CPU), pack(rows, layout))
        causal_lm(model).set_attn_implementation("eager")
        assert float((found - plain_logps(model, rows)).abs().max()) < 1e-4


SHARED = {
    "Llama": lambda: built(hf.LlamaForCausalLM, hf.LlamaConfig(**SIZES)),
    "Qwen2": lambda: built(hf.Qwen2ForCausalLM, hf.Qwen2Config(**SIZES)),
    "Qwen3, norms inside attention": lambda: built(hf.Qwen3ForCausalLM, hf.Qwen3Config(**SIZES, head_dim=8)),
    "Mistral, window beyond max_length": lambda: built(
        hf.MistralForCausalLM, hf.MistralConfig(**SIZES, sliding_window=MAX_LENGTH)
    ),
    "Gemma2 without its caps": lambda: built(
        hf.Gemma2ForCausalLM, hf.Gemma2Config(**SIZES, **GEMMA, final_logit_softcapping=None)
    ),
    "Mixtral, experts": lambda: built(hf.MixtralForCausalLM, hf.MixtralConfig(**SIZES, num_local_experts=4)),
    "GPT-2, learned positions": lambda: built(hf.GPT2LMHeadModel, hf.GPT2Config(**GPT2, **NO_DROPOUT)),
    "GPT-NeoX, partly rotary": lambda: built(hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig(**NEOX, rotary_pct=0.5)),
    "Phi, head with a bias": lambda: built(
        hf.PhiForCausalLM, hf.PhiConfig(**SIZES, partial_rotary_factor=0.5)
    ),
}


@pytest.mark.parametrize("name", SHARED)
def test_prompts_are_shared(make_rows, plain_logps, name):
    model = SHARED[name]()
    gate = gate_of(model)
    assert (gate.layout, gate.reason) == ("shared", "")
    assert_exact(model, "shared", make_rows(TREES), plain_logps)


PADDED = {
    "Mistral, window": (
        lambda: built(hf.MistralForCausalLM, hf.MistralConfig(**SIZES, sliding_window=8)),
        "sliding window of 8 tokens is shorter than train.max_length=64",
    ),
    "Mistral, window short by one": (
        lambda: built(hf.MistralForCausalLM, hf.MistralConfig(**SIZES, sliding_window=MAX_LENGTH - 1)),
        "sliding window of 63 tokens is shorter than train.max_length=64",
    ),
    "Gemma2, attention cap": (
        lambda: built(
            hf.Gemma2ForCausalLM,
            hf.Gemma2Config(
                **SIZES, **(GEMMA | {"attn_logit_softcapping": 50.0}), final_logit_softcapping=None
            ),
        ),
        "attention needs a soft cap",
    ),
    "GPT-OSS, sinks": (
        lambda: built(
            hf.GptOssForCausalLM,
            hf.GptOssConfig(
                **SIZES,
                head_dim=8,
                num_local_experts=4,
                num_experts_per_tok=2,
                layer_types=["full_attention"] * 2,
            ),
        ),
        "attention needs attention sinks",
    ),
    "LFM2, convolutions": (
        lambda: built(hf.Lfm2ForCausalLM, hf.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"])),
        "Lfm2ForCausalLM has conv layers",
    ),
    "Bloom, ALiBi": (
        lambda: built(hf.BloomForCausalLM, hf.BloomConfig(**BLOOM)),
        "BloomForCausalLM lets nobody replace its attention",
    ),
}


@pytest.mark.parametrize("name", PADDED)
def test_rows_are_padded_and_the_reason_is_told(make_rows, plain_logps, name):
    build, reason = PADDED[name]
    model = build()
    gate = gate_of(model)
    assert (gate.layout, gate.reason) == ("padded", reason)
    assert_exact(model, "padded", make_rows(TREES), plain_logps)


REFUSED = {
    "Gemma2, logits capped far above the proof's": (
        lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**SIZES, **GEMMA)),
        "final_logit_softcapping=30.0",
    ),
    "Granite, logits scaled": (
        lambda: built(hf.GraniteForCausalLM, hf.GraniteConfig(**SIZES, logits_scaling=8.0)),
        "padded log-probabilities differ",
    ),
    "Mamba, no attention at all": (
        lambda: built(hf.MambaForCausalLM, hf.MambaConfig(**MAMBA)),
        "keeps its past in no key-value cache",
    ),
    "BERT, both directions": (
        lambda: built(
            hf.BertLMHeadModel,
            hf.BertConfig(
                vocab_size=61,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=48,
            ),
        ),
        "is not causal",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_scored_is_refused(name):
    build, message = REFUSED[name]
    with pytest.raises(SetupError, match=message) as refusal:
        gate_of(build())
    assert refusal.value.hints


def with_lora(model, *, dropout, targets=("q_proj", "v_proj")):
    """An adapter that has been trained: its second matrix is not zero."""
    adapted = get_peft_model(model, LoraConfig(r=4, lora_dropout=dropout, target_modules=list(targets)))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return adapted


@pytest.mark.parametrize(("dropout", "layout"), [(0.0, "shared"), (0.5, "packed")])
def test_adapter_dropout_turns_sharing_off(make_rows, plain_logps, dropout, layout):
    """The proof is not blurred by the dropout itself, though the model comes in training mode."""
    model = with_lora(SHARED["Llama"](), dropout=dropout)
    model.train()
    gate = gate_of(model, adapter_dropout=dropout)
    assert gate.layout == layout
    assert gate.reason.startswith("adapter.dropout is above 0" if dropout else "")
    assert bool(gate.reason) == bool(dropout)
    assert model.training
    model.eval()
    assert_exact(model, layout, make_rows(TREES), plain_logps)


def test_an_adapted_head_is_refused():
    model = with_lora(SHARED["Llama"](), dropout=0.0, targets=("q_proj", "lm_head"))
    with pytest.raises(SetupError, match="no plain linear vocabulary head"):
        gate_of(model)


def test_a_window_the_config_hides_is_met_in_the_attention(make_rows):
    """Nothing is ignored silently, even where the gate could not know."""
    model = built(hf.MistralForCausalLM, hf.MistralConfig(**SIZES, sliding_window=MAX_LENGTH))
    gate = gate_of(model)
    model.config.sliding_window = 20
    with pytest.raises(SetupError, match="sliding window of 20 tokens"):
        branch_logps(Policy(model, gate.layout, torch.float32, CPU), pack(make_rows(TREES), gate.layout))


def test_the_models_own_dropout_is_refused_by_the_attention(make_rows):
    """Loading turns it off; a model built with it does not slip through."""
    model = built(hf.GPT2LMHeadModel, hf.GPT2Config(**GPT2, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.1))
    gate = gate_of(model)
    model.train()
    with pytest.raises(SetupError, match="dropout"):
        branch_logps(Policy(model, gate.layout, torch.float32, CPU), pack(make_rows(TREES), gate.layout))
