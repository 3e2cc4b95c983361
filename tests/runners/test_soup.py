"""Whole soups on small trained runs: what they leave, what they refuse, and that everything takes them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from alignctl.cli import main
from alignctl.train.lock import lock_beside, only_writer

TRAIN = [
    "model=tiny",
    "dataset.pairs=64",
    "dataset.eval_pairs=12",
    "dataset.gold_samples=0",
    "eval.samples=0",
    "train.steps=8",
    "checkpoint.every=4",
    "checkpoint.keep=3",
]
QUICK = ["dataset.eval_pairs=24"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two full runs and two adapters of one base, and a cache, shared by the tests of this file."""
    directory = tmp_path_factory.mktemp("soups")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNCTL_CACHE", str(directory / "cache"))
        patch.chdir(directory)
        for seed in ("0", "1"):
            assert main(["train", *TRAIN, f"seed={seed}", f"out=runs/{seed}"]) == 0
            assert main(["train", *TRAIN, "adapter=lora", f"seed={seed}", f"out=runs/lora-{seed}"]) == 0
    return directory


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNCTL_CACHE", str(place / "cache"))
    monkeypatch.chdir(place)


def soup(*words: str, out: str) -> Path:
    assert main(["soup", *words, f"out={out}"]) == 0
    return Path(out)


def record(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "soup.json").read_text())


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run, "model/model.safetensors"))


def logits(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 40)[None]).logits


def test_a_soup_is_a_model_directory_that_transformers_opens():
    made = soup("runs/0", "runs/1", out="both")
    a, b = weights("runs/0"), weights("runs/1")
    mean = AutoModelForCausalLM.from_pretrained("runs/0/model")
    mean.load_state_dict(
        {name: (a[name].double() + b[name].double()).div(2).float() for name in a}, strict=False
    )
    mean.tie_weights()
    opened = AutoModelForCausalLM.from_pretrained(made)
    assert torch.equal(logits(opened), logits(mean))
    told = "hello"
    assert AutoTokenizer.from_pretrained(made)(told) == AutoTokenizer.from_pretrained("runs/0/model")(told)
    assert record(made)["parameters"]["weights"] == [0.5, 0.5]
    assert (made / "mergekit.yaml").is_file()


def test_a_soup_knows_its_members_reference_beta_and_prompts(capsys: pytest.CaptureFixture[str]):
    made = soup("runs/0", "runs/1", out="lineage")
    assert record(made)["lineage"]["beta"] == 0.1
    keys = [set(Path(run, "train_prompts.txt").read_text().split()) for run in ("runs/0", "runs/1")]
    assert set((made / "train_prompts.txt").read_text().split()) == keys[0] | keys[1]
    assert len(keys[0]) == 64
    assert main(["eval", "lineage", "runs/0", *QUICK, "eval.samples=0", "out=lineage-eval"]) == 0
    found = json.loads(Path("lineage-eval/results.json").read_text())
    assert found["reference"] == found["models"][-1]["name"]
    assert found["models"][0]["beta"] == 0.1


