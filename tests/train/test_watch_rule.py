"""The rule of over-optimisation on made-up courses: turns, wobble, progress, limits, and what is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import TrainConfig, WatchSettings
from alignctl.train.watch.course import Record, course, noise, read_records, record_of
from alignctl.train.watch.rule import (
    Limit,
    Limits,
    Rule,
    Turn,
    Verdict,
    judge,
    judged_on,
    rule_of,
    verdict_of,
)

ENTROPY = Rule("e", with_loss=True)
MASS = Rule("m")
LOSS = Rule("loss", rises=True)


def settings(*, window: int = 2, sigmas: float = 3.0) -> WatchSettings:
    return WatchSettings(
        action="warn",
        samples=8,
        indicator="sampled",
        displaced=0.4,
        kl=0.5,
        window=window,
        noise=sigmas,
        anchor=1.0,
    )


def records(every: int = 10, **courses: Sequence[float]) -> list[Record]:
    """Evaluations at steps 0, 10, 20 ... of these courses."""
    count = len(next(iter(courses.values())))
    return [Record(every * n, {name: values[n] for name, values in courses.items()}) for n in range(count)]


def wobbling(values: Sequence[float], size: float, seed: int) -> list[float]:
    return (np.asarray(values) + size * np.random.default_rng(seed).standard_normal(len(values))).tolist()


HILL = [1.0, 1.12, 1.19, 1.31, 1.4, 1.37, 1.2, 1.0, 0.8, 0.6]
FALLING = [0.69, 0.6, 0.5, 0.42, 0.36, 0.3, 0.25, 0.2, 0.16, 0.12]
BOTTOMED = [0.69, 0.6, 0.5, 0.42, 0.41, 0.409, 0.42, 0.43, 0.45, 0.47]


# --- alarms --------------------------------------------------------------------------------------------


def test_entropy_that_turned_is_an_alarm_once_the_loss_no_longer_improves() -> None:
    found = judge(records(e=HILL, loss=BOTTOMED), ENTROPY, settings())
    assert found.alarm
    assert found.loss_improves is False
    (turn,) = found.turns
    assert (turn.from_step, turn.from_value) == (40, pytest.approx((1.4 + 1.37) / 2))
    assert turn.value == pytest.approx((0.8 + 0.6) / 2)
    # Entropy was highest at step 40, the loss lowest at step 50, both by a hair against the next.
    assert found.keep == 50
    # 0.1 down at step 60, where three errors are 3 sqrt(0.05 ** 2 / 6 / 0.4549) = 0.09.
    assert found.since == 60


def test_the_same_turn_is_none_while_the_loss_improves() -> None:
    found = judge(records(e=HILL, loss=FALLING), ENTROPY, settings())
    assert not found.alarm
    assert found.loss_improves is True
    assert found.past == ()
    # What an alarm now would keep: the loss was never lower than at the last step.
    assert found.keep == 90


def test_wobble_around_a_level_is_seldom_an_alarm() -> None:
    alarms = {}
    for sigmas in (2.0, 4.0):
        flat = [wobbling([1.0] * 16, 0.05, seed) for seed in range(60)]
        series = [[Record(n, {"m": value, "m_se": 0.07}) for n, value in enumerate(one)] for one in flat]
        found = [judge(one, MASS, settings(sigmas=sigmas)) for one in series]
        alarms[sigmas] = sum(verdict.alarm or bool(verdict.past) for verdict in found)
    assert alarms[4.0] <= 2
    assert alarms[2.0] > 10


@pytest.mark.parametrize("seed", range(6))
def test_a_turn_is_seen_through_wobble(seed: int) -> None:
    hill = [*np.linspace(1.0, 1.5, 10), *np.linspace(1.4, 0.5, 10)]
    found = judge(records(e=wobbling(hill, 0.03, seed), loss=[0.5] * 20), ENTROPY, settings(sigmas=4.0))
    assert found.alarm
    assert found.since is not None
    assert 100 < found.since <= 130


def test_mass_alone_raises_the_alarm_of_hinge() -> None:
    mass = [0.80, 0.84, 0.86, 0.86, 0.85, 0.80, 0.72]
    found = judge(records(m=mass, loss=FALLING[:7]), MASS, settings())
    assert found.alarm
    assert (found.since, found.keep, found.loss_improves) == (60, 20, None)
    assert found.turns[0].from_value == pytest.approx(0.86)
    assert not judge(records(m=sorted(mass), loss=FALLING[:7]), MASS, settings()).alarm


def test_a_loss_that_rises_is_the_alarm_of_answers_learnt_by_heart() -> None:
    loss = [2.0, 1.5, 1.2, 1.0, 1.05, 1.2, 1.4, 1.6]
    found = judge(records(loss=loss), LOSS, settings())
    assert found.alarm
    assert found.keep == 30
    assert not judge(records(loss=FALLING), LOSS, settings()).alarm


def test_an_alarm_that_ends_is_remembered_with_its_steps() -> None:
    e = [1.0, 1.2, 1.4, 1.4, 1.2, 0.9, 0.8, 1.1, 1.4, 1.5, 1.6]
    found = judge(records(e=e, loss=[0.5] * len(e)), ENTROPY, settings())
    assert not found.alarm
    assert found.since is None
    [(first, last)] = found.past
    assert first in (40, 50)
    assert last in (80, 90)


def test_what_is_kept_is_settled_when_the_alarm_begins() -> None:
    # The loss creeps on by less than its wobble; the checkpoint before the turn stays the one to keep.
    creeping = [0.69, 0.6, 0.5, 0.42, 0.41, 0.41, 0.409, 0.4089, 0.4088, 0.4087]
    series = records(e=HILL, loss=creeping)
    at_onset = judge(series[:7], ENTROPY, settings())
    assert at_onset.alarm
    at_end = judge(series, ENTROPY, settings())
    assert at_end.alarm
    assert (at_end.since, at_end.keep) == (at_onset.since, at_onset.keep)
    assert at_end.keep in at_end.held


def test_the_start_is_never_kept() -> None:
    found = judge(records(e=[2.0, 1.8, 1.5, 1.2, 1.0, 0.8], loss=[0.5] * 6), ENTROPY, settings())
    assert found.alarm
    assert found.turns[0].from_step == 0
    assert found.keep == 10


@pytest.mark.parametrize("count", [1, 4])
def test_few_evaluations_are_not_judged(count: int) -> None:
    found = judge(records(e=[5.0, 3.0, 2.0, 1.0][:count], loss=[0.5] * count), ENTROPY, settings())
    assert (found.evaluations, found.least, found.alarm, found.turns) == (count, 5, False, ())
    assert judge([], ENTROPY, settings()) == Verdict()


def test_evaluations_without_the_indicator_are_not_counted() -> None:
    assert judge(records(loss=FALLING), MASS, settings()).evaluations == 0


def test_judging_one_by_one_is_judging_all_and_goes_through_json() -> None:
    series = records(e=HILL, loss=BOTTOMED)
    verdict = Verdict()
    for count in range(1, len(series) + 1):
        verdict = verdict_of(json.loads(json.dumps(verdict.as_json())))
        verdict = judged_on(verdict, series[:count], ENTROPY, settings())
    assert verdict == judge(series, ENTROPY, settings())


def test_every_step_that_is_kept_could_have_been_known_before() -> None:
    """Only a checkpoint that was written can be kept: `keep` is the present step or was held before."""
    random = np.random.default_rng(0)
    for _ in range(40):
        series = records(e=random.random(15).tolist(), loss=random.random(15).tolist())
        held: tuple[int, ...] = ()
        for count in range(1, 16):
            found = judge(series[:count], ENTROPY, settings())
            assert set(found.held) <= {*held, series[count - 1].step}
            assert found.keep is None or found.keep in found.held
            held = found.held


# --- noise ---------------------------------------------------------------------------------------------


def test_a_steady_trend_is_no_noise() -> None:
    assert noise(course(records(e=[1.0, 1.5, 2.0, 2.5, 3.0]), "e"), prior=True) == pytest.approx(0.0)


def test_the_noise_of_one_evaluation_is_found_from_its_course() -> None:
    values = wobbling(np.linspace(0, 30, 2000).tolist(), 0.2, seed=3)
    assert noise(course(records(e=values), "e"), prior=False) == pytest.approx(0.2, rel=0.06)


def test_errors_over_prompts_count_for_two_second_differences() -> None:
    # Second differences 0.6 and -0.6: squares over six 0.06 each, median over 0.4549.
    points = course(
        [Record(n, {"e": value, "e_se": 0.3}) for n, value in enumerate([0.0, 0.2, 1.0, 1.2])], "e"
    )
    own = 0.06 / 0.4549
    assert noise(points, prior=False) == pytest.approx(math.sqrt(own))
    assert noise(points, prior=True) == pytest.approx(math.sqrt((2 * own + 2 * 0.09) / 4))


def test_a_short_course_with_wide_errors_does_not_alarm_where_a_narrow_one_does() -> None:
    values = [1.0, 1.1, 1.1, 1.0, 0.9]
    for error, alarm in ((0.001, True), (0.5, False)):
        series = [Record(10 * n, {"m": value, "m_se": error}) for n, value in enumerate(values)]
        assert judge(series, MASS, settings()).alarm is alarm


def test_records_are_read_from_the_evaluations_of_a_metrics_file(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert read_records(file) == []
    lines = [
        {"step": 0, "split": "eval", "loss": 0.5, "skipped": None},
        {"step": 1, "split": "train", "loss": 0.4},
        {"step": 2, "split": "eval", "loss": None, "e": 1},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = read_records(file)
    assert [(record.step, record.metrics.get("loss"), record.metrics.get("e")) for record in found] == [
        (0, 0.5, None),
        (2, None, 1),
    ]
    assert record_of(3, {"e": math.nan, "m": 1.0}).metrics == {"m": 1.0}


# --- families ------------------------------------------------------------------------------------------


def config(*words: str) -> TrainConfig:
    found = load(open_conf(None), words)
    assert isinstance(found, TrainConfig)
    return found


def policy_limits(kl: float, length: float) -> Limits:
    return Limits((Limit("kl/sequence", most=kl), Limit("response_length", least=length)))


def pairs_limits(displaced: float, kl: float) -> Limits:
    return Limits((Limit("displacement", most=displaced), Limit("kl/token", most=kl)), together=True)


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["algo=dpo"], pairs_limits(0.4, 0.5)),
        (["algo=slic", "watch.displaced=0.3", "watch.kl=1"], pairs_limits(0.3, 1.0)),
        (["algo=ipo", "watch.indicator=held_out"], Rule("entropy/top10", with_loss=True)),
        (["algo=hypo", "watch.indicator=sampled"], Rule("sampled/entropy_top10", with_loss=True)),
        (["algo=hinge", "watch.indicator=sampled"], Rule("sampled/mass_top10")),
        (["algo=slic", "watch.indicator=held_out"], Rule("mass/top10")),
        (["algo=sft"], Rule("loss", rises=True)),
        (["algo=reward"], Rule("loss", rises=True)),
        (["algo=ppo"], policy_limits(30.0, 0.25)),
        (["algo=ppo", "algo.kl_target=4", "algo.stop_length=0.5"], policy_limits(12.0, 0.5)),
    ],
)
def test_every_family_has_its_rule(words: list[str], rule: Rule | Limits) -> None:
    found = config(*words)
    assert rule_of(found.algo, found.watch) == rule


def policy(kl: Sequence[float], length: Sequence[float]) -> list[Record]:
    return [
        Record(10 * n, {"kl/sequence": one, "response_length": other})
        for n, (one, other) in enumerate(zip(kl, length, strict=True))
    ]


def test_a_policy_within_its_limits_is_no_alarm() -> None:
    found = judge(policy([0.0, 10.0, 29.0], [40.0, 30.0, 11.0]), policy_limits(30.0, 0.25), settings())
    assert (found.alarm, found.keep, found.held) == (False, 20, (20,))


@pytest.mark.parametrize(
    ("kl", "length", "indicator"),
    [
        ([0.0, 10.0, 20.0, 31.0], [40.0] * 4, "kl/sequence"),
        ([0.0] * 4, [40.0, 30.0, 20.0, 9.0], "response_length"),
    ],
)
def test_a_policy_past_a_limit_keeps_the_last_evaluation_within(
    kl: list[float], length: list[float], indicator: str
) -> None:
    found = judge(policy(kl, length), policy_limits(30.0, 0.25), settings())
    assert found.alarm
    assert (found.since, found.keep) == (30, 20)
    assert [turn.indicator for turn in found.turns if turn.moved] == [indicator]


RISING = [0.0, 0.1, 0.3, 0.4, 0.5, 0.6]
FAR = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def pairs(displacement: Sequence[float], kl: Sequence[float]) -> Verdict:
    series = records(displacement=displacement, **{"kl/token": kl})
    return judge(series, pairs_limits(0.4, 0.5), settings())


def test_pairs_take_both_limits_to_be_passed() -> None:
    far = pairs(RISING, FAR)
    assert (far.alarm, far.since, far.keep) == (True, 40, 30)
    share, distance = far.turns
    assert share == Turn("displacement", 0, 0.0, 0.6, 0.4, rises=True, limited=True)
    assert distance == Turn("kl/token", 0, 0.0, 1.0, 0.5, rises=True, limited=True)
    assert pairs(RISING, [0.0, 0.1, 0.2, 0.3, 0.4, 0.6]).since == 50
    near = pairs(RISING, [0.05] * 6)
    assert (near.alarm, near.past, near.keep) == (False, (), 50)
    assert not pairs([0.1] * 6, FAR).alarm


def test_without_samples_the_share_decides_alone() -> None:
    found = judge(records(displacement=RISING), pairs_limits(0.4, 0.5), settings())
    assert (found.alarm, found.since, found.keep) == (True, 40, 30)
    assert [turn.indicator for turn in found.turns] == ["displacement"]
    # What is kept was settled when the alarm began.
    back = judge(records(displacement=[*RISING, 0.3]), pairs_limits(0.4, 0.5), settings())
    assert (back.alarm, back.past, back.keep) == (False, ((40, 60),), 60)


def test_the_lowest_loss_within_the_limits_is_kept() -> None:
    loss = [0.7, 0.6, 0.4, 0.5, 0.3, 0.2]
    found = judge(records(displacement=RISING, loss=loss), pairs_limits(0.4, 0.5), settings())
    assert (found.since, found.keep, found.held) == (40, 20, (20,))


def test_an_answer_that_grows_is_no_collapse() -> None:
    assert not judge(policy([0.0] * 3, [10.0, 30.0, 60.0]), policy_limits(30.0, 0.25), settings()).alarm
