"""What a person sees on stderr while a run goes on: one live panel on a terminal, plain lines anywhere else.

The training loop talks to a `Panel` and never asks which kind it got. Decisions: nothing here may end a run,
so a lost terminal or a closed pipe silences the console; no thread draws (steps arrive often enough, and a
thread would meet forks and signals); glyphs fall back to ASCII where the encoding has no blocks; text from
files is shown without its control characters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from rich.box import ROUNDED
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel as Frame
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from alignctl.report.figures import (
    ASCII_LEVELS,
    BLOCKS,
    METRICS,
    Metric,
    duration,
    figure,
    printable,
    sparkline,
)

NARROWEST_PANEL = 48
"""Columns; below this the terminal gets plain lines."""
ROWS = 8
REDRAW_SECONDS = 0.1
QUIET_SECONDS = 10.0
"""How long a preparation may go on without a plain line; a shorter one gets none."""

PLAIN_TRAIN = (
    *("loss", "rewards/margins", "rewards/accuracies", "reward/mean", "kl/sequence", "response_length"),
    *("lr", "grad_norm"),
)
PANEL_TRAIN = (
    *("loss", "reward/mean", "kl/sequence", "response_length", "rewards/margins", "grad_norm"),
    *("rewards/accuracies", "accuracy_logp"),
)
PANEL_EVAL = tuple(name for name in METRICS if name not in ("rewards/margins", "lr", "grad_norm"))


class Panel(Protocol):
    """What the training loop may say. No call raises, whatever happened to the terminal."""

    def plan(self, lines: Sequence[str]) -> None:
        """What will be done: model, data, memory, reference."""
        ...

    def working(self, what: str, done: int, total: int) -> None:
        """Progress of a preparation such as "reference log-probs"; it is over when done reaches total."""
        ...

    def train_step(self, step: int, metrics: Mapping[str, float], speed: str, memory_gb: float) -> None:
        """A training step is over; `metrics` as in metrics.jsonl, `speed` as a person reads it."""
        ...

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """The held-out metrics of a step are known."""
        ...

    def warn(self, text: str) -> None:
        """Something the user should see; it stays on the screen."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line: a checkpoint, a sample, a resumed step."""
        ...


