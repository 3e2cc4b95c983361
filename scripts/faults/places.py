"""Crashes at every call that changes the disk: of checkpoints, of the run directory, and of a soup."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import SoupConfig, TrainConfig
from alignctl.errors import RunDirectoryError
from alignctl.runners.soup import run as soup
from alignctl.train.checkpoint import load_newest, load_step, save_checkpoint
from alignctl.train.durable import is_temporary, remove_leftovers
from alignctl.train.run_directory import open_run
from scripts.faults.crashing import crash_everywhere
from scripts.faults.lab import SOUP, Lab
from scripts.faults.processes import expect

REQUEST = "0123abcd"


def crash_save(root: Path, every: int = 1) -> int:
    """Save and rotate: never fewer than two good checkpoints, and the same save again ends as it should."""
    before = root / "before"
    for step in (1, 2, 3):
        _save(before, step)

    def check(directory: Path) -> None:
        good = _good_steps(directory)
        expect(good in ({1, 2, 3}, {1, 2, 3, 4}, {1, 3, 4}), f"left with {sorted(good)}")
        _newest_is(directory, max(good))
        remove_leftovers(directory)
        _save(directory, 4)
        expect(_good_steps(directory) == {1, 3, 4}, "the save repeated did not end well")

    return crash_everywhere(before, lambda directory: _save(directory, 4), check, every=every)


def crash_replacement(root: Path, every: int = 1) -> int:
    """A bad checkpoint replaced by a good one of its step: the older good one is there throughout."""
    before = root / "before"
    _save(before, 1)
    weights = _save(before, 2) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])

    def check(directory: Path) -> None:
        found = load_newest(directory, request=REQUEST)
        expect(found is not None and found.step in (1, 2), "no good checkpoint was left")
        remove_leftovers(directory)
        _save(directory, 2)
        expect(_good_steps(directory) == {1, 2}, "the replacement repeated did not end well")

    return crash_everywhere(before, lambda directory: _save(directory, 2), check, every=every)


def crash_run_directory(root: Path, every: int = 1) -> int:
    """A run opened, written to, finished: afterwards it is finished, or can be gone on with and finished."""
    config = load(open_conf(None), ["model=tiny"])
    assert isinstance(config, TrainConfig)
    before = root / "before"
    before.mkdir()

    def work(directory: Path) -> None:
        with open_run(directory / "run", config, ["model=tiny"], ["alignctl"]) as run:
            run.rewind({})
            run.metrics.append({"step": 1})
            run.update(decided={"micro_tokens": 512})
            run.warn("odd")
            run.note_resume(0)
            run.finish("done")

    def check(directory: Path) -> None:
        try:
            work(directory)
        except RunDirectoryError as error:
            expect("is finished (status done)" in error.message, error.message)
        lines = (directory / "run" / "metrics.jsonl").read_text()
        expect(lines == '{"step": 1}\n', f"metrics.jsonl holds {lines!r}")
        expect(not any(map(is_temporary, os.listdir(directory / "run"))), "leftovers stayed")

    return crash_everywhere(before, work, check, every=every)


def crash_soup(lab: Lab, root: Path, every: int = 1) -> int:
    """A soup over an older one: absent, the old or the new one, and the same command puts it right."""
    words = [word for word in lab.words(SOUP)[1:] if not word.startswith("out=")]
    before = root / "before"
    before.mkdir()
    merge = _merging([*words, "soup=slerp"])
    merge(before)
    old = _content(before / "soup")
    merge = _merging([*words, "overwrite=true"])
    expected = root / "expected"
    expected.mkdir()
    merge(expected)
    new = _content(expected / "soup")

    def check(directory: Path) -> None:
        out = directory / "soup"
        expect(not out.exists() or _content(out) in (old, new), "half a soup was left")
        merge(directory)
        expect(_content(out) == new, "the soup repeated is another")
        expect(sorted(os.listdir(directory)) == [".soup.lock", "soup"], f"leftovers: {os.listdir(directory)}")

    return crash_everywhere(before, merge, check, every=every)


def _merging(words: list[str]) -> Callable[[Path], None]:
    """Merges into DIRECTORY/soup; the command line is read once, as reading it changes nothing."""
    config = load(open_conf(None, "soup"), words)
    assert isinstance(config, SoupConfig)

    def merge(directory: Path) -> None:
        placed = config.model_copy(update={"out": f"{directory}/soup"})
        nowhere = io.StringIO()
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            soup(placed, argv=["alignctl", "soup"], output="quiet")

    return merge


def _content(directory: Path) -> dict[str, bytes]:
    """Every file; soup.json and the card name the place, which is another in each copy."""
    named = ("soup.json", "README.md")
    return {path.name: b"" if path.name in named else path.read_bytes() for path in directory.iterdir()}


# --- checkpoints of known content ----------------------------------------------------------------------


def _tensors(step: int) -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(step)
    return {"model": {"w": torch.randn(40, 30)}, "optimizer": {"w.exp_avg": torch.randn(40, 30)}}


def _save(directory: Path, step: int) -> Path:
    state: dict[str, Any] = {"offsets": {"metrics.jsonl": 10 * step}}
    return save_checkpoint(directory, step, _tensors(step), state, request=REQUEST, keep=2, protect=(1,))


def _good_steps(directory: Path) -> set[int]:
    steps = {int(path.name.removeprefix("step-")) for path in directory.glob("step-*")}
    for step in steps:
        load_step(directory, step, request=REQUEST)
    return steps


def _newest_is(directory: Path, step: int) -> None:
    found = load_newest(directory, request=REQUEST)
    expect(found is not None and found.step == step, f"step {step} is not the newest good checkpoint")
    assert found is not None
    for stem, group in _tensors(step).items():
        read = found.tensors(stem)
        expect(all(torch.equal(read[name], group[name]) for name in group), f"{stem} is not what was saved")


def emptied(root: Path) -> Path:
    """A directory of its own for one trial."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    return root
