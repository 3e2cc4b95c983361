"""Help, listings, speed and pipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignctl.cli import main

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"


def alignctl(*words: str) -> list[str]:
    return [sys.executable, "-m", "alignctl.cli", *words]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train-help.txt", ["train", "--help"]),
        ("soup-help.txt", ["soup", "--help"]),
        ("eval-help.txt", ["eval", "--help"]),
        ("train-file-help.txt", ["train", "--help", "algo=ipo", "dataset=prefs.jsonl", "train.lr=1e-5"]),
        ("soup-ties-help.txt", ["soup", "--help", "a", "b", "soup=ties"]),
        ("ls.txt", ["ls"]),
        ("ls-adapter.txt", ["ls", "adapter"]),
        ("ls-recipe.txt", ["ls", "recipe"]),
        ("recipe-help.txt", ["train", "--help", "recipe=salsa-2seeds"]),
    ],
)
def test_help_is_the_golden_one_and_fits_the_screen(
    name: str, words: list[str], capsys: pytest.CaptureFixture[str]
):
    """`ALIGNCTL_GOLDEN=write pytest tests/cli` writes it anew; the diff is what changed."""
    assert main(words) == 0
    shown = capsys.readouterr().out
    if os.environ.get("ALIGNCTL_GOLDEN") == "write":
        (GOLDEN / name).write_text(shown, encoding="utf-8")
    assert shown == (GOLDEN / name).read_text(encoding="utf-8")
    assert max(len(line) for line in shown.splitlines()) <= 100


def shown_by(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def keys_of(shown: str) -> list[str]:
    """The settings in a help text: what stands at the beginning of its table lines."""
    found = [line.split()[0] for line in shown.splitlines() if line.startswith("  ") and line[2] != " "]
    return [key for key in found if "." in key and not key.endswith("*")]


def test_help_is_about_the_chosen_options(capsys: pytest.CaptureFixture[str]):
    shown = shown_by(["train", "algo=ipo", "-h", "adapter=lora", "model=owner/name"], capsys)
    for key in ("algo.tau", "adapter.targets", "model.revision"):
        assert key in keys_of(shown)
    assert "algo.beta" not in shown
    assert "dataset.pairs" not in shown, "nobody asked for the other groups"
    for name in ("*ipo", "*lora", "*pretrained", "*demo"):
        assert name in shown, "the groups come first, with what is chosen"


def test_help_of_everything_has_every_part(capsys: pytest.CaptureFixture[str]):
    whole = keys_of(shown_by(["train", "--help"], capsys))
    parts = [
        keys_of(shown_by(["train", part, "--help"], capsys)) for part in ("algo", "dataset", "train", "eval")
    ]
    assert all(part and set(part) <= set(whole) for part in parts)
    assert {key.partition(".")[0] for key in parts[2]} == {"train"}


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["train", "train.lr", "--help"], ["train.lr"]),
        (["train", "--help", "train.lr=1e-4"], ["train.lr"]),
        (["train", "algo.tau", "-h"], ["algo.tau"]),
        (
            ["train", "algo.reference.", "-h"],
            [f"algo.reference.{k}" for k in ("kind", "path", "members", "weights", "alpha")],
        ),
        (
            ["eval", "runs/a", "gate", "-h"],
            [f"gate.{k}" for k in ("accuracy", "accuracy_logp", "accuracy_avg", "win_rate", "gold")],
        ),
        (["train", "algo=ipo", "algo.tau=0.2", "adapter", "-h"], ["algo.tau", "algo.reduction"]),
    ],
)
def test_help_is_as_wide_as_what_was_named(
    words: list[str], keys: list[str], capsys: pytest.CaptureFixture[str]
):
    found = keys_of(shown_by(words, capsys))
    assert found[: len(keys)] == keys
    assert len(found) == len(keys) or words[1] == "algo=ipo"


def test_help_of_a_key_says_what_it_must_be_and_whose_it_is(capsys: pytest.CaptureFixture[str]):
    shown = " ".join(shown_by(["train", "algo.tau", "--help"], capsys).split())
    assert shown.startswith("algo=ipo ")
    assert "Must be a number above 0." in shown
    assert "Must be constant, linear or cosine." in " ".join(
        shown_by(["train", "train.schedule", "-h"], capsys).split()
    )


@pytest.mark.parametrize(
    ("asked", "same"),
    [
        (["help"], ["--help"]),
        (["help", "--help"], ["--help"]),
        (["help", "train"], ["train", "--help"]),
        (["train", "help"], ["train", "--help"]),
        (["train", "-h"], ["train", "--help"]),
        (["help", "train", "algo=ipo"], ["train", "algo=ipo", "--help"]),
        (["help", "algo"], ["ls", "algo"]),
        (["help", "soup"], ["soup", "--help"]),
        (["ls", "help"], ["ls", "--help"]),
        (["eval", "runs/a", "--help"], ["eval", "--help"]),
        (["train", "recipe=salsa-2seeds", "-h"], ["help", "train", "recipe=salsa-2seeds"]),
    ],
)
def test_help_is_found_wherever_it_is_looked_for(
    asked: list[str], same: list[str], capsys: pytest.CaptureFixture[str]
):
    shown = shown_by(asked, capsys)
    assert shown == shown_by(same, capsys)
    assert shown


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["train", "algo=dpoo", "--help"], "did you mean   dpo"),
        (["train", "train.lrr", "--help"], "did you mean   train.lr"),
        (["train", "nonsense", "--help"], "all of them   alignctl train --help"),
        (["eval", "gate.acuracy=0.8", "--help"], "did you mean   gate.accuracy"),
        (["help", "trian"], "did you mean   train"),
        (["ls", "algo", "model"], "all of them   alignctl ls"),
    ],
)
def test_help_on_what_does_not_exist_says_what_does(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
):
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert f"  {hint}" in lines
    assert len(lines) <= 3


def test_overview_and_version(capsys: pytest.CaptureFixture[str]):
    assert main([]) == main(["--help"]) == main(["--version"]) == 0
    shown = capsys.readouterr().out
    for command in ("train", "soup", "eval", "ls", "completion", "doctor"):
        assert f"alignctl {command}" in shown
    assert "__complete" not in shown


@pytest.mark.parametrize(
    "words",
    [["--help"], ["train", "--help"], ["ls"], ["train", "algo.bta=1"], ["train", "--cfg", "job"]],
)
def test_nothing_heavy_is_imported_before_a_run(words: list[str]):
    program = f"""
import sys
from alignctl.cli import main
main({words!r})
heavy = {{"torch", "transformers", "datasets", "peft", "numpy", "pyarrow", "safetensors", "rich", "httpx"}}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_help_into_a_closed_pipe_ends_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        alignctl("train", "--help"), cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
