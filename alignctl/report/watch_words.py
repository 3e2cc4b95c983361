"""What the watch found, in words: what moved, since when, what it means, what to keep and what to try.

The same sentences stand on the panel, in the closing lines, in run.json and in report.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alignctl.config import (
    DpoConfig,
    HingeConfig,
    HypoConfig,
    IpoConfig,
    PairwiseConfig,
    PpoConfig,
    SlicConfig,
    TrainConfig,
    learning_rate,
)
from alignctl.report.figures import figure
from alignctl.train.watch.rule import Turn, Verdict

NAMES = {
    "sampled/entropy_top10": "the top-10 entropy of its own answers",
    "entropy/top10": "the top-10 entropy on held-out chosen answers",
    "sampled/mass_top10": "the top-10 mass of its own answers",
    "mass/top10": "the top-10 mass on held-out chosen answers",
    "displacement": "the share of held-out chosen answers less likely than under the reference",
    "loss": "the held-out loss",
    "kl/sequence": "the KL of its answers to the reference",
    "kl/token": "the KL of its answers to the reference",
    "response_length": "the length of its answers",
}
UNITS = {
    "entropy/top10": " bits",
    "sampled/entropy_top10": " bits",
    "kl/sequence": " nats",
    "kl/token": " nats a token",
}
MEANINGS = {
    "entropy": "Probability gathers on few tokens, and answers lose variety without getting better: in arXiv "
    "2410.11677 the win rate was highest where this entropy turned down.",
    "mass": "Probability leaks from the likeliest tokens to all others, so that random ones are drawn: in "
    "arXiv 2410.11677 this came with a falling win rate.",
    "displacement": "Chosen answers are pushed down with the rejected ones, as only their distance is "
    "trained: what takes their place is neither.",
    "loss": "It learns its own rows by heart: what it gains on them it loses on others.",
    "kl": "The policy is far from its reference: the reward may be exploited rather than earned.",
    "length": "Answers are collapsing: every token costs KL, and short answers cost least.",
}


@dataclass(frozen=True, slots=True)
class WatchWords:
    """Sentences; what is empty is left out."""

    verdict: str
    meaning: str = ""
    keep: str = ""
    ways: tuple[str, ...] = ()
    """What to try, most telling first."""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, as run.json holds it."""
        return asdict(self)


def watch_words(verdict: Verdict, config: TrainConfig) -> WatchWords:
    """All there is to say after the last evaluation."""
    if verdict.evaluations < verdict.least:
        return WatchWords(_too_few(verdict, config))
    if not verdict.alarm:
        return WatchWords(_no_alarm(verdict))
    moved = [turn for turn in verdict.turns if turn.moved]
    loss = ["the held-out loss no longer improves"] if verdict.loss_improves is False else []
    return WatchWords(
        verdict=f"Over-optimised since step {verdict.since}: {_joined([*map(_moved, moved), *loss])}.",
        meaning=MEANINGS[_kind(moved[0])],
        keep=_keep(verdict, config),
        ways=_ways(verdict, config),
    )


def _keep(verdict: Verdict, config: TrainConfig) -> str:
    if verdict.keep is None:
        return ""
    # A warning leaves model/ to the lowest held-out loss, so it says how to get at the other.
    place = "" if config.watch.decides else f" (for eval, soup and model=: RUN@{verdict.keep})"
    return f"Keep step {verdict.keep}, which came before that{place}."


def alarm_line(verdict: Verdict, config: TrainConfig) -> str:
    """One line for the moment an alarm begins."""
    words = watch_words(verdict, config)
    return " ".join(part for part in (words.verdict, words.keep) if part)


def over_line(verdict: Verdict, config: TrainConfig) -> str:
    """One line for the moment an alarm is over."""
    first, last = verdict.past[-1]
    return f"no longer over-optimised at step {last} (alarm since step {first}); {_stands(verdict)}"


