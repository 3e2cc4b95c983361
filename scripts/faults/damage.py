"""Checkpoints damaged in every way a disk or a person damages files: seen, passed over, never imagined."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

from scripts.faults.lab import Lab, Work, compare
from scripts.faults.processes import expect, record_of, resumes_of, run, steps_of, succeed

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")
HOLE = 64


def _truncated(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(1, len(data))]


def _flipped(data: bytes, random: Random) -> bytes:
    place = random.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << random.randrange(8))]) + data[place + 1 :]


def _with_hole(data: bytes, random: Random) -> bytes:
    """A run of zeros where there was something else: a block that never reached the disk."""
    places = [place for place in range(0, len(data), HOLE) if any(data[place : place + HOLE])]
    place = random.choice(places)
    size = len(data[place : place + HOLE])
    return data[:place] + bytes(size) + data[place + size :]


CONTENTS: Mapping[str, Callable[[bytes, Random], bytes]] = {
    "truncated": _truncated,
    "emptied": lambda data, random: b"",
    "bit flipped": _flipped,
    "hole": _with_hole,
    "appended": lambda data, random: data + b"\n",
}
WHOLE = ("directory deleted", "directories swapped", "file added")
DAMAGES = (
    *((kind, file) for file in FILES for kind in (*CONTENTS, "deleted", "swapped")),
    *((kind, "") for kind in WHOLE),
)
"""What is done to the newest checkpoint, and to which of its files."""


def damage(kind: str, file: str, newest: Path, older: Path, random: Random) -> None:
    """Do it; a swap is with the checkpoint before."""
    target = newest / file
    if kind in CONTENTS:
        target.write_bytes(CONTENTS[kind](target.read_bytes(), random))
    elif kind == "deleted":
        target.unlink()
    elif kind == "directory deleted":
        shutil.rmtree(newest)
    elif kind == "file added":
        (newest / "notes.txt").write_text("mine", encoding="utf-8")
    else:
        one, other = (newest, older) if kind == "directories swapped" else (target, older / file)
        aside = newest.with_name("aside")
        one.rename(aside)
        other.rename(one)
        aside.rename(other)


def damaged(lab: Lab, work: Work, random: Random, kind: str, file: str) -> None:
    """The newest checkpoint damaged: told, the newest good one taken, the end the same."""
    undisturbed = lab.undisturbed(work)
    directory = lab.interrupted(work)
    *_, third, older, newest = steps_of(directory)
    damage(kind, file, newest, older, random)
    good = third if "swapped" in kind else older
    succeed(lab.work, lab.words(work))
    expect(resumes_of(directory)[-1] == _step(good), f"gone on from {resumes_of(directory)}, not {good.name}")
    told = " ".join(_warnings(directory))
    expect(kind == "directory deleted" or newest.name in told, f"{newest.name} is not named in: {told}")
    compare(work, undisturbed, directory)


def undamaged(lab: Lab, work: Work, random: Random) -> None:
    """Nothing damaged: nothing is said to be."""
    undisturbed = lab.undisturbed(work)
    directory = lab.interrupted(work)
    newest = steps_of(directory)[-1]
    succeed(lab.work, lab.words(work))
    expect(resumes_of(directory)[-1] == _step(newest), "a good checkpoint was not used")
    alarms = [text for text in _warnings(directory) if "checkpoint" in text]
    expect(not alarms, f"false alarm: {alarms}")
    compare(work, undisturbed, directory)


def all_damaged(lab: Lab, work: Work, random: Random) -> None:
    """No good checkpoint left: exit 7 in a few lines, and everything stays as it is."""
    directory = lab.interrupted(work)
    for step in steps_of(directory):
        target = step / random.choice(FILES)
        target.write_bytes(_flipped(target.read_bytes(), random))
    before = [path.name for path in steps_of(directory)]
    ended = run(lab.work, lab.words(work))
    expect(ended.code == 7, f"exit {ended.code}: {ended.said[-300:]}")
    expect("can be used" in ended.said and "Traceback" not in ended.said, ended.said[-300:])
    expect([path.name for path in steps_of(directory)] == before, "a bad checkpoint was moved or removed")


def _warnings(directory: Path) -> list[str]:
    found = record_of(directory).get("warnings", [])
    assert isinstance(found, list)
    return found


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
