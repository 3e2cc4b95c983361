"""What the training benchmark measures, as frozen records that go to JSON and back.

A run is one fresh process: one side, one case, one round. The workers, TRL's among them, write their part of
it as JSON; nothing here imports torch or alignctl, so that every environment can read it.
Source: this benchmark; units are seconds, gigabytes (1e9 bytes) and tokens throughout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

SIDES = ("alignctl", "alignctl-compiled", "trl", "trl-tuned", "trl-grouped", "plain")
"""In the order of the table: alignctl's are its defaults and with compiled layers; TRL's its defaults, tuned,
and tuned with length-grouped batches."""
SAME_BATCHES = ("alignctl", "alignctl-compiled", "trl", "trl-tuned", "plain")
"""Sides that have to agree in loss and gradient norm; trl-grouped makes batches of its own."""
OWN_PASS = ("alignctl", "alignctl-compiled", "trl-tuned", "trl-grouped")
"""Sides that score the reference once, before training; the others do so at every step."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    adapter: str
    """"full" or "lora"."""
    dtype: str
    """"float32" or "bfloat16" (autocast over float32 weights)."""
    batch: int
    """Pairs per optimiser step."""

    @property
    def name(self) -> str:
        """As --cases reads it: full-bfloat16-8."""
        return f"{self.adapter}-{self.dtype}-{self.batch}"


@dataclass(frozen=True, slots=True)
class Tokens:
    """Sizes of one optimiser batch on one side."""

    pairs: int
    unique: int
    """Real tokens, each prompt once: what has to be computed."""
    completion: int
    """Positions with a log-probability: chosen and rejected tokens."""
    attended: int
    """Pairs of a token and one it may read, itself included, each prompt once."""
    padded: int
    """Positions the side's policy runs through the model's layers, padding and repeats included."""


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the start of the process to the end of the first optimiser step, by part."""

    load: float
    """Imports, model, optimiser, data set."""
    reference: float
    """The pass before training, over all of the run's batches; 0 where each step makes its own."""
    first_step: float

    @property
    def total(self) -> float:
        """Time to the end of the first step."""
        return self.load + self.reference + self.first_step


@dataclass(frozen=True, slots=True)
class Run:
    """One process: `loss`, `grad_norm` and `tokens` have one entry per optimiser step, warm-up included."""

    side: str
    case: Case
    round: int
    start: Start
    steps: tuple[float, ...]
    """Seconds of each timed step; the first `warm_up` are left out."""
    warm_up: int
    loss: tuple[float, ...]
    grad_norm: tuple[float, ...]
    """Before clipping."""
    tokens: tuple[Tokens, ...]
    peak_memory: float
    """GB: the process's largest resident set."""
    peak_device_memory: float | None
    """GB allocated on the accelerator at most; None without one."""
    batches: str
    """sha256 of the tokenised batches the run read."""
    threads: int

    @property
    def timed(self) -> tuple[Tokens, ...]:
        """Sizes of the timed batches."""
        return self.tokens[self.warm_up :]

    @property
    def reference_per_batch(self) -> float:
        """Seconds of the reference pass per timed batch; 0 where the step has it inside.

        The pass goes over the warm-up's pairs too; the others' share is that of their positions.
        """
        timed = sum(batch.padded for batch in self.timed)
        share = timed / sum(batch.padded for batch in self.tokens)
        return self.start.reference * share / len(self.timed)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured."""

    cpu: str
    cores: int
    memory: float
    """GB."""
    system: str
    accelerator: str | None
    versions: dict[str, str]
    """Of alignctl's environment, and with the prefix "trl:" of TRL's own."""
    load_before: tuple[float, float, float]
    """Load averages over 1, 5 and 15 minutes when the measuring began."""


@dataclass(frozen=True, slots=True)
class Parity:
    """What one side found before anything was timed."""

    side: str
    case: Case
    loss: tuple[float, ...]
    grad_norm: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A side that could not run a case: it is measured no further, the others go on."""

    side: str
    case: Case
    reason: str
    """One line, such as "out of memory"."""


@dataclass(frozen=True, slots=True)
class Result:
    """Everything: the table, the JSON and the chart are made of this."""

    machine: Machine
    model: str
    """Name of the model's directory, never its path."""
    source: str
    """"hh" or "ultrafeedback" (made-up tokens), or the name of the data file."""
    threads: int
    batches: dict[str, str]
    """sha256 of the tokenised batches by pairs per batch ("8"); with "grouped-8" those of trl-grouped."""
    parity: tuple[Parity, ...]
    runs: tuple[Run, ...]
    failed: tuple[Failure, ...]

    def of(self, side: str, case: Case) -> tuple[Run, ...]:
        """The runs of one cell, by round."""
        return tuple(run for run in self.runs if run.side == side and run.case == case)

    def left(self, cases: Sequence[Case], number: int) -> list[tuple[Case, str]]:
        """What a round has still to run: what is not there and did fit; the sides turn round every round."""
        sides = SIDES[::-1] if number % 2 else SIDES
        there = {(run.case, run.side) for run in self.runs if run.round == number}
        out = {(one.case, one.side) for one in self.failed}
        return [cell for cell in product(cases, sides) if cell not in there | out]

    def cases(self) -> tuple[Case, ...]:
        """In the order they were measured."""
        return tuple(dict.fromkeys(run.case for run in self.runs))


def write_result(result: Result, path: Path) -> None:
    """One JSON file."""
    path.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")


def read_result(path: Path) -> Result:
    """The inverse of `write_result`."""
    found = json.loads(path.read_text(encoding="utf-8"))
    machine = found.pop("machine")
    return Result(
        **found
        | {
            "machine": Machine(**machine | {"load_before": tuple(machine["load_before"])}),
            "parity": tuple(read_parity(one) for one in found["parity"]),
            "runs": tuple(read_run(one) for one in found["runs"]),
            "failed": tuple(Failure(**one | {"case": Case(**one["case"])}) for one in found["failed"]),
        }
    )


def read_parity(found: dict[str, Any]) -> Parity:
    """From the JSON of `asdict`."""
    figures = {key: tuple(found[key]) for key in ("loss", "grad_norm")}
    return Parity(side=found["side"], case=Case(**found["case"]), **figures)


def read_run(found: dict[str, Any]) -> Run:
    """From the JSON of `asdict`."""
    lists: dict[str, Any] = {key: tuple(found[key]) for key in ("steps", "loss", "grad_norm")}
    records: dict[str, Any] = {
        "case": Case(**found["case"]),
        "start": Start(**found["start"]),
        "tokens": tuple(Tokens(**one) for one in found["tokens"]),
    }
    return Run(**found | lists | records)
