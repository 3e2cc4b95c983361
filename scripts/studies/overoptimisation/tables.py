"""The study in Markdown and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from common import Dot, markdown, scatter
from grid import Run
from replay import Outcome, summary, truth

from alignctl.train.watch.course import Record

DEFAULT = "displacement above 0.4, KL above 0.5"
"""What alignctl does unless told otherwise."""


def tables(found: Mapping[str, Sequence[Outcome]]) -> str:
    """Every run, then every rule on the runs that calibrate and on the others."""
    rows = [
        [
            one.run,
            f"{one.gold_best:.3f} ({one.peak})",
            "no" if one.fired is None else f"{one.fired}",
            f"{one.gold_kept:.3f} ({one.kept})",
            f"{one.gold_end:.3f}",
            "yes" if one.over_optimised else "no",
        ]
        for one in found[DEFAULT]
    ]
    parts = [markdown(["run", "best gold (step)", "alarm", "kept (step)", "end", "over-optimised"], rows)]
    for part in ("calibration", "others"):
        lines = [
            [name, *_figures(summary(of_rule)[part])]
            for name, of_rule in found.items()
            if part in summary(of_rule)
        ]
        if lines:
            parts.append(f"{part}\n\n" + markdown(HEADER, lines))
    return "\n\n".join(parts)


def adapted(records: Mapping[Run, Sequence[Record]]) -> str:
    """Runs with watch.action=adapt beside their twins without; empty where there is none."""
    rows = []
    for run, of_run in records.items():
        twin = replace(run, adapt=False)
        if run.adapt and twin in records:
            with_anchor, without = truth(of_run), truth(records[twin])
            figures = (without.values[without.best], without.values[-1], with_anchor.values[-1])
            rows.append([twin.name, *(f"{value:.3f}" for value in figures)])
    header = ["run", "best gold score", "at the end", "at the end with watch.action=adapt"]
    return markdown(header, rows) if rows else ""


HEADER = (
    *("rule", "kept within 3 %", "fired near the peak", "missed", "false alarms", "gold kept (best, end)"),
    "of all runs",
)


def _figures(of_rule: Mapping[str, Any]) -> list[str]:
    counts = [_count(of_rule[name]) for name in ("close", "near_peak", "missed", "false_alarms")]
    return [*counts, *(_golds(of_rule, runs) for runs in ("", "_of_all"))]


def _golds(of_rule: Mapping[str, Any], runs: str) -> str:
    kept, best, end = (of_rule[f"gold_{which}{runs}"] for which in ("kept", "best", "end"))
    return "" if kept is None else f"{kept:.3f} ({best:.3f}, {end:.3f})"


def _count(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    low, high = found["interval"]
    return f"{found['count']} of {found['of']} [{100 * low:.0f} %, {100 * high:.0f} %]"


GOLD = "gold score of its own answers"
STEP = "step"
DISPLACED = "chosen answers below the reference, share"
CHARTS = {
    "hump.svg": ("log-likelihood of chosen answers per token", "likelihood/chosen", GOLD),
    "displacement.svg": (DISPLACED, "displacement", GOLD),
    "entropy.svg": ("top-10 entropy of own answers, bits", "sampled/entropy_top10", GOLD),
    "steps.svg": (STEP, "displacement", DISPLACED),
}
"""File name -> words across, the metric, words up."""


def charts(records: Mapping[Run, Sequence[Record]]) -> dict[str, str]:
    """The gold score of every evaluation against what changes in training, by file name."""
    plain = {run: of_run for run, of_run in records.items() if not run.adapt}
    algos = list(dict.fromkeys(run.arm.algo for run in plain))
    pictures = {}
    for file, (across, metric, up) in CHARTS.items():
        dots = []
        for run, of_run in plain.items():
            gold, of_step = truth(of_run), {record.step: record.metrics for record in of_run}
            for step, score in zip(gold.steps, gold.values, strict=True):
                value = of_step[step][metric]
                x, y = (step, value) if across == STEP else (value, score)
                label = f"{run.name}, step {step}"
                dots.append(Dot(algos.index(run.arm.algo), x, y, None, label, run.name))
        if dots:
            title = (
                "Likelihood displacement over the steps" if across == STEP else f"Gold score against {across}"
            )
            pictures[file] = scatter(title, across, up, algos, dots)
    return pictures
