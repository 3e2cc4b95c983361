"""A directory of one's own options: what it may do, and what a stranger's may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignctl.cli import main
from alignctl.cli.compose import load
from alignctl.cli.options import Conf, conf_directory, open_conf
from alignctl.errors import UsageError

CONF = open_conf(None)


def refusal(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(CONF, words)
    return caught.value.render()


def own_directory(place: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text, encoding="utf-8")
    return str(place)


HOSTILE = {
    "job_logging": "hydra:\n  job_logging:\n    handlers:\n      x: {'()': os.system, command: touch MARK}\n",
    "callbacks": "name: dpo\nhydra:\n  callbacks:\n    x: {_target_: os.system, command: touch MARK}\n",
    "package": "# @package hydra\ncallbacks:\n  x: {a: os.system}\n",
    "package_logging": "#@package hydra.job_logging\nhandlers:\n  x: {a: os.system}\n",
    "package_global": "# @package _global_\nout: /tmp\n",
    "factory": "name: dpo\nbeta:\n  '()': os.system\n",
    "target": "name: dpo\nbeta:\n  _target_: os.system\n",
    "resolver": "name: dpo\nbeta: ${oc.env:HOME}\n",
    "nested_resolver": "name: dpo\nbeta: ${${a}:b}\n",
    "python_tag": "name: dpo\nbeta: !!python/object/apply:os.system [touch MARK]\n",
    "defaults_hydra": "defaults:\n  - override /hydra/job_logging: none\nname: dpo\n",
    "defaults_package": "defaults:\n  - dpo@hydra.callbacks\n",
    "defaults_elsewhere": "defaults:\n  - /secret/x\n",
    "aliases": "name: &a dpo\nbeta: *a\n",
    "deep": "beta: " + "[" * 3000 + "]" * 3000 + "\n",
    "long": "# " + "x" * 70000 + "\nname: dpo\n",
    "twice": "name: dpo\nbeta: 1\nbeta: 2\n",
    "octal": "name: dpo\nbeta: 010\n",
    "sexagesimal": "name: dpo\nbeta: 12:30\n",
    "token": "name: dpo\nbeta: hf_abcdefghijklmnop1234\n",
    "tab": "name: dpo\n\tbeta: 1\n",
    "list": "- 1\n",
    "empty": "",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_options_are_refused_by_file_and_do_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    place = own_directory(tmp_path / "own", {"algo/mine.yaml": HOSTILE[case]})
    before = sorted(tmp_path.rglob("*"))
    for words in (["algo=mine", "--cfg", "job"], ["--help"], ["-m", "algo=mine"]):
        assert main(["train", "-cd", place, *words]) == 2
        error = capsys.readouterr().err
        assert "algo/mine.yaml" in error
        assert len(error.splitlines()) <= 3
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("case", ["package", "package_logging", "job_logging", "callbacks"])
def test_the_second_lock_holds_without_the_scan(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    own_directory(tmp_path / "own", {"algo/mine.yaml": HOSTILE[case]})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError):
        load(Conf(conf_directory(), tmp_path / "own"), ["algo=mine"])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "word",
    [
        "hydra.run.dir=x",
        "+hydra.callbacks.x._target_=os.system",
        "hydra/job_logging=none",
        "hydra.searchpath=[file:///x]",
        "algo@hydra.job_logging=dpo",
        "algo._target_=os.system",
        "/algo=dpo",
        "out=${oc.env:HOME}",
        "out=${hydra:runtime.cwd}",
        "out=\\${oc.env:HOME}",
        "model.path=hf_abcdefghijklmnop1234",
        "out=sk-proj-abcdefghijkl1234",
        "model=me/ghp_abcdefghijklmnop1234",
    ],
)
def test_words_that_reach_for_hydra_code_or_secrets_are_refused(word: str):
    text = (
        refusal("model=pretrained", "model.path=x", word) if not word.startswith("model") else refusal(word)
    )
    assert "1234" not in text, "a secret is not echoed"
    assert any(
        reason in text for reason in ("refused", "resolver", "access token", "not the name of a setting")
    )


def test_a_directory_of_ones_own_adds_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = "# Softer DPO.\ndefaults:\n  - dpo\n# Less pull.\nbeta: 0.02\n"
    place = own_directory(tmp_path / "a b,c=é", {"algo/soft.yaml": text})
    monkeypatch.setenv("ALIGNCTL_CONF", place)
    for conf in (open_conf(place), open_conf(None)):
        got = load(conf, ["algo=soft", "algo.label_noise=0.1"])
        assert (got.algo.name, got.algo.beta, got.algo.label_noise) == ("dpo", 0.02, 0.1)  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"algo\.bta is not a setting of algo=soft"):
        load(open_conf(place), ["algo=soft", "algo.bta=1"])


def test_ls_and_help_show_options_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    place = own_directory(tmp_path, {"algo/soft.yaml": "# Softer DPO.\ndefaults:\n  - dpo\n\nbeta: 0.02\n"})
    assert main(["ls", "algo", "-cd", place]) == 0
    assert "soft            Softer DPO." in capsys.readouterr().out
    assert main(["train", "--help", "--config-dir", place, "algo=soft"]) == 0
    shown = capsys.readouterr().out
    assert "*soft" in shown
    assert "0.02       Strength of the pull" in shown
    assert "algo.label_noise" in shown


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"algo/dpo.yaml": "name: dpo\n"}, "has the name of a shipped option"),
        ({"train.yaml": "seed: 1\n", "algo/x.yaml": "name: dpo\n"}, "train.yaml is not read"),
        ({"other/x.yaml": "a: 1\n"}, "holds no options"),
    ],
)
def test_a_directory_that_would_not_do_what_it_seems_to_is_refused(
    files: dict[str, str], message: str, tmp_path: Path
):
    with pytest.raises(UsageError, match=message):
        open_conf(own_directory(tmp_path, files))


def test_an_own_option_with_wrong_keys_is_told_by_its_name(tmp_path: Path):
    conf = open_conf(own_directory(tmp_path, {"algo/mine.yaml": "name: dpo\nbeta: no\nbta: 1\n"}))
    with pytest.raises(UsageError) as caught:
        load(conf, ["algo=mine"])
    text = caught.value.render()
    assert "algo.bta is not a setting of algo=mine" in text
    assert "algo.beta must be a number above 0, got false" in text
    assert "algo=mine lacks algo.reference" in text
    (tmp_path / "algo/mine.yaml").write_text("name: dop\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"algo=mine has no usable algo\.name"):
        load(conf, ["algo=mine"])
