"""The watch in whole runs of the tiny model: warned, stopped, adapted, switched off, resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alignctl.cli import main
from alignctl.train.watch.course import read_records

pytestmark = pytest.mark.usefixtures("workplace")

# A threshold so low that the first step back of entropy and loss is an alarm.
TOUCHY = [
    *("model=tiny", "dataset.pairs=32", "dataset.eval_pairs=8", "dataset.gold_samples=2"),
    *("eval.max_new_tokens=4", "eval.every=2", "checkpoint.every=100", "train.steps=24", "train.lr=0.02"),
    *("train.schedule=constant", "hardware.threads=1", "watch.samples=4", "watch.window=1"),
    *("watch.indicator=sampled", "watch.noise=0.001"),
]


def train(out: str, *words: str) -> Path:
    chosen = {word.partition("=")[0] for word in words}
    settings = [word for word in TOUCHY if word.partition("=")[0] not in chosen]
    assert main(["train", f"out={out}", *settings, *words]) == 0
    return Path(out)


def record(run: Path) -> dict[str, object]:
    return json.loads((run / "run.json").read_text())


def train_lines(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "train"]


def model_of(place: Path) -> dict[str, torch.Tensor]:
    return load_file(place / "model.safetensors")


@pytest.mark.parametrize("rule", [(), ("watch.indicator=displacement", "watch.displaced=0.3")])
def test_an_alarm_stops_the_run_and_the_checkpoint_before_it_is_kept(
    capsys: pytest.CaptureFixture[str], rule: tuple[str, ...]
) -> None:
    run = train("run", "watch.action=stop", *rule)
    found, text = record(run), capsys.readouterr()
    watch, steps = found["watch"], train_lines(run)
    assert found["status"] == "stopped"
    assert watch["alarm"] is True  # type: ignore[index]
    since, keep = watch["since"], watch["keep"]  # type: ignore[index]
    # It ended at the evaluation that raised the alarm, and no earlier one did.
    assert steps[-1]["step"] == since < 24
    assert [one.step for one in read_records(run / "metrics.jsonl")] == list(range(0, since + 1, 2))
    assert 0 < keep < since
    assert found["kept"] == {"step": keep, "why": "alarm"}
    kept = model_of(run / "checkpoints" / f"step-{keep:06d}")
    assert all(torch.equal(tensor, model_of(run / "model")[name]) for name, tensor in kept.items())
    assert f"over-optimised since step {since} (watch.action=stop)" in str(found["stopped"])
    assert f"Over-optimised since step {since}" in text.err
    assert f"(step {keep}, before it was over-optimised)" in text.out
    assert "watch.action=adapt" in text.out
    page = (run / "report.html").read_text()
    assert f"Keep step {keep}, which came before that." in page
    # The kept column holds the figures of that step.
    loss = {one.step: one.metrics["loss"] for one in read_records(run / "metrics.jsonl")}
    assert found["headline"]["loss"]["best"]["value"] == pytest.approx(loss[keep])  # type: ignore[index]


def test_a_warning_changes_nothing_and_leaves_what_it_would_keep_on_disk() -> None:
    warned, ignored = train("warned"), train("ignored", "watch.action=off")
    assert record(warned)["kept"] == record(ignored)["kept"]
    keep = record(warned)["watch"]["keep"]  # type: ignore[index]
    assert (warned / "checkpoints" / f"step-{keep:06d}").is_dir()
    assert (warned / "metrics.jsonl").read_bytes() == (ignored / "metrics.jsonl").read_bytes()
    warnings = record(warned)["warnings"]
    assert any("Over-optimised since step" in str(one) for one in warnings)  # type: ignore[attr-defined]
    assert record(ignored)["warnings"] == []
    assert "watch" not in record(ignored)
    assert "Over-optimisation" not in (ignored / "report.html").read_text()


def test_adapting_holds_on_to_chosen_answers_while_the_alarm_lasts() -> None:
    plain, adapted = train("plain"), train("adapted", "watch.action=adapt", "watch.anchor=8")
    weights = {line["step"]: line["watch/anchor"] for line in train_lines(adapted)}
    assert set(weights.values()) <= {0.0, 2.0, 4.0, 6.0, 8.0}
    since = min(step for step, weight in weights.items() if weight)
    # Up to the alarm both runs are the same.
    same = [line for line in train_lines(plain) if line["step"] < since]
    assert [
        {name: value for name, value in line.items() if name != "watch/anchor"}
        for line in train_lines(adapted)[: len(same)]
    ] == same
    assert all("watch/anchor" not in line for line in train_lines(plain))
    last = [read_records(run / "metrics.jsonl")[-1].metrics for run in (plain, adapted)]
    assert last[1]["likelihood/chosen"] > last[0]["likelihood/chosen"] + 0.1


@pytest.mark.parametrize("algo", ["sft", "hinge", "slic", "reward", "ppo", "hypo"])
def test_every_family_is_watched(algo: str) -> None:
    online = [*(["algo.max_new_tokens=4", "algo.samples=2"] if algo in ("ppo", "hypo") else [])]
    prompts = ["algo.prompts_per_step=2"] if algo == "hypo" else []
    run = train(algo, f"algo={algo}", "train.steps=6", "eval.every=1", "train.lr=1e-3", *online, *prompts)
    watch = record(run)["watch"]
    assert watch["evaluations"] == 7  # type: ignore[index]
    assert "evaluations" in watch["words"]["verdict"] or "step" in watch["words"]["verdict"]  # type: ignore[index]


def test_few_evaluations_and_none_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    train("few", "train.steps=4", "eval.every=4")
    assert "2 evaluations are too few to tell over-optimisation by: 5 are needed" in capsys.readouterr().out
    train("none", "train.steps=4", "dataset.eval_pairs=0")
    assert "nothing was held out" in capsys.readouterr().out
