"""report.html of a training run: what changed, how it went, what the model answered, how it was run.

Made from the files of the run directory alone (run.json, config.yaml, metrics.jsonl, samples.jsonl), so the
page can be made again at any time and says nothing that they do not. The sentence at its top claims a change
only where the 95 % intervals of start and kept checkpoint are apart.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from alignctl.evaluate.statistics import Estimate
from alignctl.report import charts
from alignctl.report.charts import Course, Scale
from alignctl.report.closing import REASONS
from alignctl.report.evaluation_figures import Figure, Picture
from alignctl.report.figures import METRICS, duration, figure
from alignctl.report.pages import render
from alignctl.report.sheets import Cell, Line, Sheet

Figures = Mapping[str, Any]
"""An estimate as run.json holds it: value, ci, n, method."""

HELD_OUT, TRAINING = 0, None
"""Series of the curves: held-out values in colour, training values in grey."""
LEADING = ("gold/mean", "reward/mean", "accuracy_logp", "rewards/accuracies", "loss")
"""What the top sentence speaks of: the first two of these that were measured."""
WORDS = {
    "gold/mean": "the gold score of its answers",
    "reward/mean": "the reward of its answers",
    "accuracy_logp": "accuracy_logp",
    "rewards/accuracies": "accuracy against the reference",
    "loss": "held-out loss",
}
CHAPTERS = (
    (
        "The objective",
        "Loss, margins and accuracies. A margin that grows alone is confidence, not skill.",
        ("loss", "rewards/margins", "rewards/accuracies", "accuracy_logp", "loss/pairs"),
    ),
    (
        "Its own answers",
        "Freshly sampled answers to held-out prompts, and those that an online algorithm learns from.",
        (
            "gold/mean",
            "gold/form",
            "gold/content",
            "reward/mean",
            "score/mean",
            "response_length",
            "eos_rate",
        ),
    ),
    (
        "Likelihood and drift",
        "Chosen answers that become less likely are pushed down with the rejected ones.",
        (
            *("likelihood/chosen", "likelihood/rejected", "displacement", "kl/token", "kl/sequence"),
            "perplexity",
        ),
    ),
    (
        "Signs of over-optimisation",
        "Top-10 entropy and mass, on given chosen answers and on its own: a turn counts, not a level.",
        (
            *("sampled/entropy_top10", "entropy/top10", "sampled/mass_top10", "mass/top10"),
            *("sampled/likelihood", "sampled/distinct", "watch/anchor"),
        ),
    ),
    ("The optimiser", "", ("grad_norm", "lr", "ratio/deviation", "clip_fraction", "beta")),
)
SMALLEST_MOVE = 1e-7
SHOWN_STEPS = 4
"""Steps whose answers stand side by side."""


@dataclass(frozen=True, slots=True)
class Told:
    """One prompt and what the model answered to it at some steps."""

    prompt: str
    answers: tuple[tuple[int, str, float | None], ...]
    """(step, answer, gold score where the data has one)."""


@dataclass(frozen=True, slots=True)
class RunStory:
    """What a run directory holds of its run."""

    record: Mapping[str, Any]
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]


def read_story(directory: Path) -> RunStory:
    """A run directory that is complete as far as its run went."""
    return RunStory(
        record=json.loads((directory / "run.json").read_text(encoding="utf-8")),
        config=yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8")),
        metrics=_lines(directory / "metrics.jsonl"),
        samples=_lines(directory / "samples.jsonl"),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run_page(story: RunStory) -> str:
    """The text of report.html."""
    last = max((line["step"] for line in story.metrics), default=0)
    values = {
        "sentence": sentence(story),
        "facts": _facts(story, last),
        "rule": _kept(story, last),
        "warnings": story.record.get("warnings", []),
        "watch": story.record.get("watch", {}).get("words"),
        "sheet": _sheet(story.record.get("headline", {}), _kept_step(story)),
        "figures": _figures(story, charts.scale_over([0.0, float(max(1, last))])),
        "keys": (("held out", charts.key(HELD_OUT)), ("training", charts.key(TRAINING))),
        "samples": _told(story.samples),
        "command": shlex.join(story.record["argv"]),
        "data": _card_entries(story.record.get("data", {})),
        "decided": story.record.get("decided", {}),
        "versions": story.record.get("versions", {}),
        "fingerprints": story.record.get("fingerprints", {}),
        "config": yaml.safe_dump(dict(story.config), sort_keys=False, allow_unicode=True),
    }
    return render("run.html", values)


# --- words ---------------------------------------------------------------------------------------------


def sentence(story: RunStory) -> str:
    """What the run brought, in one sentence, by its leading figures."""
    headline = story.record.get("headline", {})
    moved = [(name, headline[name]) for name in LEADING if name in headline][:2]
    parts = [part for name, places in moved if (part := _change(name, places)) is not None]
    if not parts:
        return "Nothing was measured on held-out data."
    text = ", and ".join(parts)
    return text[0].upper() + text[1:] + "."


def _change(name: str, places: Mapping[str, Figures | None]) -> str | None:
    start, kept = places.get("start"), places.get("best")
    if not (start and kept) or start["value"] is None or kept["value"] is None:
        return None
    values = f"{figure(name, start['value'])} to {figure(name, kept['value'])}"
    if not _apart(start["ci"], kept["ci"]):
        return f"{WORDS[name]} went from {values}, within its noise"
    return f"{WORDS[name]} {'rose' if kept['value'] > start['value'] else 'fell'} from {values}"


def _apart(one: Sequence[float] | None, other: Sequence[float] | None) -> bool:
    return one is not None and other is not None and (one[1] < other[0] or other[1] < one[0])


def _facts(story: RunStory, last: int) -> list[str]:
    config, record = story.config, story.record
    model = config["model"].get("path") or config["model"].get("name")
    dataset = config["dataset"].get("path") or config["dataset"]["kind"]
    seconds = record.get("train_seconds")
    time = [duration(seconds)] if seconds is not None else []
    steps = f"{last} steps of {config['train']['batch_size']}"
    return [f"alignctl train algo={config['algo']['name']}", str(model), str(dataset), steps, *time]


def _kept(story: RunStory, last: int) -> str:
    kept = story.record.get("kept", {"step": last, "why": "last"})
    holds = f"model/ holds step {kept['step']}, {REASONS[kept['why']]}."
    stopped = story.record.get("stopped")
    return holds if stopped is None else f"{holds} The run ended early: {stopped}."


def _kept_step(story: RunStory) -> int | None:
    """The step that was kept for what was measured there; None where it is merely the last."""
    kept = story.record.get("kept", {"why": "last"})
    return None if kept["why"] == "last" else kept["step"]


def _sheet(headline: Mapping[str, Mapping[str, Figures | None]], step: int | None) -> Sheet:
    kept = "kept" if step is None else f"kept (step {step})"
    lines = tuple(
        Line(
            name,
            (
                *(_cell(name, places.get(place)) for place in ("start", "best", "last")),
                Cell(str((places.get("last") or {}).get("n", ""))),
            ),
            METRICS[name].note if name in METRICS else "",
        )
        for name, places in headline.items()
    )
    return Sheet("Start and end", ("", "start", kept, "last", "n"), lines)


def _cell(name: str, found: Figures | None) -> Cell:
    if not found or found["value"] is None:
        return Cell("-")
    estimate = Estimate(found["value"], found["ci"], found["n"], found.get("method", "none"))
    if estimate.ci is None:
        return Cell(figure(name, estimate.value))
    return Cell(
        figure(name, estimate.value), f"[{figure(name, estimate.ci[0])}, {figure(name, estimate.ci[1])}]"
    )


def _card_entries(card: Mapping[str, Any]) -> dict[str, str]:
    """The data card as names and words; what there is none of is left out."""
    entries = {}
    for name, value in card.items():
        parts = value if isinstance(value, dict) else {}
        if isinstance(value, list):
            parts = {str(place): part for place, part in enumerate(value, start=1)}
        nested = any(isinstance(part, dict) for part in parts.values())
        for key, part in parts.items() if nested else [("", value)]:
            if part not in (None, {}, []):
                entries[f"{name} {key}".strip()] = _in_words(part)
    return entries


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_in_words, value)) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# --- curves and answers --------------------------------------------------------------------------------


def _figures(story: RunStory, across: Scale) -> list[Figure]:
    found = []
    for title, words, names in CHAPTERS:
        pictures = [picture for name in names if (picture := _picture(name, story, across)) is not None]
        if pictures:
            found.append(Figure(title, words, pictures=tuple(pictures)))
    return found


def _picture(name: str, story: RunStory, across: Scale) -> Picture | None:
    """One metric over the steps, training beneath, held out above; None where nothing moves."""
    courses = [
        Course("training", _points(name, story, "train"), TRAINING, marked=False),
        Course("held out", _points(name, story, "eval"), HELD_OUT, marked=True),
    ]
    moving = [one for one in courses if _moves([point.value for _, point in one.points])]
    return Picture(Markup(""), name, charts.courses(name, moving, across)) if moving else None


def _moves(values: Sequence[float]) -> bool:
    """Whether there is a course to see; a policy-gradient loss is zero but for rounding."""
    return len(values) > 1 and max(values) - min(values) > SMALLEST_MOVE


def _points(name: str, story: RunStory, split: str) -> list[tuple[float, Estimate]]:
    """(step, value) where finite; held-out values have their interval where run.json has it."""
    intervals = _intervals(name, story) if split == "eval" else {}
    return [
        (line["step"], Estimate(line[name], intervals.get(line["step"]), 1, "none"))
        for line in story.metrics
        if line["split"] == split and line.get(name) is not None
    ]


def _intervals(name: str, story: RunStory) -> dict[int, tuple[float, float]]:
    places = story.record.get("headline", {}).get(name, {})
    steps = {"start": 0, "last": max(line["step"] for line in story.metrics)}
    kept = _kept_step(story)
    if kept is not None:
        steps["best"] = kept
    return {
        step: (ci[0], ci[1])
        for place, step in steps.items()
        if (found := places.get(place)) and (ci := found["ci"]) is not None
    }


def _told(samples: Sequence[Mapping[str, Any]]) -> list[Told]:
    """Prompts in order, each with its answers at a few steps from the first to the last."""
    steps = sorted({sample["step"] for sample in samples})
    places = {round(place * (len(steps) - 1) / (SHOWN_STEPS - 1)) for place in range(SHOWN_STEPS)}
    shown = {steps[place] for place in places} if steps else set()
    prompts = dict.fromkeys(sample["prompt"] for sample in samples)
    return [
        Told(
            prompt,
            tuple(
                (sample["step"], sample["answer"], sample.get("gold"))
                for sample in samples
                if sample["prompt"] == prompt and sample["step"] in shown
            ),
        )
        for prompt in prompts
    ]
