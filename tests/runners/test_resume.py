"""What a run that was killed refuses to go on with, and what it starts again. That it otherwise ends with the
same bytes is measured in scripts/faults, of which tests/faults runs a part."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WORDS = [
    "model=tiny",
    "dataset.pairs=64",
    "dataset.eval_pairs=8",
    "dataset.gold_samples=2",
    "eval.max_new_tokens=4",
    "eval.every=10",
    "checkpoint.every=5",
    "train.steps=60",
    "hardware.threads=1",
]
PROMISED = ("metrics.jsonl", "samples.jsonl", "model/model.safetensors", "model/README.md")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in a directory of its own, its cache beside it."""
    place = tmp_path_factory.mktemp("undisturbed")
    assert start(place, "run").wait() == 0
    return place / "run"


def start(place: Path, out: str, *words: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"ALIGNCTL_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "alignctl.cli", "train", *WORDS, f"out={out}", *words]
    return subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.DEVNULL)


def steps_done(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b'"split": "train"') if metrics.exists() else 0


def interrupt(process: subprocess.Popen[bytes], run: Path, after: int, number: int) -> int:
    """Send a signal once `after` steps are recorded; returns the exit code."""
    until = time.monotonic() + 120
    while process.poll() is None and steps_done(run) < after and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(number)
    return process.wait()


def assert_same(run: Path, other: Path) -> None:
    for name in PROMISED:
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    for step in sorted((run / "checkpoints").iterdir()):
        for stem in ("model", "optimizer"):
            file = Path("checkpoints") / step.name / f"{stem}.safetensors"
            assert (run / file).read_bytes() == (other / file).read_bytes(), file


def resumes(run: Path) -> list[int]:
    return [entry["step"] for entry in json.loads((run / "run.json").read_text())["resumes"]]


@pytest.mark.slow
def test_references_that_changed_under_a_run_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    interrupt(start(tmp_path, "run"), run, 12, signal.SIGKILL)
    kept = run / "reference.safetensors"
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    assert start(tmp_path, "run").wait() == 7
    kept.unlink()
    assert start(tmp_path, "run").wait() == 7


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_again_and_says_so(
    tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    interrupt(start(tmp_path, "run"), run, 2, signal.SIGKILL)
    if list((run / "checkpoints").glob("step-*")):
        pytest.skip("the run was faster than the signal")
    assert start(tmp_path, "run").wait() == 0
    assert resumes(run) == [0]
    assert_same(undisturbed, run)


@pytest.mark.slow
def test_a_finished_run_is_refused_and_a_changed_request_too(tmp_path: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    assert start(tmp_path, "run").wait() == 7
    record = json.loads((tmp_path / "run" / "run.json").read_text()) | {"status": "running"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert start(tmp_path, "run", "train.lr=0.5").wait() == 7
