"""When a run is over-optimised: a rule over the evaluations so far, which can be replayed on metrics.jsonl.

arXiv 2410.11677 names what turns when a model is trained past its best, and gives no rule. This project's, by
family:

    on pairs         more than watch.displaced of the held-out chosen answers are less likely than under the
                     reference, and the policy's own answers are more than watch.kl nats a token away from it
    sft, reward      held-out loss has risen from its minimum
    ppo, salsa-ppo   KL of its answers above the limit of the rollouts' watch, or their length below
                     algo.stop_length of that at the start

A loss on pairs sees the distance between two answers, and may improve long after both became unlikely and
sampled ones got worse (likelihood displacement, arXiv 2410.08847). The share counts answers, not by how much
they fell: on HH-harmless half of them were a little less likely when nothing was lost yet, and what starts
from SFT on the chosen answers can only make them less likely (why: arXiv 2404.12358). The KL tells how far
the policy went; where no answers are sampled for it (watch.samples=0) the share decides alone. On the demo
pairs of `scripts/studies/overoptimisation` the two told the gold score's peak better than the paper's own
indicators, which watch.indicator=sampled and held_out look for:

    dpo, ipo, hypo   top-10 entropy has turned down from its maximum, and the held-out loss no longer improves
    hinge, slic      top-10 mass has fallen from its maximum (slic is the paper's Hinge)

Decisions. With limits, the checkpoint to keep is the lowest held-out loss within them, or the last one within
where no loss is held out. With courses, means over `watch.window` evaluations are compared: an indicator has
moved when the last mean lies `watch.noise` standard errors of the difference away from the best one, and the
loss improves while its last mean is as clearly below all before. Two errors are too few, as every evaluation
is held against the best of many. Simulated on 20 evaluations of pure noise, means of two, three errors raise
an alarm in a tenth of the courses and four in a hundredth (in 28 % and 12 % where no errors over prompts are
known). The checkpoint to keep is the last one before both signs were there: the later of the indicator's
extreme and the lowest held-out loss; it is settled when an alarm begins, since a loss that creeps on within
its noise is no reason to keep what came after.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from alignctl.config import (
    AlgoConfig,
    HingeConfig,
    PpoConfig,
    RewardModelConfig,
    SftConfig,
    SlicConfig,
    WatchSettings,
)
from alignctl.train.watch.course import Point, Record, course, extreme, noise
from alignctl.train.watch.rollouts import kl_limit

LEAST = 5
"""Evaluations below which nothing is judged: fewer give less than three second differences."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is looked for in the course of a metric."""

    indicator: str
    """Name of the metric."""
    rises: bool = False
    """The alarm is a rise from its minimum; otherwise a fall from its maximum."""
    with_loss: bool = False
    """Only while the held-out loss no longer improves."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How far a metric may go."""

    indicator: str
    """Its name."""
    most: float = math.inf
    least: float = 0.0
    """Share of its value at the start that has to be left."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a run may go."""

    each: tuple[Limit, ...]
    together: bool = False
    """An alarm takes all that are measured to be passed; otherwise one is enough."""

    def passed(self, turns: Sequence[Turn]) -> bool:
        """Whether they are too far gone together, or one of them."""
        return bool(turns) and (all if self.together else any)(turn.moved for turn in turns)


@dataclass(frozen=True, slots=True)
class Turn:
    """Where an indicator stood best, and where it is."""

    indicator: str
    from_step: int
    from_value: float
    """The best mean over a window, around that step."""
    value: float
    """The mean over the last window."""
    margin: float
    """How far it may move without an alarm."""
    rises: bool = False
    """A rise is looked for, otherwise a fall."""
    limited: bool = False
    """The margin is a limit that was set, otherwise noise that was found."""

    @property
    def moved(self) -> bool:
        """Whether it went further."""
        way = 1 if self.rises else -1
        return way * (self.value - self.from_value) > self.margin


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says after the last of some evaluations."""

    evaluations: int = 0
    """Those that have the indicator."""
    least: int = LEAST
    """How many a judgement takes."""
    alarm: bool = False
    since: int | None = None
    """First step of the present alarm."""
    turns: tuple[Turn, ...] = ()
    """Of all that the rule reads and that was measured; none with too few evaluations."""
    loss_improves: bool | None = None
    """None where the loss is no part of the rule."""
    keep: int | None = None
    """The step to keep: settled when an alarm begins; without one, what an alarm now would settle."""
    held: tuple[int, ...] = ()
    """Steps that may still become `keep`."""
    past: tuple[tuple[int, int], ...] = ()
    """Alarms that ended: (first step, step at which it was over)."""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON; `verdict_of` reverses it."""
        return asdict(self)


def verdict_of(state: Mapping[str, Any]) -> Verdict:
    """A verdict that went through JSON."""
    return Verdict(
        **{
            **state,
            "turns": tuple(Turn(**turn) for turn in state["turns"]),
            "held": tuple(state["held"]),
            "past": tuple((first, last) for first, last in state["past"]),
        }
    )


