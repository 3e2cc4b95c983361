"""Run directories and checkpoints from strangers: they lead no writing outside, and nothing in them runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from artefacts import ROWS, Payload, Place, Witness, checked, write_rows

from alignctl.train.checkpoint import _canonical, _seal

Spoil = Callable[[Path, Place, Payload], object]
WORDS = ("checkpoint.every=1", "train.steps=2", "train.batch_size=2", "eval.samples=0", "watch.action=off")
RUN = ("train", "model=./model", "dataset=prefs.jsonl", "dataset.eval_size=2", *WORDS, "out=run")


@pytest.fixture
def unfinished(place: Place, begun: Path) -> Path:
    """A run that has saved and not finished, in work/run."""
    shutil.copytree(begun, place.work / "run")
    return place.work / "run"


@pytest.fixture(scope="session")
def begun(
    tmp_path_factory: pytest.TempPathFactory, watching: Callable[[], Witness], good_model: Path
) -> Path:
    """The same, made once."""
    work = tmp_path_factory.mktemp("begun")
    shutil.copytree(good_model, work / "model")
    write_rows(work / "prefs.jsonl", ROWS)
    place = Place(work, work / "away", watching())
    checked(place.run(*RUN), 0)
    shutil.rmtree(work / "run" / "model")
    change(work / "run" / "run.json", status="running")
    return work / "run"


def change(file: Path, **entries: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def linked(name: str, target: str = "secret.txt") -> Spoil:
    """A file or directory of the run is a link out of it."""

    def spoil(run: Path, place: Place, _: Payload) -> None:
        file, away = run / name, place.away / target
        if file.is_dir():
            shutil.copytree(file, place.away / "taken")
            shutil.rmtree(file)
            away = place.away / "taken"
        elif file.exists() and target != "secret.txt":
            shutil.copy(file, away)
        file.unlink(missing_ok=True)
        file.symlink_to(away)

    return spoil


def piped(name: str) -> Spoil:
    def spoil(run: Path, *_: object) -> None:
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)

    return spoil


def in_checkpoints(spoil: Callable[[Path, Place, Payload], object]) -> Spoil:
    """The same change to every checkpoint."""

    def each(run: Path, place: Place, payload: Payload) -> None:
        for step in (run / "checkpoints").glob("step-*"):
            spoil(step, place, payload)

    return each


def pickle_beside(step: Path, _: Place, payload: Payload) -> None:
    (step / "optimizer.pt").write_bytes(payload.pickle)


def pickle_instead(step: Path, _: Place, payload: Payload) -> None:
    (step / "model.safetensors").write_bytes(payload.pickle)


def tensors_linked(step: Path, place: Place, _: Payload) -> None:
    shutil.copy(step / "model.safetensors", place.away / f"{step.name}.safetensors")
    (step / "model.safetensors").unlink()
    (step / "model.safetensors").symlink_to(place.away / f"{step.name}.safetensors")


def manifest_names(where: str) -> Callable[[Path, Place, Payload], object]:
    """A manifest, sealed as alignctl seals its own, that lists a file elsewhere."""

    def spoil(step: Path, place: Place, _: Payload) -> None:
        manifest = json.loads((step / "MANIFEST.json").read_text())
        secret = (place.away / "secret.txt").read_bytes()
        entry = {"size": len(secret), "sha256": hashlib.sha256(secret).hexdigest()}
        manifest["files"][where.format(away=place.away)] = entry
        seal(step, manifest)

    return spoil


def seal(step: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest that carries its own hash."""
    manifest.pop("seal")
    (step / "MANIFEST.json").write_bytes(_canonical({**manifest, "seal": _seal(manifest)}))


def newer(step: Path, *_: object) -> None:
    seal(step, json.loads((step / "MANIFEST.json").read_text()) | {"format": 2})


def deep_record(run: Path, *_: object) -> None:
    (run / "run.json").write_text("[" * 10**6)


FILES = ("run.json", "metrics.jsonl", "samples.jsonl", "timing.jsonl", "config.yaml", "overrides.txt")
REFUSED: dict[str, Spoil] = {
    **{f"link: {name}": linked(name) for name in (*FILES, "report.html", ".lock", "train_prompts.txt")},
    "link: a record of a run": linked("run.json", "run.json"),
    "link: model": linked("model"),
    "link: checkpoints": linked("checkpoints"),
    "link: a checkpoint": linked("checkpoints/step-000002"),
    "pipe: run.json": piped("run.json"),
    "pipe: metrics.jsonl": piped("metrics.jsonl"),
    "checkpoint: pickle beside": in_checkpoints(pickle_beside),
    "checkpoint: pickle instead": in_checkpoints(pickle_instead),
    "checkpoint: tensors are a link": in_checkpoints(tensors_linked),
    "checkpoint: manifest names a file above": in_checkpoints(manifest_names("../../../../away/secret.txt")),
    "checkpoint: manifest names an absolute path": in_checkpoints(manifest_names("{away}/secret.txt")),
    "checkpoint: of a newer version": in_checkpoints(newer),
    "record: endless brackets": deep_record,
    "record: of a newer version": lambda run, *_: change(run / "run.json", schema=99),
    "record: of no run": lambda run, *_: (run / "run.json").write_text("{}"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_that_was_tampered_with_is_not_gone_on_with(
    name: str, unfinished: Path, place: Place, payload: Payload
) -> None:
    REFUSED[name](unfinished, place, payload)
    checked(place.run(*RUN), 7)


@pytest.mark.parametrize("name", ["metrics.jsonl", "model", "checkpoints"])
def test_overwriting_follows_no_link_either(
    name: str, unfinished: Path, place: Place, payload: Payload
) -> None:
    linked(name)(unfinished, place, payload)
    checked(place.run(*RUN, "overwrite=true"), 7)


def test_leftovers_that_are_links_are_removed_and_not_followed(unfinished: Path, place: Place) -> None:
    (unfinished / ".tmp-model-0123abcd").symlink_to(place.away)
    checked(place.run(*RUN), 0)
    assert not os.path.lexists(unfinished / ".tmp-model-0123abcd")


def test_an_untouched_run_is_gone_on_with(unfinished: Path, place: Place) -> None:
    """What the refusals above are measured against."""
    checked(place.run(*RUN), 0)
    assert json.loads((unfinished / "run.json").read_text())["resumes"] == [{"step": 2}]


def test_a_stranger_s_config_is_read_as_settings_alone(
    unfinished: Path, place: Place, payload: Payload
) -> None:
    """`eval RUN` reads the run's config.yaml for its reference."""
    tag = f"!!python/object/apply:os.system ['{payload.command}']"
    (unfinished / "config.yaml").write_text(f"algo: {tag}\n")
    shutil.copytree(place.model, unfinished / "model")
    checked(place.run("eval", "run", "dataset=prefs.jsonl", "out=run/eval"), 7)
