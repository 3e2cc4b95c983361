"""conf/*.yaml and alignctl/config.py: they agree key by key, and the derived values follow their rules."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import pytest

from alignctl.cli.compose import compose_settings, load
from alignctl.cli.options import (
    chosen_by_default,
    conf_directory,
    open_conf,
    option_settings,
    options,
    verb_settings,
)
from alignctl.cli.overrides import read
from alignctl.cli.refusals import schema_of
from alignctl.config import TrainConfig, as_yaml, learning_rate, parse, request_hash, run_directory
from alignctl.errors import UsageError

GOLDEN = Path(__file__).parent / "golden"
CONF = open_conf(None)
FILES = sorted(conf_directory().rglob("*.yaml"))
OPTIONS = [(group, option) for group in chosen_by_default(CONF) for option in options(CONF, group)]
# What an option cannot know by itself.
NEEDED = {"model=pretrained": ["model.path=some/model"], "dataset=file": ["dataset.path=pairs.jsonl"]}


def config(*words: str) -> TrainConfig:
    return load(CONF, list(words))


def with_option(group: str, option: str) -> list[str]:
    choice = f"{group}={option}"
    return [choice, *NEEDED.get(choice, [])]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_file_and_every_key_has_a_comment(file: Path):
    lines = file.read_text(encoding="utf-8").splitlines()
    assert re.match(r"# \S", lines[0])
    assert lines[1] == "", "the first comment describes the option, not its first key"
    for above, line in itertools.pairwise(lines):
        if re.match(r"\s*\w+:", line):
            assert above.strip().startswith("# "), f"{file.name}: {line.strip()} has no comment above it"


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_parses_and_has_the_keys_of_its_class(group: str, option: str):
    composed, missing = compose_settings(CONF, read(with_option(group, option), CONF))
    assert missing == []
    assert isinstance(parse(composed), TrainConfig)
    in_class = {key for key in schema_of(composed).fields if key.startswith(f"{group}.")}
    assert set(option_settings(CONF, group, option)) == in_class


def test_train_yaml_has_the_keys_of_its_classes():
    composed, _ = compose_settings(CONF, read([], CONF))
    groups = chosen_by_default(CONF)
    assert set(verb_settings(CONF)) == {
        key for key in schema_of(composed).fields if key.split(".")[0] not in groups
    }


def test_defaults_name_existing_options():
    assert all(option in options(CONF, group) for group, option in chosen_by_default(CONF).items())


def test_composed_default_config_is_the_golden_one():
    """`ALIGNCTL_GOLDEN=write pytest tests/test_config.py` writes it anew; the diff is what changed."""
    golden = GOLDEN / "default-config.yaml"
    if os.environ.get("ALIGNCTL_GOLDEN") == "write":
        golden.write_text(as_yaml(config()), encoding="utf-8")
    assert as_yaml(config()) == golden.read_text(encoding="utf-8")


def test_learning_rate_comes_from_train_else_the_model_times_the_adapter():
    assert learning_rate(config("model=tiny", "model.lr=2e-3")) == 2e-3
    assert learning_rate(config("model.lr=2e-5", "adapter=lora", "adapter.lr_scale=3")) == pytest.approx(6e-5)
    assert learning_rate(config("model.lr=2e-5", "adapter=lora", "train.lr=1e-4")) == 1e-4
    rates = [config(f"model={name}").model.lr for name in ("tiny", "smollm2-135m", "owner/large-model")]
    assert rates == sorted(rates, reverse=True), "small models take more"


def test_request_hash_names_what_is_computed_and_nothing_else():
    same = config("out=elsewhere", "overwrite=true", "hardware=cpu", "hardware.threads=1", "train.epochs=1.0")
    assert request_hash(same) == request_hash(config())
    other = ["seed=1", "algo=ipo", "train.lr=1e-5", "dataset.pairs=641", "eval.every=26"]
    assert len({request_hash(config(word)) for word in other} | {request_hash(config())}) == len(other) + 1


def test_run_directory_is_named_by_algorithm_model_data_and_hash():
    plain = config("algo=ipo", "model=owner/some-model", "dataset=data/pairs.train.jsonl")
    assert run_directory(plain) == f"runs/ipo-some-model-pairs-{request_hash(plain)}"
    assert run_directory(config("out=here/run")) == "here/run"


@pytest.mark.parametrize(("typed", "value"), [("0", 0.0), ("0.5", 0.5), ("1", 1), ("20", 20)])
def test_warmup_is_a_fraction_below_one_and_steps_otherwise(typed: str, value: float):
    assert config(f"train.warmup={typed}").train.warmup == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.steps=5", "train.warmup=6"], "train.warmup=6 is longer than train.steps=5"),
        (["train.steps=0"], "train.steps must be a whole number of at least 1 or null, got 0"),
        (["train.warmup=1.5"], "train.warmup must be a number of at least 0 and below 1 or a whole number"),
        (
            ["train.max_length=512"],
            "train.max_prompt=512 leaves no room for an answer in train.max_length=512",
        ),
        (["algo.reference.kind=adapter_off"], "adapter_off needs a fresh adapter: adapter=lora"),
        (
            ["adapter=lora", "algo.reference.kind=adapter_off", "algo.reference.path=x"],
            "algo.reference.path=x is not read with algo.reference.kind=adapter_off",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(words: list[str], message: str):
    with pytest.raises(UsageError, match=re.escape(message)):
        config(*words)


def test_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        config().train.lr = 1.0  # type: ignore[misc]
