"""What the watch says: alarms, their end, none, and too few evaluations to tell."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import TrainConfig
from alignctl.report.closing import Outcome, closing_text
from alignctl.report.watch_words import alarm_line, over_line, stop_reason, watch_words
from alignctl.train.watch.rule import Turn, Verdict

TURN = Turn("sampled/entropy_top10", from_step=60, from_value=1.5204, value=1.31, margin=0.0925)
ALARM = Verdict(
    evaluations=11,
    alarm=True,
    since=80,
    turns=(TURN,),
    loss_improves=False,
    keep=60,
    held=(60,),
    past=((20, 30),),
)
CALM = Verdict(evaluations=11, turns=(replace(TURN, value=1.5),), loss_improves=True, keep=60)


def config(*words: str) -> TrainConfig:
    found = load(open_conf(None), ["model=tiny", "train.lr=2e-5", *words])
    assert isinstance(found, TrainConfig)
    return found


def test_an_alarm_names_what_fell_since_when_what_to_keep_and_what_to_try() -> None:
    words = watch_words(ALARM, config("algo.beta=0.05"))
    assert words.verdict == (
        "Over-optimised since step 80: the top-10 entropy of its own answers fell from 1.520 (step 60) to "
        "1.310 bits, where 0.092 is noise, and the held-out loss no longer improves."
    )
    assert "2410.11677" in words.meaning
    assert words.keep == "Keep step 60, which came before that (for eval, soup and model=: RUN@60)."
    stopped = watch_words(ALARM, config("watch.action=stop"))
    assert stopped.keep == "Keep step 60, which came before that."
    assert words.ways == ("algo.beta=0.1", "train.lr=1e-05", "train.steps=60", "watch.action=adapt")
    assert alarm_line(ALARM, config()) == f"{words.verdict} {words.keep}"
    assert stop_reason(ALARM) == "over-optimised since step 80 (watch.action=stop)"


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["algo=ipo", "algo.tau=0.2"], "algo.tau=0.4"),
        (["algo=slic", "algo.alpha=1"], "algo.alpha=2"),
        (["algo=hinge", "algo.beta=0.1"], "algo.beta=0.2"),
        (["algo=sft"], "train.lr=1e-05"),
    ],
)
def test_what_to_try_is_named_as_the_algorithm_has_it(words: list[str], first: str) -> None:
    assert watch_words(ALARM, config(*words)).ways[0] == first


def test_who_adapts_already_is_not_told_to() -> None:
    assert "watch.action=adapt" not in watch_words(ALARM, config("watch.action=adapt")).ways


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {},
            "No over-optimisation seen in 11 evaluations: the top-10 entropy of its own answers is 1.500 "
            "bits, within the noise of its highest, 1.520.",
        ),
        (
            {"turns": (TURN,)},
            "No over-optimisation seen in 11 evaluations: the top-10 entropy of its own answers fell from "
            "1.520 (step 60) to 1.310 bits, where 0.092 is noise, but the held-out loss still improves.",
        ),
        (
            {"past": ((20, 30), (50, 70))},
            "Over-optimised from step 20 to step 30, from step 50 to step 70, not at the end: the top-10 ",
        ),
        (
            {"evaluations": 1, "turns": ()},
            "1 evaluation is too few to tell over-optimisation by: 5 are needed, so an eval.every below 40.",
        ),
        (
            {"evaluations": 0, "turns": ()},
            "Over-optimisation was not looked for: nothing was held out to see it on.",
        ),
        ({"turns": (), "least": 2}, "No over-optimisation seen in 11 evaluations."),
    ],
)
def test_no_alarm_is_one_sentence(changes: dict[str, object], words: str) -> None:
    found = watch_words(replace(CALM, **changes), config())  # type: ignore[arg-type]
    assert found.verdict.startswith(words)
    assert (found.meaning, found.keep, found.ways) == ("", "", ())


def test_the_end_of_an_alarm_is_told() -> None:
    line = over_line(replace(CALM, past=((80, 120),)), config())
    assert line.startswith("no longer over-optimised at step 120 (alarm since step 80); the top-10 entropy")


@pytest.mark.parametrize(
    ("indicator", "values", "words"),
    [
        ("sampled/mass_top10", (0.86, 0.8, 0.02), "fell from 0.860 (step 60) to 0.800, where 0.020 is noise"),
        (
            "displacement",
            (0.0, 0.46, 0.4),
            "less likely than under the reference rose from 0.00 (step 60) to 0.46, where 0.40 is the limit",
        ),
        ("loss", (0.5, 0.7, 0.1), "the held-out loss rose from 0.5000 (step 60) to 0.7000, where 0.1000 is"),
        (
            "kl/sequence",
            (0.0, 31.0, 30.0),
            "the KL of its answers to the reference rose from 0.00 (step 60) to 31.00 nats, where 30.00 is "
            "the limit.",
        ),
        (
            "response_length",
            (40.0, 9.0, 30.0),
            "the length of its answers fell from 40 (step 60) to 9, where 10 is the",
        ),
    ],
)
def test_every_indicator_has_its_words(indicator: str, values: tuple[float, ...], words: str) -> None:
    rises = indicator in ("displacement", "loss", "kl/sequence")
    limited = indicator in ("displacement", "kl/sequence", "response_length")
    turn = Turn(indicator, 60, *values, rises=rises, limited=limited)
    found = watch_words(replace(ALARM, turns=(turn,), loss_improves=None), config())
    assert words in found.verdict
    assert found.meaning


SHARE = Turn("displacement", 0, 0.0, 0.6, 0.4, rises=True, limited=True)
KL = Turn("kl/token", 0, 0.0, 0.8123, 0.5, rises=True, limited=True)


def test_two_limits_that_are_passed_are_both_told() -> None:
    found = watch_words(replace(ALARM, turns=(SHARE, KL), loss_improves=None), config())
    assert found.verdict == (
        "Over-optimised since step 80: the share of held-out chosen answers less likely than under the "
        "reference rose from 0.00 (step 0) to 0.60, where 0.40 is the limit, and the KL of its answers to "
        "the reference rose from 0.000 (step 0) to 0.812 nats a token, where 0.500 is the limit."
    )
    assert found.meaning.startswith("Chosen answers are pushed down")


def test_of_two_limits_the_one_that_holds_says_why_there_is_no_alarm() -> None:
    found = watch_words(replace(CALM, turns=(SHARE, replace(KL, value=0.05)), loss_improves=None), config())
    assert found.verdict == (
        "No over-optimisation seen in 11 evaluations: the share of held-out chosen answers less likely than "
        "under the reference rose from 0.00 (step 0) to 0.60, where 0.40 is the limit, but the KL of its "
        "answers to the reference is 0.050 nats a token, where 0.500 is the limit."
    )


def test_the_closing_lines_have_the_verdict_and_what_to_type() -> None:
    words = watch_words(ALARM, config())
    outcome = Outcome("runs/a/model", 60, "alarm", 100, 5.0, chat=True, watch=words)
    lines = closing_text({}, outcome, 100).plain.splitlines()
    assert lines[0] == f"watch  {words.verdict} {words.keep}"
    assert lines[1] == "try    algo.beta=0.2   train.lr=1e-05   train.steps=60   watch.action=adapt"
    assert lines[2] == "model  runs/a/model  (step 60, before it was over-optimised)"
    calm = closing_text({}, replace(outcome, why="loss", watch=watch_words(CALM, config())), 100).plain
    assert "try  " not in calm
