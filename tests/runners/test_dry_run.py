"""`alignctl train --dry-run`: what it says, that it leaves nothing, and that mistakes answer as in a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from alignctl.cli import main

TINY = (
    *("model=tiny", "train.batch_size=4", "train.steps=6", "eval.samples=2", "eval.max_new_tokens=4"),
    "dataset.eval_size=2",
)
HYPO = ["algo=hypo", "algo.prompts_per_step=2", "algo.samples=2"]
AS_JSON = ["--dry-run", "--format", "json"]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of the test's own, a cache beside it, and no place to leave scratch files in."""
    work, scratch = tmp_path / "work", tmp_path / "scratch"
    work.mkdir()
    scratch.mkdir()
    monkeypatch.setenv("ALIGNCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.chdir(work)
    return tmp_path


def pairs(name: str, *, rows: int = 12, **changes: object) -> str:
    """A file of pairs with different prompts; `changes` go into its last row."""
    lines = [
        {"prompt": f"Question {number}?", "chosen": f"Yes, {number}.", "rejected": "No."}
        for number in range(rows)
    ]
    lines[-1] |= changes  # type: ignore[arg-type]
    Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"dataset={name}"


def run(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `alignctl train`; of words about one key the last counts."""
    settings = {word.partition("=")[0]: word for word in (*TINY, *words) if "=" in word}
    flags = [word for word in words if "=" not in word]
    code = main(["train", *settings.values(), *flags])
    out, err = capsys.readouterr()
    return code, out, err


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else b""
        for path in sorted(directory.rglob("*"))
    }


def test_it_shows_card_row_plan_and_memory_and_leaves_no_trace(
    capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    data = pairs("pairs.jsonl")
    before = tree(workplace)
    code, out, err = run([data, "out=runs/mine", "--dry-run"], capsys)
    assert (code, out) == (0, "")
    labels = [line[:10].strip() for line in err.splitlines() if line[:1].strip()]
    assert labels == [
        *("data", "source", "tokens", "pairs", "row", "prompt", "chosen", "rejected"),
        *("model", "plan", "memory", "writes", "dry run"),
    ]
    assert "10 pairs to train on, 2 held out" in err
    assert "[[Yes, " in err
    assert "dpo, 6 steps of 4 pairs" in err
    assert "epochs 2.4" in err  # 6 steps of 4 pairs, 10 pairs
    assert "runs/mine  (new)" in err
    after = {name: content for name, content in tree(workplace).items() if not name.startswith("cache")}
    assert after == {name: content for name, content in before.items() if not name.startswith("cache")}


def test_the_caches_that_it_fills_are_those_of_models_and_of_data(
    capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    assert run([pairs("pairs.jsonl"), "--dry-run"], capsys)[0] == 0
    assert {path.name for path in (workplace / "cache").iterdir()} <= {"models", "data"}


def test_the_run_that_follows_does_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = [pairs("pairs.jsonl"), "out=mine"]
    code, out, _ = run([*words, *AS_JSON], capsys)
    assert code == 0
    said = json.loads(out)
    assert run(words, capsys)[0] == 0
    record = json.loads(Path("mine/run.json").read_text())
    assert record["data"] == said["data"]
    assert record["decided"]["micro_tokens"] == said["plan"]["micro_tokens"]
    assert record["decided"]["layout"] == said["model"]["layout"]
    steps = [json.loads(line) for line in Path("mine/metrics.jsonl").read_text().splitlines()]
    assert max(step["step"] for step in steps) == said["plan"]["steps"] == 6
    assert said["out"] == "mine"


def test_quiet_prints_where_the_run_would_write_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([pairs("pairs.jsonl"), "out=mine", "--dry-run", "--format", "quiet"], capsys) == (
        0,
        "mine\n",
        "",
    )


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["dataset=bad.jsonl"], 6, "bad.jsonl:12 chosen: empty"),
        (["dataset=absent.jsonl"], 3, "absent.jsonl"),
        (["train.batch_size=200"], 6, "train.batch_size=200"),
        (["model=./no-model"], 3, "no model at ./no-model"),
        (["algo.reference.path=./no-model"], 3, "no model at ./no-model"),
        (["algo=ppo", "reward=model", "reward.path=./no-model"], 3, "./no-model"),
        (["hardware.device=cuda"], 3, "torch sees no GPU"),
        (["algo.bta=1"], 2, "algo.bta"),
        (["out=pairs.jsonl/run"], 3, "Not a directory"),
        (["out=pairs.jsonl"], 7, "is not a directory"),
    ],
)
def test_mistakes_answer_as_in_a_run(
    words: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "hardware.device=cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    pairs("bad.jsonl", chosen="")
    typed = [pairs("pairs.jsonl"), "out=mine", *words]
    dry = run([*typed, "--dry-run"], capsys)
    assert not Path("mine").exists()
    wet = run(typed, capsys)
    assert dry[0] == wet[0] == code
    assert told in dry[2]
    assert dry[2][dry[2].index("error:") :] == wet[2][wet[2].index("error:") :]


@pytest.mark.slow
@pytest.mark.long
def test_memory_that_does_not_suffice_answers_as_in_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    """A row of 500 000 tokens in 64 layers would keep some 200 GB for its backward pass."""
    words = [
        pairs("pairs.jsonl", rows=2, chosen="word " * 100_000),
        "dataset.eval_size=0",
        "train.batch_size=1",
    ]
    large = ["train.max_length=1000000", "model.layers=64", "hardware.activation_checkpointing=false"]
    code, _, err = run([*words, *large, "out=mine", "--dry-run"], capsys)
    assert code == 4
    assert "like this needs about" in err
    assert "2 pairs to train on, 0 held out" in err  # the card comes before the model is loaded
    assert not Path("mine").exists()


# --- the directory of the run --------------------------------------------------------------------------


def test_a_finished_run_is_refused_unless_it_may_be_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    words = [pairs("pairs.jsonl"), "out=mine"]
    assert run(words, capsys)[0] == 0
    before = tree(Path("mine"))
    code, _, err = run([*words, "--dry-run"], capsys)
    assert code == 7
    assert "mine is finished (status done)" in err
    code, _, err = run([*words, "overwrite=true", "--dry-run"], capsys)
    assert code == 0
    assert "the run that is there would be removed" in err
    assert tree(Path("mine")) == before


def test_a_directory_that_is_no_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear all")
    code, _, err = run([pairs("pairs.jsonl"), "out=mine", "--dry-run"], capsys)
    assert code == 7
    assert "is not empty and not a run" in err


def test_an_unfinished_run_would_be_gone_on_with(capsys: pytest.CaptureFixture[str]) -> None:
    words = [pairs("pairs.jsonl"), "out=mine"]
    assert run(words, capsys)[0] == 0
    record = json.loads(Path("mine/run.json").read_text())
    Path("mine/run.json").write_text(json.dumps({**record, "status": "running"}))
    code, _, err = run([*words, "--dry-run"], capsys)
    assert code == 0
    assert "it would go on from its newest checkpoint" in err
    code, _, err = run([*words, "train.lr=0.5", "--dry-run"], capsys)
    assert code == 7
    assert "was started with other settings" in err


# --- other algorithms and commands ---------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["sft", "reward", "hypo", "ppo", "ipo"])
def test_every_kind_of_algorithm_comes_to_its_first_step(
    algo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"ppo": ["reward=pattern", "reward.pattern=a", "reward.normalise=true"], "hypo": HYPO}
    code, out, err = run([pairs("pairs.jsonl"), f"algo={algo}", *own.get(algo, []), *AS_JSON], capsys)
    assert code == 0, err
    kind = {"sft": "answers", "ppo": "prompts"}.get(algo, "pairs")
    found = json.loads(out)
    assert found["data"]["kind"] == kind
    assert found["data"]["train"] == 10
    assert found["data"]["to_answer"] == (10 if algo == "hypo" else 0)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["train", "recipe=salsa-2seeds", "--dry-run"], "--cfg job"),
        (["train", "seed=0,1", "--multirun", "--dry-run"], "--multirun makes several"),
        (["train", "--cfg", "job", "--dry-run"], "leave one of them out"),
        (["eval", "some/model", "--dry-run"], "alignctl eval ... --cfg job"),
        (["soup", "a", "b", "--dry-run"], "alignctl soup ... --cfg job"),
    ],
)
def test_where_there_is_nothing_to_rehearse_it_is_refused_in_a_line_or_two(
    command: list[str], told: str, capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    assert main(command) == 2
    lines = capsys.readouterr().err.splitlines()
    assert told in "\n".join(lines)
    assert len(lines) <= 2
    assert tree(workplace / "work") == {}


def test_the_flag_is_in_the_help_of_train_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for command, expected in (("train", True), ("eval", False), ("soup", False)):
        assert main([command, "--help"]) == 0
        assert ("--dry-run" in capsys.readouterr().out) == expected
