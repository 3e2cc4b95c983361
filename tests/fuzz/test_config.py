"""Settings typed in every wrong way: accepted, or refused with exit code 2 in a few lines."""

from __future__ import annotations

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alignctl.cli import main
from fuzz.mutations import FACTOR, ODD_TEXTS, fuzz

KEYS = (
    *("algo", "algo.beta", "algo.reference.kind", "algo.label_smoothing", "model", "model.path", "model.lr"),
    *(
        "dataset",
        "dataset.path",
        "dataset.eval_size",
        "dataset.columns",
        "dataset.columns.chosen",
        "dataset.parts",
    ),
    *(
        "train.lr",
        "train.steps",
        "train.batch_size",
        "train.max_length",
        "train.dtype",
        "train.betas",
        "train",
    ),
    *(
        "adapter",
        "adapter.r",
        "adapter.targets",
        "hardware.micro_tokens",
        "seed",
        "out",
        "eval.samples",
        "judge",
    ),
)
WRONG_KEYS = (
    *("betaa", "algo.betaa", "algo.beta.x", "train.lr.", ".lr", "train..lr", "", "algo.kind", "model.name"),
    *(
        "hydra.run.dir",
        "hydra/launcher",
        "_target_",
        "algo._target_",
        "algo@train",
        "@package",
        "dataset@x:y",
    ),
    *("train[0]", "algo.0", "déjà", "a b", "algo/sub", "--flag", "-x", "recipe", "__class__", "x" * 3000),
)
OPTIONS = (
    "dpo",
    "ipo",
    "hypo",
    "salsa-ppo",
    "tiny",
    "smollm2-135m",
    "file",
    "demo",
    "mixture",
    "lora",
    "none",
)
VALUES = (
    *("1", "0", "-1", "1e-5", "1e400", "-0.0", "nan", "inf", ".5", "1_000", "0x10", "010", "1e", "9" * 5000),
    *("true", "no", "null", "None", "???", "~", "", " ", '""', "'", "abc", "a,b", "a=b", "~/x", "x" * 70_000),
    *(
        "[",
        "]",
        "[]",
        "[1,2]",
        "[a,[b,{c:d}]]",
        "{}",
        "{a:1}",
        "{a:{b:{c:[]}}}",
        "{a",
        "}{",
        "[" * 200,
        "{a:" * 200,
    ),
    *("[" * 2000 + "]" * 2000, "(1)", "#", "%", "\\", "$", "$HOME", "`id`", "!!python/object:os.system"),
    *(
        "${oc.env:HOME}",
        "${seed}",
        "${train.lr}",
        "${out}",
        "${",
        "${}",
        "${a:${b}}",
        "${" * 300,
        "${hydra:x}",
    ),
    *(
        "choice(1,2)",
        "range(10)",
        "glob(*)",
        "int(3)",
        "str(",
        "sort(a,b)",
        "tag(a)",
        "extend_list(1)",
        "sk-" + "a" * 40,
    ),
    *("http://127.0.0.1:9/v1", "../..", "/", "/dev/null", "owner/name", "a.jsonl", *ODD_TEXTS),
)
PREFIXES = ("", "", "", "", "+", "++", "~", "+++", "@", "!", " ")

keys = st.sampled_from((*KEYS, *KEYS, *WRONG_KEYS))
values = st.one_of(
    st.sampled_from((*VALUES, *OPTIONS)),
    st.lists(st.sampled_from(VALUES[:60]), max_size=4).map(lambda items: f"[{','.join(items)}]"),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=12),
    st.text("[]{}(),:='\"\\$~+-.#1a é", max_size=24),
)
words = st.one_of(
    st.builds(lambda prefix, key, value: f"{prefix}{key}={value}", st.sampled_from(PREFIXES), keys, values),
    st.builds(
        lambda prefix, key, value: f"{prefix}{key}={value}", st.just(""), st.sampled_from(KEYS), values
    ),
    st.sampled_from(
        ("~algo", "~train.lr", "dpo", "=", "==", "a.jsonl", "--cfg", "--help=1", "-m", "+", "++")
    ),
    st.text(max_size=10),
)


def check(verb: str, typed: list[str]) -> None:
    """Exit code 0 with settings on stdout, or 2 with a few printable lines on stderr."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([verb, *typed, "--cfg", "job"])
    told = err.getvalue()
    assert code in (0, 2), told
    assert "Traceback" not in told
    assert "unexpected" not in told
    if code == 2:
        lines = told.splitlines()
        assert lines[0].startswith("error: ")
        assert len(lines) <= 40
        assert len(told) < 20_000
        assert told.replace("\n", "").isprintable()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file that a word could name by chance."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGNCTL_CONF", raising=False)
    monkeypatch.delenv("ALIGNCTL_DEBUG", raising=False)


@fuzz(35)
@given(typed=st.lists(words, min_size=1, max_size=3))
@example(typed=["algo=dpo", "model=tiny"])
@example(typed=["algo.beta=" + "9" * 5000])
@example(typed=["algo.beta=" + "[" * 2000 + "]" * 2000])
@example(typed=["x" * 300])
def test_settings_of_training_are_accepted_or_refused(typed: list[str]) -> None:
    check("train", typed)


@fuzz(15)
@given(verb=st.sampled_from(("soup", "eval")), typed=st.lists(words, min_size=1, max_size=3))
@example(verb="eval", typed=["~nobody-of-this-name/run"])
@example(verb="soup", typed=["~nobody-of-this-name/run", "~nobody-of-this-name"])
@example(verb="eval", typed=["x" * 300])
def test_settings_of_other_verbs_are_accepted_or_refused(verb: str, typed: list[str]) -> None:
    check(verb, typed)


@pytest.mark.skipif(FACTOR == 0, reason="each value for each kind of key takes minutes")
def test_each_value_for_each_kind_of_key() -> None:
    for key in (
        "algo",
        "algo.beta",
        "train.betas",
        "dataset.columns",
        "out",
        "adapter.targets",
        "model.path",
    ):
        for value in (*VALUES, *OPTIONS):
            check("train", ["dataset=file", f"{key}={value}"])
