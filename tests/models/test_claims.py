"""What a model's JSON claims is held against what is plausible and what its weights hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from alignctl.errors import SetupError
from alignctl.models.claims import CONFIG, check_adapter, check_claims, check_config, check_size, held_in
from alignctl.models.load import Source, load_weights


@pytest.fixture
def model(tiny: Callable[..., LlamaForCausalLM], tmp_path: Path) -> Path:
    """A directory with a two-layer Llama of width 32 over 61 tokens."""
    tiny(dtype=torch.float32).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(check: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(SetupError) as told:
        check(path)
    assert told.value.hints
    assert len(told.value.render()) < 600
    return told.value.message


def test_a_sound_model_and_what_its_headers_hold(model: Path) -> None:
    check_claims(model)
    held = held_in([model / "model.safetensors"])
    per_layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48 + 2 * 32
    assert (held.tensors, held.elements, held.longest) == (20, 61 * 32 + 2 * per_layer + 32, 61)


BEYOND = [
    ("num_hidden_layers", 10**9, "no model has more than 4096"),
    ("num_hidden_layers", 21, "the weights beside it are 20 tensors"),
    ("hidden_size", 10**12, "no model has more than 4194304"),
    ("hidden_size", 62, "no tensor beside it is longer than 61"),
    ("vocab_size", 62, "no tensor beside it is longer than 61"),
    ("intermediate_size", 10**10, "no model has more than 4194304"),
    ("num_attention_heads", 64, "no tensor beside it is longer than 61"),
    ("num_key_value_heads", 4097, "no model has more than 4096"),
    ("head_dim", 10**7, "no model has more than 4194304"),
    ("max_position_embeddings", 10**12, "no model has more than 134217728"),
    ("num_local_experts", 5000, "no model has more than 4096"),
    ("num_labels", 10**9, "no model has more than 65536"),
    ("text_config", {"num_hidden_layers": 10**9}, "no model has more than 4096"),
    ("hidden_size", [32, 10**12], "no model has more than 4194304"),
    ("vocab_size", "61", "a whole number above 0 belongs there"),
    ("vocab_size", True, "a whole number above 0 belongs there"),
    ("hidden_size", 32.0, "a whole number above 0 belongs there"),
    ("hidden_size", float("nan"), "a whole number above 0 belongs there"),
    ("num_hidden_layers", -1, "a whole number above 0 belongs there"),
    ("num_attention_heads", 0, "a whole number above 0 belongs there"),
    ("n_layer", {"a": 1}, "a whole number above 0 belongs there"),
    ("architectures", ["LlamaForCausalLM", 1], "names belong there"),
    ("architectures", {"LlamaForCausalLM": 1}, "names belong there"),
    ("model_type", 7, "names belong there"),
    ("head_dim", 1e300, "no model has more than 4194304"),
]


@pytest.mark.parametrize(("key", "value", "why"), BEYOND)
def test_a_claim_beyond_belief_is_refused_with_file_key_and_value(
    model: Path, key: str, value: Any, why: str
) -> None:
    change(model / CONFIG, **{key: value})
    said = refusal(check_claims, model)
    inner = next(iter(value)) if isinstance(value, dict) and key == "text_config" else key
    assert said.startswith(f"{model / CONFIG}: {inner}=")
    assert said.endswith(why)


def test_what_large_models_really_have_is_believed(tmp_path: Path) -> None:
    large = {"num_hidden_layers": 126, "hidden_size": 16384, "intermediate_size": 53248, "vocab_size": 256000}
    odd = {
        "max_position_embeddings": 10485760,
        "n_routed_experts": 384,
        "num_labels": 21843,
        "head_dim": None,
    }
    lists = {"intermediate_size": [8192] * 35, "rope_theta": 10**11, "sliding_window": -1, "chunk_size": 0}
    for config in (large | odd, large | odd | lists):
        (tmp_path / CONFIG).write_text(json.dumps(config))
        assert check_config(tmp_path / CONFIG) == config


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "experts_implementation"])
@pytest.mark.parametrize(
    "value", ["kernels-community/flash-attn2", "someone/x@main:f", "paged|a/b", {"": "a/b"}, ["a/b"]]
)
def test_a_kernel_of_the_hub_is_refused_by_name(model: Path, key: str, value: Any) -> None:
    for change_to in ({key: value}, {"text_config": {key: value}}):
        change(model / CONFIG, **change_to)
        said = refusal(check_claims, model)
        assert said.startswith(f"{model / CONFIG}: {key}=")
        assert said.endswith("it names code on the hub, which alignctl does not run")


@pytest.mark.parametrize(
    "value", [None, "eager", "sdpa", "flash_attention_2", {"": "sdpa", "text_config": None}]
)
def test_another_implementation_may_be_named_and_is_left_to_the_engine(model: Path, value: Any) -> None:
    change(model / CONFIG, _attn_implementation=value, _attn_implementation_autoset=True)
    load_weights(Source(str(model), None))


def test_a_model_that_is_mostly_made_up_is_refused_before_it_is_built(model: Path) -> None:
    change(model / CONFIG, intermediate_size=2**21)
    said = refusal(lambda path: load_weights(Source(str(path), None)), model)
    assert said == (
        f"{model / CONFIG} describes {2 * 3 * 32 * 2**21 + 61 * 32 + 2 * 3136 + 32 + 8} numbers, "
        "but the weights beside it hold 17472"
    )


def test_the_size_a_config_describes_may_differ_by_what_no_file_holds(model: Path) -> None:
    check_size(model, 4 * 17472 + 2**22)
    assert "describes 4264193 numbers" in refusal(lambda path: check_size(path, 4 * 17472 + 2**22 + 1), model)


# --- adapters ------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA adapter of rank 4 on one layer of width 32."""
    weights = {"q.lora_A.weight": torch.zeros(4, 32), "q.lora_B.weight": torch.zeros(32, 4)}
    save_file(weights, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "base_model_name_or_path": "base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path


PATTERNS = ["(a+)+$", "(.*)*q", "(a|a)*b", ".*.*.*.*.*.*q", "[", "a" * 1001, "(?:x{1,9}){1,9}"]
UNFIT_ADAPTERS = [
    ({"r": 10**12}, "r", "no tensor in adapter_model.safetensors is longer than 32"),
    ({"r": "4"}, "r", "a whole number above 0 belongs there"),
    ({"r": [4]}, "r", "a whole number above 0 belongs there"),
    ({"rank_pattern": {"q_proj": 33}}, "r", "no tensor in adapter_model.safetensors is longer than 32"),
    ({"lora_alpha": float("nan")}, "lora_alpha", "a finite number belongs there"),
    ({"lora_alpha": "8"}, "lora_alpha", "a finite number belongs there"),
    ({"alpha_pattern": {"q_proj": float("inf")}}, "lora_alpha", "a finite number belongs there"),
    ({"num_virtual_tokens": 10**12}, "num_virtual_tokens", "no model has more than 4096"),
    ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "megatron_config", "module to import"),
    ({"layer_replication": [[0, 2]] * 10**5}, "layer_replication", "merge it into the base first"),
    ({"revision": 3}, "revision", "names belong there"),
    *(({"target_modules": pattern}, "target_modules", "") for pattern in PATTERNS),
    ({"exclude_modules": "(x*)*"}, "exclude_modules", "it may take for ever"),
    ({"alpha_pattern": {"(x*)*y": 8}}, "alpha_pattern", "it may take for ever"),
]


@pytest.mark.parametrize(("changes", "key", "why"), UNFIT_ADAPTERS)
def test_an_adapter_is_held_against_its_weights(adapter: Path, changes: Any, key: str, why: str) -> None:
    change(adapter / "adapter_config.json", **changes)
    said = refusal(check_adapter, adapter)
    assert said.startswith(f"{adapter / 'adapter_config.json'}: {key}=")
    assert said.endswith(why)


@pytest.mark.parametrize(
    "targets",
    ["all-linear", ["q_proj"], r".*\.(q_proj|v_proj)$", r"^model\.layers\.(\d+)\.(mlp|attn)\..*", None],
)
def test_usual_targets_are_fine(adapter: Path, targets: Any) -> None:
    change(adapter / "adapter_config.json", target_modules=targets, rank_pattern={"q_proj": 8}, r=32)
    assert check_adapter(adapter)["target_modules"] == targets
