"""The optimiser batches of a benchmark: read or made up once, written to one file that every process reads.

Decisions. Pairs keep the order they come in, and only pairs that fit whole are used, so that no side's own
truncation can make a difference. Every round has batches of its own. A length-grouped run of many steps meets
short and long batches; a few of its steps stand for all by being spread evenly over the sorted pool, at other
places in every round. The pool is the 50 batches that transformers sorts at a time, or all pairs where there
are fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lengths import made_up_pairs
from worker import SEED, Pair, write_pairs

from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import TrainConfig
from alignctl.data.preferences import load_preferences, open_workshop
from alignctl.models.load import load_tokenizer, locate_path, vocabulary_size
from alignctl.models.machine import cache_root
from alignctl.records import Example
from alignctl.runners.training_data import unseen

POOL_BATCHES = 50
"""transformers' length-grouped sampler sorts as many batches at a time."""
WARM_UP = 1
"""Steps of every run that are not timed."""
PARITY_PAIRS, PARITY_STEPS = 4, 2
"""So many pairs that the rounding of bfloat16 evens out a little."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How much is run."""

    rounds: int
    steps: int
    """Timed steps of 8 pairs in a run; of other batches as many as make up about as many pairs."""

    def timed(self, batch: int) -> int:
        """Timed steps of a run with that many pairs each."""
        return max(1, self.steps * 8 // batch)

    def batches(self, batch: int) -> int:
        """Batches of a run, warm-up included."""
        return WARM_UP + self.timed(batch)

    def pairs(self, batch: int) -> int:
        """Pairs of all rounds."""
        return self.rounds * self.batches(batch) * batch


@dataclass(frozen=True, slots=True)
class Prepared:
    """A file of batches."""

    path: Path
    sha256: str


def prepare(
    pairs: Sequence[Pair], batches: Sequence[int], schedule: Schedule, out: Path
) -> dict[str, Prepared]:
    """Write every file; keys are "8", "grouped-8" and, for the check before, "parity"."""
    needed = max(map(schedule.pairs, batches))
    if len(pairs) < needed:
        raise SystemExit(f"{len(pairs)} pairs are too few: {needed} are needed, or --rounds, --steps smaller")
    made = {"parity": pairs[: PARITY_PAIRS * PARITY_STEPS]}
    for batch in batches:
        made[str(batch)] = pairs[: schedule.pairs(batch)]
        made[f"grouped-{batch}"] = grouped(pairs, batch, schedule)
    prepared = {}
    for name, part in made.items():
        path = out / f"batches-{name}.npz"
        prepared[name] = Prepared(path, write_pairs(part, path))
    return prepared


def grouped(pairs: Sequence[Pair], batch: int, schedule: Schedule) -> list[Pair]:
    """The batches of all rounds for trl-grouped, each of pairs of about one length, longest first."""
    pool = len(pairs) // batch * batch
    ranked = sorted(pairs[: min(pool, POOL_BATCHES * batch)], key=lambda pair: -pair.longer)
    groups = [ranked[start : start + batch] for start in range(0, len(ranked), batch)]
    picked = []
    for number in range(schedule.rounds):
        places = spread(len(groups), schedule.timed(batch), number, schedule.rounds)
        picked += [places[len(places) // 2]] * WARM_UP + places
    return [pair for place in picked for pair in groups[place]]


def spread(places: int, wanted: int, number: int, rounds: int) -> list[int]:
    """`wanted` of `places`, one from each of as many equal parts, at another point of it every round."""
    point = (number + 0.5) / rounds
    return [int((part + point) / wanted * places) for part in range(wanted)]


def wanted_pairs(batches: Sequence[int], schedule: Schedule) -> int:
    """Enough for all rounds and for a whole pool."""
    return max(max(schedule.pairs(batch), POOL_BATCHES * batch) for batch in batches)


def made_up(shape: str, model: str, wanted: int) -> list[Pair]:
    """Random tokens in the lengths of a known data set."""
    vocabulary = vocabulary_size(locate_path(model))
    return [as_pair(example) for example in made_up_pairs(shape, wanted, vocabulary, SEED)]


def read_data(data: Path, model: str, wanted: int) -> list[Pair]:
    """The first pairs of a file that fit whole, through alignctl's own reading and chat template."""
    words = [f"dataset={data}", "algo=dpo", "dataset.on_bad=drop", "dataset.eval_size=0"]
    config = load(open_conf(None), words)
    assert isinstance(config, TrainConfig)
    source = locate_path(model)
    workshop = open_workshop(
        config.dataset,
        load_tokenizer(source),
        vocabulary=vocabulary_size(source),
        max_length=config.train.max_length,
        max_prompt=config.train.max_prompt,
        cache=cache_root(),
        report=unseen,
    )
    found = load_preferences(config.dataset, workshop, seed=SEED, kind="pairs")
    whole = found.train[~found.pool.facts.truncated[found.train]]
    return [as_pair(example) for example in found.pool.examples(whole[:wanted])]


def as_pair(example: Example) -> Pair:
    """Token ids alone."""
    chosen, rejected = (branch.astype(np.int32) for branch in example.branches)
    return Pair(example.prompt.astype(np.int32), chosen, rejected)