def test_a_step_of_a_run_is_a_member_like_any_other():
    made = soup("runs/0@4", "runs/0", "soup=weighted", "soup.weights=[1,0]", out="step")
    stored = load_file(Path("runs/0/checkpoints/step-000004/model.safetensors"))
    souped = load_file(made / "model.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in souped.items())
    assert record(made)["members"][0]["name"] == "runs/0@4"


def test_adapters_are_averaged_exactly():
    made = soup("runs/lora-0", "runs/lora-1", "soup=weighted", "soup.weights=[3,1]", out="adapters")
    base = json.loads((made / "adapter_config.json").read_text())["base_model_name_or_path"]

    def merged(adapter: str) -> dict[str, torch.Tensor]:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
        return PeftModel.from_pretrained(model, adapter).double().merge_and_unload().state_dict()

    a, b, mean = merged("runs/lora-0/model"), merged("runs/lora-1/model"), merged(str(made))
    for name, tensor in mean.items():
        assert torch.allclose(tensor, 0.75 * a[name] + 0.25 * b[name], rtol=1e-6, atol=1e-9), name


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ("[runs/0,runs/1]", ["algo.reference.kind=soup"]),
        ("[runs/0,runs/1]", ["algo.reference.kind=soup", "algo.reference.alpha=0.25"]),
        ("[runs/lora-0,runs/lora-1]", ["algo.reference.kind=soup", "algo.reference.weights=[0.75,0.25]"]),
    ],
)
def test_a_souped_reference_is_the_soup_on_disk(members: str, words: list[str], tmp_path: Path):
    """Rewards against a soup in memory equal those against the same soup written out."""
    typed = members.strip("[]").split(",")
    mix = {"algo.reference.alpha=0.25": "[0.75,0.25]", "algo.reference.weights=[0.75,0.25]": "[0.75,0.25]"}
    share = mix.get(words[-1], "[1,1]")
    made = soup(*typed, "soup=weighted", f"soup.weights={share}", out=str(tmp_path / "soup"))
    memory = ["train", *TRAIN, "train.steps=2", *words, f"algo.reference.members={members}"]
    assert main([word for word in memory if word != "train.steps=8"] + [f"out={tmp_path}/a"]) == 0
    disk = ["train", *TRAIN, "train.steps=2", f"algo.reference.path={made}"]
    assert main([word for word in disk if word != "train.steps=8"] + [f"out={tmp_path}/b"]) == 0
    first, second = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("a", "b")
    )
    for one, other in zip(first, second, strict=True):
        assert one["rewards/chosen"] == pytest.approx(other["rewards/chosen"], abs=1e-5)
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
    assert abs(first[0]["rewards/chosen"]) > 1e-4, "the reference is not where the policy starts"


def test_a_sweep_measures_its_points_as_eval_does():
    made = soup("runs/0", "runs/1", "soup=sweep", "soup.points=3", "soup.samples=4", "soup.max_new_tokens=4",
                *QUICK, out="line")  # fmt: skip
    search = record(made)["search"]
    assert [point["alpha"] for point in search["points"]] == [0.0, 0.5, 1.0]
    soup("runs/0", "runs/1", out="middle")
    assert main(["eval", "runs/0", "runs/1", "middle", *QUICK, "eval.samples=0", "out=line-eval"]) == 0
    models = {
        one["name"]: one["metrics"]
        for one in json.loads(Path("line-eval/results.json").read_text())["models"]
    }
    for point, name in zip(search["points"], ("0", "middle", "1"), strict=True):
        for metric in ("accuracy_logp", "accuracy_avg", "likelihood/chosen"):
            assert point["metrics"][metric]["value"] == pytest.approx(models[name][metric]["value"], abs=1e-5)
        assert set(point["metrics"]) >= {"gold/mean"}
    best = search["points"][search["best"]]
    assert best["metrics"]["accuracy_logp"]["value"] == max(
        point["metrics"]["accuracy_logp"]["value"] for point in search["points"]
    )
    assert record(made)["parameters"]["weights"] == best["weights"]
    assert "<svg" in (made / "sweep.html").read_text()


def test_greedy_keeps_what_does_not_hurt_and_tells_the_gain():
    made = soup("runs/0", "runs/0@4", "runs/1", "soup=greedy", "soup.metric=accuracy", *QUICK, out="greedy")
    search = record(made)["search"]
    points, best = search["points"], search["points"][search["best"]]
    value = {tuple(point["members"]): point["metrics"]["accuracy"]["value"] for point in points}
    order = sorted(points[:3], key=lambda point: -point["metrics"]["accuracy"]["value"])
    chosen = [order[0]["members"][0]]
    for single in order[1:]:
        wider = (*chosen, single["members"][0])
        wanted = next(v for members, v in value.items() if set(members) == set(wider))
        kept = next(v for members, v in value.items() if set(members) == set(chosen))
        chosen = list(wider) if wanted >= kept else chosen
    assert set(best["members"]) == set(chosen)
    if search["best"] != search["single"]:
        single = points[search["single"]]["metrics"]["accuracy"]["value"]
        assert search["gain"]["value"] == pytest.approx(best["metrics"]["accuracy"]["value"] - single)
        assert search["gain"]["ci"] is not None


