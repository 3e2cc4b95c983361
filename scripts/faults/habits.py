"""How often a run is evaluated, saved and logged: none of it may reach the weights."""

from __future__ import annotations

from dataclasses import replace

from scripts.faults.lab import Lab, Work, changed, compare
from scripts.faults.processes import expect, succeed

LAST = "checkpoint.export=last"
VARIATIONS = (
    ("eval.every=1",),
    ("eval.every=1000",),
    ("eval.pairs=2", "eval.samples=2"),
    ("checkpoint.every=1",),
    ("checkpoint.every=1000", "checkpoint.keep=2"),
    ("--format", "quiet"),
)


def other_habits(lab: Lab, work: Work, words: tuple[str, ...]) -> None:
    """The same weights and the same training steps as the run with the usual habits."""
    plain = replace(changed(work, LAST), name=f"{work.name}-last", same=("model/*.safetensors",), steps=0)
    usual, place = lab.undisturbed(plain), lab.fresh()
    succeed(place, lab.words(changed(plain, *words)))
    out = place / work.out
    compare(plain, usual, out)
    moments = f"checkpoints/step-{work.steps:06d}/optimizer.safetensors"
    expect((out / moments).read_bytes() == (usual / moments).read_bytes(), "other moments at the end")
    lines = [
        [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"split": "train"' in line]
        for run in (usual, out)
    ]
    expect(lines[0] == lines[1] and len(lines[0]) == work.steps, "other training lines")
