"""A checkpoint comes back bit for bit, damage of any kind is seen, and rotation takes only what it may."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from alignctl.errors import RunDirectoryError
from alignctl.train import checkpoint
from alignctl.train.checkpoint import (
    load_newest,
    load_step,
    save_checkpoint,
    set_aside_newer,
)

REQUEST = "0123abcd"
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")


def tensors_at(step: int) -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(step)
    return {
        "model": {"w": torch.randn(40, 30), "b": torch.randn(30, dtype=torch.bfloat16)},
        "optimizer": {"w.exp_avg": torch.randn(40, 30), "w.step": torch.tensor(float(step))},
    }


def save(directory: Path, step: int, *, keep: int = 2, protect: tuple[int, ...] = ()) -> Path:
    state = {"offsets": {"metrics.jsonl": 10 * step}, "best": {"step": 1, "loss": 0.1 + step}}
    return save_checkpoint(
        directory, step, tensors_at(step), state, request=REQUEST, keep=keep, protect=protect
    )


def steps_in(directory: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in directory.glob("step-*"))


def is_exactly(directory: Path, step: int) -> bool:
    """Whether the newest good checkpoint is `step`, bit for bit."""
    loaded = load_newest(directory, request=REQUEST)
    if loaded is None or loaded.step != step or loaded.state["offsets"]["metrics.jsonl"] != 10 * step:
        return False
    return all(
        read.keys() == group.keys() and all(torch.equal(read[name], group[name]) for name in group)
        for stem, group in tensors_at(step).items()
        for read in [loaded.tensors(stem)]
    )


# --- round trip ----------------------------------------------------------------------------------------


def test_round_trip_keeps_every_bit_type_and_shape(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    model = {
        "transposed": base.T,
        "slice": torch.arange(10)[3:7],
        "half": torch.tensor([float("nan"), -0.0, float("inf")], dtype=torch.bfloat16),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    state = {"lr": 0.1 + 0.2, "ids": ["a", "é", "\ud800"], "none": None, "nested": {"n": 2**70}}
    path = save_checkpoint(tmp_path / "c", 7, {"model": model}, state, request=REQUEST, keep=2)

    loaded = load_newest(tmp_path / "c", request=REQUEST)

    assert loaded is not None
    assert (loaded.path, loaded.step, loaded.state, loaded.skipped) == (path, 7, state, ())
    assert path.name == "step-000007"
    read = loaded.tensors("model")
    assert read.keys() == model.keys()
    for name, tensor in model.items():
        assert read[name].shape == tensor.shape
        assert read[name].dtype == tensor.dtype
        assert torch.equal(torch.nan_to_num(read[name].double()), torch.nan_to_num(tensor.double()))
    assert torch.signbit(read["half"][1])


def test_the_same_step_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a", 3), save(tmp_path / "b", 3)
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_loaded_tensors_do_not_depend_on_the_file_any_more(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    loaded = load_newest(tmp_path, request=REQUEST)
    assert loaded is not None
    read = loaded.tensors("model")
    with open(path / "model.safetensors", "r+b") as file:
        file.write(bytes(4000))
    assert torch.equal(read["w"], tensors_at(1)["model"]["w"])


def test_files_get_the_rights_of_the_umask(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert len({(path / name).stat().st_mode for name in FILES}) == 1


def test_nothing_saved_yet_is_none(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "checkpoints", request=REQUEST) is None


@pytest.mark.parametrize(
    "spoilt",
    [
        pytest.param(lambda tensors: dict(list(tensors.items())[1:]), id="one is gone"),
        pytest.param(lambda tensors: {name: one.half() for name, one in tensors.items()}, id="other types"),
        pytest.param(lambda tensors: {name: one[None] for name, one in tensors.items()}, id="other shapes"),
    ],
)
def test_a_file_without_what_was_written_is_never_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "save_file", lambda tensors, path: save_file(spoilt(tensors), path))
    with pytest.raises(RunDirectoryError, match=r"model\.safetensors does not hold the tensors"):
        save(tmp_path, 2)
    assert os.listdir(tmp_path) == ["step-000001"]


def test_state_that_could_not_be_read_back_is_refused(tmp_path: Path) -> None:
    for state in ({"loss": float("nan")}, {"ids": ["x" * 100] * 20000}):
        with pytest.raises(ValueError, match=r"JSON"):
            save_checkpoint(tmp_path, 1, {}, state, request=REQUEST, keep=2)
    assert os.listdir(tmp_path) == []


# --- damage --------------------------------------------------------------------------------------------


def flip_one_bit(path: Path, at: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1 << ((at or 0) % 8)
    path.write_bytes(data)


def punch_hole(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3] + bytes(20) + data[len(data) // 3 + 20 :])


def append_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def swap_with_older(path: Path) -> None:
    older = path.parents[1] / "step-000001" / path.name
    mine, theirs = path.read_bytes(), older.read_bytes()
    path.write_bytes(theirs)
    assert mine != theirs


def make_symlink(path: Path) -> None:
    moved = path.parents[2] / "elsewhere"
    path.rename(moved)
    path.symlink_to(moved)


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "emptied": lambda path: os.truncate(path, 0),
    "bit flipped": flip_one_bit,
    "hole": punch_hole,
    "appended": append_byte,
    "swapped": swap_with_older,
    "symlink": make_symlink,
    "directory": make_directory,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_seen_and_the_older_checkpoint_used(tmp_path: Path, name: str, kind: str) -> None:
    directory = tmp_path / "checkpoints"
    save(directory, 1)
    newest = save(directory, 2)
    assert is_exactly(directory, 2)

    DAMAGE[kind](newest / name)

    assert is_exactly(directory, 1)
    loaded = load_newest(directory, request=REQUEST)
    assert loaded is not None
    assert len(loaded.skipped) == 1
    assert loaded.skipped[0].startswith("step-000002: ")


@pytest.mark.parametrize("name", ["state.json", "MANIFEST.json"])
def test_a_flipped_bit_in_any_byte_is_seen(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1) / name
    good = path.read_bytes()
    for at in range(len(good)):
        flip_one_bit(path, at)
        with pytest.raises(RunDirectoryError, match="no checkpoint"):
            load_newest(tmp_path, request=REQUEST)
        path.write_bytes(good)
    assert is_exactly(tmp_path, 1)


def test_an_unlisted_file_is_seen(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / "extra.bin").touch()
    loaded = load_newest(tmp_path, request=REQUEST)
    assert loaded is not None
    assert loaded.skipped == ("step-000002: extra.bin is not listed in MANIFEST.json",)


def test_whole_directories_swapped_are_seen(tmp_path: Path) -> None:
    save(tmp_path, 1)
    one, two = save(tmp_path, 2, keep=3), save(tmp_path, 3, keep=3)
    one.rename(tmp_path / "aside")
    two.rename(one)
    (tmp_path / "aside").rename(two)
    loaded = load_newest(tmp_path, request=REQUEST)
    assert loaded is not None
    assert loaded.step == 1
    assert loaded.skipped == (
        "step-000003: holds step 2: the directory was renamed or swapped",
        "step-000002: holds step 3: the directory was renamed or swapped",
    )


def test_all_bad_is_an_error_and_never_a_new_start(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "model.safetensors").unlink()
    os.truncate(save(tmp_path, 2) / "state.json", 0)
    with pytest.raises(RunDirectoryError) as error:
        load_newest(tmp_path, request=REQUEST)
    assert error.value.exit_code == 7
    assert error.value.hints[:2] == (
        "step-000002: state.json has 0 bytes, not 143",
        "step-000001: model.safetensors is missing",
    )
    assert "overwrite=true" in error.value.hints[-1]


def test_of_many_bad_checkpoints_the_newest_are_told_and_the_rest_counted(tmp_path: Path) -> None:
    for step in range(1, 9):
        (tmp_path / f"step-{step:06d}").mkdir()
    with pytest.raises(RunDirectoryError) as error:
        load_newest(tmp_path, request=REQUEST)
    *told, more, _ = error.value.hints
    assert told == [f"step-{step:06d}: MANIFEST.json is missing" for step in (8, 7, 6, 5, 4, 3)]
    assert more == "+2 more"
    (tmp_path / "step-000008").rmdir()
    (tmp_path / "step-000007").rmdir()
    with pytest.raises(RunDirectoryError) as error:
        load_newest(tmp_path, request=REQUEST)
    assert len(error.value.hints) == 6 + 1


def test_checkpoints_out_of_reach_are_no_new_start(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    with pytest.raises(RunDirectoryError, match="checkpoints cannot be read: Not a directory"):
        load_newest(tmp_path / "checkpoints", request=REQUEST)


def test_a_checkpoint_of_another_request_is_not_used(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(RunDirectoryError) as error:
        load_newest(tmp_path, request="ffffffff")
    assert "another run (request 0123abcd, not ffffffff)" in error.value.hints[0]


def rewrite_manifest(path: Path, **changes: object) -> None:
    """A manifest with other contents and a right seal: the SHA-256 of its own bytes without the seal."""
    manifest = {key: value for key, value in json.loads(path.read_bytes()).items() if key != "seal"} | changes
    seal = hashlib.sha256((json.dumps(manifest, indent=1) + "\n").encode()).hexdigest()
    path.write_text(json.dumps(manifest | {"seal": seal}, indent=1) + "\n")


def test_a_newer_format_is_named_instead_of_skipped(tmp_path: Path) -> None:
    save(tmp_path, 1)
    manifest = save(tmp_path, 2) / "MANIFEST.json"
    rewrite_manifest(manifest)
    assert is_exactly(tmp_path, 2)
    rewrite_manifest(manifest, format=2, files="another layout")
    with pytest.raises(RunDirectoryError, match="newer alignctl: checkpoint format 2, this one reads 1"):
        load_newest(tmp_path, request=REQUEST)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {}},
        {"files": None},
        {"files": {"../../escape": {"size": 1, "sha256": ""}}},
        {"files": {"model.safetensors": 3}},
        {"format": "1"},
        {"format": None},
        {"step": None},
    ],
)
def test_a_forged_manifest_is_only_skipped(tmp_path: Path, changes: dict[str, object]) -> None:
    save(tmp_path, 1)
    rewrite_manifest(save(tmp_path, 2) / "MANIFEST.json", **changes)
    assert is_exactly(tmp_path, 1)


@pytest.mark.parametrize(
    "junk", [b"[" * 100000, b'{"a":' * 50000, b"NaN\n", b"\xff\xfe", b"1" * 6000, b"{" * (2 << 20)]
)
def test_junk_for_a_manifest_is_only_skipped(tmp_path: Path, junk: bytes) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / "MANIFEST.json").write_bytes(junk)
    assert is_exactly(tmp_path, 1)


def test_one_step_can_be_asked_for(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert load_step(tmp_path, 1, request=REQUEST).step == 1
    with pytest.raises(RunDirectoryError, match="step-000009") as error:
        load_step(tmp_path, 9, request=REQUEST)
    assert error.value.hints == ("steps here: 1, 2",)
    with pytest.raises(RunDirectoryError, match=r"model2\.safetensors cannot be read"):
        load_step(tmp_path, 1, request=REQUEST).tensors("model2")


# --- rotation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "protect", "left"),
    [(2, (), [5, 6]), (1, (), [5, 6]), (0, (), [5, 6]), (3, (1,), [1, 4, 5, 6]), (2, (6,), [5, 6])],
)
def test_rotation_keeps_the_newest_and_the_protected(
    tmp_path: Path, keep: int, protect: tuple[int, ...], left: list[int]
) -> None:
    for step in range(1, 7):
        save(tmp_path, step, keep=keep, protect=protect)
    assert steps_in(tmp_path) == left
    assert sorted(os.listdir(tmp_path)) == [f"step-{step:06d}" for step in left]


def test_rotation_counts_and_removes_only_its_own_sound_checkpoints(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {}, {}, request="ffffffff", keep=2)
    (tmp_path / "step-000002").mkdir()
    (tmp_path / "step-000003").write_text("a file")
    (tmp_path / "step-4").mkdir()
    (tmp_path / "notes").mkdir()
    os.truncate(save(tmp_path, 5) / "model.safetensors", 10)
    for step in (6, 7, 8):
        save(tmp_path, step)
    assert sorted(os.listdir(tmp_path)) == [
        *("notes", "step-000001", "step-000002", "step-000003", "step-000005"),
        *("step-000007", "step-000008", "step-4"),
    ]


def test_bad_newer_checkpoints_never_push_out_good_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=4)
    for step in (3, 4):
        flip_one_bit(tmp_path / f"step-{step:06d}" / "model.safetensors")
    shutil.copytree(tmp_path, tmp_path.with_name("copy"))

    save(tmp_path, 2, keep=2)
    assert steps_in(tmp_path) == [1, 2, 3, 4]

    copy = tmp_path.with_name("copy")
    assert [path.name for path in set_aside_newer(copy, 2)] == ["bad-step-000003", "bad-step-000004"]
    save(copy, 5, keep=2)
    assert steps_in(copy) == [2, 5]
    shutil.rmtree(copy / "step-000002")
    shutil.rmtree(copy / "step-000005")
    with pytest.raises(RunDirectoryError) as error:
        load_newest(copy, request=REQUEST)
    assert error.value.hints[0] == "bad-step-000003: set aside earlier"


def test_saving_a_good_step_again_leaves_it_and_a_bad_one_is_replaced(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    inode = path.stat().st_ino
    save(tmp_path, 1)
    assert path.stat().st_ino == inode
    flip_one_bit(path / "model.safetensors")
    save(tmp_path, 1)
    assert is_exactly(tmp_path, 1)
    assert os.listdir(tmp_path) == ["step-000001"]
