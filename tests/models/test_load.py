"""Loading: what opens, what is refused and how, and that adapters add exactly what they should."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

from alignctl.config import LoraAdapter, NoAdapter, PretrainedModel, TinyModel
from alignctl.errors import AlignctlError, UsageError
from alignctl.models.load import (
    Source,
    fingerprints,
    load_start,
    load_tokenizer,
    load_weights,
    locate,
    locate_path,
    name_base,
    vocabulary_size,
)

NONE = NoAdapter(kind="none")
TINY = TinyModel(kind="tiny", name="tiny", seed=0, layers=1, hidden=32, lr=1e-3)
IDS = torch.arange(3, 43).view(2, 20)


def lora(*, r=4, alpha=8.0, dropout=0.0, targets: str | tuple[str, ...] = "all-linear") -> LoraAdapter:
    return LoraAdapter(kind="lora", r=r, alpha=alpha, dropout=dropout, targets=targets, lr_scale=10.0)


@pytest.fixture
def model_dir(cache) -> Path:
    """A plain model directory that a test may change."""
    return Path(locate(TINY, print).base)


@pytest.fixture
def adapter_dir(model_dir: Path, tmp_path: Path) -> Path:
    """A trained adapter (its second matrices are not zero) on that model, as PEFT writes it."""
    model = load_start(Source(str(model_dir), None), lora(), seed=1).model
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def refusal_of(action, *arguments, **named) -> AlignctlError:
    with pytest.raises(AlignctlError) as caught:
        action(*arguments, **named)
    assert caught.value.hints
    assert len(caught.value.render().splitlines()) <= 6
    return caught.value


# --- what opens ----------------------------------------------------------------------------------------


def test_a_directory_opens_as_transformers_wrote_it(model_dir):
    source = locate(PretrainedModel(kind="pretrained", path=str(model_dir), revision=None, lr=1e-6), print)
    model = load_weights(source)
    stored = load_file(model_dir / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in stored.items())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert vocabulary_size(source) == 259
    assert load_tokenizer(source).chat_template


def test_half_precision_weights_become_float32(model_dir, tmp_path):
    AutoModelForCausalLM.from_pretrained(model_dir).bfloat16().save_pretrained(tmp_path / "half")
    model = load_weights(locate_path(str(tmp_path / "half")))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_dropout_of_the_config_is_off(model_dir):
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.2}))
    model = load_weights(locate_path(str(model_dir)))
    assert model.config.attention_dropout == 0.0


def as_run(directory: Path, model: Path) -> Path:
    directory.mkdir()
    (directory / "run.json").write_text("{}")
    shutil.copytree(model, directory / "model")
    return directory


def test_a_run_directory_means_its_model(model_dir, tmp_path):
    run = as_run(tmp_path / "run", model_dir)
    assert locate_path(str(run)) == Source(str(run / "model"), None)


def test_a_run_without_a_model_is_told_to_finish(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    error = refusal_of(locate_path, str(tmp_path))
    assert "has no model/ yet" in error.message


def test_an_adapter_directory_names_its_base(model_dir, adapter_dir, tmp_path):
    assert locate_path(str(adapter_dir)) == Source(str(model_dir), None, adapter_dir)
    run = as_run(tmp_path / "run", adapter_dir)
    assert locate_path(str(run)) == Source(str(model_dir), None, run / "model")
    assert load_tokenizer(locate_path(str(run))).chat_template  # the base's, as it has none of its own


def test_a_hub_id_is_left_to_the_hub():
    assert locate_path("OWNER/NAME", "v1") == Source("OWNER/NAME", "v1")


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["./none", "/none/of/these", "~/nothing-here", "name", "a/b/c"])
def test_no_such_path(path):
    error = refusal_of(locate_path, path)
    assert error.message == f"there is no model at {path}"
    assert error.exit_code == 3


def test_pickled_weights_are_refused_with_the_conversion(model_dir):
    (model_dir / "model.safetensors").rename(model_dir / "pytorch_model.bin")
    error = refusal_of(locate_path, str(model_dir))
    assert error.exit_code == 3
    assert "only pytorch_model.bin, which is pickle" in error.message
    assert "from_pretrained(DIR).save_pretrained(NEW_DIR)" in error.hints[-1]


def test_a_directory_without_weights_or_config(model_dir, tmp_path):
    (model_dir / "model.safetensors").unlink()
    assert "has no safetensors weights (none)" in refusal_of(locate_path, str(model_dir)).message
    assert "no config.json" in refusal_of(locate_path, str(tmp_path)).message


def rewrite_weights(directory: Path, change) -> None:
    file = directory / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def without_one(tensors):
    return {name: tensor for name, tensor in tensors.items() if "mlp.up_proj" not in name}


def with_nan(tensors):
    name = next(name for name in tensors if "q_proj" in name)
    return {**tensors, name: tensors[name].masked_fill(torch.ones_like(tensors[name]) > 0, float("nan"))}


def with_another_shape(tensors):
    name = next(name for name in tensors if "q_proj" in name)
    return {**tensors, name: torch.zeros(3, 3)}


def change_config(directory: Path, **values: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **values}))


BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True}
UNFIT = {
    "missing weights": (lambda d: rewrite_weights(d, without_one), "missing keys model.layers.0.mlp.up_proj"),
    "NaN": (lambda d: rewrite_weights(d, with_nan), "NaN or infinity in model.layers.0.self_attn.q_proj"),
    "another shape": (lambda d: rewrite_weights(d, with_another_shape), "q_proj|mismatched"),
    "truncated": (
        lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-100]),
        "is no sound safetensors file",
    ),
    "no safetensors inside": (
        lambda d: (d / "model.safetensors").write_bytes(b"\x80\x04pickle" * 9),
        "is no sound safetensors file",
    ),
    "config is no JSON": (lambda d: (d / "config.json").write_text("{"), "cannot be read as JSON"),
    "config of nothing known": (
        lambda d: (d / "config.json").write_text('{"model_type": "nosuch"}'),
        "cannot be loaded",
    ),
    "config with text for a size": (lambda d: change_config(d, hidden_size="wide"), "hidden_size='wide'"),
    "quantised": (
        lambda d: change_config(d, quantization_config=BITS),
        "is quantised",
    ),
    "index names a missing shard": (
        lambda d: (
            (d / "model.safetensors").rename(d / "model-00001-of-00002.safetensors"),
            (d / "model.safetensors.index.json").write_text(
                '{"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}'
            ),
        ),
        "cannot be loaded",
    ),
    "code of its own": (
        lambda d: change_config(d, model_type="own", auto_map={"AutoConfig": "own.Config"}),
        "cannot be loaded",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_models_are_refused_in_a_few_lines(model_dir, name):
    damage, message = UNFIT[name]
    damage(model_dir)
    error = refusal_of(load_weights, Source(str(model_dir), None))
    assert error.exit_code == 3
    assert str(model_dir) in error.message
    assert any(part in error.message for part in message.split("|")), error.message


def test_a_model_without_a_head_is_refused(tmp_path):
    config = BertConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
    )
    BertModel(config).save_pretrained(tmp_path / "encoder")
    error = refusal_of(load_weights, locate_path(str(tmp_path / "encoder")))
    assert "missing keys cls.predictions" in error.message


def adapter_config(directory: Path, **values: object) -> None:
    file = directory / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_pickled_adapter_is_refused_unread(adapter_dir):
    """PEFT itself would read the pickle."""
    (adapter_dir / "adapter_model.safetensors").rename(adapter_dir / "adapter_model.bin")
    error = refusal_of(locate_path, str(adapter_dir))
    assert error.exit_code == 3
    assert "adapter_model.safetensors" in error.message
    assert "no pickle" in error.hints[0]


def test_an_adapter_on_an_adapter_is_refused(adapter_dir, tmp_path):
    shutil.copytree(adapter_dir, tmp_path / "second")
    adapter_config(tmp_path / "second", base_model_name_or_path=str(adapter_dir))
    assert "adapter on another adapter" in refusal_of(locate_path, str(tmp_path / "second")).message
    adapter_config(adapter_dir, base_model_name_or_path=str(adapter_dir))  # and on itself
    assert "adapter on another adapter" in refusal_of(locate_path, str(adapter_dir)).message


@pytest.mark.parametrize("base", [None, "", 3])
def test_an_adapter_without_a_base_is_refused(adapter_dir, base):
    adapter_config(adapter_dir, base_model_name_or_path=base)
    assert "does not name the model" in refusal_of(locate_path, str(adapter_dir)).message


def test_an_adapter_whose_base_is_gone_is_refused(adapter_dir, model_dir):
    shutil.rmtree(model_dir)
    assert str(model_dir) in refusal_of(locate_path, str(adapter_dir)).message


def rewrite_adapter(directory: Path, change) -> None:
    file = directory / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


ADAPTER_DAMAGE = {
    "missing tensors": (without_one, "missing keys base_model.model.model.layers.0.mlp.up_proj"),
    "NaN": (with_nan, "NaN or infinity in base_model.model.model.layers.0.self_attn.q_proj"),
    "another shape": (with_another_shape, "cannot be loaded"),
}


@pytest.mark.parametrize("name", ADAPTER_DAMAGE)
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_damaged_adapters_are_refused(adapter_dir, name):
    change, message = ADAPTER_DAMAGE[name]
    rewrite_adapter(adapter_dir, change)
    error = refusal_of(load_weights, locate_path(str(adapter_dir)))
    assert message in error.message
    assert str(adapter_dir) in error.message


def test_an_adapter_that_cannot_be_merged_is_refused(adapter_dir):
    file = adapter_dir / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"alora_invocation_tokens": [1]}))
    error = refusal_of(load_start, locate_path(str(adapter_dir)), NONE, seed=0)
    assert error.message == f"{adapter_dir} cannot be loaded: aLoRA does not support merging."


def test_an_adapter_config_that_is_no_json_is_refused(adapter_dir):
    (adapter_dir / "adapter_config.json").write_text("{")
    assert "cannot be read as JSON" in refusal_of(locate_path, str(adapter_dir)).message


# --- adapters ------------------------------------------------------------------------------------------


def test_a_fresh_adapter_adds_exactly_nothing(model_dir):
    source = Source(str(model_dir), None)
    base, start = load_start(source, NONE, seed=0), load_start(source, lora(), seed=0)
    assert torch.equal(logits_of(start.model), logits_of(base.model))
    assert start.fingerprint == base.fingerprint
    trained = {name for name, p in start.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert all(p.requires_grad for p in base.model.parameters())


def test_a_trained_adapter_switched_off_is_the_base_bitwise(model_dir, adapter_dir):
    base = logits_of(load_weights(Source(str(model_dir), None)))
    adapted = load_weights(locate_path(str(adapter_dir)))
    assert isinstance(adapted, PeftModel)
    assert float((logits_of(adapted) - base).abs().max()) > 1e-3
    with adapted.disable_adapter():
        assert torch.equal(logits_of(adapted), base)


def test_merged_is_unmerged(adapter_dir):
    source = locate_path(str(adapter_dir))
    merged = load_start(source, NONE, seed=0).model
    assert not isinstance(merged, PeftModel)
    assert all(p.requires_grad for p in merged.parameters())
    assert float((logits_of(merged) - logits_of(load_weights(source))).abs().max()) < 1e-6


def test_an_adapter_is_trained_further(adapter_dir):
    start = load_start(locate_path(str(adapter_dir)), lora(), seed=9)
    stored = load_file(adapter_dir / "adapter_model.safetensors")
    trained = {name: p for name, p in start.model.named_parameters() if p.requires_grad}
    assert {name.replace(".default", "") for name in trained} == set(stored)
    for name, parameter in trained.items():
        assert torch.equal(parameter, stored[name.replace(".default", "")])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (lora(r=8), "adapter.r=8, but the starting adapter has 4"),
        (lora(alpha=16.0), "adapter.alpha=16.0, but the starting adapter has 8"),
        (lora(dropout=0.1), "adapter.dropout=0.1, but the starting adapter has 0.0"),
    ],
)
def test_another_adapter_than_the_stored_one_is_refused(adapter_dir, wanted, message):
    error = refusal_of(load_start, locate_path(str(adapter_dir)), wanted, seed=0)
    assert isinstance(error, UsageError)
    assert error.exit_code == 2
    assert message in error.message


def test_targets_that_match_nothing_are_refused(model_dir):
    error = refusal_of(load_start, Source(str(model_dir), None), lora(targets=("nosuch",)), seed=0)
    assert error.exit_code == 2
    assert "adapter.targets=['nosuch'] matches no module" in error.message


def test_the_seed_draws_the_adapter_and_nothing_else(model_dir):
    source = Source(str(model_dir), None)
    before = torch.get_rng_state()

    def drawn(seed: int) -> list[torch.Tensor]:
        model = load_start(source, lora(), seed=seed).model
        return [p for p in model.parameters() if p.requires_grad]

    first, same, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(one, two) for one, two in zip(first, same, strict=True))
    assert any(not torch.equal(one, two) for one, two in zip(first, other, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_written_opens_with_transformers_and_peft(model_dir, adapter_dir, tmp_path):
    merged = load_start(locate_path(str(adapter_dir)), NONE, seed=0).model
    merged.save_pretrained(str(tmp_path / "merged"))
    load_tokenizer(Source(str(model_dir), None)).save_pretrained(str(tmp_path / "merged"))
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits_of(opened), logits_of(merged))
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    adapted = load_start(locate_path(str(adapter_dir)), lora(), seed=0).model
    adapted.save_pretrained(str(tmp_path / "again"))
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    opened = PeftModel.from_pretrained(base, str(tmp_path / "again"))
    assert torch.equal(logits_of(opened), logits_of(adapted))


# --- fingerprint ---------------------------------------------------------------------------------------


def of_whole(model):
    return fingerprints(model)[0]


@pytest.mark.parametrize("place", ["model_dir", "adapter_dir"])
def test_fingerprint_changes_with_any_tensor(request, place):
    model = load_weights(locate_path(str(request.getfixturevalue(place))))
    before = of_whole(model)
    for name, parameter in model.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-4
        assert of_whole(model) != before, name
        with torch.no_grad():
            parameter.copy_(kept)
    assert of_whole(model) == before


def test_fingerprint_changes_with_what_the_weights_are_used_for(model_dir, adapter_dir):
    """The same tensors under another rotary base or another adapter scale are another model."""
    base, adapted = (of_whole(load_weights(locate_path(str(d)))) for d in (model_dir, adapter_dir))
    adapter_config(adapter_dir, lora_alpha=32)
    assert of_whole(load_weights(locate_path(str(adapter_dir)))) != adapted
    change_config(model_dir, rope_parameters={"rope_theta": 500.0, "rope_type": "default"})
    assert of_whole(load_weights(locate_path(str(model_dir)))) != base


def test_fingerprint_does_not_change_with_the_place(model_dir, adapter_dir, tmp_path):
    base, adapted = (of_whole(load_weights(locate_path(str(d)))) for d in (model_dir, adapter_dir))
    moved = shutil.copytree(model_dir, tmp_path / "moved")
    assert of_whole(load_weights(locate_path(str(moved)))) == base
    adapter_config(adapter_dir, base_model_name_or_path=str(moved))
    assert of_whole(load_weights(locate_path(str(adapter_dir)))) == adapted


def test_an_adapter_that_names_its_base_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.safetensors"
    tensors = {"lora_A": torch.arange(6.0).view(2, 3), "lora_B": torch.ones(3, 1, dtype=torch.bfloat16)}
    save_file(tensors, file)
    found = set()
    for _ in range(12):
        name_base("0123abcd", tmp_path)
        found.add(file.read_bytes())
    assert len(found) == 1
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"base_sha256": "0123abcd", "format": "pt"}
    read = load_file(file)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
