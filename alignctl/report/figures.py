"""Metrics as words and figures: their names, decimals, better direction, and their course as a sparkline.

One table for the live panel, the plain lines and the closing lines: a value reads the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_LEVELS = "_.-*^"


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric of metrics.jsonl is shown."""

    name: str
    label: str
    spec: str
    direction: int
    """+1 higher is better, -1 lower is better, 0 neither."""
    note: str


METRICS = {
    metric.name: metric
    for metric in (
        Metric("loss", "loss", ".4f", -1, "lower is better"),
        Metric("rewards/margins", "margin", ".3f", 0, "chosen over rejected"),
        Metric("rewards/accuracies", "acc", ".2f", 1, "against the reference"),
        Metric("accuracy_logp", "acc_logp", ".2f", 1, "by the policy alone"),
        Metric("gold/mean", "gold", ".3f", 1, "score of own answers"),
        Metric("reward/mean", "reward", ".3f", 1, "of sampled answers"),
        Metric("likelihood/chosen", "lik_chosen", ".3f", 0, "log-prob per token"),
        Metric("sampled/entropy_top10", "entropy_own", ".3f", 0, "of own answers, bits"),
        Metric("entropy/top10", "entropy", ".3f", 0, "bits, ten likeliest"),
        Metric("displacement", "displacement", ".2f", 0, "chosen below reference"),
        Metric("gold/form", "form", ".3f", 1, "constraint kept"),
        Metric("gold/content", "content", ".3f", 1, "answer right"),
        Metric("kl/token", "kl", ".3f", 0, "drift from reference"),
        Metric("kl/sequence", "kl_answer", ".2f", 0, "nats per answer"),
        Metric("eos_rate", "ended", ".2f", 1, "answers with an end"),
        Metric("response_length", "length", ".0f", 0, "tokens per answer"),
        Metric("sampled/mass_top10", "mass_own", ".3f", 0, "of own answers"),
        Metric("mass/top10", "mass", ".3f", 0, "ten likeliest tokens"),
        Metric("sampled/likelihood", "lik_own", ".3f", 0, "of own answers"),
        Metric("sampled/distinct", "distinct", ".3f", 1, "variety of own answers"),
        Metric("watch/anchor", "anchor", ".3g", 0, "hold on chosen answers"),
        Metric("lr", "lr", ".3g", 0, "learning rate"),
        Metric("grad_norm", "grad", ".1f", 0, "before clipping"),
    )
}
"""In the order of importance, which is the order of rows and of words in a line."""


def figure(name: str, value: float) -> str:
    """A metric's value with the decimals it deserves; large values switch to four significant digits."""
    spec = METRICS[name].spec if name in METRICS else ".4g"
    return format(value, spec if abs(value) < 10_000 else ".4g")


def duration(seconds: float) -> str:
    """M:SS, or H:MM:SS from an hour on."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


@dataclass(frozen=True, slots=True)
class Speed:
    """So many `unit` (pairs, rows, prompts, tokens) a second."""

    per_second: float
    unit: str

    @property
    def words(self) -> str:
        """One decimal; two digits below one a second, none from a hundred on."""
        spec = ".2g" if self.per_second < 1 else ".1f" if self.per_second < 100 else ".0f"
        return f"{self.per_second:{spec}} {self.unit}/s"


def sparkline(values: Sequence[float], width: int, levels: str = BLOCKS) -> str:
    """The course of `values` in at most `width` characters, each the mean of its stretch.

    A constant course is drawn at mid-height: neither low nor high. Values that are not finite are left out.
    """
    finite = [value for value in values if math.isfinite(value)]
    count = min(width, len(finite))
    if count < 1:
        return ""
    edges = [index * len(finite) // count for index in range(count + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        return levels[(len(levels) - 1) // 2] * count
    scale = (len(levels) - 1) / (high - low)
    return "".join(levels[round((mean - low) * scale)] for mean in means)


def printable(text: str) -> str:
    """`text` without control characters: a row of data must not move the cursor or colour the screen."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)
