"""What every evaluation says of the policy's own answers: present, exact where it can be, undisturbed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from alignctl.cli import main

pytestmark = pytest.mark.usefixtures("workplace")

QUICK = {
    "model": "tiny",
    "dataset.pairs": "32",
    "dataset.eval_pairs": "8",
    "dataset.gold_samples": "4",
    "eval.max_new_tokens": "8",
    "eval.every": "2",
    "watch.samples": "5",
    "train.steps": "4",
    "train.batch_size": "4",
}
ONLINE = {"algo.max_new_tokens": "8", "algo.samples": "2"}
LETTERS = {"reward": "pattern", "reward.pattern": "[aeiou]", "algo.missing_end_score": "null"}
ALGOS = {
    "dpo": {"algo": "dpo"},
    "dpo-lora": {"algo": "dpo", "adapter": "lora"},
    "sft": {"algo": "sft"},
    "hypo": {"algo": "hypo", "algo.prompts_per_step": "2", **ONLINE},
    "ppo": {"algo": "ppo", **ONLINE, **LETTERS},
}
FIGURES = ("likelihood", "entropy_top10", "mass_top10", "distinct")
SAMPLED = {f"sampled/{name}{end}" for name in FIGURES for end in ("", "_se")}
LENGTH = {"response_length", "response_length_se"}
KL = {"kl/sequence", "kl/token", "kl/sequence_se", "kl/token_se"}


def train(out: str, settings: dict[str, str]) -> Path:
    """Run the command line in this process, expecting success."""
    words = [f"{key}={value}" for key, value in (QUICK | settings).items()]
    assert main(["train", f"out={out}", *words]) == 0
    return Path(out)


def evaluations(run: Path) -> list[dict[str, float]]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["split"] == "eval"]


def watched(run: Path) -> list[dict[str, float]]:
    """What evaluations say of watched answers."""
    return [{name: line[name] for name in SAMPLED | LENGTH | KL if name in line} for line in evaluations(run)]


@pytest.mark.parametrize("name", ALGOS)
def test_every_evaluation_of_every_algorithm_has_the_figures(name: str) -> None:
    wanted = SAMPLED | LENGTH if name == "sft" else SAMPLED | LENGTH | KL
    lines = evaluations(train("run", ALGOS[name]))
    assert [line["step"] for line in lines] == [0, 2, 4]
    for line in lines:
        # A tiny random model answers up to the limit, so lengths have no spread.
        assert wanted <= set(line)
        assert line["sampled/likelihood"] < 0 < line["sampled/entropy_top10"]
        assert 0 < line["sampled/mass_top10"] <= 1
        assert 0 < line["sampled/distinct"] <= 1.1
        assert 1 <= line["response_length"] <= 8
    if name not in ("sft", "ppo"):
        assert {"entropy/top10_se", "mass/top10_se", "loss_se"} <= set(lines[0])


def test_a_reward_model_samples_nothing() -> None:
    lines = evaluations(train("run", {"algo": "reward"}))
    assert not any("sampled/" in name or "kl/" in name for line in lines for name in line)
    assert all("loss_se" in line for line in lines)


def test_where_nobody_watches_nothing_is_sampled() -> None:
    (first, *_) = evaluations(train("run", {"watch.samples": "0", "watch.action": "off"}))
    assert not (SAMPLED | LENGTH | KL) & set(first)
    assert "gold/mean" in first


@pytest.mark.parametrize("name", ["dpo", "dpo-lora", "hypo"])
def test_the_kl_of_the_start_is_zero_and_of_a_policy_that_stands_still_nothing(name: str) -> None:
    start, *later = evaluations(train("run", ALGOS[name] | {"train.lr": "1e-30"}))
    assert start["kl/sequence"] == start["kl/token"] == start["kl/token_se"] == 0.0
    # From the reference's own forward passes: the copy, or the policy without its adapter.
    assert all(abs(line["kl/sequence"]) < 1e-4 for line in later)


@pytest.mark.parametrize("name", ["dpo", "dpo-lora", "ppo"])
def test_a_policy_that_moves_leaves_its_reference_behind(name: str) -> None:
    *_, last = evaluations(train("run", ALGOS[name] | {"train.lr": "3e-2", "watch.action": "off"}))
    assert abs(last["kl/sequence"]) > 1e-2


def test_a_reference_of_another_name_is_asked() -> None:
    other = train("other", {"algo": "sft", "train.lr": "1e-2"})
    start, *_ = evaluations(train("run", {"algo": "dpo", "algo.reference.path": str(other)}))
    assert abs(start["kl/sequence"]) > 1e-3


def test_the_figures_do_not_depend_on_what_else_is_answered() -> None:
    """At temperature 1 an answer serves both, at another both are drawn at the numbers of their prompt."""
    plain = watched(train("plain", {}))
    for number, settings in enumerate(
        (
            {"eval.temperature": "1.0"},
            {"eval.temperature": "0.0", "dataset.gold_samples": "8"},
            {"dataset.gold_samples": "0", "eval.samples": "0"},
        )
    ):
        for line, other in zip(plain, watched(train(f"run-{number}", settings)), strict=True):
            assert other == pytest.approx(line, abs=1e-4)


def test_what_is_read_does_not_depend_on_what_is_watched() -> None:
    one, other = train("one", {}), train("other", {"watch.samples": "8"})
    assert (one / "samples.jsonl").read_bytes() == (other / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("name", ["dpo", "dpo-lora", "ppo"])
def test_a_resumed_run_measures_the_same(name: str) -> None:
    settings = ALGOS[name] | {"checkpoint.every": "2", "train.steps": "6"}
    whole = train("whole", settings)
    shutil.copytree(whole, "broken")
    broken = Path("broken")
    for step in ("step-000004", "step-000006"):
        shutil.rmtree(broken / "checkpoints" / step, ignore_errors=True)
    record = json.loads((broken / "run.json").read_text())
    (broken / "run.json").write_text(json.dumps(record | {"status": "running"}))
    train("broken", settings)
    assert json.loads((broken / "run.json").read_text())["resumes"]
    assert (broken / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def timed(run: Path) -> list[dict[str, Any]]:
    """What timing.jsonl says of the evaluations."""
    lines = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "eval"]


def test_the_parts_of_an_evaluation_are_timed() -> None:
    lines = timed(train("run", {}))
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert set(lines[0]["parts"]) == {"answers"}
    parts = {"held-out pairs", "answers", "own answers, by the reference"}
    for line in lines[1:]:
        assert set(line["parts"]) == parts
        assert sum(line["parts"].values()) <= line["seconds"] + 1e-3


@pytest.mark.parametrize("name", ["dpo", "dpo-lora", "ppo"])
def test_the_answers_before_the_first_step_are_drawn_once_for_all_runs_of_a_model(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = train("first", ALGOS[name]), train("second", ALGOS[name] | {"train.lr": "1e-3"})
    monkeypatch.setenv("ALIGNCTL_CACHE", str(tmp_path / "another"))
    alone = train("alone", ALGOS[name])
    assert ["answers" in timed(run)[0]["parts"] for run in (first, second, alone)] == [True, False, True]
    assert all("answers" in line["parts"] for line in timed(second)[1:])
    assert evaluations(first)[0] == evaluations(second)[0] == evaluations(alone)[0]
    answers = [(run / "samples.jsonl").read_bytes().splitlines()[:4] for run in (first, second, alone)]
    assert answers[0] == answers[1] == answers[2]


def planned(capsys: pytest.CaptureFixture[str], settings: dict[str, str]) -> tuple[int, int]:
    """Bytes for the optimiser and models beside the policy, and those of its weights."""
    words = [f"{key}={value}" for key, value in (QUICK | settings).items()]
    capsys.readouterr()
    assert main(["train", *words, "--dry-run", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    return document["memory"]["state_bytes"], 4 * document["model"]["parameters"]


@pytest.mark.parametrize(
    ("settings", "keeps"),
    [
        ({}, True),
        ({"adapter": "lora"}, False),
        ({"algo": "sft"}, False),
        (ALGOS["ppo"], False),
        ({"dataset.eval_pairs": "0"}, False),
    ],
    ids=["full", "adapter off", "no reference", "in memory anyway", "nothing held out"],
)
def test_memory_is_planned_for_the_reference_that_the_watch_keeps(
    capsys: pytest.CaptureFixture[str], settings: dict[str, str], keeps: bool
) -> None:
    watching, weights = planned(capsys, settings)
    without, _ = planned(capsys, settings | {"watch.samples": "0", "watch.action": "off"})
    assert watching - without == (weights if keeps else 0)
