"""Directories of options and command lines from strangers: settings are read, nothing else happens."""

from __future__ import annotations

import pytest
from artefacts import KEY, Payload, Place, checked

COMMAND = "COMMAND"
"""Stands for a shell command."""


def mine(rest: str) -> str:
    """An option that builds on dpo and says something more."""
    return f"# An option.\ndefaults:\n  - dpo\n  - _self_\n{rest}\n"


def option(place: Place, text: str, group: str = "algo") -> None:
    directory = place.work / "conf" / group
    directory.mkdir(parents=True)
    (directory / "mine.yaml").write_text(text)


JOB_LOGGING = """hydra:
  job_logging:
    version: 1
    handlers:
      file: {"()": subprocess.run, args: ["COMMAND"], shell: true}
"""
CALLBACK = """hydra:
  callbacks:
    mine: {_target_: os.system, command: "COMMAND"}
"""
OPTIONS = {
    "Hydra's node": mine("hydra: {run: {dir: /tmp}}"),
    "a factory in the logging": mine(JOB_LOGGING),
    "a factory without Hydra": mine('beta: {"()": os.system}'),
    "a callback": mine(CALLBACK),
    "a class": mine("beta:\n  _target_: os.system\n  command: 'COMMAND'"),
    "a search path": mine("searchpath: [file:///etc]"),
    "Hydra's search path": mine("hydra.searchpath: [file:///etc]"),
    "another package": "# @package _global_\n" + mine("train: {lr: 1}"),
    "Hydra's package": "# @package hydra\n" + mine("run: {dir: /tmp}"),
    "a default of Hydra's": "# Mine.\ndefaults:\n  - dpo\n  - override /hydra/job_logging: colorlog\n",
    "a default elsewhere": "# Mine.\ndefaults:\n  - ../../../away/secret\n",
    "a default of another group": "# Mine.\ndefaults:\n  - dpo\n  - /model: tiny\n",
    "the environment": mine("beta: ${oc.env:WITNESS_KEY}"),
    "the environment, decoded": mine("beta: ${oc.decode:${oc.env:WITNESS_KEY}}"),
    "a resolver in a resolver": mine("beta: ${oc.create:{_target_: os.system}}"),
    "a python object": mine("beta: !!python/object/apply:os.system ['COMMAND']"),
    "a python module": mine("beta: !!python/module:antigravity ''"),
    "a tag of its own": mine("beta: !mine 1"),
    "a billion laughs": mine("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]"),
    "a merge": mine("a: &a {beta: 1}\n<<: *a"),
    "endless brackets": mine("beta: " + "[" * 5000),
    "a key": mine("beta: sk-0123456789abcdef0123456789"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_holds_more_than_settings_is_refused(
    name: str, place: Place, payload: Payload
) -> None:
    option(place, OPTIONS[name].replace(COMMAND, payload.command))
    text = place.refused(2, "algo=mine", "--config-dir", "conf")
    assert "mine.yaml" in text


def test_such_a_directory_is_refused_from_the_environment_too(place: Place, payload: Payload) -> None:
    option(place, OPTIONS["a callback"].replace(COMMAND, payload.command))
    for command in (("train", "algo=mine"), ("ls",), ("train", "--help"), ("eval", "model", "--cfg", "job")):
        text = checked(place.run(*command, ALIGNCTL_CONF="conf"), 2)
        assert "mine.yaml" in text


def test_an_option_of_settings_alone_is_taken(place: Place) -> None:
    """What the refusals above are measured against."""
    option(place, mine("beta: 0.25"))
    text = checked(place.train("algo=mine", "--config-dir", "conf", "--cfg", "job"), 0)
    assert "beta: 0.25" in text


def test_commands_of_its_own_are_not_read(place: Place, payload: Payload) -> None:
    option(place, mine("beta: 1"))
    (place.work / "conf" / "train.yaml").write_text(CALLBACK.replace(COMMAND, payload.command))
    assert "train.yaml is not read" in place.refused(2, "algo=mine", "--config-dir", "conf")


def test_an_option_is_not_read_through_a_link(place: Place) -> None:
    """A link to a private file is no option, and nothing of the file is told."""
    (place.work / "conf" / "algo").mkdir(parents=True)
    (place.work / "conf" / "algo" / "mine.yaml").symlink_to(place.away / "secret.txt")
    assert "mine.yaml" in place.refused(2, "algo=mine", "--config-dir", "conf")


RECIPES = {
    "a shell in a stage": "train; COMMAND",
    "a pipe": "train | sh",
    "a substitution": "train out=$(COMMAND)",
    "a flag": "train --config-dir ../away",
    "another command": "doctor",
    "a program": "/bin/sh -c 'COMMAND'",
    "Hydra's settings": "train hydra.callbacks.mine._target_=os.system",
    "added settings": "train +hydra.run.dir=../away",
    "the environment": "train train.lr=${oc.env:WITNESS_KEY}",
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_stage_of_a_recipe_is_a_line_of_settings(name: str, place: Place, payload: Payload) -> None:
    line = RECIPES[name].replace(COMMAND, payload.command)
    option(place, f"# A chain.\nstages:\n  # One.\n  one: {line!r}\n", "recipe")
    checked(place.run("train", "recipe=mine", "--config-dir", "conf", "out=run"), 2)


WORDS: dict[str, tuple[str, ...]] = {
    "rerun": ("--experimental-rerun", "pickled"),
    "config path": ("--config-path", "../away"),
    "config name": ("--config-name=mine",),
    "callback": ("hydra.callbacks.mine._target_=os.system",),
    "callback, added": ("+hydra.callbacks.mine._target_=os.system",),
    "callback, forced": ("++hydra.callbacks.mine._target_=os.system",),
    "launcher": ("hydra/launcher=joblib",),
    "search path": ("hydra.searchpath=[file:///etc]",),
    "removed": ("~hydra.job_logging",),
    "class": ("algo._target_=os.system",),
    "environment": ("train.lr=${oc.env:WITNESS_KEY}",),
    "environment in a path": ("out=run/${oc.env:WITNESS_KEY}",),
    "environment, decoded": ("train.lr=${oc.decode:${oc.env:WITNESS_KEY}",),
    "remote code": ("model.trust_remote_code=true",),
    "remote code, added": ("+model.trust_remote_code=true",),
    "key of a hub": ("model.revision=hf_0123456789abcdefghij",),
    "key of a judge": ("dataset.split=sk-0123456789abcdefghij",),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_command_line_sets_settings_alone(name: str, place: Place, payload: Payload) -> None:
    (place.work / "pickled").write_bytes(payload.pickle)
    place.refused(2, *WORDS[name])


@pytest.mark.parametrize("out", ["/", "~", "../away/secret.txt"])
def test_a_run_is_not_written_over_what_is_no_run(out: str, place: Place) -> None:
    seen = place.train(f"out={out}")
    assert seen.code in (3, 7), seen.text
    assert not seen.events


JUDGE = ("eval", "./model", "dataset=prefs.jsonl", "judge=endpoint", "judge.model=m", "out=run")
REWARD = ("train", "model=./model", "dataset=prefs.jsonl", "algo=ppo", "reward=endpoint", "out=run")


@pytest.mark.parametrize(
    ("group", "setting"),
    [
        ("judge", f"key_env={KEY}"),
        ("judge", f"url=http://user:{KEY}@127.0.0.1:9/v1"),
        ("judge", f"url=http://127.0.0.1:9/v1?key={KEY}"),
        ("reward", f"key_env={KEY}"),
        ("reward", f"url=http://{KEY}@127.0.0.1:9/v1"),
        ("reward", f"url=http://127.0.0.1:9/v1#{KEY}"),
    ],
)
def test_a_secret_typed_in_the_wrong_place_is_refused_and_not_repeated(
    group: str, setting: str, place: Place
) -> None:
    """Before anything is written: the settings of a run are kept in it."""
    words = JUDGE if group == "judge" else REWARD
    more = () if setting.startswith("url") or group == "judge" else ("reward.url=http://127.0.0.1:9/v1",)
    text = checked(place.run(*words, *more, f"{group}.{setting}"), 2)
    assert f"{group}.{setting.partition('=')[0]}" in text
    assert not (place.work / "run").exists()
