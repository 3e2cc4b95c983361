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
SWEEP = ["dataset.eval_pairs=4", "soup.samples=1", "soup.max_new_tokens=4"]
ELSEWHERE = ("Qwen/", "http://")
"""What a command needs that is not on this machine."""


def commands() -> list[list[str]]:
    """Every `alignctl ...` line of a shell block, without its comment and without what stands before it."""
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.split("&&")[-1].strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("alignctl ")]


def merges() -> list[list[str]]:
    return [words[1:] for words in commands() if words[0] == "soup" and "--help" not in words]


def evaluations() -> list[list[str]]:
    return [words[1:] for words in commands() if words[0] == "eval" and "--help" not in words]


def trainings() -> list[list[str]]:
    return [
        words[1:]
        for words in commands()
        if words[0] == "train" and "--help" not in words and not any(w.startswith("recipe=") for w in words)
    ]


def recipes() -> list[list[str]]:
    return [words for words in commands() if any(word.startswith("recipe=") for word in words)]


def online_shrunk(words: list[str]) -> dict[str, str]:
    """What makes an algorithm that samples small; the start of ppo and salsa-ppo stays as it is typed."""
    algo = next((word.removeprefix("algo=") for word in words if word.startswith("algo=")), "dpo")
    shrunk = {"hypo": {"algo.prompts_per_step": "2"}, "ppo": {"model": "runs/sft-0"}}
    shrunk["salsa-ppo"] = shrunk["ppo"]
    return shrunk[algo] | {"algo.max_new_tokens": "4"} if algo in shrunk else {}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory with the files and runs that the README's commands name."""
    monkeypatch.setenv("ALIGNCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Say {i}", "chosen": f"It is {i}.", "rejected": f"No {i}"} for i in range(12)]
    lines = [json.dumps(row) + "\n" for row in rows]
    Path("prefs.jsonl").write_text("".join(lines))
    Path("more.jsonl").write_text("".join(lines).replace("Say", "Tell me"))
    Path("my-conf/dataset").mkdir(parents=True)
    Path("my-conf/dataset/mine.yaml").write_text(
        "# My pairs.\ndefaults:\n  - file\n  - _self_\npath: prefs.jsonl\n"
    )


@pytest.fixture
def two_seeds() -> None:
    """The runs that the commands name, small, with the checkpoints that they name."""
    steps = {"train.steps": "80", "checkpoint.every": "40", "checkpoint.keep": "4"}
    for seed in ("0", "1"):
        _run(f"runs/seed-{seed}", {"seed": seed} | steps)


@pytest.fixture
def chain() -> None:
    """What ppo and salsa-ppo are given: two fine-tuned models and a reward model."""
    for seed in ("0", "1"):
        _run(f"runs/sft-{seed}", {"algo": "sft", "seed": seed})
    _run("runs/reward", {"algo": "reward"})


def _run(out: str, settings: dict[str, str]) -> None:
    shrunk = {key: value for key, value in (SHRUNK | DEMO).items() if key != "dataset.eval_size"} | settings
    assert main(["train", *(f"{key}={value}" for key, value in shrunk.items()), f"out={out}"]) == 0


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


OTHERS = [*(("soup", words) for words in merges()), *(("eval", words) for words in evaluations())]


@pytest.mark.parametrize(("verb", "words"), OTHERS)
def test_every_other_command_composes(verb: str, words: list[str]) -> None:
    load(open_conf(None, verb), words)


TRAININGS = [
    pytest.param(words, id=" ".join(words), marks=[pytest.mark.long] if "-m" in words else [])
    for words in trainings()
    if "--cfg" not in words
]


@pytest.mark.slow
@pytest.mark.parametrize("words", TRAININGS)
def test_every_training_command_trains_when_shrunk(words: list[str], request: pytest.FixtureRequest) -> None:
    if any("runs/seed-" in word for word in words):
        request.getfixturevalue("two_seeds")
    if any("runs/sft-" in word for word in words):
        request.getfixturevalue("chain")
    demo = not any(word.startswith("dataset=") for word in words)
    shrink = SHRUNK | DEMO if demo else dict(SHRUNK)
    if demo:
        del shrink["dataset.eval_size"]
    shrink |= online_shrunk(words)
    # No hub here: the public set gives way to another file.
    kept = [word.replace("ultrafeedback", "more.jsonl") for word in words]
    kept = [word for word in kept if word.split("=")[0] not in (*shrink, "out")]
    assert main(["train", *kept, *(f"{key}={value}" for key, value in shrink.items()), "out=run"]) == 0
    if "--dry-run" in words:
        assert not Path("run").exists()
        return
    assert list(Path("run").rglob("model/config.json")) or list(Path("run").rglob("adapter_config.json"))


@pytest.mark.slow
@pytest.mark.long
def test_every_recipe_of_the_readme_runs_when_shrunk_and_is_done_when_repeated() -> None:
    assert recipes()
    small = {key: value for key, value in (SHRUNK | DEMO).items() if key != "dataset.eval_size"}
    words = [f"{key}={value}" for key, value in small.items() if not key.startswith("eval.samples")]
    for number, recipe in enumerate(recipes()):
        chain = Path(f"chain-{number}")
        online = ["ppo.algo.max_new_tokens=4"] if "recipe=salsa-2seeds" in recipe else []
        assert main([*recipe, *words, *online, f"out={chain}"]) == 0
        record = (chain / "recipe.json").read_bytes()
        assert main([*recipe, *words, *online, f"out={chain}"]) == 0
        assert (chain / "recipe.json").read_bytes() == record


@pytest.mark.slow
@pytest.mark.usefixtures("two_seeds")
def test_soups_and_evaluations_of_what_is_here_run_when_shrunk() -> None:
    """In the order of the README, since later commands name what earlier ones made."""
    assert len(merges()) >= 4
    assert len(evaluations()) >= 5
    for words in merges():
        typed = ["soup.base=runs/seed-1" if word.startswith("soup.base=") else word for word in words]
        assert main(["soup", *typed, *(SWEEP if "soup=sweep" in words else [])]) == 0, words
    for words in evaluations():
        line = " ".join(words)
        if any(place in line for place in ELSEWHERE):
            continue
        demo = [] if "dataset=" in line else ["dataset.eval_pairs=8"]
        samples = [] if "eval.samples=" in line else ["eval.samples=2"]
        code = main(["eval", *words, *demo, *samples, "eval.max_new_tokens=4"])
        assert code in ((0, 5) if "gate." in line else (0,)), words


def test_the_typo_in_the_readme_is_answered_as_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "algo.bta=0.2"]) == 2
    answer = capsys.readouterr().err.strip()
    assert answer in README
    assert len(answer.splitlines()) <= 3