def test_a_search_that_is_repeated_scores_nothing_again(place: Path):
    words = ["runs/1", "runs/0", "soup=greedy", *QUICK]
    soup(*words, out="first")
    before = {path: path.stat().st_mtime_ns for path in (place / "cache/reference").iterdir()}
    soup(*words, out="second")
    assert {path: path.stat().st_mtime_ns for path in (place / "cache/reference").iterdir()} == before
    assert record(Path("first"))["search"] == record(Path("second"))["search"]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A copy of runs/1's model whose weights hold a NaN."""
    from safetensors.torch import save_file

    directory = tmp_path / "broken"
    directory.mkdir()
    for file in Path("runs/1/model").iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


CASES = [
    ("S1 one model", ["runs/0"], 2, "a soup needs two models or more"),
    ("S10 adapter and full", ["runs/0", "runs/lora-0"], 2, "adapter"),
    ("S11 weights", ["runs/0", "runs/1", "soup=weighted", "soup.weights=[0,0]"], 2, "sums to 0"),
    ("S14 NaN", ["runs/0", "BROKEN"], 7, "model.norm.weight"),
    ("no model", ["runs/0", "nowhere"], 3, "nowhere"),
    ("no step", ["runs/0", "runs/0@5"], 7, "keeps no checkpoint of step 5"),
    ("ties of adapters", ["runs/lora-0", "runs/lora-1", "soup=ties", "soup.base=runs/0"], 2, "adapter"),
    ("foreign place", ["runs/0", "runs/1", "out=runs"], 7, "not a soup"),
    ("a member's place", ["runs/0", "runs/1", "out=runs/1"], 7, "is one of the members"),
    ("no reference", ["BARE", "BARE2", "soup=greedy", "soup.metric=accuracy"], 2, "needs a reference"),
]


@pytest.mark.parametrize(
    ("words", "code", "told"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_mistakes_are_answered_and_leave_nothing(
    words: list[str], code: int, told: str, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("BARE", "BARE2"):
        (tmp_path / name).mkdir()
        for file in Path("runs/0/model").iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    places = {"BROKEN": str(broken), "BARE": f"{tmp_path}/BARE", "BARE2": f"{tmp_path}/BARE2"}
    typed = [places.get(word, word) for word in words]
    out = [] if any(word.startswith("out=") for word in words) else [f"out={tmp_path}/soups/new"]
    assert main(["soup", *typed, *out, *(QUICK if "soup=greedy" in words else [])]) == code
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error
    made = tmp_path / "soups"
    assert not made.exists() or [path.name for path in made.iterdir()] == [".new.lock"]


def test_a_second_soup_of_one_place_is_turned_away_and_a_killed_one_s_leftovers_go(
    capsys: pytest.CaptureFixture[str],
):
    soups = Path("shared-place")
    out, other = soups / "mean", soups / ".tmp-mean2-0123abcd"
    with only_writer(out, lock_beside(out)):
        assert main(["soup", "runs/0", "runs/1", f"out={out}"]) == 7
    assert f"{out} is in use by process {os.getpid()}" in capsys.readouterr().err
    for leftover in (soups / ".tmp-mean-0123abcd", other):
        leftover.mkdir()
    soup("runs/0", "runs/1", out=str(out))
    assert sorted(path.name for path in soups.iterdir()) == [".mean.lock", other.name, "mean"]


def test_a_finished_soup_is_replaced_only_when_asked(capsys: pytest.CaptureFixture[str]):
    soup("runs/0", "runs/1", out="kept")
    assert main(["soup", "runs/1", "runs/0", "soup=slerp", "out=kept"]) == 7
    assert "overwrite=true" in capsys.readouterr().err
    soup("runs/1", "runs/0", "soup=slerp", "overwrite=true", out="kept")
    assert record(Path("kept"))["method"] == "slerp"


def test_what_is_printed_names_the_members_as_typed(capsys: pytest.CaptureFixture[str]):
    soup("runs/0", "runs/0@4", out="printed")
    shown = capsys.readouterr().out
    assert "alignctl eval printed runs/0 runs/0@4" in shown
    assert max(map(len, shown.splitlines())) <= 100
