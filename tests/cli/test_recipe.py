"""Recipes: what a file may hold, what its stages are, and how typed settings reach them."""

from __future__ import annotations

import re
from functools import cache as once
from pathlib import Path

import pytest

from alignctl.cli import main
from alignctl.cli.options import Conf, open_conf
from alignctl.cli.recipe_plan import Stage, plan
from alignctl.config import EvalConfig, SoupConfig, TrainConfig
from alignctl.errors import UsageError

ROOT = Path(__file__).parents[2]
CONF = open_conf(None)
SALSA = "recipe=salsa-2seeds"


def recipe_of(*lines: str) -> str:
    return "# Mine.\nstages:\n" + "".join(f"  {line}\n" for line in lines)


def own(place: Path, *lines: str) -> Conf:
    (place / "own" / "recipe").mkdir(parents=True, exist_ok=True)
    (place / "own" / "recipe" / "mine.yaml").write_text(recipe_of(*lines), encoding="utf-8")
    return open_conf(str(place / "own"))


@once
def stages(*words: str, conf: Conf = CONF) -> dict[str, Stage]:
    # `out` saves composing everything twice: for the hash in the directory's name, and with that name.
    return {stage.name: stage for stage in plan(conf, [*words, "out=o"]).stages}


def training(*words: str, conf: Conf = CONF) -> dict[str, TrainConfig]:
    found = {name: stage.config for name, stage in stages(*words, conf=conf).items()}
    return {name: config for name, config in found.items() if isinstance(config, TrainConfig)}


# --- what the stages are -------------------------------------------------------------------------------


def test_a_stage_takes_the_directories_of_earlier_ones():
    found = stages(SALSA)
    assert " ".join(str(stage.directory) for stage in found.values()) == (
        "o/1-sft-0 o/2-sft-1 o/3-reward-model o/4-mean o/5-ppo o/6-scores"
    )
    ppo, mean, scores = found["ppo"].config, found["mean"].config, found["scores"].config
    assert isinstance(ppo, TrainConfig)
    assert ppo.model.path == "o/1-sft-0"  # type: ignore[union-attr]
    assert ppo.algo.reference.members == ("o/1-sft-0", "o/2-sft-1")  # type: ignore[union-attr]
    assert ppo.reward.path == "o/3-reward-model"  # type: ignore[union-attr]
    assert isinstance(mean, SoupConfig)
    assert mean.members == ("o/1-sft-0", "o/2-sft-1")
    assert isinstance(scores, EvalConfig)
    assert scores.models == ("o/1-sft-0", "o/4-mean", "o/5-ppo")


def test_directories_may_hold_signs_that_need_quotes(tmp_path: Path):
    soup = "algo.reference.kind=soup algo.reference.members=[{a},{a}@4]"
    conf = own(tmp_path, "a: train", f"b: train model={{a}}@3 {soup}")
    config = plan(conf, ["recipe=mine", "out=my runs/é#(1)"]).stages[1].config
    assert isinstance(config, TrainConfig)
    assert config.model.path == "my runs/é#(1)/1-a@3"  # type: ignore[union-attr]
    members = config.algo.reference.members  # type: ignore[union-attr]
    assert members == ("my runs/é#(1)/1-a", "my runs/é#(1)/1-a@4")


def test_a_directory_is_named_by_what_the_stages_compute(tmp_path: Path):
    conf = own(tmp_path, "a: train", "b: soup {a} other/model")
    names = [
        plan(conf, ["recipe=mine", *words]).directory
        for words in ([], ["hardware=cpu", "overwrite=true"], ["a.train.steps=10"], ["b.dtype=float16"])
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"recipes/mine-[0-9a-f]{8}", str(name)) for name in names)


def test_an_evaluation_scores_what_the_first_run_holds_out(tmp_path: Path):
    conf = own(tmp_path, "a: train", "m: soup {a} x/y", "b: eval {m} {a}@10 {a}@20", "c: eval {a}")
    config = stages("recipe=mine", "dataset=prefs.jsonl", "dataset.eval_size=7", conf=conf)["b"].config
    assert isinstance(config, EvalConfig)
    assert config.models == ("o/2-m", "o/1-a@10", "o/1-a@20")
    assert (config.dataset.path, config.dataset.eval_size) == ("prefs.jsonl", 7)  # type: ignore[union-attr]
    assert config.eval.rows == "held_out"
    with pytest.raises(UsageError, match="o/1-a held nothing out"):
        plan(conf, ["recipe=mine", "dataset=prefs.jsonl", "dataset.eval_size=0", "out=o"])