class RunConsole(Console):
    """A console whose reader may go away: rich would end the process then, here it falls silent."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


def stderr_console(stream: TextIO) -> Console:
    """The console for everything but results; NO_COLOR is respected by rich itself."""
    return RunConsole(file=stream, highlight=False, emoji=False)


@contextmanager
def open_panel(
    console: Console, title: str, total_steps: int = 0, clock: Callable[[], float] = time.monotonic
) -> Iterator[Panel]:
    """A live panel on a terminal of 48 columns or more, else plain lines; `clock` gives seconds.

    Without steps, as for an evaluation, it shows the work at hand alone.
    """
    if not console.is_terminal or console.is_dumb_terminal or console.width < NARROWEST_PANEL:
        yield PlainPanel(console, total_steps, clock)
        return
    panel = LivePanel(console, Progress(printable(title), total_steps), clock)
    panel.start()
    try:
        yield panel
    finally:
        panel.stop()


# --- plain lines ---------------------------------------------------------------------------------------


def train_line(step: int, total: int, metrics: Mapping[str, float], speed: str, eta: float | None) -> str:
    """One plain line for a training step."""
    words = [
        f"{METRICS[name].label} {figure(name, metrics[name])}" for name in PLAIN_TRAIN if name in metrics
    ]
    remaining = [] if eta is None else [f"eta {duration(eta)}"]
    return "  ".join([f"step {step}/{total}", *words, speed, *remaining])


def eval_line(step: int, metrics: Mapping[str, float]) -> str:
    """One plain line for an evaluation."""
    words = [f"{METRICS[name].label} {figure(name, metrics[name])}" for name in METRICS if name in metrics]
    return "  ".join([f"eval step {step}", *words])


class Pace:
    """Estimates the time left from the mean time per step, evaluations and checkpoints included."""

    def __init__(self, total_steps: int, clock: Callable[[], float]) -> None:
        self._total = total_steps
        self._clock = clock
        self._first: tuple[int, float] | None = None

    def eta(self, step: int) -> float | None:
        """Seconds left after `step`; None at the last and at the first one seen, maybe after a resume."""
        now = self._clock()
        if self._first is None:
            self._first = (step, now)
        first_step, first_time = self._first
        if not first_step < step < self._total:
            return None
        return (now - first_time) / (step - first_step) * (self._total - step)


@dataclass(frozen=True, slots=True)
class Work:
    """A preparation that goes on, and when it last had a line."""

    what: str
    spoke_at: float
    has_spoken: bool = False


class PlainPanel:
    """One line per event, never wrapped, never moved: for pipes, files, CI and very narrow terminals."""

    def __init__(self, console: Console, total_steps: int, clock: Callable[[], float]) -> None:
        self._console = console
        self._total = total_steps
        self._clock = clock
        self._pace = Pace(total_steps, clock)
        self._work: Work | None = None

    def plan(self, lines: Sequence[str]) -> None:
        for line in lines:
            write_line(self._console, line)

    def working(self, what: str, done: int, total: int) -> None:
        now = self._clock()
        if self._work is None or self._work.what != what:
            self._work = Work(what, now)
        if now - self._work.spoke_at >= QUIET_SECONDS or (done >= total and self._work.has_spoken):
            write_line(self._console, f"{what} {done}/{total}")
            self._work = Work(what, now, has_spoken=True)
        if done >= total:
            self._work = None

    def train_step(self, step: int, metrics: Mapping[str, float], speed: str, memory_gb: float) -> None:
        line = train_line(step, self._total, metrics, speed, self._pace.eta(step))
        write_line(self._console, line)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        write_line(self._console, eval_line(step, metrics))

    def warn(self, text: str) -> None:
        write_line(self._console, f"warning: {text}", style="yellow")

    def note(self, text: str) -> None:
        write_line(self._console, text)


@contextmanager
def _outlive(console: Console) -> Iterator[None]:
    """A terminal that went away (closed session, full disk behind a redirect) silences the console."""
    try:
        yield
    except (OSError, UnicodeError):
        console.quiet = True


def write_line(console: Console, text: str, style: str = "") -> None:
    """One line without markup, wrapped on a terminal only; `?` where the encoding lacks a character."""
    known = printable(text).encode(console.encoding, "replace").decode(console.encoding)
    with _outlive(console):
        console.print(Text(known, style=style), soft_wrap=not console.is_terminal)


# --- the live panel ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Series:
    """The course of one metric."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: int, value: float) -> None:
        self.steps.append(step)
        self.values.append(value)

    def best(self, direction: int) -> tuple[int, float]:
        """(step, value) of the best value so far, the earliest among equals."""
        at = max(range(len(self.values)), key=lambda index: (direction * self.values[index], -index))
        return self.steps[at], self.values[at]


@dataclass(slots=True)
class Progress:
    """All that the panel shows; `LivePanel` writes it, `draw` reads it."""

    title: str
    total_steps: int
    step: int = 0
    eta: float | None = None
    speed: str = ""
    memory_gb: float = 0.0
    work: tuple[str, int, int] | None = None
    train: dict[str, Series] = field(default_factory=dict)
    held_out: dict[str, Series] = field(default_factory=dict)


class LivePanel:
    """Keeps the progress, redraws at most ten times a second; warnings and notes scroll above the panel."""

    def __init__(self, console: Console, progress: Progress, clock: Callable[[], float]) -> None:
        self._console = console
        self._progress = progress
        self._clock = clock
        self._pace = Pace(progress.total_steps, clock)
        self._drawn = -math.inf
        # stdout keeps its own way: it carries results, and may be a file.
        self._live = Live(
            console=console,
            auto_refresh=False,
            redirect_stdout=False,
            get_renderable=lambda: draw(progress, console.width, not console.encoding.startswith("utf")),
        )

    def start(self) -> None:
        with _outlive(self._console):
            self._live.start(refresh=True)

    def stop(self) -> None:
        with _outlive(self._console):
            self._live.stop()

    def plan(self, lines: Sequence[str]) -> None:
        for line in lines:
            write_line(self._console, line)

    def working(self, what: str, done: int, total: int) -> None:
        self._progress.work = (printable(what), done, total) if done < total else None
        self._redraw(at_once=done >= total)

    def train_step(self, step: int, metrics: Mapping[str, float], speed: str, memory_gb: float) -> None:
        progress = self._progress
        progress.step, progress.eta = step, self._pace.eta(step)
        progress.speed, progress.memory_gb = speed, memory_gb
        for name, value in metrics.items():
            progress.train.setdefault(name, Series()).add(step, value)
        self._redraw(at_once=step == progress.total_steps)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._progress.held_out.setdefault(name, Series()).add(step, value)
        self._redraw(at_once=True)

    def warn(self, text: str) -> None:
        write_line(self._console, f"warning: {text}", style="yellow")

    def note(self, text: str) -> None:
        write_line(self._console, text, style="dim")

    def _redraw(self, at_once: bool) -> None:
        now = self._clock()
        if at_once or now - self._drawn >= REDRAW_SECONDS:
            self._drawn = now
            with _outlive(self._console):
                self._live.refresh()


