"""What is recorded about a soup: soup.json, distances, the mergekit configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file
from soups import UNIFORM, based, held, same_bits, soup

from alignctl.config.soup import GreedySoup, SlerpSoup, SoupMethod, SweepSoup
from alignctl.models.soup.distances import layer_of

METHODS: dict[str, SoupMethod] = {
    "uniform": UNIFORM,
    "slerp": SlerpSoup(method="slerp", t=0.4),
    "task-arithmetic": based("task-arithmetic", weights=(0.5, 1.0)),
    "ties": based("ties", density=0.3),
    "dare": based("dare", density=0.3),
}


def test_soup_json_says_what_went_in(save: Callable[..., Path], tmp_path: Path) -> None:
    members, base = [save("a", 1), save("b", 2)], save("base", 3)
    method = based("ties", density=0.3, weights=(1.0, 2.0))
    report = soup(tmp_path / "out", members, method, base=base)
    said = json.loads((tmp_path / "out" / "soup.json").read_text())
    assert said == json.loads(json.dumps(report.as_dict()))
    assert (said["schema"], said["method"], said["kind"]) == (1, "ties", "full")
    assert said["parameters"] == {"weights": [1.0, 2.0], "lambda": 1.0, "base": str(base), "density": 0.3}
    assert [m["path"] for m in said["members"]] == [str(m) for m in members]
    assert len({m["sha256"] for m in [*said["members"], said["base"]]}) == 3
    assert said["members"][0]["tensors"] == len(held(members[0]))
    assert said["files"] == ["model.safetensors"]


def test_weights_of_a_mean_are_recorded_normalised(save: Callable[..., Path], tmp_path: Path) -> None:
    greedy = GreedySoup(method="greedy", metric="accuracy", reference=None, rows="held_out")
    report = soup(tmp_path / "out", [save("a", 1), save("b", 2)], greedy, weights=(1.0, 3.0))
    assert report.method == "greedy"
    assert report.parameters == {"weights": [0.25, 0.75]}
    sweep = SweepSoup(
        method="sweep",
        points=3,
        metric="gold",
        reference=None,
        rows="held_out",
        samples=1,
        max_new_tokens=1,
        temperature=0.0,
    )
    soup(tmp_path / "sweep", [tmp_path / "a", tmp_path / "b"], sweep, weights=(0.25, 0.75))
    assert same_bits(held(tmp_path / "sweep"), held(tmp_path / "out"))


def test_distances_are_those_of_plain_subtraction(save: Callable[..., Path], tmp_path: Path) -> None:
    members = [save(f"m{seed}", seed) for seed in range(3)]
    found = soup(tmp_path / "out", members).distances
    a, b, c = ({n: t.double() for n, t in held(d).items()} for d in members)
    layers = {layer_of(name) for name in a}
    assert layers == {"model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm"}
    assert found.layers.keys() == layers
    for place, (x, y) in enumerate(((a, b), (a, c), (b, c))):
        for layer in (None, *layers):
            names = [name for name in x if layer in (None, layer_of(name))]
            apart = math.sqrt(sum(float(((x[n] - y[n]) ** 2).sum()) for n in names))
            length = math.sqrt(sum(float((x[n] ** 2).sum()) for n in names))
            value = found.overall[place] if layer is None else found.layers[layer][place]
            assert value == pytest.approx(apart / length, rel=1e-5)


def test_tiny_differences_are_not_lost_in_large_weights(save: Callable[..., Path], tmp_path: Path) -> None:
    a = save("a", 1)
    tensors = held(a)
    moved = {name: tensor.clone() for name, tensor in tensors.items()}
    moved["model.norm.weight"][0] += 1e-4
    (tmp_path / "b").mkdir()
    for file in a.iterdir():
        (tmp_path / "b" / file.name).write_bytes(file.read_bytes())
    save_file(moved, tmp_path / "b" / "model.safetensors")
    found = soup(tmp_path / "out", [a, tmp_path / "b"]).distances.layers
    step = float(moved["model.norm.weight"][0]) - float(tensors["model.norm.weight"][0])
    assert found["model.norm"][0] == pytest.approx(
        step / float(tensors["model.norm.weight"].norm()), rel=1e-4
    )
    assert found["model.layers.0"][0] == 0.0


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.12.mlp.weight", "model.layers.12"),
        ("transformer.h.3.attn.c_attn.bias", "transformer.h.3"),
        ("h.3.attn.weight", "h.3"),
        ("gpt_neox.layers.1.mlp.bias", "gpt_neox.layers.1"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_layer_of(name: str, layer: str) -> None:
    assert layer_of(name) == layer


@pytest.mark.parametrize("kind", METHODS)
def test_the_mergekit_text_is_yaml_with_what_mergekit_needs(
    save: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    members, base = [save("a: #1", 1), save("b@2+3", 2)], save("base", 3)
    given = {"base": base} if kind in ("task-arithmetic", "ties", "dare") else {}
    soup(tmp_path / "out", members, METHODS[kind], dtype="bfloat16", **given)
    said = yaml.safe_load((tmp_path / "out" / "mergekit.yaml").read_text())
    names = {"uniform": "linear", "task-arithmetic": "task_arithmetic", "dare": "dare_linear"}
    assert said["merge_method"] == names.get(kind, kind)
    assert said["base_model"] == str(base if given else members[0])
    assert [entry["model"] for entry in said["models"]] == [
        str(members[0]),
        {"model": {"path": str(members[1])}},
    ]
    assert (said["dtype"], said["out_dtype"]) == ("float32", "bfloat16")
    weights = [entry.get("parameters", {}).get("weight") for entry in said["models"]]
    wanted = {
        "uniform": [0.5, 0.5],
        "slerp": [None, None],
        "task-arithmetic": [0.5, 1.0],
        "ties": [1.0, 1.0],
        "dare": [1 / 0.3, 1 / 0.3],
    }
    assert weights == wanted[kind]
