"""What every worker process of the training benchmark does: read its job and batches, time, write a Run.

Runs in alignctl's environment and in TRL's own, so it imports nothing but torch, numpy and the records.
Decisions. Batches lie in one .npz without pickle, token ids end to end. The clock is the machine's monotonic
one, which the controller reads before it starts a process, so that time to the first step counts from there.
Memory is the largest resident set since the process's own exec: `ru_maxrss` would count its parent too.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from measurements import Case, Run, Start, Tokens
from torch import Tensor

LR, CLIP, BETA, SEED = 1e-6, 1.0, 0.1, 7
LORA_RANK, LORA_ALPHA = 16, 32
MICRO_PAIRS = 8
"""Pairs per forward of the padded sides; a larger batch is accumulated, as one does who wants it to fit."""
PROCESS = Path("/proc/self")


# --- batches -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Token ids, int32 [n] each."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def longer(self) -> int:
        """Tokens of prompt and longer answer."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def write_pairs(pairs: Sequence[Pair], path: Path) -> str:
    """All pairs, in order; returns their sha256."""
    parts = [part for pair in pairs for part in (pair.prompt, pair.chosen, pair.rejected)]
    ids = np.concatenate(parts).astype("<i4")
    lengths = np.array([len(part) for part in parts], dtype="<i4").reshape(-1, 3)
    np.savez(path, ids=ids, lengths=lengths)
    return digest(ids, lengths)


def read_pairs(path: Path) -> tuple[list[Pair], str]:
    """The inverse of `write_pairs`, and the sha256 of what was found."""
    with np.load(path, allow_pickle=False) as found:
        ids, lengths = found["ids"], found["lengths"]
    parts = np.split(ids, lengths.ravel().cumsum()[:-1])
    return [Pair(*parts[n : n + 3]) for n in range(0, len(parts), 3)], digest(ids, lengths)


def digest(ids: np.ndarray, lengths: np.ndarray) -> str:
    """sha256 over lengths and token ids."""
    return hashlib.sha256(lengths.tobytes() + ids.tobytes()).hexdigest()


def padded_positions(pairs: Sequence[Pair]) -> int:
    """Positions that chosen and rejected of a batch take, padded to the longest of each forward."""
    parts = [pairs[start : start + MICRO_PAIRS] for start in range(0, len(pairs), MICRO_PAIRS)]
    return sum(2 * len(part) * max(pair.longer for pair in part) for part in parts)


# --- the job -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Job:
    """What one worker is to do, as JSON on its command line."""

    side: str
    case: Case
    round: int
    model: str
    pairs: str
    """Path of the file that `write_pairs` wrote."""
    first: int
    """Number of the job's first batch in it."""
    batches: int
    warm_up: int
    lr: float
    threads: int
    started: float
    """time.monotonic() before the process was started."""
    out: str
    """Path of the JSON to write."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """What a side hands back; times are of `now()`."""

    training: float
    """When the first step began, everything being ready."""
    reference: float
    """Seconds of the reference pass before that; 0 without one."""
    ends: tuple[float, ...]
    """When each step was done."""
    loss: tuple[float, ...]
    grad_norm: tuple[float, ...]
    padded: tuple[int, ...]
    """Positions run through the policy's layers, per step."""


def now() -> float:
    """Seconds on the machine's clock, once the accelerator has nothing left to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def main(train: Callable[[Job, Sequence[Sequence[Pair]]], Timeline]) -> None:
    """Run a side's `train` on the batches of the job that the command line holds."""
    found = json.loads(sys.argv[1])
    job = Job(**found | {"case": Case(**found["case"])})
    give_way()
    torch.set_num_threads(job.threads)
    pairs, sha256 = read_pairs(Path(job.pairs))
    size = job.case.batch
    batches = [pairs[n * size : (n + 1) * size] for n in range(job.first, job.first + job.batches)]
    run = as_run(job, batches, train(job, batches), sha256)
    Path(job.out).write_text(json.dumps(asdict(run)) + "\n", encoding="utf-8")


def give_way() -> None:
    """Where memory runs out, let the system end this process and none beside it."""
    if (PROCESS / "oom_score_adj").exists():
        (PROCESS / "oom_score_adj").write_text("1000")


def as_run(job: Job, batches: Sequence[Sequence[Pair]], found: Timeline, sha256: str) -> Run:
    """The record of what was timed."""
    begins = (found.training, *found.ends[:-1])
    steps = [end - begin for begin, end in zip(begins, found.ends, strict=True)]
    device = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    return Run(
        side=job.side,
        case=job.case,
        round=job.round,
        start=Start(
            load=found.training - job.started - found.reference,
            reference=found.reference,
            first_step=steps[0],
        ),
        steps=tuple(steps[job.warm_up :]),
        warm_up=job.warm_up,
        loss=found.loss,
        grad_norm=found.grad_norm,
        tokens=tuple(map(tokens_of, batches, found.padded)),
        peak_memory=peak_memory(),
        peak_device_memory=device,
        batches=sha256,
        threads=job.threads,
    )


def tokens_of(pairs: Sequence[Pair], padded: int) -> Tokens:
    """Sizes of one batch."""
    prompt, chosen, rejected = np.array(
        [[len(pair.prompt), len(pair.chosen), len(pair.rejected)] for pair in pairs]
    ).T
    causal = sum(part * (part + 1) // 2 for part in (prompt, chosen, rejected))
    answers = chosen + rejected
    return Tokens(
        pairs=len(pairs),
        unique=int((prompt + answers).sum()),
        completion=int(answers.sum()),
        attended=int((causal + prompt * answers).sum()),
        padded=padded,
    )


def peak_memory() -> float:
    """GB resident at most."""
    if (PROCESS / "status").exists():
        line = next(x for x in (PROCESS / "status").read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


# --- adapters ------------------------------------------------------------------------------------------


@torch.no_grad()
def same_adapter(parameters: Mapping[str, Tensor]) -> None:
    """Give the adapters' A matrices one start on every side: the gradient of B depends on it.

    Uniform within 1 / sqrt(input width), as PEFT draws them, from a generator seeded by the place in the
    alphabet; B stays at zero.
    """
    for place, name in enumerate(sorted(name for name in parameters if ".lora_A." in name)):
        matrix = parameters[name]
        draw = torch.Generator().manual_seed(SEED + place)
        bound = matrix.shape[1] ** -0.5
        matrix.copy_(torch.rand(matrix.shape, generator=draw) * 2 * bound - bound)
