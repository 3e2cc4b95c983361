"""Training N steps is training k, dying, and training the rest: for every k, to the last bit.

A finished run that kept every checkpoint is put back to what a process killed after step k leaves: newer
checkpoints and the model are gone, the books already hold more lines than the checkpoint knows of.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from alignctl.cli import main

pytestmark = pytest.mark.usefixtures("workplace")

STEPS = 4
WORDS = (
    *("model=tiny", "model.hidden=32", "dataset.pairs=24", "dataset.eval_pairs=6", "dataset.gold_samples=2"),
    *("eval.max_new_tokens=4", "eval.every=3", "watch.samples=2", "checkpoint.every=1", "checkpoint.keep=9"),
    *(f"train.steps={STEPS}", "train.batch_size=4", "train.lr=1e-2"),
)
RUNS = {
    # The anchor that an alarm sets is carried from one evaluation to the steps after it; dropout draws.
    "dpo": (
        *("algo=dpo", "watch.action=adapt", "watch.window=1", "watch.displaced=0.1"),
        *("adapter=lora", "adapter.dropout=0.2"),
    ),
    # So is the KL coefficient, from one step to the next; answers are drawn and the critic learns.
    "ppo": (
        *("algo=ppo", "algo.kl_target=0.5", "algo.critic=trunk", "algo.samples=2", "algo.max_new_tokens=4"),
        *("reward=pattern", "reward.pattern=[aeiou]", "algo.missing_end_score=null"),
    ),
    # Layers are compiled anew for every process, or come from what an earlier one left on the disk.
    "compiled": ("algo=dpo", "hardware.compile=true"),
}
COMPILER = any(map(shutil.which, ("g++", "clang++")))
JSON_LINES = ("metrics.jsonl", "samples.jsonl")


def train(run: Path, name: str, *words: str, code: int = 0) -> None:
    assert main(["train", f"out={run}", *WORDS, *RUNS[name], *words]) == code


def killed_after(step: int, whole: Path, run: Path) -> None:
    """A copy of a finished run as its process would leave it, had it died after saving `step` (0: none)."""
    shutil.copytree(whole, run)
    for checkpoint in (run / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    shutil.rmtree(run / "model")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))


def what_was_computed(run: Path) -> dict[str, bytes]:
    """The books, every checkpoint's tensors and state, and the model."""
    files = [run / name for name in JSON_LINES]
    for pattern in ("checkpoints/*/*.safetensors", "model/*.safetensors"):
        files += sorted(run.glob(pattern))
    states = {str(file): state_of(file) for file in sorted(run.glob("checkpoints/*/state.json"))}
    return {name.removeprefix(str(run)): state for name, state in states.items()} | {
        str(file.relative_to(run)): file.read_bytes() for file in files
    }


def state_of(file: Path) -> bytes:
    """A checkpoint's state without the size of timing.jsonl, the one file that time goes into."""
    document = json.loads(file.read_text())
    del document["state"]["offsets"]["timing.jsonl"]
    return json.dumps(document).encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("dpo", "ppo"),
        pytest.param("compiled", marks=[pytest.mark.long, pytest.mark.skipif(not COMPILER, reason="no C++")]),
    ],
)
def test_resuming_after_any_step_changes_no_bit(name: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    train(whole, name)
    expected = what_was_computed(whole)
    assert len(list(whole.glob("checkpoints/step-*"))) == STEPS
    for step in range(STEPS):
        run = tmp_path / f"after-{step}"
        killed_after(step, whole, run)
        train(run, name)
        assert json.loads((run / "run.json").read_text())["resumes"] == [{"step": step}]
        found = what_was_computed(run)
        assert found.keys() == expected.keys()
        assert [file for file in expected if found[file] != expected[file]] == [], f"resumed after {step}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNCTL_CACHE", str(place / "cache"))
        train(place / "run", "dpo")
    return place / "run"


def test_references_that_changed_under_a_run_are_refused(finished: Path, tmp_path: Path) -> None:
    killed_after(2, finished, tmp_path / "run")
    kept = tmp_path / "run" / "reference.safetensors"
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    train(tmp_path / "run", "dpo", code=7)
    kept.unlink()
    train(tmp_path / "run", "dpo", code=7)


def test_a_finished_run_is_refused_and_a_changed_request_too(finished: Path, tmp_path: Path) -> None:
    train(finished, "dpo", code=7)
    killed_after(2, finished, tmp_path / "run")
    train(tmp_path / "run", "dpo", "seed=7", code=7)
