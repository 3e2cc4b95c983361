"""conf/*.yaml and alignctl/config/: they agree key by key, and the derived values follow their rules."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import pytest

from alignctl.cli.compose import SCHEMAS, compose_settings, load, resolve_parts
from alignctl.cli.options import (
    Conf,
    all_groups,
    chosen_by_default,
    conf_directory,
    open_conf,
    option_settings,
    options,
    verb_settings,
)
from alignctl.cli.overrides import read
from alignctl.cli.refusals import schema_of
from alignctl.config import (
    Config,
    EvalConfig,
    SoupConfig,
    TrainConfig,
    as_yaml,
    learning_rate,
    parse,
    request_hash,
    run_directory,
)
from alignctl.errors import UsageError

GOLDEN = Path(__file__).parent / "golden"
CONF = open_conf(None)
FILES = sorted(conf_directory().rglob("*.yaml"))
CONFS = {verb: open_conf(None, verb) for verb in SCHEMAS}
OPTIONS = [
    (verb, group, option)
    for verb, conf in CONFS.items()
    for group in chosen_by_default(conf)
    for option in options(conf, group)
]
# What a command needs, and what an option cannot know by itself.
INPUTS = {"train": [], "soup": ["runs/a", "runs/b"], "eval": ["runs/a"]}
NEEDED = {
    "model=pretrained": ["model.path=some/model"],
    "dataset=file": ["dataset.path=pairs.jsonl"],
    "dataset=mixture": ["dataset.parts=[pairs.jsonl,owner/name]"],
    "soup=weighted": ["soup.weights=[1,2]"],
    "soup=task-arithmetic": ["soup.base=some/model"],
    "soup=ties": ["soup.base=some/model"],
    "soup=dare": ["soup.base=some/model"],
    "judge=reward": ["judge.path=some/model"],
    "judge=local": ["judge.path=some/model"],
    "judge=endpoint": ["judge.model=some-model"],
    "algo=salsa-ppo": ["algo.reference.members=[runs/a,runs/b]"],
    "reward=model": ["algo=ppo", "reward.path=some/model"],
    "reward=pattern": ["algo=ppo", "reward.pattern=x"],
    "reward=endpoint": ["algo=ppo", "reward.url=http://127.0.0.1:1"],
}


def config(*words: str) -> TrainConfig:
    return load(CONF, list(words))


def composed(conf: Conf, *words: str) -> dict[str, object]:
    found, missing = compose_settings(conf, read([*INPUTS[conf.verb], *words], conf))
    assert missing == []
    whole, mistakes = resolve_parts(conf, found)
    assert mistakes == []
    return whole


def soup(*words: str) -> SoupConfig:
    config = load(CONFS["soup"], list(words))
    assert isinstance(config, SoupConfig)
    return config


def evaluation(*words: str) -> EvalConfig:
    config = load(CONFS["eval"], list(words))
    assert isinstance(config, EvalConfig)
    return config


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_file_and_every_key_has_a_comment(file: Path):
    lines = file.read_text(encoding="utf-8").splitlines()
    assert re.match(r"# \S", lines[0])
    assert lines[1] == "", "the first comment describes the option, not its first key"
    for above, line in itertools.pairwise(lines):
        if re.match(r"\s*\w+:", line):
            assert above.strip().startswith("# "), f"{file.name}: {line.strip()} has no comment above it"


@pytest.mark.parametrize(("verb", "group", "option"), OPTIONS)
def test_every_option_composes_parses_and_has_the_keys_of_its_class(verb: str, group: str, option: str):
    conf, choice = CONFS[verb], f"{group}={option}"
    plain = composed(conf, choice, *NEEDED.get(choice, []))
    assert isinstance(parse(SCHEMAS[verb], plain), SCHEMAS[verb])
    keys = schema_of(SCHEMAS[verb], plain, verb).fields
    assert set(option_settings(conf, group, option)) == {key for key in keys if key.startswith(f"{group}.")}


@pytest.mark.parametrize("verb", CONFS)
def test_a_command_s_own_yaml_has_the_keys_of_its_classes(verb: str):
    conf = CONFS[verb]
    keys = schema_of(SCHEMAS[verb], composed(conf), verb).fields
    groups = chosen_by_default(conf)
    assert set(verb_settings(conf)) == {key for key in keys if key.split(".")[0] not in groups}


def test_every_directory_of_options_belongs_to_a_command():
    assert set(all_groups(CONF)) == {path.name for path in conf_directory().iterdir() if path.is_dir()}


@pytest.mark.parametrize("conf", CONFS.values(), ids=CONFS)
def test_defaults_name_existing_options(conf: Conf):
    assert all(option in options(conf, group) for group, option in chosen_by_default(conf).items())


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
            "algo.reference.path is not read with algo.reference.kind=adapter_off",
        ),
        (["algo.reference.members=[a,b]"], "algo.reference.members is not read"),
        (
            ["dataset=owner/name", "dataset.eval_split=test", "dataset.eval_path=e.jsonl"],
            "dataset.eval_split=test and dataset.eval_path=e.jsonl both name the held-out rows",
        ),
        (
            ["dataset=pairs.jsonl.gz", "dataset.eval_split=test"],
            "dataset.eval_split=test, but dataset.path=pairs.jsonl.gz is a file and has no splits",
        ),
        (
            ["dataset=pairs.jsonl", "dataset.columns.margin=gap"],
            "dataset.columns.margin=gap is not read by algo=dpo: algo=reward reads it",
        ),
        (
            [
                "dataset=pairs.jsonl",
                "dataset.columns.margin=gap",
                "algo=ppo",
                "reward=pattern",
                "reward.pattern=x",
            ],
            "dataset.columns.margin=gap is not read by algo=ppo",
        ),
        (
            ["dataset=pairs.jsonl", "dataset.columns.messages=turns", "algo=reward"],
            "dataset.columns.messages=turns is not read by algo=reward: it learns from chosen and rejected",
        ),
        (
            ["dataset=mixture", "dataset.parts=[a.jsonl,{path: b.jsonl, columns: {margin: gap}}]"],
            "dataset.columns.margin=gap is not read by algo=dpo",
        ),
        (["algo.reference.kind=soup"], "needs two members or more, got 0"),
        (
            ["algo.reference.kind=soup", "algo.reference.members=[a,b,c]", "algo.reference.alpha=0.5"],
            "algo.reference.alpha mixes two members",
        ),
        (
            ["algo.reference.kind=soup", "algo.reference.members=[a,b]", "algo.reference.weights=[1,0,1]"],
            "algo.reference.weights has 3 values for 2 models",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(words: list[str], message: str):
    with pytest.raises(UsageError, match=re.escape(message)):
        config(*words)


@pytest.mark.parametrize(
    "words",
    [
        ["dataset=owner/name", "dataset.eval_split=test", "dataset.eval_size=0"],
        ["dataset=pairs.jsonl", "dataset.columns.margin=gap", "algo=reward"],
        ["dataset=pairs.jsonl", "dataset.columns.completion=answer", "algo=sft"],
        ["dataset=pairs.jsonl", "dataset.columns.messages=turns", "algo=hypo", "dataset.prompts=p.jsonl"],
    ],
)
def test_settings_that_go_together_are_taken(words: list[str]):
    assert config(*words).dataset.kind == "file"


def test_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        config().train.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "a soup needs two models or more, got 1"),
        (["a", "b", "c", "soup=slerp"], "soup=slerp lies between two models, got 3"),
        (["a", "b", "soup=weighted"], "soup=weighted needs soup.weights"),
        (["a", "b", "soup=weighted", "soup.weights=[1]"], "soup.weights has 1 values for 2 models"),
        (["a", "b", "soup=weighted", "soup.weights=[1,-1]"], "has a negative weight"),
        (["a", "b", "soup=weighted", "soup.weights=[0,0]"], "soup.weights sums to 0"),
        (["a", "b", "soup=weighted", "soup.weights=[1,nan]"], "must be a list of numbers"),
        (["a", "b", "soup=ties", "soup.base=c", "soup.density=0"], "soup.density must be a number above 0"),
        (["a", "b", "soup=ties", "soup.base=c", "soup.lambda=0"], "soup.lambda must be a number above 0"),
        (["a", "b", "soup.t=0.5"], "soup.t is not a setting of soup=uniform"),
        (["a", "b", "soup=sweep", "soup.metric=gold", "dataset=x.jsonl"], "needs a data set with a gold"),
    ],
)
def test_soups_that_cannot_be_made_are_refused(words: list[str], message: str):
    with pytest.raises(UsageError) as refused:
        soup(*words)
    assert message in refused.value.render()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "eval needs a model"),
        (["a", "a"], "the same model is given twice"),
        (["a", "judge=gold", "dataset=x.jsonl"], "judge=gold needs a data set with a gold score"),
        (["a", "eval.opponent=b"], "eval.opponent=b needs a judge"),
        (["a", "gate.win_rate=0.5"], "gate.win_rate needs a judge"),
        (["a", "gate.gold=0.1", "dataset=x.jsonl"], "gate.gold needs a data set with a gold score"),
        (["a", "judge=gold", "eval.samples=0"], "a judge needs answers"),
        (["a", "judge=gold", "eval.questions=q.jsonl"], "judge=gold has no score for the questions"),
        (["a", "dataset=x.jsonl", "eval.rows=held_out", "dataset.eval_size=0"], "holds nothing out"),
        (
            ["a", "dataset=mixture", "dataset.parts=[x.jsonl]", "eval.rows=held_out", "dataset.eval_size=0"],
            "eval.rows=held_out, but dataset.eval_size=0 holds nothing out",
        ),
        (["a", "dataset=x.jsonl", "dataset.eval_split=test"], "is a file and has no splits"),
        (["a", "gate.accuracy=1.5"], "gate.accuracy must be a number of at least 0 and of at most 1 or null"),
        (["a", "eval.dtype=fp32"], "eval.dtype must be float32 or bfloat16"),
    ],
)
def test_evaluations_that_cannot_be_made_are_refused(words: list[str], message: str):
    with pytest.raises(UsageError) as refused:
        evaluation(*words)
    assert message in refused.value.render()


def test_plain_words_are_models_also_with_signs_that_hydra_does_not_know():
    assert evaluation("runs/a=1", "~/b", "c@40", "reference=~/d").models == (
        "runs/a=1",
        f"{Path.home()}/b",
        "c@40",
    )
    assert evaluation("a", "reference=~/d").reference == f"{Path.home()}/d"
    assert soup("x y", "é#(1)", "soup=weighted", "soup.weights=[0.2,0.8]").members == ("x y", "é#(1)")


def test_long_names_are_shortened_in_that_of_a_directory():
    config = load(open_conf(None), [f"model=./{'m' * 250}", f"dataset=./{'d' * 250}.jsonl"])
    name = run_directory(config)
    assert name == f"runs/dpo-{'m' * 48}-{'d' * 48}-{request_hash(config)}"


def test_directories_of_soups_and_evaluations_are_named_by_their_request():
    made: list[Config] = [soup("a", "b"), evaluation("a", "dataset=some/pairs.jsonl")]
    names = [run_directory(config) for config in made]
    assert names == [f"soups/uniform-{request_hash(made[0])}", f"evals/pairs-{request_hash(made[1])}"]
