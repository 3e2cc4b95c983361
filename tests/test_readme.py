"""What the README tells a user to type: every command composes, and those that train do so, shrunk."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from alignctl.cli import main
from alignctl.cli.compose import load
from alignctl.cli.flags import split_flags
from alignctl.cli.options import open_conf

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
SHRUNK = {
    "model": "tiny",
    "train.steps": "2",
    "train.batch_size": "2",
    "dataset.eval_size": "2",
    "eval.samples": "1",
    "eval.max_new_tokens": "4",
    "checkpoint.every": "1",
}
DEMO = {"dataset.pairs": "8", "dataset.eval_pairs": "4", "dataset.gold_samples": "2"}


def commands() -> list[list[str]]:
    """Every `alignctl ...` line of a shell block, without its comment and without what stands before it."""
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.split("&&")[-1].strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("alignctl ")]


def trainings() -> list[list[str]]:
    return [words[1:] for words in commands() if words[0] == "train" and "--help" not in words]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory with the files and runs that the README's commands name."""
    monkeypatch.setenv("ALIGNCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Say {i}", "chosen": f"It is {i}.", "rejected": f"No {i}"} for i in range(12)]
    Path("prefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("my-conf/dataset").mkdir(parents=True)
    Path("my-conf/dataset/mine.yaml").write_text(
        "# My pairs.\ndefaults:\n  - file\n  - _self_\npath: prefs.jsonl\n"
    )


def test_the_readme_has_commands() -> None:
    assert len(trainings()) >= 8
    assert ["ls", "algo"] in commands()


@pytest.mark.parametrize("words", [w for w in commands() if w[0] == "ls" or "--help" in w], ids=" ".join)
def test_listings_and_help_are_printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("words", [w for w in trainings() if "-m" not in w], ids=" ".join)
def test_every_training_command_composes(words: list[str]) -> None:
    flags, overrides = split_flags(words)
    load(open_conf(flags.config_dir), overrides)


@pytest.mark.slow
@pytest.mark.parametrize("words", [w for w in trainings() if "--cfg" not in w], ids=" ".join)
def test_every_training_command_trains_when_shrunk(words: list[str]) -> None:
    demo = not any(word.startswith("dataset=") for word in words)
    shrink = SHRUNK | DEMO if demo else dict(SHRUNK)
    if demo:
        del shrink["dataset.eval_size"]
    kept = [word for word in words if word.split("=")[0] not in shrink]
    assert main(["train", *kept, *(f"{key}={value}" for key, value in shrink.items()), "out=run"]) == 0
    assert list(Path("run").rglob("model/config.json")) or list(Path("run").rglob("adapter_config.json"))


def test_the_typo_in_the_readme_is_answered_as_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "algo.bta=0.2"]) == 2
    answer = capsys.readouterr().err.strip()
    assert answer in README
    assert len(answer.splitlines()) <= 3
