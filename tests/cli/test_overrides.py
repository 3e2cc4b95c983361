"""Words of the command line -> the config they ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from alignctl.cli import main
from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import TrainConfig, as_yaml

CONF = open_conf(None)


def config(*words: str) -> TrainConfig:
    return load(CONF, list(words))


@pytest.mark.parametrize(
    "value",
    [
        "~x/y",
        "a=b",
        "é",
        "#1",
        "(1)",
        "?a=1&b=2",
        "<|im_end|>",
        "it's",
        'say "hi"',
        "a\\",
        '\\"',
        "a b",
        "数据",
        "!;",
    ],
)
def test_ordinary_values_need_no_quoting(value: str):
    assert config("model=pretrained", f"model.path={value}").model.path == value  # type: ignore[union-attr]


def test_values_keep_their_types():
    got = config(
        "train.lr=1e-4",
        "train.steps=10",
        "overwrite=true",
        "out=null",
        "adapter=lora",
        "adapter.targets=[a,b]",
    )
    assert (got.train.lr, got.train.steps, got.overwrite, got.out) == (1e-4, 10, True, None)
    assert got.adapter.targets == ("a", "b")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["model=owner/name"], "owner/name"),
        (["model=./dir"], "./dir"),
        (["model=pretrained", "model.path=gpt2"], "gpt2"),
    ],
)
def test_model_takes_a_path_or_hub_id_as_typed(words: list[str], path: str):
    model = config(*words).model
    assert (model.kind, model.path) == ("pretrained", path)  # type: ignore[union-attr]


def test_dataset_takes_a_file_and_home_is_expanded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/ada")
    data = config("dataset=~/a=b.jsonl", "dataset.eval_path=~/eval.jsonl", "out=~/run").dataset
    assert (data.path, data.eval_path) == ("/home/ada/a=b.jsonl", "/home/ada/eval.jsonl")  # type: ignore[union-attr]


def test_an_existing_directory_is_a_model_even_without_a_slash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mymodel").mkdir()
    monkeypatch.chdir(tmp_path)
    assert config("model=mymodel").model.path == "mymodel"  # type: ignore[union-attr]


def test_plus_signs_change_nothing_and_references_are_resolved():
    assert config("+algo.beta=0.3", "++seed=4") == config("seed=4", "algo.beta=0.3")
    assert config("train.lr=${model.lr}", "model.lr=3e-5").train.lr == 3e-5


def test_order_of_choices_settings_and_flags_is_free(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "algo.tau=0.4", "--cfg", "job", "algo=ipo"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["algo"]["tau"] == 0.4
    assert shown == config("algo=ipo", "algo.tau=0.4").model_dump(mode="json")


@pytest.mark.parametrize("pattern", ["[aeiou]", "[0-9]+, [0-9]+", "^(yes|no)$", "a,b", r"\d{2}", 'say "hi"'])
def test_a_pattern_is_taken_to_the_letter(pattern: str):
    got = config("algo=ppo", "reward=pattern", f"reward.pattern={pattern}")
    assert got.reward.pattern == pattern  # type: ignore[union-attr]


def test_a_run_brings_the_learning_rate_of_what_it_started_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/run.json").write_text("{}")
    Path("run/config.yaml").write_text(as_yaml(config("model=tiny", "model.lr=3e-4")))
    assert config("model=run/model").model.lr == config("model=./run").model.lr == 3e-4
    assert config("model=./run", "model.lr=2e-6").model.lr == 2e-6
    assert config("model=some/where").model.lr == 1e-6
