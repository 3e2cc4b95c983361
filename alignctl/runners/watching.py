"""The watch in the training loop: every evaluation is judged, said, and acted on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alignctl.config import TrainConfig
from alignctl.report.watch_words import alarm_line, over_line, stop_reason, watch_words
from alignctl.runners.job import Job
from alignctl.train.progress import Figures, Progress
from alignctl.train.watch.anchor import next_anchor
from alignctl.train.watch.course import read_records
from alignctl.train.watch.rule import judged_on, rule_of


def look(job: Job, progress: Progress, figures: Figures, loss: float | None) -> Progress:
    """Judge the evaluation that metrics.jsonl ends with, say what began or ended, act as configured."""
    config = job.config
    if config.watch.action == "off":
        return progress.evaluated(figures, loss)
    rule = rule_of(config.algo, config.watch)
    records = read_records(job.directory.metrics.path)
    verdict = judged_on(progress.verdict, records, rule, config.watch)
    if verdict.alarm and verdict.since == progress.step:
        job.warn(alarm_line(verdict, config))
    if progress.verdict.alarm and not verdict.alarm:
        job.panel.note(over_line(verdict, config))
    progress = _acted(job, progress.evaluated(figures, loss, verdict, decides=config.watch.decides))
    job.directory.update(watch=watch_record(progress, config))
    return progress


def _acted(job: Job, progress: Progress) -> Progress:
    settings, alarm = job.config.watch, progress.verdict.alarm
    if settings.action == "adapt":
        weight = next_anchor(progress.anchor, alarm=alarm, limit=settings.anchor)
        if weight != progress.anchor:
            held = f"{weight:g} times the loss's own pull"
            job.panel.note(f"hold on chosen answers: {held} (watch.action=adapt)")
        return replace(progress, anchor=weight)
    # At the last step there is nothing left to stop.
    if settings.action == "stop" and alarm and progress.stopped is None and progress.step < job.steps:
        reason = stop_reason(progress.verdict)
        job.panel.note(f"stopped after step {progress.step}: {reason}")
        return replace(progress, stopped=reason)
    return progress


def watch_record(progress: Progress, config: TrainConfig) -> dict[str, Any]:
    """`watch` of run.json: the verdict so far, and the same in words."""
    words = watch_words(progress.verdict, config)
    return {
        "action": config.watch.action,
        **progress.verdict.as_json(),
        **({"anchor": progress.anchor} if config.watch.action == "adapt" else {}),
        "words": words.as_json(),
    }