def draw(progress: Progress, width: int, ascii_only: bool) -> RenderableType:
    """The panel for a terminal of `width` columns; the parts that do not fit are left out, never wrapped."""
    held_out = [name for name in PANEL_EVAL if name in progress.held_out][: ROWS - 2]
    train = [name for name in PANEL_TRAIN if name in progress.train][: ROWS - len(held_out)]
    parts: list[RenderableType] = [_bars(progress, width)]
    if train or held_out:
        table = _empty_table(width, ascii_only)
        _add_rows(table, "held out", progress.held_out, held_out, ascii_only)
        _add_rows(table, "training", progress.train, train, ascii_only)
        parts += [Text(""), table]
    title = progress.title[: max(0, width - 8)]
    known = title.encode("ascii", "replace").decode() if ascii_only else title
    return Frame(Group(*parts), title=Text(f" {known} ", style="bold"), box=ROUNDED, border_style="dim")


def _bars(progress: Progress, width: int) -> Table:
    """The run's bar where it has steps, and under it that of the work at hand while there is one."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    grid.expand = True
    figures = [f"eta {duration(progress.eta)}"] if progress.eta is not None else []
    figures += [progress.speed] if progress.step else []
    figures += [f"{progress.memory_gb:.1f} GB"] if progress.memory_gb > 0 and width >= 60 else []
    if progress.total_steps:
        grid.add_row(
            Text(f"step {progress.step}/{progress.total_steps}", style="bold"),
            ProgressBar(total=progress.total_steps, completed=progress.step),
            Text("  ".join(figures)),
        )
    elif progress.work is None:
        grid.add_row(Text("getting ready", style="cyan"))
    if progress.work is not None:
        what, done, total = progress.work
        bar = ProgressBar(total=max(1, total), completed=done, complete_style="cyan")
        grid.add_row(Text(what[: width // 3], style="cyan"), bar, Text(f"{done}/{total}"))
    return grid


def _empty_table(width: int, ascii_only: bool) -> Table:
    overflow = "crop" if ascii_only else "ellipsis"
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("metric", no_wrap=True, overflow=overflow, min_width=20)
    table.add_column("now", justify="right", no_wrap=True, overflow="crop")
    table.add_column("start", justify="right", no_wrap=True, overflow="crop", style="dim")
    table.add_column("trend", no_wrap=True, overflow="crop", width=min(24, max(4, (width - 36) // 3)))
    if width >= 72:
        table.add_column("note", no_wrap=True, overflow=overflow, style="dim", ratio=1)
    return table


def _add_rows(
    table: Table, heading: str, series: Mapping[str, Series], names: Sequence[str], ascii_only: bool
) -> None:
    """A heading with the step of the latest values, then one row per metric."""
    if not names:
        return
    step = max(series[name].steps[-1] for name in names)
    table.add_row(Text(f"{heading}, step {step}", style="bold"))
    trend_width = table.columns[3].width or 4
    for name in names:
        cells = _cells(METRICS[name], series[name], heading == "held out", trend_width, ascii_only)
        table.add_row(*cells[: len(table.columns)])


def _cells(metric: Metric, series: Series, show_best: bool, trend_width: int, ascii_only: bool) -> list[Text]:
    now, start = series.values[-1], series.values[0]
    better = metric.direction * (now - start)
    colour = "red" if better < 0 or not math.isfinite(now) else "green" if better > 0 else ""
    trend = sparkline(series.values, trend_width, ASCII_LEVELS if ascii_only else BLOCKS)
    note = metric.note
    if show_best and metric.direction and len(series.values) > 1:
        best_step, best = series.best(metric.direction)
        note = f"best {figure(metric.name, best)} at step {best_step}"
    return [
        Text(f"  {metric.name}"),
        Text(figure(metric.name, now), style=colour),
        Text(figure(metric.name, start)),
        Text(trend, style="cyan"),
        Text(note),
    ]
