"""From what a user typed to the files of one member of a soup; no weight is read here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignctl.config.paths import local_path
from alignctl.errors import ASK_THE_HUB, SetupError
from alignctl.models.own_files import refuse_files_elsewhere
from alignctl.models.soup.files import INDEX, SINGLE, Place, places_of_file, places_of_model, read_json

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
FETCHED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "spiece.model", "vocab.txt", "merges.txt")
NOT_FETCHED = ("*/*", "consolidated*")
"""Folders, and the copy of the weights in another layout that some repositories keep beside them."""


@dataclass(frozen=True, slots=True)
class Member:
    """One checkpoint: where its tensors lie and what its config says."""

    name: str
    """As typed, for messages."""
    directory: Path
    kind: Literal["full", "adapter"]
    tensors: Mapping[str, Place]
    config: Mapping[str, Any]
    """config.json, or adapter_config.json."""


def open_member(path: str, revision: str | None = None) -> Member:
    """Open a model directory, a PEFT adapter directory, a run directory (its model/) or a hub id.

    `revision` is for hub ids. Raises SetupError, with the way on, when there is no such model or its files
    are not fit to be averaged.
    """
    directory = _run_model(path, _directory(path, revision))
    refuse_files_elsewhere(directory)
    if (directory / ADAPTER_CONFIG).is_file():
        return _adapter(path, directory)
    _check_model_directory(directory)
    return Member(path, directory, "full", places_of_model(directory), read_json(directory / "config.json"))


def _directory(path: str, revision: str | None) -> Path:
    directory = local_path(path)
    if directory.is_dir():
        return directory.resolve()
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise SetupError(
            f"there is no model at {path}", "give a model directory, a run directory or a hub id OWNER/NAME"
        )
    return _fetched(path, revision)


def _run_model(path: str, directory: Path) -> Path:
    """A run's model/, else the directory itself."""
    if not (directory / "run.json").is_file():
        return directory
    if not (directory / "model").is_dir():
        raise SetupError(f"the run {path} has no model/ yet", "finish it by repeating its command")
    return directory / "model"


def _fetched(name: str, revision: str | None) -> Path:
    # Only a hub id needs it, and importing it takes as long as averaging a small model.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            name, revision=revision, allow_patterns=list(FETCHED), ignore_patterns=list(NOT_FETCHED)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise SetupError(
            f"{name} is no directory here and cannot be fetched from the hub: {first}",
            "give a model directory, a run directory or a hub id OWNER/NAME",
            ASK_THE_HUB,
        ) from error
    return Path(found)


def _check_model_directory(directory: Path) -> None:
    if not (directory / "config.json").is_file():
        raise SetupError(
            f"{directory} is not a model directory: it has no config.json",
            "give the directory that holds config.json",
        )
    if (directory / SINGLE).is_file() or (directory / INDEX).is_file():
        return
    pickles = sorted(path.name for path in (*directory.glob("*.bin"), *directory.glob("*.pt")))
    found = f"only {pickles[0]}, which is pickle" if pickles else f"neither {SINGLE} nor {INDEX}"
    raise SetupError(
        f"{directory} has no safetensors weights ({found})",
        "alignctl reads no pickle; where you trust the file, convert it once with transformers:",
        "  AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)",
    )


def _adapter(path: str, directory: Path) -> Member:
    config = read_json(directory / ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise SetupError(
            f"{directory} does not name the model it was trained on",
            f"add base_model_name_or_path to its {ADAPTER_CONFIG}",
        )
    if not (directory / ADAPTER_WEIGHTS).is_file():
        raise SetupError(
            f"{directory} has no {ADAPTER_WEIGHTS}",
            "alignctl reads no pickle; where you trust adapter_model.bin, convert it once with PEFT:",
            "  PeftModel.from_pretrained(BASE_MODEL, DIR).save_pretrained(NEW_DIR)",
        )
    return Member(path, directory, "adapter", places_of_file(directory / ADAPTER_WEIGHTS), config)
