"""What an evaluation scores: rows as token ids, the prompts that are answered, and who may be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from alignctl.config import DemoDataset, EvalConfig, FileDataset
from alignctl.data.bad_rows import BadRows, count_reasons
from alignctl.data.overlap import overlapping
from alignctl.data.preferences import load_file
from alignctl.data.rendering import render_prompt
from alignctl.data.template import stop_token_ids, tokenizer_hash
from alignctl.errors import DataError, SetupError, UsageError
from alignctl.evaluate.judges.questions import Question, read_questions
from alignctl.models.load import Source, context_length, load_tokenizer, vocabulary_size
from alignctl.models.reference import tokens_fingerprint
from alignctl.records import BadRow, Example, GoldScore, PreferenceData, Row
from alignctl.runners.checkpoints import Checkpoint
from alignctl.runners.training_data import drops_bad_rows, load_rows, render_rows

LONGEST = 1 << 20
"""Tokens, for models that name no limit of their own."""


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationData:
    """Checked and rendered rows, the same for every model of the evaluation."""

    tokenizer: PreTrainedTokenizerBase
    rows: tuple[Row, ...]
    examples: tuple[Example, ...]
    asked: tuple[Row, ...]
    """Rows whose prompts every model answers, no prompt twice."""
    prompts: tuple[np.ndarray, ...]
    """Their token ids."""
    questions: tuple[Question, ...]
    """Questions of one or two turns, answered and judged beside the rows."""
    max_prompt: int
    stop: tuple[int, ...]
    gold: Callable[[Row, str], GoldScore] | None
    max_length: int
    bad: tuple[BadRow, ...]
    warnings: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """sha256 over the token ids of all rows."""
        return tokens_fingerprint(self.examples)

    @property
    def card(self) -> tuple[str, ...]:
        """What was read, in lines for a person."""
        lengths = np.array([example.tokens for example in self.examples])
        p50, p95 = np.percentile(lengths, [50, 95]).astype(int)
        truncated = sum(example.truncated for example in self.examples)
        lines = [
            f"data   {len(self.examples)} pairs; tokens a row {p50} (median), {p95} (95 %), "
            f"{lengths.max()} (most); {truncated} truncated; {len(self.asked)} prompts to answer"
        ]
        if self.bad:
            reasons = ", ".join(f"{count} {reason}" for reason, count in count_reasons(self.bad).items())
            lines.append(f"       {len(self.bad)} rows dropped: {reasons}")
        return tuple(lines)


def prepare_evaluation(
    config: EvalConfig, models: Sequence[Checkpoint], sources: Sequence[tuple[str, Source]]
) -> EvaluationData:
    """Read, check and render the rows; `sources` are all models, by name, that score or answer them.

    Raises UsageError when the models' tokenizers differ, DataError and BadRows for the rows, DataError when
    a model was trained on some of their prompts.
    """
    tokenizer = _common_tokenizer(sources)
    data = _rows_to_score(config)
    if not config.eval.allow_overlap:
        _refuse_overlap(data.held_out, models)
    max_length, max_prompt = _lengths(config, [source for _, source in sources])
    rendered = render_rows(
        config.dataset,
        data.held_out,
        tokenizer,
        min(vocabulary_size(source) for _, source in sources),
        max_length=max_length,
        max_prompt=max_prompt,
    )
    if rendered.bad and not drops_bad_rows(config.dataset):
        raise BadRows(rendered.bad)
    if not rendered.examples:
        raise DataError("no row is left to score", "every one of them was dropped")
    kept = {example.id for example in rendered.examples}
    rows = tuple(row for row in data.held_out if row.id in kept)
    asked = tuple({row.prompt: row for row in reversed(rows)}.values())[::-1][: config.eval.samples]
    longest_prompt = min(max_prompt, max(1, max_length - config.eval.max_new_tokens))
    return EvaluationData(
        tokenizer=tokenizer,
        rows=rows,
        examples=rendered.examples,
        asked=asked,
        prompts=tuple(render_prompt(row, tokenizer, longest_prompt) for row in asked),
        questions=() if config.eval.questions is None else read_questions(config.eval.questions),
        max_prompt=longest_prompt,
        stop=stop_token_ids(tokenizer),
        gold=data.gold,
        max_length=max_length,
        bad=(*data.bad, *rendered.bad),
        warnings=data.warnings,
    )


def _common_tokenizer(sources: Sequence[tuple[str, Source]]) -> PreTrainedTokenizerBase:
    tokenizers = {source: load_tokenizer(source) for source in dict.fromkeys(source for _, source in sources)}
    first_name, first = sources[0]
    wanted = tokenizer_hash(tokenizers[first])
    for name, source in sources[1:]:
        if tokenizer_hash(tokenizers[source]) != wanted:
            raise UsageError(
                f"{first_name} and {name} have different tokenizers or chat templates",
                "their log-probabilities are of different texts and cannot be compared",
            )
    return tokenizers[first]


def _rows_to_score(config: EvalConfig) -> PreferenceData:
    """The rows, all of them as `held_out`."""
    dataset = config.dataset
    if isinstance(dataset, DemoDataset):
        data = load_rows(dataset, config.seed, kind="pairs")
        if not data.held_out:
            raise DataError("dataset.eval_pairs=0 leaves nothing to score")
        return data
    if config.eval.rows == "held_out":
        return _held_out_of_training(dataset, config.seed)
    whole = dataset.model_copy(update={"eval_path": None, "eval_size": 0})
    data = load_file(whole, seed=config.seed, kind="pairs")
    return PreferenceData((), data.train, data.bad, data.warnings, data.gold)


def _held_out_of_training(dataset: FileDataset, seed: int) -> PreferenceData:
    data = load_file(dataset, seed=seed, kind="pairs")
    if not data.held_out:
        raise DataError(
            "eval.rows=held_out, but dataset.eval_size=0 holds nothing out",
            "give the training run's dataset.eval_size or dataset.eval_path, and its seed",
        )
    return data


def _refuse_overlap(rows: Sequence[Row], models: Sequence[Checkpoint]) -> None:
    for model in models:
        seen = overlapping(rows, model.origin.trained_on)
        if seen:
            raise DataError(
                f"{model.name} was trained on the prompts of {len(seen)} of {len(rows)} rows: {seen[0].id}",
                "score what it held out       eval.rows=held_out   (the run's seed, dataset.eval_size)",
                "or score them all the same   eval.allow_overlap=true",
            )


def _lengths(config: EvalConfig, sources: Sequence[Source]) -> tuple[int, int]:
    """Longest row and longest prompt in tokens: as configured, else what every model can read."""
    readable = min((context_length(source) or LONGEST for source in sources), default=LONGEST)
    max_length = config.eval.max_length or readable
    if max_length > readable:
        raise SetupError(
            f"eval.max_length={max_length}, but these models read {readable} tokens",
            f"eval.max_length={readable}, or null for that",
        )
    max_prompt = config.eval.max_prompt or max_length - 1
    if max_prompt >= max_length:
        raise UsageError(f"eval.max_prompt={max_prompt} leaves no room for an answer in {max_length} tokens")
    return max_length, max_prompt
