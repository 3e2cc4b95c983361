"""What a person reads on stdout when a run is over: what changed, where the model lies, what to type next.

Made of plain text with a few styles, so that a pipe gets the same lines without colours. The table is as wide
as its figures: intervals stand beside the values where there is room, under them where there is less.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from rich.console import Console
from rich.text import Text

from alignctl.report.figures import duration
from alignctl.report.figures import figure as format_figure
from alignctl.report.watch_words import WatchWords
from alignctl.train.progress import Why

WIDEST = 100
"""Columns of the table on a pipe or a wide terminal."""
GAP = "  "
REASONS: Mapping[Why, str] = {
    "alarm": "before it was over-optimised",
    "loss": "the lowest held-out loss",
    "last": "the last step",
}
"""Why a step was kept, in words."""


class Figure(TypedDict):
    """A number of run.json's headline."""

    value: float | None
    ci: Sequence[float] | None
    n: int


Headline = Mapping[str, Mapping[str, Figure | None]]
"""{metric: {"start": Figure, "best": Figure, "last": Figure}}; a missing figure may be None or absent."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the closing lines tell besides the headline."""

    model_dir: str
    """As the user would type it, relative to where the command was given."""
    exported_step: int
    why: Why
    """Why that step was kept."""
    last_step: int
    seconds: float
    chat: bool
    """Whether the model has a chat template."""
    answers: bool = True
    """False for a reward model, which scores answers and gives none."""
    stopped: str | None = None
    """Why the run ended before its last step."""
    watch: WatchWords | None = None
    """None where nothing was watched."""


def print_closing(console: Console, headline: Headline, outcome: Outcome) -> None:
    """Print the closing lines on the results' console; long paths are never broken."""
    width = min(WIDEST, console.width) if console.is_terminal else WIDEST
    text = closing_text(headline, outcome, width)
    if not console.encoding.startswith("utf"):
        text = Text(text.plain.encode(console.encoding, "replace").decode(console.encoding))
    console.print(text, soft_wrap=True)


def closing_text(headline: Headline, outcome: Outcome, width: int) -> Text:
    """The table of start, best and last, then the model, the time and the next commands."""
    text = Text()
    if headline:
        text.append_text(_table(headline, outcome, width)).append("\n")
    if outcome.stopped is not None:
        text.append("stopped  ", "bold").append(f"after step {outcome.last_step}: {outcome.stopped}\n")
    if outcome.watch is not None:
        text.append_text(_watch(outcome.watch))
    kept = f"step {outcome.exported_step}, {REASONS[outcome.why]}"
    text.append("model  ", "bold").append(f"{outcome.model_dir}  ({kept})\n")
    text.append("time   ", "bold").append(f"{duration(outcome.seconds)} for {outcome.last_step} steps\n")
    model = shlex.quote(outcome.model_dir)
    run = shlex.quote(outcome.model_dir.removesuffix("/model"))
    if not outcome.answers:
        text.append("\njudge with it\n", "bold").append(
            f"alignctl eval MODEL judge=reward judge.path={run}\n"
        )
        command = f"alignctl train algo=ppo reward=model reward.path={run}"
        return text.append("\ntrain against it\n", "bold").append(command)
    text.append("\nask it something\n", "bold").append("\n".join(_question(outcome)) + "\n")
    text.append("\nmeasure it\n", "bold").append(f"alignctl eval {run}\n")
    return text.append("\ntrain on from it\n", "bold").append(f"alignctl train model={model}")


def _watch(words: WatchWords) -> Text:
    """What was seen of over-optimisation, and where it was, what to type."""
    text = Text().append("watch  ", "bold").append(f"{' '.join(filter(None, (words.verdict, words.keep)))}\n")
    return text.append("try    ", "bold").append("   ".join(words.ways) + "\n") if words.ways else text


def _question(outcome: Outcome) -> list[str]:
    """A shell command that answers one prompt; the quoted marker keeps the shell out of the Python lines."""
    prompt = '[{"role": "user", "content": "Name three fruits."}]' if outcome.chat else '"Three fruits are"'
    answer = 'answer[0]["generated_text"]' + ('[-1]["content"]' if outcome.chat else "")
    return [
        "python - <<'END'",
        "from transformers import pipeline",
        f'model = pipeline("text-generation", {json.dumps(outcome.model_dir, ensure_ascii=False)})',
        f"answer = model({prompt}, max_new_tokens=100)",
        f"print({answer})",
        "END",
    ]


# --- the table -----------------------------------------------------------------------------------------

Rows = list[list[str]]
Place = Literal["beside", "under", "nowhere"]
"""Where the intervals stand, seen from their values."""


def _table(headline: Headline, outcome: Outcome, width: int) -> Text:
    """The first of three layouts that fits: intervals beside the values, under them, or left to run.json."""
    kept, last = outcome.exported_step, outcome.last_step
    name = "kept" if outcome.why == "alarm" else "best"
    is_last = outcome.why == "last"
    head = ["", "start", name if is_last else f"{name} (step {kept})", f"last (step {last})", "n"]
    places: tuple[Place, ...] = ("beside", "under")
    for place in places:
        rows = [head, *_rows(headline, place)]
        if _width(rows) <= width:
            return _lay_out(rows, "[lo, hi]: 95 % interval")
    short_head = ["", "start", name if is_last else f"{name} @{kept}", f"last @{last}", "n"]
    return _lay_out([short_head, *_rows(headline, "nowhere")], "95 % intervals: see run.json")


def _rows(headline: Headline, place: Place) -> Rows:
    """One row per metric, and a second one for its intervals where they stand under the values."""
    rows: Rows = []
    for name, figures in headline.items():
        moments = [figures.get(moment) for moment in ("start", "best", "last")]
        values = [_value(name, figure) for figure in moments]
        intervals = [_interval(name, figure) for figure in moments]
        if place == "beside":
            values = [f"{value} {ci}".rstrip() for value, ci in zip(values, intervals, strict=True)]
        # Usually one n; all of them where start, best and last were measured on different samples.
        sizes = dict.fromkeys(str(figure["n"]) for figure in moments if figure is not None)
        rows.append([name, *values, "/".join(sizes)])
        if place == "under" and any(intervals):
            rows.append(["", *intervals, ""])
    return rows


def _value(name: str, figure: Figure | None) -> str:
    return "-" if figure is None or figure["value"] is None else format_figure(name, figure["value"])


def _interval(name: str, figure: Figure | None) -> str:
    if figure is None or figure["ci"] is None:
        return ""
    low, high = figure["ci"]
    return f"[{format_figure(name, low)}, {format_figure(name, high)}]"


def _columns(rows: Rows) -> list[int]:
    return [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]


def _width(rows: Rows) -> int:
    return sum(_columns(rows)) + len(GAP) * (len(rows[0]) - 1)


def _lay_out(rows: Rows, note: str) -> Text:
    columns, text = _columns(rows), Text()
    for number, row in enumerate(rows):
        line = GAP.join(cell.ljust(size) for cell, size in zip(row, columns, strict=True)).rstrip()
        text.append(line + "\n", "bold" if number == 0 else "" if row[0] else "dim")
    return text.append(note + "\n", "dim")
