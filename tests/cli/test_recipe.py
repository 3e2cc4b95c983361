"""Recipes: what a file may hold, how typed settings reach its stages, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignctl.cli import main
from alignctl.cli.options import Conf, open_conf
from alignctl.cli.recipe_plan import Chain, Stage, plan
from alignctl.cli.recipe_run import ended_with
from alignctl.config import EvalConfig, SoupConfig, TrainConfig
from alignctl.errors import UsageError

ROOT = Path(__file__).parents[2]
CONF = open_conf(None)
SALSA = "recipe=salsa-2seeds"
PAIR = """# Two seeds, their mean, and what came of them.

# The chain.
stages:
  # The first seed.
  a: train seed=0
  # The second seed.
  b: train seed=1
  # The mean of both.
  mean: soup {a} {b}
  # Figures.
  scores: eval {a} {mean}
"""
SMALL = [
    *("recipe=pair", "model=tiny", "model.layers=1", "hardware=cpu", "hardware.threads=1"),
    *("dataset.pairs=8", "dataset.eval_pairs=4", "dataset.gold_samples=0", "train.batch_size=4"),
    *("eval.samples=0", "scores.eval.samples=0"),
]


def own(place: Path, text: str, name: str = "pair") -> Conf:
    (place / "own" / "recipe").mkdir(parents=True, exist_ok=True)
    (place / "own" / "recipe" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return open_conf(str(place / "own"))


def stages(*words: str, conf: Conf = CONF) -> dict[str, Stage]:
    return {stage.name: stage for stage in plan(conf, words).stages}


def training(*words: str, conf: Conf = CONF) -> dict[str, TrainConfig]:
    found = {name: stage.config for name, stage in stages(*words, conf=conf).items()}
    return {name: config for name, config in found.items() if isinstance(config, TrainConfig)}


# --- what the stages are -------------------------------------------------------------------------------


def test_a_stage_takes_the_directories_of_earlier_ones():
    found = stages(SALSA, "out=here")
    assert [str(stage.directory) for stage in found.values()] == [
        *("here/1-sft-0", "here/2-sft-1", "here/3-reward-model", "here/4-mean", "here/5-ppo", "here/6-scores")
    ]
    ppo, mean, scores = found["ppo"].config, found["mean"].config, found["scores"].config
    assert isinstance(ppo, TrainConfig)
    assert ppo.model.path == "here/1-sft-0"  # type: ignore[union-attr]
    assert ppo.algo.reference.members == ("here/1-sft-0", "here/2-sft-1")  # type: ignore[union-attr]
    assert ppo.reward.path == "here/3-reward-model"  # type: ignore[union-attr]
    assert isinstance(mean, SoupConfig)
    assert mean.members == ("here/1-sft-0", "here/2-sft-1")
    assert isinstance(scores, EvalConfig)
    assert scores.models == ("here/1-sft-0", "here/4-mean", "here/5-ppo")


def test_directories_may_hold_signs_that_need_quotes():
    ppo = training(SALSA, "out=my runs/é#(1)")["ppo"]
    assert ppo.model.path == "my runs/é#(1)/1-sft-0"  # type: ignore[union-attr]
    assert ppo.algo.reference.members[1] == "my runs/é#(1)/2-sft-1"  # type: ignore[union-attr]


def test_a_directory_is_named_by_what_the_stages_compute():
    name = plan(CONF, [SALSA]).directory
    assert name == plan(CONF, [SALSA, "hardware=cpu", "overwrite=true"]).directory
    assert name.name.startswith("salsa-2seeds-")
    assert name != plan(CONF, [SALSA, "ppo.train.steps=10"]).directory


def test_a_checkpoint_of_an_earlier_stage_can_be_taken(tmp_path: Path):
    text = "# Steps.\nstages:\n  # A.\n  a: train\n  # B.\n  b: eval {a}@10 {a}@20\n"
    config = stages("recipe=pair", "out=o", "dataset.pairs=9", conf=own(tmp_path, text))["b"].config
    assert isinstance(config, EvalConfig)
    assert config.models == ("o/1-a@10", "o/1-a@20")
    assert config.dataset.pairs == 9  # type: ignore[union-attr]


def test_an_evaluation_scores_what_the_first_run_holds_out(tmp_path: Path):
    conf = own(tmp_path, PAIR)
    scores = stages("recipe=pair", "dataset=prefs.jsonl", "dataset.eval_size=7", conf=conf)["scores"].config
    assert isinstance(scores, EvalConfig)
    assert (scores.dataset.path, scores.dataset.eval_size) == ("prefs.jsonl", 7)  # type: ignore[union-attr]
    assert scores.eval.rows == "held_out"


def test_a_trained_model_keeps_its_learning_rate():
    assert training(SALSA, "model=tiny")["ppo"].model.lr == training("recipe=salsa-2seeds")["sft-0"].model.lr * 100
    assert training(SALSA, "model.lr=3e-5")["ppo"].model.lr == 3e-5
    assert training(SALSA, "ppo.model.lr=7e-5", "model=tiny")["ppo"].model.lr == 7e-5
    assert training(SALSA, "ppo.model={mean}", "model.lr=3e-5")["ppo"].model.lr == 3e-5


# --- what is typed beside recipe= ----------------------------------------------------------------------


def test_a_setting_reaches_every_train_stage_that_has_it_and_hardware_every_stage():
    found = stages(SALSA, "train.batch_size=3", "algo.clip=0.1", "hardware.threads=2")
    training = {name: stage.config for name, stage in found.items() if isinstance(stage.config, TrainConfig)}
    assert {config.train.batch_size for config in training.values()} == {3}
    assert training["ppo"].algo.clip == 0.1  # type: ignore[union-attr]
    assert "algo.clip=0.1" not in found["sft-0"].words
    assert {stage.config.hardware.threads for stage in found.values()} == {2}


def test_typed_words_win_over_the_recipe_but_not_over_what_is_taken():
    found = training(SALSA, "model=tiny", "sft-1.seed=9", "ppo.algo.samples=2")
    assert [found[name].model.kind for name in ("sft-0", "sft-1", "reward-model")] == ["tiny"] * 3
    assert found["ppo"].model.path.endswith("1-sft-0")  # type: ignore[union-attr]
    assert (found["sft-0"].seed, found["sft-1"].seed) == (0, 9)
    assert found["ppo"].algo.samples == 2  # type: ignore[union-attr]


def test_a_stage_that_is_named_can_be_given_another_model():
    found = training(SALSA, "ppo.model={sft-1}", "out=o")
    assert found["ppo"].model.path == "o/2-sft-1"  # type: ignore[union-attr]
    assert training(SALSA, "ppo.model=some/where")["ppo"].model.path == "some/where"  # type: ignore[union-attr]


def test_settings_that_follow_from_a_typed_option_fit():
    found = training(SALSA, "adapter=lora", "adapter.r=3", "sft-0.adapter=none")
    assert found["sft-1"].adapter.r == 3  # type: ignore[union-attr]
    assert found["sft-0"].adapter.kind == "none"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algo.bta=1"], "algo.bta is a setting of no stage of recipe=salsa-2seeds\n  did you mean   algo.beta"),
        (["beta=1"], "did you mean   algo.beta"),
        (["trian.steps=5"], "did you mean   train.steps"),
        (["ppp.train.steps=5"], "did you mean   ppo.train.steps"),
        (["judge=none"], "judge is not a setting of a train stage"),
        (["judge=none"], "for one stage   scores.judge=none"),
        (["algo.reference.members=[x,y]"], "ppo takes algo.reference.members from another one"),
        (["seed=5"], "stages sft-0 and sft-1 would compute the same"),
        (["train.lr=abc"], 'train.lr must be a number above 0 or null, got "abc"\n  in stage 1 of 6, sft-0:'),
        (["ppo.algo.bta=1"], "algo.bta is not a setting of algo=salsa-ppo"),
        (["ppo.algo.bta=1"], "in stage 5 of 6, ppo: alignctl train algo=salsa-ppo model={sft-0}"),
        (["scores.judge=nne"], "did you mean   none"),
        (["dataset=x.jsonl"], "judge=gold needs a data set with a gold score"),
        (["reward=gold"], "in stage 5 of 6, ppo"),
        (["model=nothing"], "model=nothing is not an option of model"),
        (["sft-0.model={ppo}"], "{ppo} is not an earlier stage"),
        (["ppo.out=x"], "out is set for the recipe as a whole"),
        (["hardware=gup"], "did you mean   gpu"),
        (["train.steps=1", "train.steps=2"], "train.steps is given twice"),
        (["ppo.train.steps=1", "ppo.train.steps=2"], "train.steps is given twice"),
        ([SALSA], "recipe is given twice"),
        (["pairs.jsonl"], "did you mean   dataset=pairs.jsonl"),
        (["~algo"], "cannot take a setting away"),
        (["out=${oc.env:HOME}"], "calls a resolver"),
        (["hydra.run.dir=x"], "hydra is neither a stage"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], message: str):
    with pytest.raises(UsageError) as caught:
        plan(CONF, [SALSA, *words])
    text = caught.value.render()
    assert message in text
    assert len(text.splitlines()) <= 4


# --- what a recipe may hold ----------------------------------------------------------------------------


def recipe_of(*lines: str) -> str:
    return "# Mine.\nstages:\n" + "".join(f"  {line}\n" for line in lines)


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
        (recipe_of("a: train -m seed=1"), "has the flag -m"),
        (recipe_of("a: train out=x"), "sets out, which is set for the recipe as a whole"),
        (recipe_of("a: train recipe=pair"), "sets recipe"),
        (recipe_of("a: train 'seed=1"), "quote that is not closed"),
        (recipe_of("a: [train]"), "stages.a"),
        (recipe_of("a: train out=${oc.env:HOME}"), "calls a resolver"),
        (recipe_of("a: !!python/object/apply:os.system [x]"), "has the tag"),
        ("# Mine.\nstages: {}\n", "stages"),
        ("# Mine.\nsteps:\n  a: train\n", "stages"),
        ("# Mine.\ndefaults:\n  - salsa-2seeds\nstages:\n  a: train\n", "defaults"),
    ],
)
def test_a_file_that_is_no_chain_is_refused_by_its_name(text: str, message: str, tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        plan(own(tmp_path, text), ["recipe=pair"])
    assert message in caught.value.render()
    assert "own/recipe/pair.yaml" in caught.value.render()


def test_a_typo_in_the_last_stage_is_told_before_the_first_one_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    own(tmp_path, recipe_of("a: train", "b: train algo.bta=2 seed=1"))
    assert main(["train", "recipe=pair", "-cd", "own"]) == 2
    shown = capsys.readouterr().err
    assert "algo.bta is not a setting of algo=dpo" in shown
    assert "in stage 2 of 2, b: alignctl train algo.bta=2 seed=1" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "conf" / "recipe").glob("*.yaml"))])
def test_every_shipped_recipe_passes_the_scan_and_composes(name: str, tmp_path: Path):
    text = (ROOT / "conf" / "recipe" / f"{name}.yaml").read_text(encoding="utf-8")
    copied = plan(own(tmp_path, text), ["recipe=pair", "out=o"])
    assert [stage.command for stage in copied.stages] == [
        stage.command for stage in plan(CONF, [f"recipe={name}", "out=o"]).stages
    ]


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


# --- going on ------------------------------------------------------------------------------------------


def pretend_finished(stage: Stage, *, status: str = "done", passed: bool = True) -> None:
    """The records that a finished stage leaves, and nothing else of it."""
    stage.directory.mkdir(parents=True)
    record = {"request": stage.request, "status": status}
    name = "soup.json" if stage.verb == "soup" else "run.json"
    (stage.directory / name).write_text(json.dumps(record))
    if stage.verb == "eval":
        (stage.directory / "results.json").write_text(json.dumps({"gates": [{"passed": passed}]}))


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    monkeypatch.chdir(tmp_path)
    return plan(own(tmp_path, PAIR), ["recipe=pair", "out=o"])


def run_pair(*words: str) -> int:
    return main(["train", "recipe=pair", "-cd", "own", "out=o", *words])


def test_whether_a_stage_is_finished_is_read_from_its_directory(pair: Chain):
    a, b, mean, scores = pair.stages
    assert [ended_with(stage) for stage in pair.stages] == [None] * 4
    pretend_finished(a)
    pretend_finished(b, status="running")
    pretend_finished(mean)
    pretend_finished(scores, passed=False)
    assert [ended_with(stage) for stage in pair.stages] == [0, None, 0, 5]
    (other, *_) = plan(own(Path.cwd(), PAIR), ["recipe=pair", "out=o", "train.steps=3"]).stages
    assert ended_with(other) is None
    (mean.directory / "soup.json").write_text("{")
    assert ended_with(mean) is None


def test_a_finished_chain_runs_nothing_and_says_where_things_are(
    pair: Chain, capsys: pytest.CaptureFixture[str]
):
    for stage in pair.stages:
        pretend_finished(stage)
    (pair.stages[-1].directory / "report.html").touch()
    assert run_pair() == 0
    shown = capsys.readouterr()
    assert [line.split()[-1] for line in shown.err.splitlines()] == ["o/1-a", "o/2-b", "o/3-mean", "o/4-scores"]
    assert "  mean    o/3-mean\n" in shown.out
    assert shown.out.endswith("report  o/4-scores/report.html\n")
    record = json.loads(Path("o/recipe.json").read_text())
    assert (record["schema"], record["recipe"]) == (1, "pair")
    assert [stage["name"] for stage in record["stages"]] == ["a", "b", "mean", "scores"]
    assert [stage["exit_code"] for stage in record["stages"]] == [0, 0, 0, 0]
    assert record["stages"][2]["command"] == "alignctl soup o/1-a o/2-b out=o/3-mean"


def test_a_gate_that_failed_stays_failed(pair: Chain, capsys: pytest.CaptureFixture[str]):
    for stage in pair.stages:
        pretend_finished(stage, passed=False)
    assert run_pair() == run_pair() == 5
    assert "stage 4 of 4, scores: a gate failed" in capsys.readouterr().err


def test_stages_that_have_begun_may_not_change(pair: Chain, capsys: pytest.CaptureFixture[str]):
    for stage in pair.stages:
        pretend_finished(stage)
    assert run_pair() == 0
    capsys.readouterr()
    assert run_pair("b.train.lr=1e-4") == 7
    shown = capsys.readouterr().err
    assert "o holds this recipe with another stage 2" in shown
    assert "was   alignctl train seed=1 out=o/2-b" in shown
    assert "now   alignctl train seed=1 train.lr=1e-4 out=o/2-b" in shown
    own(Path.cwd(), PAIR, "other")
    assert main(["train", "recipe=other", "-cd", "own", "out=o"]) == 7
    assert "o holds the recipe pair" in capsys.readouterr().err
    own(Path.cwd(), PAIR.replace("  # Figures.\n  scores: eval {a} {mean}\n", ""))
    assert run_pair() == 7
    assert "now   no such stage" in capsys.readouterr().err


def test_stages_to_come_may_change(pair: Chain, monkeypatch: pytest.MonkeyPatch):
    for stage in pair.stages:
        pretend_finished(stage)
    assert run_pair() == 0
    for name in ("results.json", "run.json"):
        (pair.stages[-1].directory / name).unlink()
    pair.stages[-1].directory.rmdir()
    again = plan(own(Path.cwd(), PAIR), ["recipe=pair", "out=o", "scores.eval.samples=3"])
    pretend_finished(again.stages[-1])
    # The directory is there, but it is that of the stage as it is now.
    with pytest.raises(AssertionError):
        assert run_pair("scores.eval.samples=3") == 0


def test_a_foreign_record_is_refused(pair: Chain, capsys: pytest.CaptureFixture[str]):
    pair.directory.mkdir()
    (pair.directory / "recipe.json").write_text('{"schema": 1, "stages": []}')
    assert run_pair() == 7
    assert "o/recipe.json is not a recipe's record" in capsys.readouterr().err
