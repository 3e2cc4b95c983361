"""Recipes as they run: what is finished, what may change, and going on after a stop."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from functools import cache as once
from pathlib import Path
from typing import Any

import pytest

from alignctl.cli import main
from alignctl.cli.options import open_conf
from alignctl.cli.recipe_plan import Chain, Stage, plan
from alignctl.cli.recipe_run import ended_with
from alignctl.train.durable import remove

ROOT = Path(__file__).parents[2]
SCORES = "  # Figures.\n  scores: eval {a} {mean}\n"
PAIR = f"""# Two seeds, their mean, and what came of them.

# The chain.
stages:
  # The first seed.
  a: train seed=0
  # The second seed.
  b: train seed=1
  # The mean of both.
  mean: soup {{a}} {{b}}
{SCORES}"""
SMALL = [
    *("recipe=pair", "model=tiny", "model.layers=1", "hardware=cpu", "hardware.threads=1"),
    *("dataset.pairs=8", "dataset.eval_pairs=4", "dataset.gold_samples=0", "train.batch_size=4"),
    *("eval.samples=0", "scores.eval.samples=0"),
]


def write_recipe(text: str, name: str = "pair") -> None:
    Path("own/recipe").mkdir(parents=True, exist_ok=True)
    Path(f"own/recipe/{name}.yaml").write_text(text, encoding="utf-8")


@once
def planned(*words: str, text: str = PAIR) -> Chain:
    """The same for every test, as its directories are relative."""
    write_recipe(text)
    return plan(open_conf("own"), ["recipe=pair", "out=o", *words])


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNCTL_CACHE", str(tmp_path / "cache"))
    write_recipe(PAIR)


def run_pair(*words: str) -> int:
    return main(["train", "recipe=pair", "-cd", "own", "out=o", *words])


def recorded() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path("o/recipe.json").read_text())["stages"]
    return found


def pretend_finished(stage: Stage, *, status: str = "done", passed: bool = True) -> None:
    """The records that a finished stage leaves, and nothing else of it."""
    stage.directory.mkdir(parents=True)
    name = "soup.json" if stage.verb == "soup" else "run.json"
    (stage.directory / name).write_text(json.dumps({"request": stage.request, "status": status}))
    if stage.verb == "eval":
        (stage.directory / "results.json").write_text(json.dumps({"gates": [{"passed": passed}]}))


def test_whether_a_stage_is_finished_is_read_from_its_directory():
    a, b, mean, scores = planned().stages
    assert [ended_with(stage) for stage in (a, b, mean, scores)] == [None] * 4
    pretend_finished(a)
    pretend_finished(b, status="running")
    pretend_finished(mean)
    pretend_finished(scores, passed=False)
    assert [ended_with(stage) for stage in (a, b, mean, scores)] == [0, None, 0, 5]
    assert ended_with(planned("train.steps=3").stages[0]) is None
    (mean.directory / "soup.json").write_text("{")
    assert ended_with(mean) is None


def test_a_finished_chain_runs_nothing_and_says_where_things_are(capsys: pytest.CaptureFixture[str]):
    for stage in planned().stages:
        pretend_finished(stage)
    Path("o/4-scores/report.html").touch()
    assert run_pair() == 0
    shown = capsys.readouterr()
    assert [line.split()[-1] for line in shown.err.splitlines()] == [
        *("o/1-a", "o/2-b", "o/3-mean", "o/4-scores"),
    ]
    assert "  mean    o/3-mean\n" in shown.out
    assert shown.out.endswith("report  o/4-scores/report.html\n")
    assert json.loads(Path("o/recipe.json").read_text())["schema"] == 1
    assert [(stage["name"], stage["exit_code"]) for stage in recorded()] == [
        *(("a", 0), ("b", 0), ("mean", 0), ("scores", 0)),
    ]
    assert recorded()[2]["command"] == "alignctl soup o/1-a o/2-b out=o/3-mean"


def test_a_gate_that_failed_stays_failed(capsys: pytest.CaptureFixture[str]):
    for stage in planned().stages:
        pretend_finished(stage, passed=False)
    assert run_pair() == 5
    assert "stage 4 of 4, scores: a gate failed" in capsys.readouterr().err
    assert recorded()[3]["exit_code"] == 5


def test_stages_that_have_begun_may_not_change(capsys: pytest.CaptureFixture[str]):
    for stage in planned().stages:
        pretend_finished(stage)
    assert run_pair() == 0
    capsys.readouterr()
    assert run_pair("b.train.lr=1e-4") == 7
    shown = capsys.readouterr().err
    assert "o holds this recipe with another stage 2" in shown
    assert "was   alignctl train seed=1 out=o/2-b" in shown
    assert "now   alignctl train seed=1 train.lr=1e-4 out=o/2-b" in shown
    write_recipe(PAIR.replace(SCORES, ""))
    assert run_pair() == 7
    assert "now   no such stage" in capsys.readouterr().err
    write_recipe(PAIR, "other")
    assert main(["train", "recipe=other", "-cd", "own", "out=o"]) == 7
    assert "o holds the recipe pair" in capsys.readouterr().err


def test_stages_to_come_may_change_and_the_first_one_to_fail_stops_the_chain(
    capfd: pytest.CaptureFixture[str],
):
    for stage in planned().stages:
        pretend_finished(stage)
    assert run_pair() == 0
    remove(Path("o/3-mean"))
    remove(Path("o/4-scores"))
    capfd.readouterr()
    # The members hold no weights.
    assert run_pair("mean.dtype=float16") == 3
    shown = capfd.readouterr()
    assert "stage 3 of 4, mean: alignctl soup o/1-a o/2-b dtype=float16 out=o/3-mean" in shown.err
    assert "stage 3 of 4, mean ended with exit code 3; the same command goes on from there" in shown.err
    assert "stage 4 of 4" not in shown.err
    assert shown.out == ""
    assert [stage["exit_code"] for stage in recorded()] == [0, 0, 3, None]
    assert "dtype=float16" in recorded()[2]["command"]


def test_overwriting_removes_the_stages_and_nothing_else(capfd: pytest.CaptureFixture[str]):
    text = "# Mine.\nstages:\n  a: soup not/here nor/there\n  b: soup {a} not/here\n"
    write_recipe(text)
    for stage in planned(text=text).stages:
        pretend_finished(stage)
    Path("o/notes.txt").touch()
    assert run_pair() == 0
    assert run_pair("overwrite=true") == 3
    assert sorted(path.name for path in Path("o").iterdir()) == [".lock", "notes.txt", "recipe.json"]
    assert "stage 1 of 2, a ended with exit code 3" in capfd.readouterr().err


def test_a_foreign_record_is_refused(capsys: pytest.CaptureFixture[str]):
    Path("o").mkdir()
    Path("o/recipe.json").write_text('{"schema": 1, "stages": []}')
    assert run_pair() == 7
    assert "o/recipe.json is not a recipe's record" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.long
def test_a_chain_that_is_stopped_goes_on_and_runs_nothing_twice(capfd: pytest.CaptureFixture[str]):
    command = [sys.executable, "-m", "alignctl.cli", "train", "-cd", "own", "out=o", *SMALL]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment) as chain:
        while not Path("o/2-b/run.json").exists():
            assert chain.poll() is None
            time.sleep(0.02)
        chain.send_signal(signal.SIGTERM)
    assert chain.returncode == 143
    assert "stopped in stage 2 of 4, b; the same command goes on from there" in capfd.readouterr().err
    assert [stage["exit_code"] for stage in recorded()] == [0, 143, None, None]
    assert not Path("o/3-mean").exists()

    first = written_at("o/1-a")
    subprocess.run(command, env=environment, check=True)
    shown = capfd.readouterr()
    assert "stage 1 of 4, a is done: o/1-a" in shown.err
    assert "report  o/4-scores/report.html" in shown.out
    assert [stage["exit_code"] for stage in recorded()] == [0, 0, 0, 0]
    assert written_at("o/1-a") == first
    for stage in recorded():
        assert shlex.split(stage["command"])[-1] == f"out={stage['directory']}"

    earlier = ("o/1-a", "o/2-b", "o/3-mean")
    before = written_at(*earlier)
    remove(Path("o/4-scores"))
    subprocess.run(command, env=environment, check=True)
    assert "stage 3 of 4, mean is done" in capfd.readouterr().err
    assert written_at(*earlier) == before
    assert Path("o/4-scores/results.json").exists()


def written_at(*directories: str) -> dict[str, int]:
    files = [path for directory in directories for path in Path(directory).rglob("*") if path.is_file()]
    return {str(path): path.stat().st_mtime_ns for path in files}