def stop_reason(verdict: Verdict) -> str:
    """Why a run was ended."""
    return f"over-optimised since step {verdict.since} (watch.action=stop)"


# --- sentences -----------------------------------------------------------------------------------------


def _too_few(verdict: Verdict, config: TrainConfig) -> str:
    if verdict.evaluations == 0:
        return "Over-optimisation was not looked for: nothing was held out to see it on."
    evaluations = "1 evaluation is" if verdict.evaluations == 1 else f"{verdict.evaluations} evaluations are"
    return (
        f"{evaluations} too few to tell over-optimisation by: {verdict.least} are needed, so an eval.every "
        f"below {config.eval.every}."
    )


def _no_alarm(verdict: Verdict) -> str:
    seen = f"in {verdict.evaluations} evaluations"
    if not verdict.past:
        return f"No over-optimisation seen {seen}{_aside(verdict)}."
    spells = ", ".join(f"from step {first} to step {last}" for first, last in verdict.past)
    return f"Over-optimised {spells}, not at the end{_aside(verdict)}."


def _aside(verdict: Verdict) -> str:
    standing = _stands(verdict)
    return f": {standing}" if standing else ""


def _stands(verdict: Verdict) -> str:
    """Where the indicators are, and why that is no alarm."""
    moved = [_moved(turn) for turn in verdict.turns if turn.moved]
    still = [_still(turn) for turn in verdict.turns if not turn.moved][:1]
    if verdict.loss_improves and moved:
        still = ["the held-out loss still improves"]
    return ", but ".join(part for part in (_joined(moved), *still) if part)


def _moved(turn: Turn) -> str:
    values = (
        f"from {figure(turn.indicator, turn.from_value)} (step {turn.from_step}) "
        f"to {figure(turn.indicator, turn.value)}{_unit(turn)}"
    )
    bound = _limit(turn) if turn.limited else f"where {figure(turn.indicator, turn.margin)} is noise"
    return f"{NAMES[turn.indicator]} {'rose' if turn.rises else 'fell'} {values}, {bound}"


def _still(turn: Turn) -> str:
    best = figure(turn.indicator, turn.from_value)
    near = f"within the noise of its {'lowest' if turn.rises else 'highest'}, {best}"
    bound = _limit(turn) if turn.limited else near
    return f"{NAMES[turn.indicator]} is {figure(turn.indicator, turn.value)}{_unit(turn)}, {bound}"


def _limit(turn: Turn) -> str:
    limit = turn.from_value + (turn.margin if turn.rises else -turn.margin)
    return f"where {figure(turn.indicator, limit)} is the limit"


def _joined(parts: Sequence[str]) -> str:
    return ", and ".join(parts)


def _unit(turn: Turn) -> str:
    return UNITS.get(turn.indicator, "")


def _kind(turn: Turn) -> str:
    return next(kind for kind in MEANINGS if kind in turn.indicator)


def _ways(verdict: Verdict, config: TrainConfig) -> tuple[str, ...]:
    """Settings to type, with values."""
    found = [*_stronger(config), f"train.lr={learning_rate(config) / 2:.2g}"]
    if verdict.keep is not None:
        found.append(f"train.steps={verdict.keep}")
    if isinstance(config.algo, PairwiseConfig | HypoConfig) and config.watch.action != "adapt":
        found.append("watch.action=adapt")
    return tuple(found)


def _stronger(config: TrainConfig) -> list[str]:
    """Twice the pull to the reference, by the name that the algorithm has for it."""
    match config.algo:
        case DpoConfig() | HingeConfig() | HypoConfig() | PpoConfig():
            return [f"algo.beta={2 * config.algo.beta:g}"]
        case IpoConfig():
            return [f"algo.tau={2 * config.algo.tau:g}"]
        case SlicConfig():
            return [f"algo.alpha={2 * config.algo.alpha:g}"]
        case _:
            return []
