"""The benchmark's outcome as a table, a JSON file and a chart, from the records of its runs alone.

Decisions. A figure is the median round's; its interval, in brackets in the table and as a whisker in the
chart, is the range of the rounds. A ratio is the other side's seconds over alignctl's for the same work, so
above one means that alignctl is faster: the median of the rounds, each against alignctl's on the same
batches, since those of one round are longer than those of another. One epoch has the reference included on
every side. Useful utilisation divides the FLOPs that had to be done (peak.py) by time and measured peak: of
one epoch, so with the reference's forward above and its seconds below the line. Bars begin at zero and share
one axis over all cases.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from markupsafe import Markup
from measurements import SIDES, Case, Parity, Result, Run
from peak import Work, Yardstick, reference_flops, useful_flops
from workloads import Cost, added_cost, cost

from alignctl.report.charts import Scale, axis, box, grid, line, scale_over, words

OURS = "alignctl"
NAMES = {
    OURS: OURS,
    "alignctl-compiled": "alignctl, compiled",
    "trl": "TRL, defaults",
    "trl-tuned": "TRL, tuned",
    "trl-grouped": "TRL, tuned, length-grouped",
    "plain": "plain loop",
}
WORKLOADS: dict[str, tuple[int, Callable[[Cost], float]]] = {
    "one epoch": (1, lambda one: one.one_epoch),
    "three epochs": (3, lambda one: one.three_epochs),
    "sweep of three betas, warm cache": (3, lambda one: one.warm_sweep),
}
"""How many times each pair is trained on, and the seconds per pair of all of them."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median round, and the lowest and highest round."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Cell:
    """One side in one case."""

    side: str
    case: Case
    rounds: int
    pairs_per_second: dict[str, Spread]
    """By workload; pairs trained on, so three per pair in three epochs."""
    tokens_per_second: Spread
    """Unique real tokens, in one epoch."""
    peak_memory: Spread
    """GB; the accelerator's where there is one."""
    first_step: Spread
    """Seconds from the command to the end of the first step."""
    utilisation: Spread
    """Of the measured peak: one epoch."""
    step_utilisation: Spread
    """The same without the pass before training, neither its FLOPs nor its seconds."""
    ratio: dict[str, Spread]
    """By workload: this side's seconds over alignctl's; empty where alignctl was not run."""
    memory_ratio: float | None
    """alignctl's peak over this side's."""


# --- figures -------------------------------------------------------------------------------------------


def cells(result: Result, yardstick: Yardstick) -> list[Cell]:
    """Every side of every case that was measured."""
    return [
        cell(result.of(side, case), result.of(OURS, case), yardstick)
        for case in result.cases()
        for side in SIDES
        if result.of(side, case)
    ]


def cell(runs: Sequence[Run], ours: Sequence[Run], yardstick: Yardstick) -> Cell:
    """The figures of one side's rounds beside alignctl's."""
    memory = spread([memory_of(run) for run in runs])
    our_memory = statistics.median(memory_of(run) for run in ours) if ours else None
    return Cell(
        side=runs[0].side,
        case=runs[0].case,
        rounds=len(runs),
        pairs_per_second={
            name: of_cost(runs, lambda one, times=times, seconds=seconds: times / seconds(one))
            for name, (times, seconds) in WORKLOADS.items()
        },
        tokens_per_second=over_rounds(runs, tokens_per_second),
        peak_memory=memory,
        first_step=spread([run.start.total for run in runs]),
        utilisation=over_rounds(runs, lambda part: utilisation(part, yardstick)),
        step_utilisation=over_rounds(runs, lambda part: step_utilisation(part, yardstick)),
        ratio=ratios(runs, ours) if ours else {},
        memory_ratio=our_memory / memory.value if our_memory is not None else None,
    )


def spread(values: Sequence[float]) -> Spread:
    """Median and range."""
    return Spread(statistics.median(values), min(values), max(values))


def of_cost(runs: Sequence[Run], figure: Callable[[Cost], float]) -> Spread:
    """From the median round's cost, and the range of the rounds."""
    single = [figure(cost([run])) for run in runs]
    return Spread(figure(cost(runs)), min(single), max(single))


