"""Bad inputs, items 86 to 94 of the catalogue: models that cannot be used as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

Weights = dict[str, torch.Tensor]


def change_config(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_weights(directory: Path, change: Callable[[Weights], Weights]) -> None:
    file = directory / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def without_norm(weights: Weights) -> Weights:
    return {name: tensor for name, tensor in weights.items() if name != "model.norm.weight"}


def with_nan(weights: Weights) -> Weights:
    weights["model.norm.weight"][3] = float("nan")
    return weights


def pickled(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04never read.")


def foreign_code(directory: Path) -> None:
    change_config(
        directory, model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}
    )
    (directory / "mine.py").write_text("open('ran', 'w')\n")


def encoder(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=259, **small)).save_pretrained(directory)


def sharded(shard: str) -> Callable[[Path], None]:
    def split(directory: Path) -> None:
        names = load_file(directory / "model.safetensors")
        (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
        places = dict.fromkeys(names, "model-00001-of-00002.safetensors") | {"model.norm.weight": shard}
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))

    return split


# Item, what is done to the directory, and what is said of it.
DAMAGED: list[tuple[str, Callable[[Path], None], str]] = [
    ("86 pickle alone", pickled, "has no safetensors weights (only pytorch_model.bin, which is pickle)"),
    ("87 code of its own", foreign_code, "cannot be loaded"),
    ("88 an encoder", encoder, "model does not hold this model's weights: missing keys"),
    (
        "89 a shard that is missing",
        sharded("model-00002-of-00002.safetensors"),
        "model-00002-of-00002.safetensors",
    ),
    ("89 a shard elsewhere", sharded("../elsewhere.safetensors"), "elsewhere.safetensors"),
    ("90 another shape", lambda path: change_config(path, intermediate_size=48), "model.layers.0.mlp"),
    (
        "90 a tensor too few",
        lambda path: change_weights(path, without_norm),
        "missing keys model.norm.weight",
    ),
    ("91 NaN", lambda path: change_weights(path, with_nan), "holds NaN or infinity in model.norm.weight"),
    (
        "93 quantised",
        lambda path: change_config(
            path, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
        ),
        "is quantised; alignctl trains full-precision weights",
    ),
    (
        "no config",
        lambda path: (path / "config.json").unlink(),
        "is not a model directory: it has no config.json",
    ),
    (
        "a damaged file",
        lambda path: (path / "model.safetensors").write_bytes(b"\x08"),
        "no sound safetensors",
    ),
]


@pytest.fixture(autouse=True)
def good_rows(rows: list[dict[str, str]], write: Callable[..., None]) -> None:
    write(rows)


@pytest.mark.parametrize(("item", "damage", "said"), DAMAGED, ids=[item for item, _, _ in DAMAGED])
def test_a_model_that_cannot_be_used_is_told_in_a_few_lines(
    item: str,
    damage: Callable[[Path], None],
    said: str,
    train: Callable[..., str],
    model: Callable[..., str],
    workplace: Path,
) -> None:
    name = model()
    damage(workplace / "model")
    assert said in train(3, f"model={name}")
    assert not (workplace / "ran").exists(), "a stranger's code was run"


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/model", "some/where/deep"])
def test_86_a_path_that_leads_nowhere(path: str, train: Callable[..., str]) -> None:
    assert f"there is no model at {path}" in train(3, f"model={path}")


def test_86_the_way_on_from_pickle_is_told(train: Callable[..., str], model: Callable[..., str]) -> None:
    name = model()
    pickled(Path(name))
    text = train(3, f"model={name}")
    assert "from_pretrained" in text
    assert "save_pretrained" in text


def adapter(train: Callable[..., str], name: str) -> Path:
    """A trained adapter on the model of that name."""
    train(0, f"model={name}", "adapter=lora", "out=first", "train.lr=0.01")
    return Path("first/model")


def test_92_an_adapter_on_another_base_than_it_was_trained_on(
    train: Callable[..., str], model: Callable[..., str], workplace: Path
) -> None:
    name = model()
    adapter(train, name)
    train(0, "model=./first", "out=same", "train.lr=0.01")
    change_weights(workplace / "model", lambda weights: {key: 2 * tensor for key, tensor in weights.items()})
    text = train(3, "model=./first", "out=other", "train.lr=0.01")
    assert "first/model" in text
    assert "trained on other weights" in text


def test_92_an_adapter_whose_base_is_gone(train: Callable[..., str], model: Callable[..., str]) -> None:
    name = model()
    adapter(train, name)
    Path(name).rename("elsewhere")
    assert "there is no model at" in train(3, "model=./first", "out=other")


def test_93_a_quantised_base_under_an_adapter(
    train: Callable[..., str], model: Callable[..., str], workplace: Path
) -> None:
    name = model()
    adapter(train, name)
    change_config(workplace / "model", quantization_config={"quant_method": "gptq", "bits": 4})
    assert "is quantised" in train(3, "model=./first", "out=other")


@pytest.mark.parametrize("path", ["./weights.gguf", "models/weights.gguf", "weights.gguf"])
def test_94_a_gguf_file_of_one_s_own(path: str, train: Callable[..., str]) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_bytes(b"GGUF\x03\x00\x00\x00")
    text = train(3, f"model={path}")
    assert f"{path} is a GGUF file" in text
    assert "safetensors" in text
