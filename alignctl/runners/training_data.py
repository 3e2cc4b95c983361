"""The rows of a run as token ids, with everything that sampling answers needs; no weight is touched."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from alignctl.config import (
    AlgoConfig,
    DatasetConfig,
    DemoDataset,
    HypoConfig,
    PpoConfig,
    SftConfig,
    TrainConfig,
)
from alignctl.data.bad_rows import BadRows, count_reasons
from alignctl.data.demo import load_demo
from alignctl.data.overlap import prompt_keys
from alignctl.data.preferences import RowKind, load_file, load_prompts, without_held_out
from alignctl.data.rendering import Rendered, render, render_prompts
from alignctl.data.template import stop_token_ids, template_hash
from alignctl.errors import DataError
from alignctl.models.load import Source, load_tokenizer, vocabulary_size
from alignctl.models.reference import tokens_fingerprint
from alignctl.records import BadRow, Example, GoldScore, PreferenceData, Row
from alignctl.runners.checkpoints import locate_model
from alignctl.train.run_directory import JsonLines, RunDirectory

Gold = Callable[[Row, str], GoldScore]
UNITS: dict[RowKind, str] = {"pairs": "pairs", "answers": "rows", "prompts": "prompts"}
"""What a row is called where rows are counted."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """Prompts to answer, as text and as token ids."""

    rows: tuple[Row, ...] = ()
    ids: tuple[np.ndarray, ...] = ()
    """int32 [P] each."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """Checked and rendered data."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    kind: RowKind
    train: tuple[Example, ...]
    """Rows with given answers; none for algorithms that learn from their own alone."""
    held_out: tuple[Example, ...]
    unlabelled: Prompts
    """What an online algorithm answers while it trains; the prompts of `train`, in its order, unless
    dataset.prompts names others."""
    asked: Prompts
    """Held-out prompts that the model answers at every evaluation, no prompt twice."""
    stop: tuple[int, ...]
    gold: Gold | None
    trained_on: tuple[str, ...]
    """Keys of the training prompts, so that no evaluation mistakes them for unseen ones."""
    bad: tuple[BadRow, ...]
    warnings: tuple[str, ...]
    card: tuple[str, ...]
    """What was read, in lines for a person."""

    @property
    def unit(self) -> str:
        """What a step counts."""
        return UNITS[self.kind]

    @property
    def rows(self) -> tuple[Example, ...]:
        """What an epoch goes through: rows, or prompts as rows without answers."""
        return self.train if self.kind != "prompts" else _as_examples(self.unlabelled)

    @property
    def fingerprints(self) -> dict[str, str]:
        """What a checkpoint must find unchanged."""
        examples = (*self.train, *self.held_out, *_as_examples(self.unlabelled))
        labels = np.array([(e.p_chosen, e.margin, e.weight) for e in examples]).tobytes()
        data = hashlib.sha256(tokens_fingerprint(examples).encode() + labels).hexdigest()
        return {"data": data, "template": template_hash(self.tokenizer)}

    def decode(self, ids: np.ndarray) -> str:
        """An answer as a reader sees it."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _as_examples(prompts: Prompts) -> tuple[Example, ...]:
    return tuple(Example(row.id, ids, ()) for row, ids in zip(prompts.rows, prompts.ids, strict=True))


def row_kind(algo: AlgoConfig) -> RowKind:
    """What an algorithm learns from."""
    match algo:
        case SftConfig():
            return "answers"
        case PpoConfig():
            return "prompts"
        case _:
            return "pairs"


def prepare_data(config: TrainConfig, say: Callable[[str], None]) -> TrainingData:
    """Read, check, split and render every row; no model weight is touched.

    Raises DataError (BadRows where single rows are at fault), SetupError for what is missing.
    """
    source = locate_model(config.model, say)
    tokenizer = load_tokenizer(source)
    kind = row_kind(config.algo)
    data = load_rows(config.dataset, config.seed, kind=kind)
    vocabulary = vocabulary_size(source)
    held_out_rows = data.held_out[: config.eval.pairs]
    train, held_out = (
        _render_answers(config, rows, tokenizer, vocabulary, kind) for rows in (data.train, held_out_rows)
    )
    online = isinstance(config.algo, PpoConfig | HypoConfig)
    to_answer, warnings = _to_answer(config, data, train) if online else (PreferenceData((), ()), ())
    unlabelled, asked, bad_prompts = _render_both(
        config, to_answer.train, held_out_rows, tokenizer, vocabulary
    )
    bad = (*train.bad, *held_out.bad, *to_answer.bad, *bad_prompts)
    if bad and not drops_bad_rows(config.dataset):
        raise BadRows(bad)
    found = TrainingData(
        source=source,
        tokenizer=tokenizer,
        kind=kind,
        train=train.examples,
        held_out=held_out.examples,
        unlabelled=unlabelled,
        asked=asked,
        stop=stop_token_ids(tokenizer),
        gold=_gold(data, to_answer),
        trained_on=prompt_keys((*data.train, *unlabelled.rows)),
        bad=(*data.bad, *bad),
        warnings=(*data.warnings, *warnings),
        card=_card(train, held_out, unlabelled, UNITS[kind], (*data.bad, *bad)),
    )
    if len(found.rows) < config.train.batch_size:
        raise DataError(
            f"{len(found.rows)} {found.unit} to train on are fewer than "
            f"train.batch_size={config.train.batch_size}",
            f"give more rows, or train.batch_size={max(1, len(found.rows))}",
        )
    return found


def load_rows(config: DatasetConfig, seed: int, *, kind: RowKind) -> PreferenceData:
    """Rows of a data set, checked and split; raises DataError."""
    if isinstance(config, DemoDataset):
        return load_demo(config, kind=kind)
    return load_file(config, seed=seed, kind=kind)


def drops_bad_rows(dataset: DatasetConfig) -> bool:
    """Whether rows that cannot be used are left out; the demo has none."""
    return not isinstance(dataset, DemoDataset) and dataset.on_bad == "drop"


def _allows_control(dataset: DatasetConfig) -> bool:
    return not isinstance(dataset, DemoDataset) and dataset.allow_control_tokens


def render_rows(
    dataset: DatasetConfig,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int,
    *,
    max_length: int,
    max_prompt: int,
) -> Rendered:
    """Rows as token ids, under the data set's own rules."""
    return render(
        rows,
        tokenizer,
        max_length=max_length,
        max_prompt=max_prompt,
        min_response_tokens=dataset.min_response_tokens,
        vocab_size=vocabulary,
        allow_control_tokens=_allows_control(dataset),
    )


