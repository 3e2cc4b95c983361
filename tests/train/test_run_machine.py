"""A run and its checkpoints under any sequence of steps, saves, deaths, damage and resumes, against a model.

The model in memory says which checkpoints lie there, what each of them is worth, and which lines belong to
the run. After every move the directory has to say the same.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import Config, request_hash
from alignctl.errors import RunDirectoryError
from alignctl.train.checkpoint import load_newest, load_step, rotate, save_checkpoint, set_aside_newer
from alignctl.train.durable import temporary_name
from alignctl.train.run_directory import RunDirectory, open_run


@cache
def config() -> Config:
    return load(open_conf(None), ["model=tiny"])


def tensors_after(step: int) -> dict[str, dict[str, Tensor]]:
    """What the weights are after so many steps, whatever happened in between."""
    drawn = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
    return {"model": {"w": drawn}, "optimizer": {"w.step": torch.tensor(float(step))}}


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def append(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\n")


def add_a_file(file: Path) -> None:
    (file.parent / "unlisted").touch()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "flip": flip,
    "truncate": truncate,
    "empty": empty,
    "append": append,
    "remove": Path.unlink,
    "add": add_a_file,
}
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")


@dataclass
class Kept:
    """What the model knows of a checkpoint."""

    lines: int
    good: bool = True
    counted: bool = True
    """Looks sound to a rotation, which computes no hashes."""


class RunMachine(RuleBasedStateMachine):
    """The moves; `checkpoints`, `lines` and `step` are the model."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="run-machine-"))
        self.process = ExitStack()
        self.run: RunDirectory | None = None
        self.step = 0
        self.lines: list[int] = []
        self.checkpoints: dict[int, Kept] = {}
        self.aside: set[int] = set()

    def teardown(self) -> None:
        self.process.close()
        shutil.rmtree(self.place)

    @property
    def directory(self) -> Path:
        return self.place / "run" / "checkpoints"

    @property
    def newest_good(self) -> int | None:
        return max((step for step, kept in self.checkpoints.items() if kept.good), default=None)

    def rotated(self, keep: int, protect: set[int]) -> None:
        own = sorted(step for step, kept in self.checkpoints.items() if kept.counted and step <= self.step)
        for step in set(own[: -max(keep, 2)]) - protect:
            del self.checkpoints[step]

    # --- moves ---

    @initialize()
    def begin(self) -> None:
        self.run = self.process.enter_context(open_run(self.place / "run", config(), (), ()))

    @precondition(lambda self: self.run is not None)
    @rule()
    def train_a_step(self) -> None:
        assert self.run is not None
        self.step += 1
        self.lines.append(self.step)
        self.run.metrics.append({"step": self.step})

    @precondition(lambda self: self.run is not None and self.step > 0)
    @rule(keep=st.integers(1, 4), protect=st.sets(st.integers(1, 12), max_size=2))
    def save(self, keep: int, protect: set[int]) -> None:
        assert self.run is not None
        there = self.checkpoints.get(self.step)
        save_checkpoint(
            self.run.checkpoints,
            self.step,
            tensors_after(self.step),
            {"offsets": self.run.offsets(), "step": self.step},
            request=request_hash(config()),
            keep=keep,
            protect=protect,
        )
        if there is None or not there.good:
            self.checkpoints[self.step] = Kept(len(self.lines))
        self.rotated(keep, protect)

    @precondition(lambda self: self.run is not None)
    @rule()
    def train_and_save(self) -> None:
        self.train_a_step()
        self.save(keep=3, protect=set())

    @precondition(lambda self: self.checkpoints)
    @rule(how=st.sampled_from(sorted(DAMAGE)))
    def damage_the_newest_two_and_go_on(self, how: str) -> None:
        """What it takes for a resume to pass over more than one checkpoint."""
        for step in sorted(self.checkpoints)[-2:]:
            self.harm(step, how, "model.safetensors")
        self.process.close()
        self.run = None
        self.resume()

    @precondition(lambda self: self.run is not None)
    @rule(keep=st.integers(1, 4), protect=st.sets(st.integers(1, 12), max_size=2))
    def rotate(self, keep: int, protect: set[int]) -> None:
        rotate(self.directory, self.step, request=request_hash(config()), keep=keep, protect=protect)
        self.rotated(keep, protect)

    @precondition(lambda self: self.run is not None)
    @rule(in_a_save=st.booleans())
    def kill(self, in_a_save: bool) -> None:
        """Nothing is closed but what the kernel closes; a save may be left half written."""
        if in_a_save:
            half = temporary_name(self.directory / f"step-{self.step:06d}")
            half.mkdir(parents=True)
            (half / "model.safetensors").write_bytes(b"half")
        self.process.close()
        self.run = None

    @precondition(lambda self: self.checkpoints)
    @rule(data=st.data(), how=st.sampled_from(sorted(DAMAGE)), name=st.sampled_from(FILES))
    def damage(self, data: st.DataObject, how: str, name: str) -> None:
        self.harm(data.draw(st.sampled_from(sorted(self.checkpoints))), how, name)

    def harm(self, step: int, how: str, name: str) -> None:
        kept = self.checkpoints[step]
        if not kept.good:
            return
        DAMAGE[how](self.directory / f"step-{step:06d}" / name)
        kept.good = False
        kept.counted = how == "flip" and name != "MANIFEST.json"

    @precondition(lambda self: self.run is None)
    @rule()
    def resume(self) -> None:
        with ExitStack() as process:
            run = process.enter_context(open_run(self.place / "run", config(), (), ()))
            if self.newest_good is None and (self.checkpoints or self.aside):
                with pytest.raises(RunDirectoryError, match="no checkpoint in"):
                    load_newest(run.checkpoints, request=request_hash(config()))
                return
            loaded = load_newest(run.checkpoints, request=request_hash(config()))
            self.step, offsets = 0, {}
            if loaded is not None:
                self.step, offsets = loaded.step, loaded.state["offsets"]
                assert loaded.step == self.newest_good
                assert len(loaded.skipped) == sum(step > loaded.step for step in self.checkpoints)
                set_aside_newer(run.checkpoints, loaded.step)
            newer = {step for step in self.checkpoints if step > self.step}
            self.lines = self.lines[: self.checkpoints[self.step].lines] if loaded else []
            self.aside |= newer
            self.checkpoints = {s: kept for s, kept in self.checkpoints.items() if s not in newer}
            run.rewind(offsets)
            self.run, self.process = run, process.pop_all()

    # --- what holds after every move ---

    @invariant()
    def the_directory_holds_what_the_model_says(self) -> None:
        if self.run is None:
            return
        names = {path.name for path in self.directory.glob("*")}
        kept = {f"step-{step:06d}" for step in self.checkpoints}
        assert names == kept | {f"bad-step-{step:06d}" for step in self.aside}
        for step, known in self.checkpoints.items():
            if known.good:
                found = load_step(self.directory, step, request=request_hash(config()))
                assert found.state["step"] == step
                for stem, tensors in tensors_after(step).items():
                    read = found.tensors(stem)
                    assert read.keys() == tensors.keys()
                    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
            else:
                with pytest.raises(RunDirectoryError, match="cannot be used"):
                    load_step(self.directory, step, request=request_hash(config()))

    @invariant()
    def the_books_hold_the_steps_of_this_run_in_order(self) -> None:
        if self.run is None or not self.run.metrics.path.exists():
            return
        lines = self.run.metrics.path.read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == self.lines


TestRunMachine = RunMachine.TestCase
TestRunMachine.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