def over_rounds(runs: Sequence[Run], figure: Callable[[Sequence[Run]], float]) -> Spread:
    """Median and range of the rounds; trl-grouped's, whose lengths differ, count as one long round."""
    single = spread([figure([run]) for run in runs])
    return replace(single, value=figure(runs)) if runs[0].side == "trl-grouped" else single


def ratios(runs: Sequence[Run], ours: Sequence[Run]) -> dict[str, Spread]:
    """How many times as long as alignctl a side takes, by workload; empty where no round has both.

    Each round against alignctl's on the same batches. trl-grouped has batches of its own, longer in one round
    and shorter in the next, so all its rounds are set against all of alignctl's.
    """
    if runs[0].side == "trl-grouped":
        compared = [(added_cost(runs), added_cost(ours))]
    else:
        of_round = {run.round: run for run in ours}
        compared = [(cost([run]), cost([of_round[run.round]])) for run in runs if run.round in of_round]
    if not compared:
        return {}
    return {
        name: spread([seconds(theirs) / seconds(own) for theirs, own in compared])
        for name, (_, seconds) in WORKLOADS.items()
    }


def memory_of(run: Run) -> float:
    """GB at most: on the accelerator where there is one, else resident."""
    return run.peak_memory if run.peak_device_memory is None else run.peak_device_memory


def seconds_of(runs: Sequence[Run]) -> float:
    """The timed batches once, their share of the pass before training included."""
    return sum(sum(run.steps) + len(run.timed) * run.reference_per_batch for run in runs)


def work_of_runs(runs: Sequence[Run]) -> Work:
    """Of the timed batches together."""
    works = [Work(one.unique, one.completion, one.attended) for run in runs for one in run.timed]
    return sum(works, Work(0, 0, 0))


def tokens_per_second(runs: Sequence[Run]) -> float:
    """Unique real tokens of the timed batches."""
    return work_of_runs(runs).unique / seconds_of(runs)


def utilisation(runs: Sequence[Run], yardstick: Yardstick) -> float:
    """Training and the reference's forward pass on the timed batches, as a share of the peak."""
    case, work = runs[0].case, work_of_runs(runs)
    flops = useful_flops(yardstick.shape, work, adapter=case.adapter)
    flops += reference_flops(yardstick.shape, work)
    return flops / seconds_of(runs) / yardstick.peaks[case.dtype]


def step_utilisation(runs: Sequence[Run], yardstick: Yardstick) -> float:
    """Of the steps alone; the reference counts where they make it."""
    case, work = runs[0].case, work_of_runs(runs)
    flops = useful_flops(yardstick.shape, work, adapter=case.adapter)
    if not runs[0].start.reference:
        flops += reference_flops(yardstick.shape, work)
    return flops / sum(sum(run.steps) for run in runs) / yardstick.peaks[case.dtype]


# --- table ---------------------------------------------------------------------------------------------