def test_a_model_that_a_stage_trained_keeps_its_learning_rate(tmp_path: Path):
    lines = [
        "a: train",
        "b: train seed=1",
        "m: soup {a} {b}",
        "c: train model={a}@2",
        "d: train model={m}",
    ]
    conf = own(tmp_path, *lines)
    found = training("recipe=mine", "a.model=tiny", "a.model.lr=5e-4", "b.model=tiny", conf=conf)
    assert (found["c"].model.lr, found["d"].model.lr) == (5e-4, 5e-4)
    found = training("recipe=mine", "a.model=tiny", "d.model.lr=7e-5", conf=conf)
    assert (found["c"].model.lr, found["d"].model.lr) == (found["a"].model.lr, 7e-5)


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "conf" / "recipe").glob("*.yaml"))])
def test_every_shipped_recipe_composes_and_would_pass_as_a_stranger_s(name: str, tmp_path: Path):
    own(tmp_path, "a: train")
    text = (ROOT / "conf" / "recipe" / f"{name}.yaml").read_text(encoding="utf-8")
    (tmp_path / "own" / "recipe" / "mine.yaml").write_text(text, encoding="utf-8")
    copied = stages("recipe=mine", conf=open_conf(str(tmp_path / "own")))
    assert copied == stages(f"recipe={name}")


# --- what is typed beside recipe= ----------------------------------------------------------------------

TYPED = (
    *("model=tiny", "train.batch_size=3", "algo.clip=0.1", "hardware.threads=2", "adapter=lora"),
    *("adapter.r=3", "sft-0.adapter=none", "sft-1.seed=9", "ppo.algo.samples=2", "ppo.reward.path={sft-1}"),
)


def test_a_setting_reaches_every_train_stage_that_has_it_and_hardware_every_stage():
    found, trained = stages(SALSA, *TYPED), training(SALSA, *TYPED)
    assert [config.train.batch_size for config in trained.values()] == [3] * 4
    assert [config.adapter.kind for config in trained.values()] == ["none", "lora", "lora", "lora"]
    assert [config.adapter.r for config in list(trained.values())[1:]] == [3] * 3  # type: ignore[union-attr]
    assert [word for word in found["sft-0"].words if word.startswith("algo")] == ["algo=sft"]
    assert trained["ppo"].algo.clip == 0.1  # type: ignore[union-attr]
    assert [stage.config.hardware.threads for stage in found.values()] == [2] * 6


def test_typed_words_win_over_the_recipe_but_only_a_named_stage_loses_what_it_takes():
    found = training(SALSA, *TYPED)
    assert [found[name].model.kind for name in ("sft-0", "sft-1", "reward-model")] == ["tiny"] * 3
    assert found["ppo"].model.path == "o/1-sft-0"  # type: ignore[union-attr]
    assert found["ppo"].reward.path == "o/2-sft-1"  # type: ignore[union-attr]
    assert (found["sft-0"].seed, found["sft-1"].seed) == (0, 9)
    assert found["ppo"].algo.samples == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("word", "messages"),
    [
        ("algo.bta=1", ["algo.bta is a setting of no stage of recipe=salsa", "did you mean   algo.beta"]),
        ("beta=1", ["did you mean   algo.beta"]),
        ("trian.steps=5", ["trian is neither a stage of recipe=salsa-2seeds", "did you mean   train.steps"]),
        ("ppp.train.steps=5", ["did you mean   ppo.train.steps", "stages   sft-0  sft-1"]),
        ("judge=none", ["judge is not a setting of a train stage", "for one stage   scores.judge=none"]),
        ("algo.reference.members=[x,y]", ["ppo takes algo.reference.members from another one"]),
        ("model=nothing", ["model=nothing is not an option of model"]),
        ("hardware=gup", ["did you mean   gpu"]),
        ("pairs.jsonl", ["did you mean   dataset=pairs.jsonl"]),
        ("scores.jsonl", ["did you mean   dataset=scores.jsonl"]),
        ("~algo", ["cannot take a setting away"]),
        (SALSA, ["recipe is given twice"]),
        ("out=${oc.env:HOME}", ["calls a resolver"]),
        ("hydra.run.dir=x", ["hydra is neither a stage"]),
        ("ppo.out=x", ["out is set for the recipe as a whole"]),
        ("train.lr=abc", ['above 0 or null, got "abc"\n  in stage 1 of 6, sft-0: alignctl train algo=sft']),
        ("sft-0.model={ppo}", ["{ppo} is not an earlier stage", "in stage 1 of 6, sft-0"]),
        ("sft-1.algo.bta=1", ["algo.bta is not a setting of algo=sft", "in stage 2 of 6, sft-1"]),
        ("reward=gold", ["reward.path is not a setting of reward=gold", "in stage 5 of 6, ppo"]),
        ("scores.judge=nne", ["did you mean   none", "in stage 6 of 6, scores: alignctl eval {sft-0}"]),
        ("seed=5", ["stages sft-0 and sft-1 would compute the same"]),
    ],
)
def test_what_cannot_be_meant_is_refused(word: str, messages: list[str]):
    with pytest.raises(UsageError) as caught:
        plan(CONF, [SALSA, word, *(["out=o"] if not word.startswith("out") else [])])
    text = caught.value.render()
    assert [message for message in messages if message not in text] == []
    assert len(text.splitlines()) <= 4


