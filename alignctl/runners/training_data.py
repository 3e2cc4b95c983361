"""The rows of a run as token ids, with everything that sampling answers needs; no weight is touched.

Rows are sequences that are read when they are asked for: a run holds a hundred bytes a row, however long
they are.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from alignctl.config import (
    AlgoConfig,
    DemoDataset,
    HypoConfig,
    PpoConfig,
    RewardModelConfig,
    SftConfig,
    TrainConfig,
)
from alignctl.data.card import UNITS, DataCard, SourceCard, data_card
from alignctl.data.digests import first_places, prompt_keys
from alignctl.data.preferences import (
    Gold,
    Preferences,
    load_preferences,
    load_prompts,
    open_workshop,
    without_held_out,
)
from alignctl.data.schemas import RowKind
from alignctl.data.table import Pool
from alignctl.data.tabulation import Report, Workshop
from alignctl.data.template import stop_token_ids, template_hash
from alignctl.errors import DataError
from alignctl.models.load import Source, load_tokenizer, vocabulary_size
from alignctl.models.machine import cache_root
from alignctl.models.packing import common_beginning
from alignctl.models.reference import tokens_fingerprint
from alignctl.records import BadRow, Example, Row
from alignctl.runners.checkpoints import locate_model
from alignctl.train.run_directory import JsonLines, RunDirectory


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """Prompts to answer, as text and as token ids."""

    rows: Sequence[Row] = ()
    ids: Sequence[np.ndarray] = ()
    """int32 [P] each."""
    examples: Sequence[Example] = ()
    """The ids as rows without answers."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """Checked and rendered data."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    kind: RowKind
    train: Sequence[Example]
    """Rows with given answers; none for algorithms that learn from their own alone."""
    held_out: Sequence[Example]
    unlabelled: Prompts
    """What an online algorithm answers while it trains; the prompts of `train`, in its order, unless
    dataset.prompts names others."""
    asked: Prompts
    """Held-out prompts whose answers are read and scored at every evaluation, no prompt twice."""
    watched: Prompts
    """Those that are answered for the watch; of the two, the shorter is the beginning of the longer."""
    lengths: np.ndarray
    """int32 [rows, 1 + K]: tokens of the prompt and of each given answer of `rows`."""
    stem: int
    """Tokens that the prompts of all `rows` begin with; 0 where they are not worth sharing."""
    stop: tuple[int, ...]
    gold: Gold | None
    trained_on: tuple[str, ...]
    """Keys of the training prompts, so that no evaluation mistakes them for unseen ones."""
    bad: tuple[BadRow, ...]
    warnings: tuple[str, ...]
    card: DataCard
    """What was read."""

    @property
    def unit(self) -> str:
        """What a step counts."""
        return UNITS[self.kind]

    @property
    def rows(self) -> Sequence[Example]:
        """What an epoch goes through: rows, or prompts as rows without answers."""
        return self.train if self.kind != "prompts" else self.unlabelled.examples

    @property
    def fingerprints(self) -> dict[str, str]:
        """What a checkpoint must find unchanged."""
        labels = array("d")
        parts = (self.train, self.held_out, self.unlabelled.examples)
        tokens = tokens_fingerprint(_noting(labels, (row for part in parts for row in part)))
        data = hashlib.sha256(tokens.encode() + labels.tobytes()).hexdigest()
        return {"data": data, "template": template_hash(self.tokenizer)}

    def decode(self, ids: np.ndarray) -> str:
        """An answer as a reader sees it."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _noting(labels: array[float], examples: Iterable[Example]) -> Iterator[Example]:
    """The examples as they come; their labels are put behind one another."""
    for example in examples:
        labels.extend((example.p_chosen, example.margin, example.weight))
        yield example


def row_kind(algo: AlgoConfig) -> RowKind:
    """What an algorithm learns from."""
    match algo:
        case SftConfig():
            return "answers"
        case PpoConfig():
            return "prompts"
        case _:
            return "pairs"


def unseen(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def prepare_data(config: TrainConfig, say: Callable[[str], None], report: Report = unseen) -> TrainingData:
    """Read, check, split and render every row; no model weight is touched.

    Raises DataError (BadRows where single rows are at fault), SetupError for what is missing.
    """
    source = locate_model(config.model, say)
    tokenizer = load_tokenizer(source)
    kind = row_kind(config.algo)
    workshop = open_workshop(
        config.dataset,
        tokenizer,
        vocabulary=vocabulary_size(source),
        max_length=config.train.max_length,
        max_prompt=config.train.max_prompt,
        cache=cache_root(),
        report=report,
    )
    data = load_preferences(config.dataset, workshop, seed=config.seed, kind=kind)
    chosen = _choose(config, data, workshop)
    if chosen.rows < config.train.batch_size:
        raise DataError(
            f"{chosen.rows} {UNITS[kind]} to train on are fewer than "
            f"train.batch_size={config.train.batch_size}",
            f"give more rows, or train.batch_size={max(1, chosen.rows)}",
        )
    pool, prompts = data.pool, chosen.prompts
    return TrainingData(
        source=source,
        tokenizer=tokenizer,
        kind=kind,
        train=pool.examples(chosen.train),
        held_out=pool.examples(chosen.held_out),
        unlabelled=_prompts(prompts.pool, prompts.train) if chosen.online else Prompts(),
        asked=_few_prompts(pool, chosen.asked),
        watched=_few_prompts(pool, chosen.watched),
        lengths=chosen.lengths,
        stem=common_beginning(chosen.prompt_ids),
        stop=stop_token_ids(tokenizer),
        gold=_gold(data, prompts),
        trained_on=prompt_keys(chosen.trained_on),
        bad=chosen.bad,
        warnings=(*chosen.warnings, *_unread_margins(config.algo, data)),
        card=_card(data, chosen),
    )


def _unread_margins(algo: AlgoConfig, data: Preferences) -> tuple[str, ...]:
    """One sentence where rows have margins that the algorithm makes nothing of."""
    if isinstance(algo, RewardModelConfig) or not data.pool.facts.margin.any():
        return ()
    return (f"The column of margins is not read by algo={algo.name}; algo=reward reads it.",)


# --- which rows ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Which places of the data set's pool, and which prompts, a run uses."""

    kind: RowKind
    train: np.ndarray
    """Rows with given answers, none where only prompts are wanted."""
    held_out: np.ndarray
    """The same of those held out, no more than are evaluated on."""
    asked: np.ndarray
    watched: np.ndarray
    online: bool
    """The model answers prompts while it trains."""
    prompts: Preferences
    """Those prompts, in `train`, where it does."""
    own_prompts: bool
    """They came beside the rows."""
    data: Preferences

    @property
    def rows(self) -> int:
        """What an epoch goes through."""
        return len(self.prompts.train if self.kind == "prompts" else self.train)

    @property
    def lengths(self) -> np.ndarray:
        """int32 [rows, 1 + K]: tokens of prompt and given answers."""
        found = self.prompts if self.kind == "prompts" else self.data
        facts = found.pool.facts.at(found.train)
        return np.concatenate([facts.prompt_tokens[:, None], facts.answer_tokens], axis=1)

    @property
    def prompt_ids(self) -> Sequence[np.ndarray]:
        """The prompts of what an epoch goes through, in tokens."""
        if self.kind == "prompts":
            return self.prompts.pool.prompt_ids(self.prompts.train)
        return self.data.pool.prompt_ids(self.train)

    @property
    def trained_on(self) -> np.ndarray:
        """Digests of all prompts that the run sees."""
        own = self.data.pool.facts.prompt[self.data.train]
        if not self.own_prompts:
            return own
        return np.concatenate([own, self.prompts.pool.facts.prompt[self.prompts.train]])

    @property
    def bad(self) -> tuple[BadRow, ...]:
        """Rows that were dropped, those of the prompts included."""
        return (*self.data.bad, *(self.prompts.bad if self.own_prompts else ()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about rows and prompts."""
        return (*self.data.warnings, *(self.prompts.warnings if self.own_prompts else ()))


def _choose(config: TrainConfig, data: Preferences, workshop: Workshop) -> Chosen:
    kind, facts = row_kind(config.algo), data.pool.facts
    online = isinstance(config.algo, PpoConfig | HypoConfig)
    own_prompts = online and config.dataset.prompts is not None
    prompts = data
    if own_prompts:
        found = load_prompts(config.dataset, workshop)
        prompts = without_held_out(found, facts.prompt[data.held_out])
    held_out = data.held_out[: config.eval.pairs]
    wanted = config.eval.samples
    if isinstance(config.dataset, DemoDataset):
        wanted = max(wanted, config.dataset.gold_samples)
    nothing, distinct = np.arange(0), held_out[first_places(facts.prompt[held_out])]
    return Chosen(
        kind=kind,
        train=nothing if kind == "prompts" else data.train,
        held_out=nothing if kind == "prompts" else held_out,
        asked=distinct[:wanted],
        # A reward model answers nothing.
        watched=nothing if isinstance(config.algo, RewardModelConfig) else distinct[: config.watch.samples],
        online=online,
        prompts=prompts,
        own_prompts=own_prompts,
        data=data,
    )


def _prompts(pool: Pool, places: np.ndarray) -> Prompts:
    return Prompts(pool.rows(places), pool.prompt_ids(places), pool.bare_examples(places))


def _few_prompts(pool: Pool, places: np.ndarray) -> Prompts:
    """Held in memory, as they are answered at every evaluation."""
    return Prompts(tuple(pool.rows(places)), tuple(pool.prompt_ids(places)))


def _gold(data: Preferences, prompts: Preferences) -> Gold | None:
    """One score for the data set's rows and for prompts that came beside them."""
    own, fresh = data.gold, prompts.gold
    if own is None or fresh is None or prompts is data:
        return own
    beside = {prompts.pool.id_at(place) for place in prompts.train.tolist()}
    return lambda row, answer: (fresh if row.id in beside else own)(row, answer)


# --- the card ------------------------------------------------------------------------------------------


def _card(data: Preferences, chosen: Chosen) -> DataCard:
    prompts = chosen.prompts
    if chosen.kind == "prompts":
        train, epoch = prompts.pool.facts.at(prompts.train), len(prompts.train)
        held_out = data.pool.facts.at(data.held_out)
    else:
        train, epoch = data.pool.facts.at(np.unique(data.train)), len(data.train)
        held_out = data.pool.facts.at(chosen.held_out)
    answered = prompts.pool.facts.prompt_tokens[prompts.train] if chosen.online else ()
    return data_card(
        train,
        held_out,
        kind=chosen.kind,
        sources=[*source_cards(data), *(source_cards(prompts) if chosen.own_prompts else ())],
        bad=chosen.bad,
        left_out=data.left_out,
        epoch_rows=epoch,
        to_answer=answered,
    )


def source_cards(data: Preferences) -> list[SourceCard]:
    """What each file, directory or hub data set was taken for; none for rows that were made here."""
    return [
        SourceCard(
            path=table.path,
            format=table.format.title,
            columns=tuple(name for name in table.columns if name not in table.unread_columns),
            unread=table.unread_columns,
            rows=int(table.fit.sum()),
        )
        for table in data.pool.tables
        if table.columns
    ]


def list_bad_rows(directory: RunDirectory, rows: Sequence[BadRow]) -> None:
    """bad_rows.jsonl: what is wrong with any row, dropped or not."""
    lines = JsonLines(directory.path / "bad_rows.jsonl")
    lines.truncate(0)
    for row in rows:
        lines.append(asdict(row))
