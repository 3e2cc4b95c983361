"""The README.md of a run's model: gathers what the card says.

What differs between an undisturbed run and one that was stopped and resumed stays out of it: times, the
machine's own troubles, where things lie.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignctl.config import (
    DatasetConfig,
    FileDataset,
    LoraAdapter,
    MixtureDataset,
    RewardModelConfig,
    TrainConfig,
    last_part,
    run_directory,
)
from alignctl.report.closing import Headline
from alignctl.report.model_card import Identity, Rows, Training, training_card
from alignctl.report.model_use import Kind
from alignctl.runners.job import Job
from alignctl.runners.lineage import hub_base, is_hub_id
from alignctl.train.progress import Kept, Progress


def card_of_run(job: Job, progress: Progress, headline: Headline, kept: Kept) -> str:
    """The card of the kept weights."""
    config, data, record = job.config, job.data, job.directory.record
    troubles = record.get("troubles", ())
    identity = Identity(
        name=last_part(run_directory(config)),
        kind=kind_of(config),
        chat=bool(data.tokenizer.chat_template),
        base=hub_base(config.model),
        argv=record["argv"],
        versions=record["versions"],
        warnings=[warning for warning in record["warnings"] if warning not in troubles],
    )
    rows = Rows(
        unit=data.unit,
        train=len(data.rows),
        held_out=len(data.held_out),
        dropped=len(data.bad),
        datasets=hub_datasets(config.dataset),
    )
    training = Training(
        kept_step=kept.step,
        why=kept.why,
        last_step=progress.step,
        stopped=progress.stopped,
        headline=headline,
        fingerprints=job.fingerprints,
        dtype=record["decided"]["dtype"],
    )
    return training_card(identity, config, rows, training)


def kind_of(config: TrainConfig) -> Kind:
    """What the run's model/ is; a reward model's adapter is merged."""
    if isinstance(config.algo, RewardModelConfig):
        return "classifier"
    return "adapter" if isinstance(config.adapter, LoraAdapter) else "causal"


def hub_datasets(dataset: DatasetConfig) -> Sequence[str]:
    """The hub ids among the sources of the rows, each once."""
    parts = dataset.parts if isinstance(dataset, MixtureDataset) else (dataset,)
    # OWNER/NAME:CONFIG names one of several configurations.
    paths = [part.path.partition(":")[0] for part in parts if isinstance(part, FileDataset)]
    return tuple(dict.fromkeys(path for path in paths if is_hub_id(path)))
