"""Whole soups on disk: laws of the mean, shards, dtypes, what lies beside the weights, what opens them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from soups import UNIFORM, based, held, same_bits, soup
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from alignctl.config.soup import SlerpSoup, SoupMethod, WeightedSoup
from alignctl.errors import SetupError
from alignctl.models.soup import stream
from alignctl.models.soup.members import open_member
from alignctl.models.soup.merge import souped_tensors
from alignctl.models.soup.writer import Entry, into_shards


@pytest.mark.parametrize("n", [2, 3, 5])
def test_soup_of_equal_models_is_the_model(save: Callable[..., Path], tmp_path: Path, n: int) -> None:
    copies = [save(f"m{index}", 1) for index in range(n)]
    report = soup(tmp_path / "out", copies)
    assert same_bits(held(tmp_path / "out"), held(copies[0]))
    assert report.distances.overall == (0.0,) * (n * (n - 1) // 2)
    assert len(report.warnings) == n - 1, "each copy is named"


def test_soup_does_not_depend_on_the_order_of_members(save: Callable[..., Path], tmp_path: Path) -> None:
    members = [save(f"m{seed}", seed) for seed in range(3)]
    soup(tmp_path / "one", members)
    soup(tmp_path / "other", [members[2], members[0], members[1]])
    assert same_bits(held(tmp_path / "one"), held(tmp_path / "other"))


@pytest.mark.parametrize(("weights", "who"), [((1.0, 0.0), 0), ((0.0, 3.0), 1)])
def test_all_the_weight_on_one_member_gives_that_member(
    save: Callable[..., Path], tmp_path: Path, weights: tuple[float, float], who: int
) -> None:
    members = [save("a", 1), save("b", 2)]
    soup(tmp_path / "out", members, WeightedSoup(method="weighted", weights=weights))
    assert same_bits(held(tmp_path / "out"), held(members[who]))


def test_soup_of_soups_is_the_soup_with_multiplied_weights(save: Callable[..., Path], tmp_path: Path) -> None:
    a, b, c = save("a", 1), save("b", 2), save("c", 3)
    soup(tmp_path / "ab", [a, b], weights=(1.0, 3.0))
    soup(tmp_path / "twice", [tmp_path / "ab", c], weights=(0.5, 0.5))
    soup(tmp_path / "once", [a, b, c], weights=(0.125, 0.375, 0.5))
    twice = held(tmp_path / "twice")
    for name, tensor in held(tmp_path / "once").items():
        torch.testing.assert_close(tensor, twice[name], rtol=2e-7, atol=1e-8)
    soup(tmp_path / "again", [tmp_path / "twice"] * 2)
    assert same_bits(held(tmp_path / "again"), twice)


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_opens_the_soup_and_it_computes_what_the_mean_computes(
    save: Callable[..., Path], tmp_path: Path, tied: bool
) -> None:
    members = [save("a", 1, tied=tied), save("b", 2, tied=tied)]
    soup(tmp_path / "out", members, weights=(0.25, 0.75))
    by_hand, other = (LlamaForCausalLM.from_pretrained(d) for d in members)
    with torch.no_grad():
        for ours, theirs in zip(by_hand.parameters(), other.parameters(), strict=True):
            ours.mul_(0.25).add_(theirs, alpha=0.75)
    opened, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert opened.config.tie_word_embeddings is tied
    assert ("lm_head.weight" in held(tmp_path / "out")) is not tied
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(opened(ids).logits, by_hand(ids).logits, rtol=1e-5, atol=1e-5)


def test_shards_of_input_and_output_change_nothing(save: Callable[..., Path], tmp_path: Path) -> None:
    whole = [save("a", 1), save("b", 2)]
    cut = [save("c", 1, shard="10KB"), save("d", 2, shard="20KB")]
    assert len(list(cut[0].glob("*.safetensors"))) > 2
    one = soup(tmp_path / "one", whole)
    many = soup(tmp_path / "many", cut, shard_bytes=10_000)
    assert one.files == ("model.safetensors",)
    assert len(many.files) > 2
    assert many.files[0] == f"model-00001-of-{len(many.files):05d}.safetensors"
    assert same_bits(held(tmp_path / "one"), held(tmp_path / "many"))
    assert [m.sha256 for m in one.members] == [m.sha256 for m in many.members]
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == many.bytes == sum(t.nbytes for t in held(whole[0]).values())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "many" / file, "pt") as opened:
            assert name in opened.keys()  # noqa: SIM118
            assert opened.metadata() == {"format": "pt"}
    assert all((tmp_path / "many" / f).stat().st_size < 12_000 for f in many.files[1:])
    LlamaForCausalLM.from_pretrained(tmp_path / "many")


def test_a_shard_is_full_before_the_next_begins_and_a_larger_tensor_has_its_own() -> None:
    entries = [Entry(str(size), torch.int8, (size,)) for size in (3, 4, 20, 1, 9, 1)]
    cut = [[entry.shape[0] for entry in shard] for shard in into_shards(entries, 10)]
    assert cut == [[3, 4], [20], [1, 9], [1]]


@pytest.mark.parametrize(
    ("wanted", "first", "written"),
    [
        ("auto", torch.bfloat16, torch.bfloat16),
        ("auto", torch.float32, torch.float32),
        ("float32", torch.bfloat16, torch.float32),
        ("bfloat16", torch.float32, torch.bfloat16),
        ("float16", torch.float32, torch.float16),
    ],
)
def test_output_dtype_and_one_rounding(
    save: Callable[..., Path], tmp_path: Path, wanted: Any, first: torch.dtype, written: torch.dtype
) -> None:
    members = [save("a", 1, dtype=first), save("b", 2, dtype=torch.bfloat16)]
    report = soup(tmp_path / "out", members, weights=(1.0, 2.0), dtype=wanted)
    a, b = (held(d) for d in members)
    for name, tensor in held(tmp_path / "out").items():
        assert tensor.dtype == written
        exact = (a[name].double() + 2 * b[name].double()) / 3
        assert torch.equal(tensor, exact.to(written))
    name = str(written).removeprefix("torch.")
    assert report.dtype == name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == name
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == written


def test_the_older_name_of_dtype_is_kept_up_to_date(save: Callable[..., Path], tmp_path: Path) -> None:
    members = [save("a", 1), save("b", 2)]
    for directory in members:
        config = json.loads((directory / "config.json").read_text())
        config["torch_dtype"] = config.pop("dtype")
        (directory / "config.json").write_text(json.dumps(config))
    soup(tmp_path / "out", members, dtype="bfloat16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["torch_dtype"], config["dtype"]) == ("bfloat16", "bfloat16")


def test_float64_stays_float64(save: Callable[..., Path], tmp_path: Path) -> None:
    members = [save("a", 1, dtype=torch.float64), save("b", 2, dtype=torch.float64)]
    soup(tmp_path / "out", members)
    a, b, out = held(members[0]), held(members[1]), held(tmp_path / "out")
    for name in out:
        assert out[name].dtype == torch.float64
        torch.testing.assert_close(out[name], (a[name] + b[name]) / 2, rtol=1e-15, atol=0)


METHODS: dict[str, SoupMethod] = {
    "uniform": UNIFORM,
    "slerp": SlerpSoup(method="slerp", t=0.4),
    "task-arithmetic": based("task-arithmetic", weights=(0.5, 1.0)),
    "ties": based("ties", density=0.3),
    "dare": based("dare", density=0.3),
}


@pytest.mark.parametrize("kind", METHODS)
def test_how_a_tensor_is_cut_into_pieces_changes_nothing(
    save: Callable[..., Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    members, base = [save("a", 1), save("b", 2)], save("base", 3)
    given = {"base": base} if kind in ("task-arithmetic", "ties", "dare") else {}
    whole = soup(tmp_path / "whole", members, METHODS[kind], seed=5, **given)
    monkeypatch.setattr(stream, "PIECE", 129)
    cut = soup(tmp_path / "cut", members, METHODS[kind], seed=5, **given)
    ours, theirs = held(tmp_path / "whole"), held(tmp_path / "cut")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=0)
    assert [m.sha256 for m in whole.members] == [m.sha256 for m in cut.members]
    assert whole.distances.overall == pytest.approx(cut.distances.overall, rel=1e-5)
    assert not same_bits(ours, held(members[0]))


def test_tokenizer_template_and_generation_settings_come_along(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    members = [save("a", 1), save("b", 2)]
    (members[0] / "README.md").write_text("about a")
    soup(tmp_path / "out", members)
    for name in ("chat_template.jinja", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (members[0] / name).read_bytes()
    assert not (tmp_path / "out" / "README.md").exists()


def test_progress_ends_with_everything_written(save: Callable[..., Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = soup(
        tmp_path / "out", [save("a", 1), save("b", 2)], progress=lambda done, of: seen.append((done, of))
    )
    assert seen[-1] == (report.bytes, report.bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_souped_tensors_are_what_is_written(save: Callable[..., Path], tmp_path: Path) -> None:
    members = [save("a", 1), save("b", 2)]
    soup(tmp_path / "out", members, weights=(1.0, 3.0))
    streamed = dict(souped_tensors([open_member(str(d)) for d in members], (1.0, 3.0)))
    assert same_bits(streamed, held(tmp_path / "out"))
    assert {n: t.shape for n, t in streamed.items()} == {n: t.shape for n, t in held(members[0]).items()}


def test_souped_tensors_of_bfloat16_are_not_rounded(save: Callable[..., Path]) -> None:
    members = [save("a", 1, dtype=torch.bfloat16), save("b", 2, dtype=torch.bfloat16)]
    a, b = (held(d)["model.norm.weight"].float() for d in members)
    streamed = dict(souped_tensors([open_member(str(d)) for d in members], (1.0, 1.0)))
    assert torch.equal(streamed["model.norm.weight"], (a + b) / 2)
    assert streamed["model.norm.weight"].dtype == torch.float32


def test_a_buffer_of_whole_numbers_and_an_empty_tensor_are_copied(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    members = [save("a", 1), save("b", 2)]
    extra = {"flags": torch.tensor([True, False, True]), "ids": torch.arange(3), "none": torch.empty(0, 4)}
    for directory in members:
        save_file(held(directory) | extra, directory / "model.safetensors")
    soup(tmp_path / "out", members, dtype="bfloat16")
    out = held(tmp_path / "out")
    for name in ("flags", "ids"):
        assert torch.equal(out[name], extra[name])
        assert out[name].dtype == extra[name].dtype
    assert out["none"].shape == (0, 4)


def test_a_place_that_cannot_be_written_is_one_line(save: Callable[..., Path], tmp_path: Path) -> None:
    members = [save("a", 1), save("b", 2)]
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot be written"):
        soup(tmp_path / "file", members)
    soup(tmp_path / "out", members)
    with pytest.raises(SetupError, match=r"out/model.safetensors cannot be written"):
        soup(tmp_path / "out", members)


def test_too_little_room_is_said_before_anything_is_written(
    save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [save("a", 1), save("b", 2)]
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(SetupError, match=r"has room for 0.0 GB, the soup needs"):
        soup(tmp_path / "out", members)
    assert list((tmp_path / "out").iterdir()) == []


def test_numpy_reads_the_files_too(save: Callable[..., Path], tmp_path: Path) -> None:
    """Another reader of the format agrees on offsets and alignment, with dtypes of several widths."""
    members = [save("a", 1), save("b", 2)]
    for directory in members:
        odd = {"x": torch.ones(3, dtype=torch.int8), "y": torch.ones(1, dtype=torch.float64)}
        save_file(held(directory) | odd, directory / "model.safetensors")
    soup(tmp_path / "out", members)
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as opened:
        for name in opened.keys():  # noqa: SIM118
            np.testing.assert_array_equal(opened.get_tensor(name), held(tmp_path / "out")[name].numpy())
    header_length = int.from_bytes((tmp_path / "out" / "model.safetensors").read_bytes()[:8], "little")
    assert header_length % 8 == 0
