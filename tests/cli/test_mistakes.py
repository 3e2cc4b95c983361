"""Every mistake is told in a few lines, with the key as typed, the rule, the value and the way on."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignctl.cli import main
from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.errors import UsageError

CONF = open_conf(None)


def refusal(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(CONF, words)
    return caught.value.render()


def typo(message: str, hint: str, word: str, where: str = "algo=dpo --help") -> str:
    return f"error: {message}\n  {hint}   {word:<{35 - len(hint) - 3}} (all: alignctl train {where})"


NO_BTA = typo("algo.bta is not a setting of algo=dpo", "did you mean", "algo.beta")
TYPOS = {
    "algo.bta=1": NO_BTA,
    "+algo.bta=1": NO_BTA,
    "algo.tau=1": typo("algo.tau is not a setting of algo=dpo", "it belongs to", "algo=ipo"),
    "beta=1": typo("beta is not a setting of alignctl train", "did you mean", "algo.beta", "--help"),
    "aglo=ipo": typo("aglo is not a setting of alignctl train", "did you mean", "algo=dpo", "--help"),
    "trian.steps=5": typo(
        "trian.steps is not a setting of alignctl train", "did you mean", "train.steps", "--help"
    ),
    "algo=dpoo": "error: algo=dpoo is not an option of algo\n"
    "  did you mean   dpo\n"
    "  one of   dpo  hinge  hypo  ipo  ppo  reward  salsa-ppo  sft  slic",
}


@pytest.mark.parametrize("word", TYPOS)
def test_a_typo_is_answered_in_three_lines_at_most(word: str):
    assert refusal(word) == TYPOS[word]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("algo.beta=abc", 'algo.beta must be a number above 0, got "abc"'),
        ("algo.beta=no", 'algo.beta must be a number above 0, got "no"'),
        ("algo.beta=true", "algo.beta must be a number above 0, got true"),
        ("algo.beta=0", "algo.beta must be a number above 0, got 0"),
        ("algo.beta=nan", "algo.beta must be a number above 0, got nan"),
        ("algo.beta=", "algo.beta must be a number above 0, got nothing"),
        ("algo.beta=null", "algo.beta must be a number above 0, got null"),
        ("algo.beta.x=1", "algo.beta must be a number above 0, got a group of settings"),
        ("train.lr=-1", "train.lr must be a number above 0 or null, got -1"),
        ("algo.label_noise=0.5", "algo.label_noise must be a number of at least 0 and below 0.5, got 0.5"),
        ("train.batch_size=2.5", "train.batch_size must be a whole number of at least 1, got 2.5"),
        ("train.max_length=0", "train.max_length must be a whole number of at least 8, got 0"),
        ("train.dtype=fp16", 'train.dtype must be auto, float32 or bfloat16, got "fp16"'),
        ("seed=-1", "seed must be a whole number of at least 0 and below 9223372036854775808, got -1"),
        ("seed=9223372036854775808", "got 9223372036854775808"),
        ("overwrite=yes", 'overwrite must be true or false, got "yes"'),
        ("train=5", "train is a group of settings, got 5"),
        ("out=None", "out=None is text here"),
        ("algo=null", "algo=null is not an option of algo"),
        ("algo.name=ipo", "algo.name is set by the choice of algo"),
        ("model=gpt2", "your own   model=DIRECTORY or model=OWNER/NAME"),
        ("~algo", "~algo cannot take a setting away"),
        ("pairs.jsonl", "did you mean   dataset=pairs.jsonl"),
        ("algo=dpo,ipo", "to run each of them   add --multirun"),
        ("train.lr=1e-5,1e-4", "to run each of them   add --multirun"),
        ("train.lr=${model.lrr}", "Interpolation key 'model.lrr' not found"),
        ("dataset.columns.prompt=x", "it belongs to   dataset=file"),
    ],
)
def test_a_refused_word_is_told_with_its_rule_and_value(word: str, message: str):
    assert message in refusal(word)


def test_the_same_key_twice_is_refused():
    assert "algo is given twice" in refusal("algo=dpo", "algo=ipo")
    assert "seed is given twice" in refusal("seed=1", "seed=2")


def test_all_mistakes_are_told_at_once():
    text = refusal("algo=dpoo", "train.lr=abc", "trian.steps=5", "dataset=file", "algo.tau=1")
    assert text.startswith("error: 4 mistakes in the settings")
    for part in ("algo=dpoo", 'got "abc"', "train.steps", "dataset=file needs dataset.path"):
        assert part in text
    assert "algo.tau" not in text, "nothing is known about an option that does not exist"
    assert len(text.splitlines()) <= 12


def test_missing_values_are_named_together():
    text = refusal("dataset=file", "model=pretrained")
    assert "dataset=file model=pretrained needs dataset.path and model.path" in text
    assert "add   dataset.path=VALUE model.path=VALUE" in text


def test_more_mistakes_than_fit_are_counted():
    text = refusal(*(f"nothing{n}=1" for n in range(9)))
    assert "+4 more" in text
    assert len(text.splitlines()) <= 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "did you mean   train"),
        (["algo=dpo"], "did you mean   alignctl train algo=dpo"),
        (["train", "--hlep"], "did you mean   --help"),
        (["train", "--train.lr=3"], "settings are typed without dashes   alignctl train train.lr=3"),
        (["train", "--experimental-rerun=x.pkl"], "--experimental-rerun is refused"),
        (["train", "--config-path", "x"], "--config-path is refused"),
        (["train", "--cfg", "hydra"], "type   --cfg job"),
        (["train", "-m", "--cfg", "job"], "--cfg job shows one config"),
        (["ls", "algos"], "did you mean   algo"),
    ],
)
def test_wrong_commands_and_flags_exit_two(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(words) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""


def test_debug_shows_where(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALIGNCTL_DEBUG", "1")
    assert main(["train", "algo.bta=1"]) == 2
    assert "Traceback" in capsys.readouterr().err


WORDS = st.builds(
    lambda key, equals, value: f"{key}{equals}{value}",
    st.sampled_from(
        ["algo", "algo.beta", "train", "model", "train.lr", "dataset.path", "seed", "out", "x.y", ""]
    )
    | st.text(max_size=8),
    st.sampled_from(["=", "=", "=", ""]),
    st.sampled_from(
        ["dpo", "file", "tiny", "[1", "{a:", "${x}", "${", "null", "\\", '"', "1,2", "glob(*)", "{}"]
    )
    | st.text(max_size=8),
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(WORDS, max_size=3))
def test_no_word_leads_to_anything_but_a_config_or_a_usage_error(words: list[str]):
    shown = ""
    try:
        load(CONF, words)
    except UsageError as error:
        shown = error.render()
    assert len(shown.splitlines()) <= 12
