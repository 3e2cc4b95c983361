"""Where trials take place, and what an undisturbed command leaves, made once and reused.

A command always works in the same directory, ROOT/work, so that paths in what it writes are the same; what
is to be kept is renamed away afterwards. A cache lies beside each, so nothing is shared between trials.
"""

from __future__ import annotations

import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.faults.processes import Failed, expect, start, steps_of, steps_recorded, succeed

STEPS = 24
MODEL = ("model=tiny", "model.layers=1", "model.hidden=32")
TRAIN = (
    *("hardware=cpu", "hardware.threads=1"),
    *("dataset.pairs=24", "dataset.eval_pairs=4", "dataset.gold_samples=2", "eval.max_new_tokens=4"),
    *("eval.every=10", "checkpoint.every=4", "checkpoint.keep=4", f"train.steps={STEPS}"),
    *("train.batch_size=2", "train.dtype=float32", "hardware.micro_tokens=512", "out=run"),
)
ANSWERS = (
    *("reward=pattern", "reward.pattern=[aeiou]", "algo.missing_end_score=null"),
    *("algo.samples=2", "algo.max_new_tokens=4"),
)
MEMBERS = ("a", "b")
RECIPE = """# Two seeds, their mean, and what came of them.

# The chain.
stages:
  # The first seed.
  a: train algo=sft seed=0
  # The second seed.
  b: train algo=sft seed=1
  # The mean of both.
  mean: soup {a} {b}
  # Figures.
  scores: eval {a} {mean} reference={a}
"""


@dataclass(frozen=True, slots=True)
class Work:
    """A command, where its result lies, and which files of it must come out the same to the byte."""

    name: str
    words: tuple[str, ...]
    """`{a}` and `{b}` stand for two trained models."""
    out: str
    same: tuple[str, ...]
    """Patterns below `out`."""
    steps: int = 0
    """Training steps, where it trains."""


TRAINED = ("metrics.jsonl", "samples.jsonl", "model/*", "checkpoints/step-*/*.safetensors")


def training(algo: str, *words: str, model: tuple[str, ...] = MODEL) -> Work:
    """A training run on the tiny model, or on one that was trained before."""
    return Work(algo, ("train", f"algo={algo}", *model, *TRAIN, *words), "run", TRAINED, STEPS)


TRAINING = {
    work.name: work
    for work in (
        *(training(algo) for algo in ("sft", "dpo", "ipo", "hinge", "slic", "reward")),
        training("hypo", "algo.prompts_per_step=2", "algo.lambda=0.1", "algo.max_new_tokens=4"),
        training("ppo", *ANSWERS),
        training("salsa-ppo", *ANSWERS, "algo.reference.members=[{a},{b}]", model=("model={a}",)),
    )
}
SOUP = Work("soup", ("soup", "{a}", "{b}", "out=soup"), "soup", ("*",))
EVAL = Work(
    "eval",
    (
        *("eval", "{a}", "{b}", "reference={a}", "dataset.eval_pairs=12", "eval.samples=6"),
        *("eval.max_new_tokens=6", "hardware=cpu", "hardware.threads=1", "out=eval"),
    ),
    "eval",
    ("results.json", "results.md", "pairs.parquet", "answers.jsonl"),
)
CHAIN = Work(
    "recipe",
    (
        *("train", "--config-dir", "own", "recipe=pair", "model=tiny", "model.layers=1", "model.hidden=32"),
        *("dataset.pairs=8", "dataset.eval_pairs=4", "dataset.gold_samples=0", "train.batch_size=4"),
        *("eval.samples=0", "scores.eval.samples=0", "hardware=cpu", "hardware.threads=1", "out=chain"),
    ),
    "chain",
    (
        *("1-a/metrics.jsonl", "2-b/metrics.jsonl", "1-a/model/*", "2-b/model/*", "3-mean/*"),
        *("4-scores/results.json", "4-scores/pairs.parquet"),
    ),
)


def changed(work: Work, *words: str) -> Work:
    """The same work with other settings, each in place of its key's own."""
    keys = {word.partition("=")[0] for word in words if "=" in word}
    kept = [word for word in work.words if word.partition("=")[0] not in keys]
    return replace(work, words=(*kept, *words))


@dataclass(frozen=True, slots=True)
class Lab:
    """A directory for trials."""

    root: Path

    @property
    def work(self) -> Path:
        """Where commands run."""
        return self.root / "work"

    def fresh(self) -> Path:
        """The same, emptied."""
        shutil.rmtree(self.work, ignore_errors=True)
        (self.work / "own" / "recipe").mkdir(parents=True)
        (self.work / "own" / "recipe" / "pair.yaml").write_text(RECIPE, encoding="utf-8")
        return self.work

    def words(self, work: Work) -> list[str]:
        """The command line, with the trained models' paths in it."""
        words = list(work.words)
        for name in MEMBERS:
            if any(f"{{{name}}}" in word for word in words):
                path = str(self._member(name))
                words = [word.replace(f"{{{name}}}", path) for word in words]
        return words

    def undisturbed(self, work: Work) -> Path:
        """What the command leaves when nothing happens to it."""
        kept = self.root / "undisturbed" / work.name
        if not kept.exists():
            words, place = self.words(work), self.fresh()
            began = time.monotonic()
            succeed(place, words)
            (place / "seconds").write_text(str(time.monotonic() - began), encoding="utf-8")
            kept.parent.mkdir(exist_ok=True)
            place.rename(kept)
        return kept / work.out

    def seconds(self, work: Work) -> float:
        """How long the undisturbed command took."""
        return float((self.undisturbed(work).parent / "seconds").read_text())

    def interrupted(self, work: Work, after: int = 14) -> Path:
        """A copy, at the working place, of a run that was stopped after it had saved a few checkpoints."""
        kept = self.root / "interrupted" / work.name
        if not kept.exists():
            place = self.fresh()
            command = start(place, self.words(work))
            command.wait_until(lambda: steps_recorded(place / work.out) >= after)
            command.send(signal.SIGTERM)
            expect(command.wait().code == 143, "a run to be interrupted did not end with 143")
            expect(len(steps_of(place / work.out)) >= 3, "fewer than three checkpoints to damage")
            kept.parent.mkdir(exist_ok=True)
            place.rename(kept)
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(kept, self.work, symlinks=True)
        return self.work / work.out

    def _member(self, name: str) -> Path:
        kept = self.root / "members" / name
        if not kept.exists():
            place = self.fresh()
            succeed(place, ["train", "algo=sft", *MODEL, *TRAIN, f"seed={MEMBERS.index(name)}"])
            kept.parent.mkdir(exist_ok=True)
            (place / "run" / "model").rename(kept)
        return kept


def compare(work: Work, undisturbed: Path, found: Path) -> None:
    """Raise Failed unless every promised file is the same; checkpoints are compared where both kept them."""
    files = {str(path.relative_to(undisturbed)) for one in work.same for path in undisturbed.glob(one)}
    expect(bool(files), f"{work.name} left none of {work.same}")
    for name in sorted(files):
        if name.startswith("checkpoints/") and not (found / name).exists():
            continue
        if not (found / name).exists():
            raise Failed(f"{name} is missing")
        expect((found / name).read_bytes() == (undisturbed / name).read_bytes(), f"{name} differs")
    if work.steps:
        last = f"checkpoints/step-{work.steps:06d}/optimizer.safetensors"
        expect(last in files and (found / last).exists(), "the last step's optimiser was not compared")
