"""The card that whole runs and soups leave: in every model directory, the same after a resume, and true."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from alignctl.cli import main
from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import PinnedModel, PretrainedModel, TinyModel, TrainConfig
from alignctl.runners.lineage import hub_base, is_hub_id
from alignctl.runners.model_cards import hub_datasets

QUICK = [
    *("dataset.pairs=32", "dataset.eval_pairs=8", "dataset.gold_samples=0", "eval.samples=0"),
    "train.batch_size=4",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full run, an adapter, a reward model, and two soups, shared by the tests of this file."""
    directory = tmp_path_factory.mktemp("cards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNCTL_CACHE", str(directory / "cache"))
        patch.chdir(directory)
        for out, *words in (
            ("full", "model=tiny", "--format", "quiet"),
            ("other", "model=tiny", "seed=1"),
            ("lora", "model=tiny", "adapter=lora"),
            ("lora-1", "model=tiny", "adapter=lora", "seed=1"),
            ("reward", "model=tiny", "algo=reward"),
            ("again", "model=full"),
        ):
            assert main(["train", *words, *QUICK, "train.steps=4", f"out={out}"]) == 0
        assert main(["soup", str(directory / "full"), "other", "out=soup"]) == 0
        assert main(["soup", "lora", "lora-1", "out=lora-soup"]) == 0
    return directory


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNCTL_CACHE", str(place / "cache"))
    monkeypatch.chdir(place)


MODELS = ("full/model", "lora/model", "reward/model", "again/model", "soup", "lora-soup")


@pytest.mark.parametrize("model", MODELS)
def test_every_model_directory_has_a_card_without_a_place_on_the_machine(model: str, place: Path) -> None:
    card = Path(model, "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: ")
    assert "alignctl" in card
    assert "More Information Needed" not in card  # PEFT's form
    assert str(place) not in card
    assert "cards0" not in card


def test_the_figures_of_the_card_are_those_of_the_run() -> None:
    card = Path("full/model/README.md").read_text(encoding="utf-8")
    record = json.loads(Path("full/run.json").read_text())
    loss = record["headline"]["loss"]["best"]
    low, high = loss["ci"]
    assert f"{loss['value']:.4f} [{low:.4f}, {high:.4f}]" in card
    assert f"fingerprint of data: `{record['fingerprints']['data']}`" in card
    assert f"torch {record['versions']['torch']}" in card
    assert "32 pairs to train on, 8 held out" in card
    assert "alignctl train model=tiny dataset.pairs=32" in card


@pytest.mark.slow
@pytest.mark.parametrize("model", ["full/model", "lora/model", "reward/model", "soup", "lora-soup"])
def test_the_code_in_the_card_works_where_the_card_lies(
    model: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = (place / model / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    script = tmp_path / "use.py"
    script.write_text(code, encoding="utf-8")
    monkeypatch.chdir(place / model)
    runpy.run_path(str(script))
    shown = capsys.readouterr().out.strip()
    if model == "reward/model":
        assert float(shown) != 0


# --- what a model began with ---------------------------------------------------------------------------


def named(path: str) -> PretrainedModel:
    return PretrainedModel(kind="pretrained", path=path, revision=None, lr=1e-6)


def test_the_hub_id_is_followed_through_runs_and_soups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub_base(named("owner/name")) == "owner/name"
    assert hub_base(named("again")) is None
    assert hub_base(TinyModel(kind="tiny", name="tiny", seed=0, layers=1, hidden=16, lr=1.0)) is None
    pinned = PinnedModel(kind="pinned", name="smollm2-135m", lr=1.0)
    assert hub_base(pinned) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    config = Path("full/config.yaml").read_text()
    monkeypatch.chdir(tmp_path)
    for run, model in (("first", "owner/name"), ("second", "first"), ("round", "round")):
        Path(run).mkdir()
        Path(run, "run.json").write_text("{}")
        start = config.index("model:")
        chosen = f"model:\n  kind: pretrained\n  path: {model}\n  revision: null\n  lr: 1.0e-06\n"
        Path(run, "config.yaml").write_text(config[:start] + chosen + config[config.index("dataset:") :])
    assert hub_base(named("second")) == "owner/name"
    assert hub_base(named("round")) is None


def test_data_sets_of_the_hub_are_named_once_and_without_their_configuration() -> None:
    words = ["dataset=mixture", "dataset.parts=[owner/a:en,owner/a:de,owner/b,./local.jsonl]"]
    config = load(open_conf(None), words)
    assert isinstance(config, TrainConfig)
    assert hub_datasets(config.dataset) == ("owner/a", "owner/b")


def test_a_directory_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/a").mkdir(parents=True)
    assert not is_hub_id("runs/a")
    assert is_hub_id("runs/b")
    assert not any(map(is_hub_id, ("/a/b", "./b", "a/b/c", "name", "~/x", "")))
