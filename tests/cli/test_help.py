"""Help, listings, speed and pipes."""

from __future__ import annotations

import os
import resource
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
        ("soup-help.txt", ["soup", "--help", "soup=ties"]),
        ("eval-help.txt", ["eval", "--help", "judge=endpoint"]),
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


def test_help_is_about_the_chosen_options(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "algo=ipo", "-h", "adapter=lora", "model=owner/name"]) == 0
    shown = capsys.readouterr().out
    for key in ("algo.tau", "adapter.targets", "model.revision"):
        assert key in shown
    assert "algo.beta" not in shown


def test_overview_and_version(capsys: pytest.CaptureFixture[str]):
    assert main([]) == main(["--help"]) == main(["--version"]) == 0
    assert "alignctl train" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["ls"], ["train", "algo.bta=1"]])
def test_answers_in_half_a_second_of_work(words: list[str]):
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(alignctl(*words), cwd=ROOT, capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Processor time and the best of three, since a busy machine says nothing about the command.
    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize("words", [["train", "--help"], ["train", "algo.bta=1"], ["train", "--cfg", "job"]])
def test_nothing_heavy_is_imported_before_a_run(words: list[str]):
    program = f"""
import sys
from alignctl.cli import main
main({words!r})
print(sorted({{"torch", "transformers", "datasets", "peft", "rich"}} & set(sys.modules)), file=sys.stderr)
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
