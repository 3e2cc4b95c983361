"""The demo data set: everyday instructions with verifiable constraints, made from a seed.

Answers have a gold score (gold.py), so training can be judged without a human or another model. A quarter
of the topics, categories, facts, phrases and wordings appear in held-out prompts only: a held-out score
shows whether the skill was learned, not the template. Tasks are drawn in blocks with one of each family,
and the first N of a larger data set are the same as those of a smaller one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from random import Random
from typing import TypeVar

from alignctl.config import DemoDataset
from alignctl.data import gold
from alignctl.data.demo_families import FAMILIES, Material, Task, all_material
from alignctl.data.schemas import BRANCHES, RowKind
from alignctl.errors import UsageError
from alignctl.records import GoldScore, Message, PreferenceData, Row

HELD_OUT_SHARE = 0.25
# So many repeated prompts in a row mean that there is nothing new left to ask.
PATIENCE = 1000

T = TypeVar("T")


def load_demo(config: DemoDataset, *, kind: RowKind) -> PreferenceData:
    """`pairs` training rows (cut to `limit`) and `eval_pairs` held-out rows, with their gold score.

    Rows and split are those of the pairs for every kind: answers keep the chosen side, prompts none. Ids are
    `demo/train/N` and `demo/held-out/N`, N from 0. Raises UsageError when more prompts are asked for than
    there are.
    """
    wanted = min(config.pairs, config.limit or config.pairs)
    train = _draw("train", config.seed, wanted, f"dataset.pairs={config.pairs}")
    held_out = _draw("held-out", config.seed, config.eval_pairs, f"dataset.eval_pairs={config.eval_pairs}")
    return PreferenceData(_rows(train, kind), _rows(held_out, kind), gold=_gold(train | held_out))


def demo_prompts(config: DemoDataset, n: int) -> PreferenceData:
    """n prompts without answers in `train`, none of which is in `load_demo`, with their gold score.

    They continue the training split, whose prompts they cannot repeat; ids are `demo/train/N`, N from
    `pairs`. Raises UsageError when more prompts are asked for than there are.
    """
    drawn = _draw("train", config.seed, config.pairs + n, f"dataset.pairs={config.pairs} and {n} prompts")
    fresh = dict(islice(drawn.items(), config.pairs, None))
    return PreferenceData(_rows(fresh, "prompts"), (), gold=_gold(fresh))


def _draw(split: str, seed: int, wanted: int, asked: str) -> dict[str, Task]:
    """The first tasks of a split by row id, no prompt twice."""
    found = {f"demo/{split}/{place}": task for place, task in enumerate(islice(_tasks(split, seed), wanted))}
    if len(found) < wanted:
        raise UsageError(
            f"{asked}: the {split} split of the demo data set ends after {len(found):,} different prompts",
            "ask for fewer, or train for several epochs: train.epochs=2",
        )
    return found


def _tasks(split: str, seed: int) -> Iterator[Task]:
    rng = Random(f"demo/{seed}/{split}")
    material = _material(split, seed)
    seen: set[str] = set()
    while True:
        for family in rng.sample(FAMILIES, len(FAMILIES)):
            for _ in range(PATIENCE):
                task = family(rng, material)
                if task.prompt not in seen:
                    break
            else:
                return
            seen.add(task.prompt)
            yield task


def _material(split: str, seed: int) -> Material:
    """A split's share of everything; held-out prompts use what was kept back, in old and new wordings."""
    everything = all_material()

    def share(name: str, pool: Sequence[T], held_out: bool = split == "held-out") -> tuple[T, ...]:
        shuffled = Random(f"demo/{seed}/{name}").sample(pool, len(pool))
        kept_back = round(HELD_OUT_SHARE * len(pool))
        return tuple(shuffled[:kept_back] if held_out else shuffled[kept_back:])

    wordings = {name: share(f"wordings/{name}", pool, False) for name, pool in everything.wordings.items()}
    return Material(
        topics=share("topics", everything.topics),
        categories=share("categories", everything.categories),
        exclusive=share("exclusive", everything.exclusive),
        facts={kind: share(kind, facts) for kind, facts in everything.facts.items()},
        counts=share("counts", everything.counts),
        sums=share("sums", everything.sums),
        closings=share("closings", everything.closings),
        wordings=everything.wordings if split == "held-out" else wordings,
    )


def _rows(tasks: Mapping[str, Task], kind: RowKind) -> tuple[Row, ...]:
    return tuple(
        Row(
            id=name,
            prompt=(Message("user", task.prompt),),
            branches=(task.chosen, task.rejected)[: BRANCHES[kind]],
            subset=task.family,
        )
        for name, task in tasks.items()
    )


def _gold(tasks: Mapping[str, Task]) -> Callable[[Row, str], GoldScore]:
    """The score of an answer to one of these tasks; KeyError for a row from elsewhere."""
    return lambda row, answer: gold.score(tasks[row.id].judge, answer)
