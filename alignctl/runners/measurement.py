"""One model of an evaluation, measured: every pair scored once, prompts answered, drift from the reference.

Scores are kept in the cache by content, answers in the evaluation's own directory, so that an evaluation
which was killed goes on where it stood and a second one with the same reference does not score it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignctl.config import EvalConfig, NoAdapter
from alignctl.data.rendering import render_prompt
from alignctl.errors import storage_faults
from alignctl.evaluate.judges.questions import conversation
from alignctl.models.generation import sample
from alignctl.models.load import Source
from alignctl.models.reference import cached_scores
from alignctl.records import Example, Row, Scores
from alignctl.report.terminal import Report
from alignctl.runners.evaluation_data import EvaluationData
from alignctl.runners.preparation import StartingPolicy, prepare_policy, scoring_tokens
from alignctl.train.run_directory import JsonLines

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Sampled answers, one per prompt."""

    tokens: tuple[np.ndarray, ...]
    """int32 [C] each, the stop token included where it came."""
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What was measured on one model."""

    fingerprint: str
    scores: Scores
    answers: Answers | None
    """At eval.temperature; what gold score and judge see."""
    own: tuple[Example, ...]
    """Prompts with answers drawn at temperature 1: only these estimate the KL divergence."""
    own_logps: np.ndarray
    """float64 [len(own)]: their log-probabilities under the model itself."""
    to_questions: tuple[tuple[str, ...], ...]
    """Its answers to every question, one per turn."""


class AnswerFile:
    """answers.jsonl: every answer as it was sampled, and the store that a repeated command reads first."""

    def __init__(self, path: Path) -> None:
        with storage_faults(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._lines = JsonLines(path)
        self._known: dict[tuple[str, str, str], list[int]] = {}
        for line in _whole_lines(path):
            self._known[line["fingerprint"], line["kind"], line["id"]] = line["tokens"]

    def get(self, fingerprint: str, kind: str, ids: Sequence[str]) -> list[np.ndarray] | None:
        """The answers of one model to all these prompts, None unless all are there."""
        keys = [(fingerprint, kind, row_id) for row_id in ids]
        if not all(key in self._known for key in keys):
            return None
        return [np.array(self._known[key], dtype=np.int32) for key in keys]

    def put(self, record: Mapping[str, Any]) -> None:
        """Keep an answer: fingerprint, kind, id, tokens, and what else a reader likes to see.

        One that is there already, of a command that was killed among the answers of a model, stays the only
        one: it was drawn from the same seed.
        """
        key = record["fingerprint"], record["kind"], record["id"]
        if key not in self._known:
            self._lines.append(record)
            self._known[key] = list(record["tokens"])


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; a line that a kill cut short is dropped, from the file too."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    JsonLines(path).truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def open_policy(
    source: Source, config: EvalConfig, data: EvaluationData, device: torch.device
) -> StartingPolicy:
    """A model ready to score and to answer."""
    return prepare_policy(
        source,
        NoAdapter(kind="none"),
        seed=config.seed,
        max_length=data.max_length,
        device=device,
        dtype=DTYPES[config.eval.dtype],
    )


def measure(
    start: StartingPolicy,
    name: str,
    config: EvalConfig,
    data: EvaluationData,
    store: AnswerFile,
    report: Report,
) -> Measured:
    """Score every pair and answer every prompt with one model."""
    policy, fingerprint = start.policy, start.fingerprint
    budget = scoring_tokens(policy.device, config.hardware)
    scores, _ = cached_scores(
        policy,
        fingerprint,
        data.examples,
        token_budget=budget,
        with_top=True,
        progress=lambda done, total: report(f"{name}: pairs", done, total),
    )
    sampler = Sampler(start, name, config, data, store, report)
    to_questions = _answer_questions(sampler)
    if not data.asked:
        return Measured(fingerprint, scores, None, (), np.empty(0), to_questions)
    ids, temperature = [row.id for row in data.asked], config.eval.temperature
    answers = sampler.answers("answer", ids, data.prompts, temperature)
    own = answers if temperature == 1 else sampler.answers("own", ids, data.prompts, 1.0)
    examples = tuple(
        Example(id=row_id, prompt=prompt, branches=(tokens,))
        for row_id, prompt, tokens in zip(ids, data.prompts, own.tokens, strict=True)
    )
    logps = score_answers(start, name, examples, report, token_budget=budget)
    return Measured(fingerprint, scores, answers, examples, logps, to_questions)


def score_answers(
    start: StartingPolicy, name: str, examples: Sequence[Example], report: Report, *, token_budget: int
) -> np.ndarray:
    """Log-probabilities, float64 [n], of rows with one branch each."""
    scores, _ = cached_scores(
        start.policy,
        start.fingerprint,
        examples,
        token_budget=token_budget,
        with_top=False,
        progress=lambda done, total: report(f"{name}: its own answers", done, total),
    )
    return scores.sums[:, 0].double().numpy()


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """One model with everything that sampling its answers takes."""

    start: StartingPolicy
    name: str
    config: EvalConfig
    data: EvaluationData
    store: AnswerFile
    report: Report

    def answers(
        self, kind: str, ids: Sequence[str], prompts: Sequence[np.ndarray], temperature: float
    ) -> Answers:
        """An answer to every prompt, sampled now or found among the kept ones; `kind` names the occasion."""
        kept = self.store.get(self.start.fingerprint, kind, ids)
        if kept is not None:
            return Answers(tuple(kept), self._texts(kept))
        tokens = sample(
            self.start.policy,
            prompts,
            stop=self.data.stop,
            max_new_tokens=self.config.eval.max_new_tokens,
            temperature=temperature,
            seed=self.config.seed,
            step=0,
            progress=partial(self.report, f"{self.name}: answers"),
        )
        found = Answers(tuple(tokens), self._texts(tokens))
        for row_id, text, row_tokens in zip(ids, found.texts, tokens, strict=True):
            self.store.put(
                {
                    "model": self.name,
                    "kind": kind,
                    "temperature": temperature,
                    "id": row_id,
                    "answer": text,
                    "tokens": row_tokens.tolist(),
                    "fingerprint": self.start.fingerprint,
                }
            )
        return found

    def _texts(self, tokens: Sequence[np.ndarray]) -> tuple[str, ...]:
        decode = self.data.tokenizer.decode
        return tuple(str(decode(ids, skip_special_tokens=True)).strip() for ids in tokens)


def _answer_questions(sampler: Sampler) -> tuple[tuple[str, ...], ...]:
    """Turn by turn: the second turn's prompt holds the model's own first answer."""
    data = sampler.data
    said: dict[str, tuple[str, ...]] = {question.id: () for question in data.questions}
    for turn in range(max((len(question.turns) for question in data.questions), default=0)):
        asked = [question for question in data.questions if turn < len(question.turns)]
        rows = [Row(one.id, conversation(one, said[one.id]), ()) for one in asked]
        prompts = [render_prompt(row, data.tokenizer, data.max_prompt) for row in rows]
        ids = [one.id for one in asked]
        answers = sampler.answers(f"turn {turn + 1}", ids, prompts, sampler.config.eval.temperature)
        said |= {row_id: (*said[row_id], text) for row_id, text in zip(ids, answers.texts, strict=True)}
    return tuple(said.values())
