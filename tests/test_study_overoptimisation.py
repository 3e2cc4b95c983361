"""The study of over-optimisation: its truth, what each rule would have kept, and the half that judges."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import TrainConfig, WatchSettings
from alignctl.evaluate.rewards import pattern_reward
from alignctl.train.watch.course import Record

STUDIES = Path(__file__).parents[1] / "scripts" / "studies"
sys.path[:0] = [str(STUDIES), str(STUDIES / "overoptimisation")]

grid, harmless, kept, replay, tables = map(
    importlib.import_module, ("grid", "harmless", "kept", "replay", "tables")
)

SVG = "{http://www.w3.org/2000/svg}"
RUN = grid.Run(grid.Arm("dpo", "algo.beta=0.2"), seed=1)


def evaluations(
    gold: Sequence[float], *, loss: Sequence[float] | None = None, error: float = 0.01
) -> list[Record]:
    """At steps 0, 10, 20, ...; the likelihood of chosen answers rises throughout."""
    losses = loss or [1.0 - 0.01 * place for place in range(len(gold))]
    return [
        Record(
            10 * place,
            {
                "gold/mean": value,
                "gold/mean_se": error,
                "loss": losses[place],
                "likelihood/chosen": -3.0 + 0.1 * place,
                "kl/token": 0.01 * place,
                "displacement": 0.0,
                "sampled/entropy_top10": 2.0,
            },
        )
        for place, value in enumerate(gold)
    ]


def candidate(name: str) -> replay.Candidate:
    return next(one for one in replay.CANDIDATES if one.name == name)


def default_watch() -> dict[str, object]:
    config = load(open_conf(None), [])
    assert isinstance(config, TrainConfig)
    return config.watch.model_dump()


def test_truth_is_a_weighted_mean_of_neighbours_and_leaves_out_the_start() -> None:
    found = replay.truth(evaluations([9.0, 0.0, 0.4, 0.8]))
    assert found.steps == (10, 20, 30)
    assert found.values[0] == pytest.approx((0.5 * 0.0 + 0.25 * 0.4) / 0.75)
    assert found.values[1] == pytest.approx(0.25 * 0.0 + 0.5 * 0.4 + 0.25 * 0.8)
    assert found.error == pytest.approx(0.01 * math.sqrt(0.375))


@pytest.mark.parametrize(
    ("end", "error", "over"),
    [
        (0.3, 0.01, True),
        (0.3, 0.2, False),  # within what chance moves
        (0.49, 0.001, False),  # certain, but less than a tenth of the best
    ],
)
def test_over_optimised_is_a_fall_of_a_tenth_that_is_no_noise(end: float, error: float, over: bool) -> None:
    found = replay.truth(evaluations([0.1, 0.5, 0.5, 0.5, end, end, end], error=error))
    assert found.over_optimised is over


def test_without_a_rule_the_end_or_the_lowest_loss_is_kept() -> None:
    records = evaluations([0.0, 0.2, 0.6, 0.4, 0.1], loss=[1.0, 0.9, 0.8, 0.5, 0.7])
    end, loss = (
        replay.outcome(candidate(name), RUN, records) for name in ("to the end", "lowest held-out loss")
    )
    assert (end.kept, end.fired, loss.kept, loss.fired) == (40, None, 30, None)
    assert loss.gold_kept == pytest.approx(0.25 * 0.6 + 0.5 * 0.4 + 0.25 * 0.1)
    assert loss.peak == 20
    assert not loss.close


def test_a_rule_keeps_what_its_first_alarm_settles() -> None:
    records = evaluations([0.0, 0.2, 0.4, 0.6, 0.5, 0.4, 0.2, 0.1, 0.1, 0.1])
    turned = [
        Record(one.step, one.metrics | {"displacement": 0.1 * place + 0.01, "kl/token": 0.15 * place})
        for place, one in enumerate(records)
    ]
    found = replay.outcome(candidate(tables.DEFAULT), RUN, turned)
    assert found.kept == found.peak == 30
    assert found.fired == 40
    quiet = replay.outcome(candidate(tables.DEFAULT), RUN, records)
    assert quiet.fired is None
    assert quiet.kept == 90  # where held-out loss is lowest


def test_counts_are_of_the_runs_they_speak_of() -> None:
    over = replay.outcome(candidate("to the end"), RUN, evaluations([0.0, 0.6, 0.6, 0.1, 0.1]))
    sound = replay.outcome(candidate("to the end"), RUN, evaluations([0.0, 0.1, 0.2, 0.3, 0.4]))
    of = replay.summary([over, sound])["others"]
    assert (of["runs"], of["over_optimised"]) == (2, 1)
    assert of["close"]["count"] == 0
    assert of["close"]["of"] == of["false_alarms"]["of"] == 1
    assert of["gold_end"] == pytest.approx(over.gold_end)
    assert of["gold_end_of_all"] == pytest.approx((over.gold_end + sound.gold_end) / 2)
    low, high = of["missed"]["interval"]
    assert 0 < low < high == 1
    assert "calibration" not in replay.summary([over])


def test_the_first_table_has_what_the_default_rule_does() -> None:
    default = WatchSettings.model_validate(default_watch())
    assert f"displacement above {default.displaced:g}, KL above {default.kl:g}" == tables.DEFAULT
    records = {RUN: evaluations([0.0, 0.2, 0.6, 0.4, 0.1])}
    found = {one.name: [replay.outcome(one, RUN, records[RUN])] for one in replay.CANDIDATES}
    table = tables.tables(found)
    assert "| dpo-0.2-seed-1 | 0.450 (20) | no | 0.200 (40) | 0.200 | yes |" in table
    assert "others" in table
    assert "calibration" not in table


def test_adapted_runs_stand_beside_their_twins() -> None:
    twin = grid.Run(RUN.arm, seed=1, adapt=True)
    table = tables.adapted(
        {RUN: evaluations([0.0, 0.6, 0.2, 0.2, 0.2]), twin: evaluations([0.0, 0.6, 0.5, 0.5, 0.5])}
    )
    assert "| dpo-0.2-seed-1 | 0.467 | 0.200 | 0.500 |" in table
    assert tables.adapted({RUN: evaluations([0.0, 0.1])}) == ""


def test_every_evaluation_of_a_plain_run_is_a_dot_in_every_chart() -> None:
    twin = grid.Run(RUN.arm, seed=1, adapt=True)
    pictures = tables.charts({RUN: evaluations([0.0, 0.6, 0.2]), twin: evaluations([0.0, 0.6, 0.5])})
    assert set(pictures) == set(tables.CHARTS)
    for picture in pictures.values():
        titles = [element.text for element in ElementTree.fromstring(picture).iter(f"{SVG}title")]
        assert titles[1:] == ["dpo-0.2-seed-1, step 10", "dpo-0.2-seed-1, step 20"]
    assert tables.charts({}) == {}


# --- real preferences ------------------------------------------------------------------------------------


def test_only_short_pairs_are_used(tmp_path: Path) -> None:
    def transcript(answer: str) -> str:
        return f"\n\nHuman: hello\n\nAssistant: {answer}"

    rows = [
        {"chosen": transcript("good"), "rejected": transcript("bad")},
        {"chosen": transcript("good" * harmless.LONGEST), "rejected": transcript("bad")},
        {"chosen": transcript(""), "rejected": transcript("bad")},  # no pair
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (pair,) = harmless._short_pairs(data)
    assert pair == {
        "prompt": [{"role": "user", "content": "hello"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }


def test_truth_of_preferences_is_the_rate_of_wins_over_the_start(tmp_path: Path) -> None:
    asked = [{"prompt": [{"role": "user", "content": text}]} for text in ("one", "two")]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    run = tmp_path / "run"
    run.mkdir()
    answers = {0: ("no", "no"), 10: ("yes", "no")}
    sampled = [
        # Not in the order of the prompts: the id decides.
        {"step": step, "id": f"held_out.jsonl:{line}", "prompt": "?", "answer": of_step[line - 1]}
        for step, of_step in answers.items()
        for line in (2, 1)
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sampled))
    metrics = [{"step": step, "split": "eval", "loss": 0.5} for step in answers]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    start, trained = harmless.judged_records(run, tmp_path, pattern_reward("yes"))
    assert start.metrics["gold/mean"] == 0.5
    won = 1 / (1 + math.exp(-1))
    assert trained.metrics["gold/mean"] == pytest.approx((won + 0.5) / 2)
    assert trained.metrics["gold/mean_se"] == pytest.approx((won - 0.5) / 2)
    assert trained.metrics["loss"] == 0.5


# --- what stays of a run ---------------------------------------------------------------------------------


def test_evaluations_that_are_kept_tell_the_same_story(tmp_path: Path) -> None:
    records = [
        Record(one.step, one.metrics | {"displacement": 0.1 * place / 3, "kl/token": 0.2 * place})
        for place, one in enumerate(evaluations([0.0, 0.2, 0.4, 1 / 3, 0.5, 0.4, 0.2, 0.1, 0.1, 0.1]))
    ]
    folder = tmp_path / "evaluations"
    assert not kept.is_kept(RUN, folder)
    kept.keep(RUN, grid.command(RUN, ("train.steps=90",)), records, folder)
    assert kept.is_kept(RUN, folder)
    found = kept.kept(RUN, folder)
    assert [one.step for one in found] == [one.step for one in records]
    assert found[3].metrics["gold/mean"] == 0.333333
    for rule in replay.CANDIDATES:
        before, after = (replay.outcome(rule, RUN, of_run) for of_run in (records, found))
        assert (after.fired, after.kept, after.peak) == (before.fired, before.kept, before.peak)
    document = json.loads((folder / "dpo-0.2-seed-1.json").read_text())
    assert "algo=dpo algo.beta=0.2 seed=1 train.steps=90 watch.action=warn" in document["command"]


def test_the_runs_that_are_kept_are_those_of_the_readme() -> None:
    folder = STUDIES / "overoptimisation" / "evaluations"
    runs = [run for arm in grid.GRID if kept.is_kept(run := grid.Run(arm, seed=3), folder)]
    assert len(runs) == len(list(folder.iterdir())) == 6
    found = {
        one.name: replay.summary([replay.outcome(one, run, kept.kept(run, folder)) for run in runs])["others"]
        for one in replay.CANDIDATES
    }
    readme = (STUDIES.parents[1] / "README.md").read_text(encoding="utf-8")
    told = {
        "the best": found[tables.DEFAULT]["gold_best_of_all"],
        f"**{tables.DEFAULT}**": found[tables.DEFAULT]["gold_kept_of_all"],
        "lowest held-out loss": found["lowest held-out loss"]["gold_kept_of_all"],
        "the last step": found["to the end"]["gold_kept_of_all"],
    }
    for name, value in told.items():
        (line,) = [line for line in readme.splitlines() if line.startswith(f"| {name} |")]
        assert f"{value:.3f}" in line.rpartition(" | ")[2], name
