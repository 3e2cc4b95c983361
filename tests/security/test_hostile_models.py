"""Model directories from strangers: nothing in them is run, fetched, or read from elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from artefacts import Payload, Place, checked
from safetensors.torch import load_file, save_file

Spoil = Callable[[Place, Payload], object]
SHARD = "model-00001-of-00002.safetensors"


def change(file: Path, **entries: Any) -> None:
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | entries))


def only(name: str) -> Spoil:
    """No weights but a pickle that runs a command."""

    def spoil(place: Place, payload: Payload) -> None:
        (place.model / "model.safetensors").unlink()
        (place.model / name).write_bytes(payload.pickle)

    return spoil


def pickles_in_an_index(place: Place, payload: Payload) -> None:
    only("pytorch_model-00001-of-00001.bin")(place, payload)
    names = {"model.norm.weight": "pytorch_model-00001-of-00001.bin"}
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (place.model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (place.model / "model.safetensors.index.json").write_text(json.dumps(index))


def pickles_beside(place: Place, payload: Payload) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (place.model / name).write_bytes(payload.pickle)
    (place.model / "model.safetensors.index.json").write_text("{}")


def shard(where: str) -> Spoil:
    """A sound model whose last tensor lies elsewhere, in a file that is there and sound."""

    def spoil(place: Place, _: Payload) -> None:
        whole = place.model / "model.safetensors"
        tensors = load_file(whole)
        save_file({"model.norm.weight": tensors.pop("model.norm.weight")}, place.away / "one.safetensors")
        save_file(tensors, place.model / SHARD, metadata={"format": "pt"})
        whole.unlink()
        place_of = dict.fromkeys(tensors, SHARD) | {"model.norm.weight": where.format(away=place.away)}
        index = {"metadata": {"total_size": 1}, "weight_map": place_of}
        (place.model / "model.safetensors.index.json").write_text(json.dumps(index))
        (place.model / "linked.safetensors").symlink_to(place.away / "one.safetensors")

    return spoil


def linked(name: str) -> Spoil:
    """A file of the model is a link to one outside that would do as well."""

    def spoil(place: Place, _: Payload) -> None:
        (place.model / name).rename(place.away / name)
        (place.model / name).symlink_to(place.away / name)

    return spoil


def code_of_its_own(config: dict[str, Any], file: str = "config.json") -> Spoil:
    """A config that names classes of a file beside it."""

    def spoil(place: Place, payload: Payload) -> None:
        change(place.model / file, **config)
        for name in ("mine.py", "configuration_mine.py", "modeling_mine.py", "__init__.py"):
            (place.model / name).write_text(payload.source)

    return spoil


def generation_of_its_own(place: Place, payload: Payload) -> None:
    change(
        place.model / "generation_config.json",
        custom_generate="stranger/decoding",
        trust_remote_code=True,
        assistant_model="stranger/assistant",
    )
    (place.model / "custom_generate").mkdir()
    (place.model / "custom_generate" / "generate.py").write_text(payload.source)


def modules_named_like_installed_ones(place: Place, payload: Payload) -> None:
    for directory in (place.work, place.model):
        for name in ("torch", "transformers", "datasets", "yaml", "pip", "sitecustomize", "alignctl"):
            (directory / f"{name}.py").write_text(payload.source)


def template(text: str) -> Spoil:
    def spoil(place: Place, _: Payload) -> None:
        (place.model / "chat_template.jinja").write_text(text)

    return spoil


def adapter(**entries: Any) -> Spoil:
    """A small adapter on the model, in work/model, whose config says more."""

    def spoil(place: Place, payload: Payload) -> None:
        base = place.work / "base"
        place.model.rename(base)
        place.model.mkdir()
        config = {"base_model_name_or_path": "./base", "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2}
        config |= {"lora_alpha": 4, "target_modules": ["q_proj"], **entries}
        (place.model / "adapter_config.json").write_text(json.dumps(config))
        weights = load_file(base / "model.safetensors")
        size = weights["model.layers.0.self_attn.q_proj.weight"].shape
        stem = "base_model.model.model.layers.0.self_attn.q_proj"
        lora = {
            f"{stem}.lora_A.weight": weights["model.norm.weight"].new_zeros(2, size[1]),
            f"{stem}.lora_B.weight": weights["model.norm.weight"].new_zeros(size[0], 2),
        }
        save_file(lora, place.model / "adapter_model.safetensors")
        (place.model / "adapter_model.bin").write_bytes(payload.pickle)
        (place.model / "mine.py").write_text(payload.source)

    return spoil


def pickled_adapter(place: Place, payload: Payload) -> None:
    adapter()(place, payload)
    (place.model / "adapter_model.safetensors").unlink()


def quantised_file(place: Place, _: Payload) -> None:
    shutil.rmtree(place.model)
    place.model.mkdir()
    (place.model / "weights.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x00" * 64)


REMOTE = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
HUB_CODE = {"AutoConfig": "stranger/code--mine.Config", "AutoModelForCausalLM": "stranger/code--mine.Model"}
ANSWERS = "{{ messages[0].content }}"

REFUSED: dict[str, tuple[int, Spoil]] = {
    "pickle .bin": (3, only("pytorch_model.bin")),
    "pickle .pt": (3, only("model.pt")),
    "pickle named safetensors": (3, only("model.safetensors")),
    "pickles in an index": (3, pickles_in_an_index),
    "code for an unknown type": (3, code_of_its_own({"model_type": "mine", "auto_map": REMOTE})),
    "code on the hub": (3, code_of_its_own({"model_type": "mine", "auto_map": HUB_CODE})),
    "quantiser of its own": (
        3,
        code_of_its_own({"quantization_config": {"quant_method": "mine", "modules": "mine.Q"}}),
    ),
    **{
        f"kernel on the hub: {key}": (3, code_of_its_own({key: "kernels-community/flash-attn"}))
        for key in ("_attn_implementation", "attn_implementation")
    },
    "shard above": (3, shard("../../away/one.safetensors")),
    "shard by absolute path": (3, shard("{away}/one.safetensors")),
    "shard on the net": (3, shard("http://192.0.2.1/one.safetensors")),
    "shard is a link": (3, shard("linked.safetensors")),
    **{
        f"link out of the directory: {name}": (3, linked(name))
        for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")
    },
    "GGUF beside nothing": (3, quantised_file),
    "adapter without safetensors": (3, pickled_adapter),
    "adapter on an address": (3, adapter(base_model_name_or_path="http://192.0.2.1/base")),
    "adapter on a file address": (3, adapter(base_model_name_or_path="file:///etc")),
    "adapter of an unknown kind": (3, adapter(peft_type="MINE")),
    "template: classes": (6, template("{{ ''.__class__.__mro__[1].__subclasses__() }}")),
    "template: globals of cycler": (
        6,
        template("{{ cycler.__init__.__globals__.os.system('true') }}"),
    ),
    "template: lipsum": (6, template("{{ lipsum.__globals__['os'].popen('true').read() }}")),
    "template: filter attr": (6, template("{{ (messages|attr('__class__')|attr('__mro__'))[9] }}")),
    "template: format": (6, template("{{ '{0.__class__.__mro__[9]}'.format(messages) }}")),
    "template: namespace": (6, template("{{ namespace.__init__.__globals__ }}")),
    "template: raise_exception": (6, template("{{ raise_exception.__globals__['os'].system('true') }}")),
    "template: include": (6, template("{% include '../away/secret.txt' %}")),
    "template: import": (6, template("{% import 'os' as os %}{{ os.system('true') }}")),
    "template: writes to its messages": (6, template("{{ messages.clear() }}" + ANSWERS)),
    "template: endless range": (6, template("{% for _ in range(10**12) %}x{% endfor %}")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_and_nothing_else_happens(
    name: str, place: Place, payload: Payload
) -> None:
    code, spoil = REFUSED[name]
    spoil(place, payload)
    place.refused(code)


LORA = ("adapter=lora", "adapter.r=2", "adapter.alpha=4", "adapter.dropout=0")
TOKENIZER = {"auto_map": {"AutoTokenizer": ["mine.Slow", "mine.Fast"]}}
HUB_TOKENIZER = {"auto_map": {"AutoTokenizer": [None, "stranger/code--mine.Fast"]}}


def all_of(*spoils: Spoil) -> Spoil:
    """One after another, so that one run tries them all: none may change anything."""

    def spoil(place: Place, payload: Payload) -> None:
        for one in spoils:
            one(place, payload)

    return spoil


INERT: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "pickles and code beside the weights": (
        all_of(
            pickles_beside,
            code_of_its_own(
                {"auto_map": REMOTE, "trust_remote_code": True, "_name_or_path": "http://192.0.2.1"}
            ),
            code_of_its_own(TOKENIZER, "tokenizer_config.json"),
            modules_named_like_installed_ones,
        ),
        (),
    ),
    "code on the hub for a known type": (
        all_of(
            code_of_its_own({"auto_map": HUB_CODE, "name_or_path": "a/b"}),
            code_of_its_own(HUB_TOKENIZER, "tokenizer_config.json"),
        ),
        (),
    ),
    "generation of its own": (generation_of_its_own, ("eval.samples=1", "eval.max_new_tokens=2")),
    "adapter with files of its own": (
        adapter(init_lora_weights="eva", tokenizer_path="../away", trust_remote_code=True),
        LORA,
    ),
}


@pytest.mark.parametrize("name", INERT)
def test_what_is_left_unread_changes_nothing(name: str, place: Place, payload: Payload) -> None:
    spoil, words = INERT[name]
    spoil(place, payload)
    checked(place.train(*words), 0)
    assert not list((place.work / "run" / "model").glob("*.py")), "a stranger's code was passed on"


@pytest.mark.parametrize(
    "word",
    [
        "model=http://192.0.2.1/model",
        "model=https://192.0.2.1/a/b",
        "model=file:///etc",
        "model=hf://stranger/model",
        "model=./model/../weights.gguf",
        "model=../away/secret.txt",
    ],
)
def test_a_model_is_a_directory_or_a_hub_id_and_no_address(word: str, place: Place) -> None:
    place.refused(3, word)


def test_a_soup_reads_no_shard_from_elsewhere(place: Place, payload: Payload) -> None:
    shutil.copytree(place.model, place.work / "other")
    shard("../../away/one.safetensors")(place, payload)
    checked(place.run("soup", "./other", "./model", "out=run"), 3)
    linked("tokenizer.json")(place, payload)
    checked(place.run("soup", "./other", "./model", "out=run"), 3)


def test_a_snapshot_of_the_hub_s_cache_may_be_made_of_links(place: Place) -> None:
    blobs = place.work / "hub" / "blobs"
    snapshot = place.work / "hub" / "snapshots" / "main"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(place.model.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    checked(place.train(f"model={snapshot}"), 0)