def list_bad_rows(directory: RunDirectory, rows: Sequence[BadRow]) -> None:
    """bad_rows.jsonl: what is wrong with any row, dropped or not."""
    lines = JsonLines(directory.path / "bad_rows.jsonl")
    lines.truncate(0)
    for row in rows:
        lines.append(asdict(row))


def _render_answers(
    config: TrainConfig,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int,
    kind: RowKind,
) -> Rendered:
    if kind == "prompts":
        return Rendered((), 0, 0, ())
    limits = {"max_length": config.train.max_length, "max_prompt": config.train.max_prompt}
    return render_rows(config.dataset, rows, tokenizer, vocabulary, **limits)


def _to_answer(
    config: TrainConfig, data: PreferenceData, train: Rendered
) -> tuple[PreferenceData, tuple[str, ...]]:
    """The prompts of an online algorithm: those that `dataset.prompts` names, else the training rows' own."""
    if config.dataset.prompts is not None:
        return without_held_out(load_prompts(config.dataset), data.held_out)
    if not train.examples:
        return replace(data, bad=(), warnings=()), ()
    kept = {example.id for example in train.examples}
    return PreferenceData(tuple(row for row in data.train if row.id in kept), (), gold=data.gold), ()


def _render_both(
    config: TrainConfig,
    unlabelled: Sequence[Row],
    held_out: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int,
) -> tuple[Prompts, Prompts, tuple[BadRow, ...]]:
    """The prompts answered while training and at evaluations."""
    wanted = config.eval.samples
    if isinstance(config.dataset, DemoDataset):
        wanted = max(wanted, config.dataset.gold_samples)
    distinct = tuple({row.prompt: row for row in reversed(held_out)}.values())[::-1]
    prompts, bad = [], []
    for rows in (unlabelled, distinct[:wanted]):
        rendered = render_prompts(
            rows,
            tokenizer,
            max_prompt=config.train.max_prompt,
            vocab_size=vocabulary,
            allow_control_tokens=_allows_control(config.dataset),
        )
        unfit = {row.id for row in rendered.bad}
        prompts.append(Prompts(tuple(row for row in rows if row.id not in unfit), rendered.ids))
        bad += rendered.bad
    return prompts[0], prompts[1], tuple(bad)


def _gold(data: PreferenceData, to_answer: PreferenceData) -> Gold | None:
    """One score for the data set's rows and for prompts that came beside them."""
    own, fresh = data.gold, to_answer.gold
    if own is None or fresh is None:
        return own
    beside = {row.id for row in to_answer.train}
    return lambda row, answer: (fresh if row.id in beside else own)(row, answer)


def _card(
    train: Rendered, held_out: Rendered, unlabelled: Prompts, unit: str, bad: Sequence[BadRow]
) -> tuple[str, ...]:
    lines = []
    if train.examples:
        lengths = np.array([example.tokens for example in (*train.examples, *held_out.examples)])
        p50, p95 = np.percentile(lengths, [50, 95]).astype(int)
        truncated = train.truncated + held_out.truncated
        lines.append(
            f"{len(train.examples)} {unit} to train on, {len(held_out.examples)} held out; "
            f"tokens a row {p50} (median), {p95} (95 %), {lengths.max()} (most); {truncated} truncated"
        )
    if unlabelled.ids:
        lengths = np.array([len(ids) for ids in unlabelled.ids])
        p50, p95 = np.percentile(lengths, [50, 95]).astype(int)
        lines.append(
            f"{len(lengths)} prompts to answer; tokens {p50} (median), {p95} (95 %), {lengths.max()} (most)"
        )
    if bad:
        reasons = ", ".join(f"{count} {reason}" for reason, count in count_reasons(bad).items())
        lines.append(f"{len(bad)} rows dropped: {reasons}")
    if merges := train.boundary_merges + held_out.boundary_merges:
        lines.append(f"{merges} rows where a token would have joined prompt and answer: encoded apart")
    return tuple(("data   " if place == 0 else "       ") + line for place, line in enumerate(lines))
