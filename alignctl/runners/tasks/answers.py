"""The model's own answers to held-out prompts: kept for reading, scored where there is a gold score, watched.

Those for reading are drawn at `eval.temperature`, those that are watched at 1. All are written side by side,
as a decode step reads every weight once however many rows share it: on one core (SmolLM2-135M) 16 watched
answers took 0.9 s beside 100 others, by themselves 9. Answer i is drawn at the numbers of sample id i
whatever its temperature, so what is watched depends neither on what is read nor on how much of it there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from alignctl.evaluate.held_out import Evaluation, evaluate_answers
from alignctl.evaluate.own_samples import evaluate_samples
from alignctl.models.drawn_scores import DrawnScores
from alignctl.models.generation import sample
from alignctl.models.kept_answers import Draw, Drawn, kept_answers
from alignctl.models.live_reference import LiveReference
from alignctl.models.policy import Policy
from alignctl.models.scoring import score
from alignctl.records import Example, Scores
from alignctl.report.terminal import Report
from alignctl.runners.preparation import scoring_tokens
from alignctl.runners.tasks.task import Setup


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Answers to the first held-out prompts."""

    texts: tuple[str, ...]
    """One to each prompt that is asked, at eval.temperature."""
    own: tuple[Example, ...]
    """Each prompt that is watched with its answer, at temperature 1."""
    scores: Scores
    """Of `own`, with top-10 entropy and mass, [n, 1]."""


def answer_held_out(setup: Setup, step: int, report: Report) -> Answers:
    """An answer to every prompt that is asked and watched; the first few go to samples.jsonl.

    Those of step 0 are the starting model's, which the cache may hold.
    """
    settings, asked, watched = setup.config.eval, setup.data.asked, setup.data.watched
    prompts = max(asked.ids, watched.ids, key=len)
    read, own = [
        [(place, temperature) for place in range(len(some.ids))]
        for some, temperature in ((asked, settings.temperature), (watched, 1.0))
    ]
    # An answer that serves both is written once.
    wanted = list(dict.fromkeys([*read, *own]))
    start = setup.start
    draw = Draw(
        fingerprint=start.fingerprint,
        dtype=start.policy.compute_dtype,
        prompts=[prompts[place] for place, _ in wanted],
        sample_ids=[place for place, _ in wanted],
        temperatures=[temperature for _, temperature in wanted],
        scored=[one in own for one in wanted],
        stop=setup.data.stop,
        max_new_tokens=settings.max_new_tokens,
        seed=setup.config.seed,
    )
    drawn = partial(_drawn, start.policy, draw, step, report)
    answers, scores = kept_answers(draw, drawn) if step == 0 and wanted else drawn()
    found = dict(zip(wanted, answers, strict=True))
    texts = tuple(setup.data.decode(found[one]) for one in read)
    _keep(setup, step, texts)
    examples = tuple(_example(setup, place, found[place, one]) for place, one in own)
    return Answers(texts, examples, scores)


def _drawn(policy: Policy, draw: Draw, step: int, report: Report) -> Drawn:
    scores = DrawnScores(draw.scored, draw.max_new_tokens)
    answers = sample(
        policy,
        draw.prompts,
        stop=draw.stop,
        max_new_tokens=draw.max_new_tokens,
        temperature=draw.temperatures,
        seed=draw.seed,
        step=step,
        sample_ids=draw.sample_ids,
        scores=scores,
        progress=partial(report, "answers"),
    )
    return answers, scores.of(answers)


def _example(setup: Setup, place: int, answer: np.ndarray) -> Example:
    watched = setup.data.watched
    return Example(watched.rows[place].id, watched.ids[place], (answer,))


def _keep(setup: Setup, step: int, texts: Sequence[str]) -> None:
    gold = setup.data.gold
    for row, answer in list(zip(setup.data.asked.rows, texts, strict=True))[: setup.config.eval.samples]:
        scored = {"gold": gold(row, answer).total} if gold else {}
        line = {"step": step, "id": row.id, "prompt": row.prompt[-1].content, "answer": answer, **scored}
        setup.directory.samples.append(line)


def judged(
    setup: Setup, answers: Answers, reference: LiveReference | None, report: Report, *, at_start: bool = False
) -> list[Evaluation]:
    """Gold scores of the answers for reading, where the data has one; figures of those that are watched.

    Without a `reference` there is no KL to it; `at_start` says that the policy still is the reference, so
    that the KL is 0 without asking it.
    """
    parts = []
    if setup.data.gold is not None and answers.texts:
        parts.append(evaluate_answers(setup.data.asked.rows, answers.texts, setup.data.gold))
    if answers.own:
        sums = answers.scores.sums if at_start else _reference_sums(setup, answers.own, reference, report)
        stop, vocabulary = setup.data.stop, len(setup.data.tokenizer)
        parts.append(evaluate_samples(answers.own, answers.scores, sums, stop=stop, vocabulary=vocabulary))
    return parts


def _reference_sums(
    setup: Setup, own: Sequence[Example], reference: LiveReference | None, report: Report
) -> torch.Tensor | None:
    """Log-probabilities [n, 1] of the answers under the reference, None where there is none."""
    if reference is None:
        return None
    budget, asked = (
        scoring_tokens(setup.start.policy.device),
        partial(report, "own answers, by the reference"),
    )
    with reference.active() as model:
        return score(model, own, token_budget=budget, with_top=False, progress=asked).sums
