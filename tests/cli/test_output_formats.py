"""`--format json|quiet` from the command line: one object or line on stdout, parseable lines on stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignctl.cli import main
from alignctl.cli.flags import output_format, split_flags
from alignctl.errors import UsageError

ROOT = Path(__file__).parents[2]
QUICK = [
    "watch.action=off",
    *("model=tiny", "dataset.pairs=16", "dataset.eval_pairs=6", "dataset.gold_samples=2"),
    *("eval.samples=2", "eval.max_new_tokens=4", "train.steps=2", "train.batch_size=4"),
]
PAIR = "# Two.\nstages:\n  a: train seed=0\n  b: soup {a} {a}\n"


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[Any, list[Any]]:
    """The object on stdout (None for none) and those on stderr."""
    assert main([*words, "--format", "json"]) == code
    shown = capsys.readouterr()
    results = [json.loads(line) for line in shown.out.splitlines()]
    assert len(results) <= 1
    return (results or [None])[0], [json.loads(line) for line in shown.err.splitlines()]


def quiet(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    assert main([*words, "--format=quiet"]) == code
    shown = capsys.readouterr()
    return shown.out, shown.err


def child(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "alignctl.cli", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


# --- runs ----------------------------------------------------------------------------------------------


def test_train_soup_and_eval_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    result, events = told(capsys, "train", *QUICK, "out=a")
    record = json.loads(Path("a/run.json").read_text())
    assert {key: result[key] for key in ("command", "status", "out", "model", "steps", "stopped")} == {
        "command": "train",
        "status": "done",
        "out": "a",
        "model": "a/model",
        "steps": 2,
        "stopped": None,
    }
    assert result["headline"] == record["headline"]
    assert (result["best_step"], result["seconds"]) == (record["best_step"], record["train_seconds"])
    assert [one["step"] for one in events if one["event"] == "step"] == [1, 2]
    assert {one["event"] for one in events} >= {"plan", "progress", "step", "eval"}

    assert main(["train", *QUICK, "out=b", "seed=1"]) == 0
    capsys.readouterr()
    result, _ = told(capsys, "soup", "a", "b", "out=ab")
    assert (result["command"], result["model"]) == ("soup", "ab")
    assert result["results"] == json.loads(Path("ab/soup.json").read_text())

    words = ["a", "ab", "dataset=demo", "dataset.eval_pairs=6", "eval.samples=0"]
    result, events = told(capsys, "eval", *words, "out=e", "gate.accuracy=0.999", code=5)
    assert result["results"] == json.loads(Path("e/results.json").read_text())
    assert result["report"] == "e/report.html"
    assert events[-1]["exit_code"] == 5
    assert "gates failed" in events[-1]["error"]

    assert quiet(capsys, "train", *QUICK, "out=q") == ("q/model\n", "")
    assert quiet(capsys, "soup", "a", "b", "out=qs")[0] == "qs\n"
    out, err = quiet(capsys, "eval", *words, "out=qe")
    assert out == "qe\n"
    assert err
    assert all(line.startswith("warning: ") for line in err.splitlines())


def test_the_format_is_no_part_of_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    for out, output in (("a", "text"), ("b", "json")):
        assert main(["train", *QUICK, f"out={out}", "--format", output]) == 0
    one, other = (json.loads(Path(out, "run.json").read_text()) for out in "ab")
    assert one["request"] == other["request"]
    cards = [Path(out, "model/README.md").read_text() for out in "ab"]
    assert cards[0].replace("out=a", "out=b").replace("# a", "# b") == cards[1]


@pytest.mark.long
def test_recipes_and_sweeps_hand_the_format_on() -> None:
    Path("own/recipe").mkdir(parents=True)
    Path("own/recipe/pair.yaml").write_text(PAIR)
    chain = child("train", "recipe=pair", "-cd", "own", *QUICK, "out=o", "--format", "json")
    result = json.loads(chain.stdout)
    assert (result["out"], result["recipe"]) == ("o", "pair")
    assert [stage["exit_code"] for stage in result["stages"]] == [0, 0]
    events = [json.loads(line) for line in chain.stderr.splitlines()]
    assert [one["command"] for one in events if "command" in one] == ["train", "soup"]
    again = child("train", "recipe=pair", "-cd", "own", *QUICK, "out=o", "--format", "quiet")
    assert (again.stdout, again.stderr) == ("o\n", "")
    diverging = ["out=p", "a.train.lr=1e30", "a.train.steps=9"]
    broken = child("train", "recipe=pair", "-cd", "own", *QUICK, *diverging, "--format", "json")
    errors = [one for one in map(json.loads, broken.stderr.splitlines()) if "error" in one]
    assert (broken.returncode, broken.stdout) == (1, "")
    assert [one["exit_code"] for one in errors] == [1, 1]
    assert errors[-1]["error"].startswith("stage 1 of 2, a ended with exit code 1")

    sweep = child("train", "-m", *QUICK, "algo.beta=0.1,0.3", "out=s", "--format", "json")
    assert [job["exit_code"] for job in json.loads(sweep.stdout)["jobs"]] == [0, 0]
    betas = [Path(f"s/{job}/config.yaml").read_text().split("beta: ")[1].split()[0] for job in (0, 1)]
    assert betas == ["0.1", "0.3"]
    again = child("train", "-m", *QUICK, "algo.beta=0.1,0.3", "out=s", "--format", "quiet")
    assert (again.stdout, again.stderr) == ("s\n", "")


# --- listings, configs, mistakes -----------------------------------------------------------------------


def test_listings_for_programs_and_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    groups, _ = told(capsys, "ls")
    algo = next(one for one in groups["groups"] if one["group"] == "algo")
    assert algo["default"] == "dpo"
    assert {"dpo", "ipo", "ppo"} <= {one["name"] for one in algo["options"] if one["about"]}
    settings = told(capsys, "ls", "algo")[0]["options"][0]["settings"]
    beta = next(one for one in settings if one["key"] == "algo.beta")
    assert (beta["default"], beta["needed"]) == (0.1, False)
    assert all(one["stages"] for one in told(capsys, "ls", "recipe")[0]["options"])
    assert quiet(capsys, "ls", "adapter")[0].split() == ["lora", "none"]
    assert "algo" in quiet(capsys, "ls")[0].split()


def test_the_config_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    config, _ = told(capsys, "train", "--cfg", "job", "algo=ipo", "algo.tau=0.25")
    assert config["algo"]["tau"] == 0.25
    Path("own/recipe").mkdir(parents=True)
    Path("own/recipe/pair.yaml").write_text(PAIR)
    chain, _ = told(capsys, "train", "recipe=pair", "-cd", "own", "out=o", "--cfg", "job")
    assert [stage["directory"] for stage in chain["stages"]] == ["o/1-a", "o/2-b"]
    assert chain["stages"][1]["config"]["members"] == ["o/1-a", "o/1-a"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train", "algo.bta=1"], 2, "algo.bta is not a setting of algo=dpo"),
        (["train", "--nope"], 2, "--nope is not a flag"),
        (["trian"], 2, "trian is not a command of alignctl"),
        (["soup", "./neither", "./nor", "out=x"], 3, "there is no model at ./neither"),
        (["ls", "nope"], 2, "nope is not a group of options"),
    ],
)
def test_mistakes_for_programs(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result, errors = told(capsys, *words, code=code)
    assert result is None
    assert errors[-1]["error"] == message
    assert errors[-1]["exit_code"] == code
    assert isinstance(errors[-1]["hints"], list)


def test_the_flag_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert split_flags(["--format", "json", "seed=1"])[0].output == "json"
    assert split_flags(["--format=quiet"])[0].output == "quiet"
    assert split_flags([])[0].output == "text"
    assert output_format(["train", "--format", "json"]) == "json"
    assert output_format(["train", "--format=quiet", "x"]) == "quiet"
    assert output_format(["train", "--format"]) == output_format(["--format", "xml"]) == "text"
    for words in (["--format", "jsno"], ["--format"], ["--format="]):
        with pytest.raises(UsageError, match="--format takes one value"):
            split_flags(words)
    assert main(["train", "--format", "jsno"]) == 2
    assert "did you mean   json" in capsys.readouterr().err


# --- streams that misbehave ----------------------------------------------------------------------------


def test_a_letter_that_the_locale_lacks_does_not_end_a_command() -> None:
    Path("own/algo").mkdir(parents=True)
    Path("own/algo/mine.yaml").write_text("# Smörgås.\ndefaults:\n  - dpo\n  - _self_\n", encoding="utf-8")
    done = child("ls", "algo", "-cd", "own", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"Sm\xf6rg\xe5s." in done.stdout
    done = child("ls", "algo", "-cd", "own", "--format", "json", PYTHONIOENCODING="ascii")
    assert "Smörgås." in [one["about"] for one in json.loads(done.stdout)["options"]]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_closed_streams_do_not_end_a_command() -> None:
    command = f"{sys.executable} -m alignctl.cli"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for line, code in ((f"{command} ls algo >&-", 0), (f"{command} train algo.bta=1 2>&-", 2)):
        done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")
