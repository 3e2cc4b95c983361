"""Crashes, full disks and deaths in mid-write never cost a good checkpoint: real files, real processes."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignctl.errors import SetupError
from alignctl.train.checkpoint import load_newest, load_step, save_checkpoint
from alignctl.train.durable import is_temporary, remove_leftovers
from scripts.faults.crashing import crash_everywhere, in_child

REQUEST = "0123abcd"


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


def flip_one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("limit", [0, 200, 4000])
def test_a_full_disk_leaves_the_older_checkpoints_and_nothing_else(tmp_path: Path, limit: int) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(SetupError, match=r"cannot write .*step-000003: File too large") as error:
            save(tmp_path, 3)
        assert error.value.exit_code == 3
        assert "free some space" in error.value.hints[0]

    assert in_child(fill) == 0
    assert sorted(os.listdir(tmp_path)) == ["step-000001", "step-000002"]
    assert is_exactly(tmp_path, 2)


@pytest.mark.parametrize("limit", [0, 100, 4000])
def test_death_in_the_middle_of_a_write_leaves_the_older_checkpoints(tmp_path: Path, limit: int) -> None:
    save(tmp_path, 1)

    def die() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        save(tmp_path, 2)

    assert in_child(die) == -signal.SIGXFSZ
    assert is_exactly(tmp_path, 1)
    assert any(map(is_temporary, os.listdir(tmp_path)))
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["step-000001"]


def good_steps(directory: Path) -> set[int]:
    good = set()
    for step in steps_in(directory):
        load_step(directory, step, request=REQUEST)
        good.add(step)
    return good


def test_a_crash_at_any_call_of_save_and_rotate_leaves_two_good_checkpoints(tmp_path: Path) -> None:
    before = tmp_path / "before"
    for step in (1, 2, 3):
        save(before, step, keep=2, protect=(1,))
    seen: list[set[int]] = []

    def check(directory: Path) -> None:
        seen.append(good_steps(directory))
        assert is_exactly(directory, max(seen[-1]))
        remove_leftovers(directory)
        assert sorted(os.listdir(directory)) == [f"step-{step:06d}" for step in sorted(seen[-1])]
        save(directory, 4, keep=2, protect=(1,))
        assert good_steps(directory) == {1, 3, 4}

    calls = crash_everywhere(before, lambda directory: save(directory, 4, keep=2, protect=(1,)), check)

    assert calls > 40
    stages = [{1, 2, 3}, {1, 2, 3, 4}, {1, 3, 4}]
    assert [stage for stage in stages if stage in seen] == stages
    assert sorted(seen, key=stages.index) == seen


def test_a_crash_while_a_bad_checkpoint_is_replaced_leaves_the_good_one(tmp_path: Path) -> None:
    before = tmp_path / "before"
    save(before, 1)
    flip_one_bit(save(before, 2) / "model.safetensors")

    def check(directory: Path) -> None:
        assert is_exactly(directory, 1) or is_exactly(directory, 2)
        remove_leftovers(directory)
        save(directory, 2)
        assert good_steps(directory) == {1, 2}

    crash_everywhere(before, lambda directory: save(directory, 2), check)