def rule_of(algo: AlgoConfig, settings: WatchSettings) -> Rule | Limits:
    """What is looked for in a run of that algorithm."""
    sampled = settings.indicator == "sampled"
    match algo:
        case PpoConfig():
            length = Limit("response_length", least=algo.stop_length)
            return Limits((Limit("kl/sequence", most=kl_limit(algo)), length))
        case SftConfig() | RewardModelConfig():
            return Rule("loss", rises=True)
        case _ if settings.indicator == "displacement":
            share = Limit("displacement", most=settings.displaced)
            return Limits((share, Limit("kl/token", most=settings.kl)), together=True)
        case HingeConfig() | SlicConfig():
            return Rule("sampled/mass_top10" if sampled else "mass/top10")
        case _:
            return Rule("sampled/entropy_top10" if sampled else "entropy/top10", with_loss=True)


def judge(records: Sequence[Record], rule: Rule | Limits, settings: WatchSettings) -> Verdict:
    """The verdict after the last record, each one before it judged as it was seen then."""
    verdict = Verdict()
    for count in range(1, len(records) + 1):
        verdict = judged_on(verdict, records[:count], rule, settings)
    return verdict


def judged_on(
    before: Verdict, records: Sequence[Record], rule: Rule | Limits, settings: WatchSettings
) -> Verdict:
    """The verdict one evaluation after `before`; `records` are all so far, the new one last."""
    courses = isinstance(rule, Rule)
    now = _by_course(records, rule, settings) if courses else _against_limits(records, rule)
    if now.alarm and before.alarm:
        held = tuple(sorted({*now.held, *([] if before.keep is None else [before.keep])}))
        return replace(now, since=before.since, keep=before.keep, held=held, past=before.past)
    step = records[-1].step
    if now.alarm:
        return replace(now, since=step, past=before.past)
    over = () if before.since is None else ((before.since, step),)
    return replace(now, past=(*before.past, *over))


# --- courses -------------------------------------------------------------------------------------------


def _by_course(records: Sequence[Record], rule: Rule, settings: WatchSettings) -> Verdict:
    """What the records show by themselves, without memory of earlier alarms."""
    points = course(records, rule.indicator)
    held = _extremes(records, rule)
    found = Verdict(
        evaluations=len(points),
        least=max(LEAST, 2 * settings.window),
        keep=max(held, default=None),
        held=held,
    )
    if len(points) < found.least:
        return found
    turn = _turn(points, rule, settings)
    improves = _improves(course(records, "loss"), settings) if rule.with_loss else None
    return replace(found, alarm=turn.moved and not improves, turns=(turn,), loss_improves=improves)


def _turn(points: Sequence[Point], rule: Rule, settings: WatchSettings) -> Turn:
    means = _means(points, settings.window)
    return Turn(
        rule.indicator,
        from_step=extreme(points, highest=not rule.rises).step,
        from_value=min(means) if rule.rises else max(means),
        value=means[-1],
        margin=_margin(points, settings, prior=rule.indicator != "loss"),
        rises=rule.rises,
    )


def _improves(losses: Sequence[Point], settings: WatchSettings) -> bool:
    """Whether the loss of the last window is below that of all windows before it by more than noise."""
    means = _means(losses, settings.window)
    before = means[: -settings.window]
    return not before or means[-1] < min(before) - _margin(losses, settings, prior=False)


def _means(points: Sequence[Point], window: int) -> list[float]:
    """Means over `window` evaluations, as they pass."""
    values = [point.value for point in points]
    return [statistics.fmean(values[end - window : end]) for end in range(window, len(values) + 1)]


def _margin(points: Sequence[Point], settings: WatchSettings, *, prior: bool) -> float:
    """So many standard errors of the difference of two such means.

    The spread over rows is no `prior` for a loss: a row that costs much costs much each time, so it hides
    both progress and its end.
    """
    return settings.noise * noise(points, prior=prior) * math.sqrt(2 / settings.window)


def _extremes(records: Sequence[Record], rule: Rule) -> tuple[int, ...]:
    """Steps at which the indicator, and the loss where the rule reads it, stood best; never the start."""
    trained = [record for record in records if record.step > 0]
    names = [(rule.indicator, not rule.rises)] + ([("loss", False)] if rule.with_loss else [])
    found = {
        extreme(points, highest=highest).step for name, highest in names if (points := course(trained, name))
    }
    return tuple(sorted(found))


# --- limits --------------------------------------------------------------------------------------------


def _against_limits(records: Sequence[Record], limits: Limits) -> Verdict:
    """The last evaluation against its limits; an alarm keeps the best one within them."""
    start = records[0]
    within = [one for one in records if one.step > 0 and not limits.passed(_turns(start, one, limits))]
    # Without a held-out loss they tie, and the last one is taken.
    best = min(reversed(within), key=lambda one: one.metrics.get("loss", math.inf), default=None)
    keep = None if best is None else best.step
    held = () if keep is None else (keep,)
    names = [limit.indicator for limit in limits.each]
    measured = [record for record in records if any(name in record.metrics for name in names)]
    found = Verdict(evaluations=len(measured), least=2, keep=keep, held=held)
    if len(measured) < found.least:
        return found
    turns = tuple(_turns(start, records[-1], limits))
    return replace(found, alarm=limits.passed(turns), turns=turns)


def _turns(start: Record, now: Record, limits: Limits) -> list[Turn]:
    """How far every metric went that was measured, and how far it may."""
    found = []
    for limit in limits.each:
        value = now.metrics.get(limit.indicator)
        if value is None:
            continue
        first, rises = start.metrics.get(limit.indicator, 0.0), limit.most < math.inf
        margin = limit.most - first if rises else (1 - limit.least) * first
        found.append(Turn(limit.indicator, start.step, first, value, margin, rises, limited=True))
    return found