def test_a_setting_that_is_given_twice_is_refused_wherever_it_goes(tmp_path: Path):
    conf = own(tmp_path, "a: train")
    for stage in ("", "a."):
        with pytest.raises(UsageError, match=r"train\.steps is given twice"):
            plan(conf, ["recipe=mine", f"{stage}train.steps=1", f"{stage}train.steps=2", "out=o"])


# --- what a recipe may hold ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (recipe_of("a: train", "b: soup {a} {c}"), "stage b: {c} is not an earlier stage"),
        (recipe_of("first: train", "b: train model={frist}"), "did you mean   first"),
        (recipe_of("a: train model={a}"), "stage a: {a} is not an earlier stage"),
        (recipe_of("a: trian algo=dpo"), "did you mean   train"),
        (recipe_of("a: ls"), "starts with ls, not with train, soup, eval"),
        (recipe_of("a: ''"), "starts with nothing"),
        (recipe_of("a: train", "a: train seed=1"), "a is set twice"),
        (recipe_of("eval: train"), "stage eval has the name of a setting"),
        (recipe_of("1st: train"), "1st cannot name a stage"),
        (recipe_of("a/../b: train"), "a/../b cannot name a stage"),
        (recipe_of("a: train -m seed=1"), "has the flag -m"),
        (recipe_of("a: train out=x"), "sets out, which is set for the recipe as a whole"),
        (recipe_of("a: train recipe=mine"), "sets recipe"),
        (recipe_of("a: train 'seed=1"), "quote that is not closed"),
        (recipe_of("a: [train]"), "stages.a"),
        (recipe_of("a: train model=${oc.env:HOME}"), "calls a resolver"),
        (recipe_of("a: !!python/object/apply:os.system [x]"), "has the tag"),
        ("# Mine.\nstages: {}\n", "stages"),
        ("# Mine.\nsteps:\n  a: train\n", "stages"),
        ("# Mine.\ndefaults:\n  - salsa-2seeds\nstages:\n  a: train\n", "defaults"),
    ],
)
def test_a_file_that_is_no_chain_is_refused_by_its_name(text: str, message: str, tmp_path: Path):
    own(tmp_path, "a: train")
    (tmp_path / "own" / "recipe" / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        plan(open_conf(str(tmp_path / "own")), ["recipe=mine"])
    assert message in caught.value.render()
    assert "own/recipe/mine.yaml" in caught.value.render()


def test_a_typo_in_the_last_stage_is_told_before_the_first_one_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    own(tmp_path, "a: train", "b: train algo.bta=2 seed=1")
    assert main(["train", "recipe=mine", "-cd", "own"]) == 2
    shown = capsys.readouterr().err
    assert "algo.bta is not a setting of algo=dpo" in shown
    assert "in stage 2 of 2, b: alignctl train algo.bta=2 seed=1" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "recipe=salsa-2sed"], "did you mean   salsa-2seeds"),
        (["train", "recipe=salsa-2sed", "--help"], "did you mean   salsa-2seeds"),
        (["train", SALSA, "-m", "train.steps=1,2"], "--multirun starts several single runs"),
        (["eval", "runs/a", SALSA], "recipe is not a setting of alignctl eval"),
    ],
)
def test_commands_that_are_no_recipe_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_the_stages_are_shown_as_lines_for_a_shell_and_nothing_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", SALSA, "out=o", "--cfg", "job"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "# stage 1 of 6, sft-0: The first fine-tuned model, where the policy starts.",
        "alignctl train algo=sft seed=0 out=o/1-sft-0",
    ]
    assert lines[-1].endswith("reference=o/1-sft-0 judge=gold out=o/6-scores")
    assert list(tmp_path.iterdir()) == []