def markdown(result: Result, yardstick: Yardstick) -> str:
    """Machine, parity and one table per case."""
    found = cells(result, yardstick)
    parts = [preamble(result, yardstick), *parity_lines(result)]
    for case in result.cases():
        of_case = [one for one in found if one.case == case]
        rows = [*table(of_case), *missing(result, case)]
        parts.append(f"### {title(case)}\n\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def title(case: Case) -> str:
    """In words."""
    kind = {"full": "Full fine-tuning", "lora": "LoRA"}[case.adapter]
    return f"{kind}, {case.dtype}, {case.batch} pair{'s' if case.batch > 1 else ''} a step"


def preamble(result: Result, yardstick: Yardstick) -> str:
    """What was measured where."""
    machine = result.machine
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    peaks = ", ".join(f"{peak / 1e9:,.0f} GFLOP/s {dtype}" for dtype, peak in yardstick.peaks.items())
    hashes = ", ".join(f"{pairs}: {sha256[:12]}" for pairs, sha256 in result.batches.items())
    return (
        f"{machine.accelerator or machine.cpu}, {machine.cores} cores, {machine.memory:.0f} GB, "
        f"{machine.system}; {result.threads} threads; load before: {machine.load_before[0]:.2f}. {versions}. "
        f"Model {result.model}, data {result.source}; sha256 of the batches, by pairs a step: {hashes}. "
        f"Measured matrix-product peak: {peaks}. Medians of the rounds, their range in brackets; memory is "
        f"{'the accelerator’s' if machine.accelerator else 'the process’s largest resident set'}. Time to "
        "the first step counts from the start of the process, the reference pass over the run's batches "
        "included. The length-grouped side makes batches of its own, so its ratio is of all rounds together."
    )


def parity_lines(result: Result) -> list[str]:
    """The largest difference from alignctl in loss and gradient norm, by case; nothing where unchecked."""
    rows = []
    for case in dict.fromkeys(one.case for one in result.parity):
        of_case = {one.side: one for one in result.parity if one.case == case}
        ours = of_case.pop(OURS, None)
        if ours is not None and of_case:
            found = (f"{NAMES[side]} {difference(ours, one)}" for side, one in of_case.items())
            rows.append(f"- {title(case)}: {'; '.join(found)}")
    if not rows:
        return []
    steps = max(len(one.loss) for one in result.parity)
    head = f"Largest difference from alignctl over the first {steps} steps, loss / gradient norm, relative:"
    return [head + "\n\n" + "\n".join(rows)]


def difference(ours: Parity, other: Parity) -> str:
    """Relative to the other side's value."""
    largest = (
        max(abs(a - b) / abs(b) for a, b in zip(mine, theirs, strict=True))
        for mine, theirs in ((ours.loss, other.loss), (ours.grad_norm, other.grad_norm))
    )
    return " / ".join(f"{one:.1e}" for one in largest)


COLUMNS = (
    "side",
    "pairs/s, one epoch",
    "unique tokens/s",
    "peak memory, GB",
    "first step, s",
    "useful utilisation",
    "alignctl is faster: one epoch",
    *list(WORKLOADS)[1:],
    "alignctl's memory",
)


def table(found: Sequence[Cell]) -> list[str]:
    """One row per side; the ratios are alignctl against that side."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    for one in found:
        theirs = one.side != OURS and one.ratio
        row = [
            NAMES[one.side],
            ranged(one.pairs_per_second["one epoch"], "{:.3g}"),
            f"{one.tokens_per_second.value:,.0f}",
            f"{one.peak_memory.value:.2f}",
            f"{one.first_step.value:.1f}",
            f"{100 * one.utilisation.value:.0f} %",
            *(ranged(one.ratio[name], "{:.2f}") + "x" if theirs else "" for name in WORKLOADS),
            f"{one.memory_ratio:.2f}x" if theirs and one.memory_ratio is not None else "",
        ]
        lines.append("| " + " | ".join(row) + " |")
    return lines


def missing(result: Result, case: Case) -> list[str]:
    """A row for every side that could not run the case."""
    return [
        f"| {NAMES[one.side]} | {one.reason} " + "| " * (len(COLUMNS) - 2) + "|"
        for one in result.failed
        if one.case == case
    ]


def ranged(one: Spread, form: str) -> str:
    """`1.2 (1.1 to 1.3)`; the value alone where there was one round."""
    if one.low == one.high:
        return form.format(one.value)
    return f"{form} ({form} to {form})".format(one.value, one.low, one.high)


# --- chart ---------------------------------------------------------------------------------------------

WIDTH, LEFT, ROW, HEAD, FOOT = 860, 200, 22, 34, 30
# Its own paper: a page's theme and the reader's system may disagree, and a picture only learns the latter.
STYLE = """
.paper { fill: #ffffff; }
text { font: 13px system-ui, sans-serif; fill: #24292f; } text.name { font-weight: 600; }
text.tick { fill: #57606a; } line { stroke: #24292f; stroke-width: 1.5; }
line.grid { stroke: #d0d7de; stroke-width: 1; }
.m0 { fill: #0b6fb8; } .m1 { fill: #5b9bd1; } .m2 { fill: #cc5500; }
.m3 { fill: #0a8a63; } .m4 { fill: #a8468a; } .m5 { fill: #7d8590; }
@media (prefers-color-scheme: dark) {
.paper { fill: #0d1117; }
text { fill: #e6edf3; } text.tick { fill: #9198a1; } line { stroke: #e6edf3; } line.grid { stroke: #3d444d; }
.m0 { fill: #5aaef0; } .m1 { fill: #a9d3f7; } .m2 { fill: #ff8f45; }
.m3 { fill: #3fc796; } .m4 { fill: #e48fc6; } .m5 { fill: #9198a1; }
}
"""


def chart(found: Sequence[Cell]) -> str:
    """An SVG of pairs/s in one epoch, one bar per side and case, for light and dark pages."""
    # A fifth more than the longest bar, for the figure that stands behind it.
    ends = [1.2 * one.pairs_per_second["one epoch"].high for one in found]
    scale = scale_over([0.0, *ends])
    parts: list[Markup] = []
    y = HEAD
    for case in dict.fromkeys(one.case for one in found):
        of_case = [one for one in found if one.case == case]
        parts += [words("0", y + 18, title(case), "start", "name"), lines_behind(scale, y + 26, len(of_case))]
        y += 28
        for one in of_case:
            parts += bar(one, scale, y)
            y += ROW
        y += 10
    parts.append(plot(y, Markup("").join(axis(scale, 10))))
    heading = "Pairs trained on per second, one epoch with the reference pass; range of the rounds"
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" width="{}" role="img"><title>{}</title>'
        "<style>{}</style>"
        '<rect class="paper" width="100%" height="100%"/>{}{}</svg>\n'
    ).format(
        WIDTH,
        y + FOOT,
        WIDTH,
        heading,
        Markup(STYLE),
        words("0", 18, heading, "start"),
        Markup("").join(parts),
    )


def plot(y: float, inside: Markup) -> Markup:
    """A part right of the names, where percentages are of the axis."""
    return Markup('<svg x="{}" y="{}" width="{}" overflow="visible">{}</svg>').format(
        LEFT, y, WIDTH - LEFT - 20, inside
    )


def lines_behind(scale: Scale, y: float, bars: int) -> Markup:
    """The ticks' lines behind the bars of one case."""
    return plot(y, Markup("").join(grid(scale, bars * ROW + 4)))


def bar(one: Cell, scale: Scale, y: float) -> list[Markup]:
    """Name, bar from zero, range of the rounds and the figure."""
    speed = one.pairs_per_second["one epoch"]
    told = f"{NAMES[one.side]}, {title(one.case)}: {ranged(speed, '{:.3g}')} pairs/s"
    figure = Markup('<svg x="{}" y="0" overflow="visible">{}</svg>').format(
        scale.percent(speed.high), words("8", 13, f"{speed.value:.3g}", "start")
    )
    inside = [
        box(0, 2, scale.share(speed.value), ROW - 7, f"m{SIDES.index(one.side)}", told),
        line(scale.percent(speed.low), ROW / 2 - 1.5, scale.percent(speed.high), ROW / 2 - 1.5, "range"),
        figure,
    ]
    name = words(str(LEFT - 10), y + 13, NAMES[one.side], "end")
    return [name, plot(y, Markup("").join(inside))]


# --- files ---------------------------------------------------------------------------------------------


def write_report(result: Result, yardstick: Yardstick, out: Path) -> str:
    """Write report.md, report.json (every figure, every run) and report.svg to `out`; returns the table."""
    out.mkdir(parents=True, exist_ok=True)
    found = cells(result, yardstick)
    text = markdown(result, yardstick)
    everything = {
        "figures": [asdict(one) for one in found],
        "yardstick": asdict(yardstick),
        "measured": asdict(result),
    }
    (out / "report.md").write_text(text, encoding="utf-8")
    (out / "report.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    (out / "report.svg").write_text(chart(found), encoding="utf-8")
    return text
