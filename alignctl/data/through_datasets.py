"""The one place where the library `datasets` is used: hub data sets, tables, directories.

A data set comes from a stranger, and `datasets` does more with one than read it: it opens the images, sounds
and films that a column names, from the network too, and it follows the places that a README or a saved
table names to wherever they lead. Here nothing is decoded, what a directory names stays inside that
directory, and only plain tables are read. It has no loading scripts any more, so nothing foreign is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from alignctl.errors import ASK_THE_HUB, SetupError, UsageError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder, DatasetDict, IterableDataset

TABLES = ("arrow", "csv", "json", "parquet", "text")
"""Readers of `datasets` that yield rows of text and numbers and open no other files."""
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
"""Files that only a directory written by `save_to_disk` holds: of a table, of several splits."""
FRONT_MATTER = re.compile(r"\s*---[\r\n]+(.*?)[\r\n]+---(?:[\r\n]|$)", re.DOTALL)
CARD, SETTINGS = "README.md", ".huggingface.yaml"
"""Files in which a directory may say which of its files hold the rows."""
MAX_CARD = 2**22
"""Bytes of such a file."""
OUTSIDE = re.compile(r"^[/~\\]|://|::|(?:^|[/\\])\.\.(?:[/\\]|$)")
"""A place that is absolute, an address, or above where it starts."""

Rows = Iterator[tuple[int, dict[str, object]]]


def hub_rows(path: str, split: str, name: str) -> Rows:
    """The rows of OWNER/NAME or OWNER/NAME:CONFIG, from the hub or its cache."""
    return _rows(lambda: _undecoded(_open_hub(path, split).to_iterable_dataset()), name, split, ASK_THE_HUB)


def table_rows(path: Path, builder: str, name: str) -> Rows:
    """The rows of a local file, streamed: copying it into the cache would only cost time and disk."""
    return _rows(lambda: _open_table(path, builder), name, "train")


def directory_rows(path: Path, split: str, name: str) -> Rows:
    """The rows of what `save_to_disk` wrote, or of files that `load_dataset` understands."""
    return _rows(lambda: _open_directory(path, name, split), name, split)


def files_below(path: Path) -> list[Path]:
    """The files of a directory, sorted; raises SetupError where a link in it leads out of it."""
    entries = sorted(path.rglob("*"))
    for entry in entries:
        if entry.is_symlink():
            _refuse_outside(path, str(entry))
    return [entry for entry in entries if entry.is_file()]


def hub_fingerprint(path: str, split: str) -> str | None:
    """What `datasets` calls the rows of a hub data set; None where it cannot be read."""
    from datasets.exceptions import DatasetsError

    try:
        return _open_hub(path, split)._fingerprint
    except (OSError, ValueError, KeyError, RuntimeError, DatasetsError):
        return None


def _rows(open_rows: Callable[[], Iterable[Any]], name: str, split: str, *hints: str) -> Rows:
    """Number the rows from 1, and turn what `datasets` raises into errors that name the setting."""
    from datasets.exceptions import DatasetsError

    try:
        yield from ((number, dict(row)) for number, row in enumerate(open_rows(), start=1))
    except (OSError, ValueError, KeyError, RuntimeError, DatasetsError) as error:
        lines = (str(error).strip() or type(error).__name__).splitlines()
        reason = lines[0][:200]
        if reason.lower().startswith(("unknown split", "bad split")):
            raise _no_split(name, split, reason) from error
        if reason.startswith("Config name is missing"):
            raise UsageError(
                f"{name} has several configurations: {' '.join(lines[1:2])[:200]}",
                f"name one of them   {name}:CONFIG",
            ) from error
        raise SetupError(f"{name} cannot be loaded: {reason}", *hints) from error


def _no_split(name: str, split: str, reason: str) -> UsageError:
    return UsageError(
        f"split {split} of {name} cannot be used: {reason}",
        "dataset.split and dataset.eval_split name splits of dataset.path; of dataset.prompts it is train",
    )


# --- opening -------------------------------------------------------------------------------------------


def _open_hub(path: str, split: str) -> Dataset:
    from datasets import Dataset, load_dataset_builder

    name, _, config = path.partition(":")
    builder = load_dataset_builder(name, config or None)
    _refuse_other_than_tables(builder, path)
    for file in _files_of(builder):
        if not file.startswith("hf://"):
            raise _leads_out(path, file)
    builder.download_and_prepare()
    rows = builder.as_dataset(split=split)
    assert isinstance(rows, Dataset)  # one split was asked for
    return rows


def _open_table(path: Path, builder: str) -> IterableDataset:
    from datasets import load_dataset

    options: dict[str, Any] = {"sep": "\t"} if path.suffix == ".tsv" else {}
    return _undecoded(load_dataset(builder, data_files=str(path), split="train", streaming=True, **options))


def _open_directory(path: Path, name: str, split: str) -> IterableDataset:
    from datasets import IterableDataset, load_dataset_builder

    files_below(path)
    if any((path / file).is_file() for file in (SAVED, SAVED_SPLITS)):
        return _open_saved(path, name, split)
    _refuse_card_that_leads_out(path)
    builder = load_dataset_builder(str(path))
    _refuse_other_than_tables(builder, str(path))
    # Its files as it found them: the last word on what will be opened.
    for file in _files_of(builder):
        _refuse_outside(path, file)
    rows = builder.as_streaming_dataset(split=split)
    assert isinstance(rows, IterableDataset)  # one split was asked for
    return _undecoded(rows)


def _open_saved(path: Path, name: str, split: str) -> IterableDataset:
    from datasets import DatasetDict, load_from_disk

    _refuse_saved_that_leads_out(path)
    saved: Dataset | DatasetDict = load_from_disk(str(path))
    if isinstance(saved, DatasetDict):
        tables = {str(known): table for known, table in saved.items()}
    else:
        # A single table is what there is to train on, whatever split it was made from.
        tables = {"train": saved, str(saved.split or "train"): saved}
    if split not in tables:
        raise _no_split(name, split, f"it has {', '.join(tables)}")
    return _undecoded(tables[split].with_format(None).to_iterable_dataset())


def _undecoded(dataset: IterableDataset) -> IterableDataset:
    """The same rows with images and the like as they are stored: bytes, or the name of a file.

    Of streams alone: to describe a table anew, `datasets` would write all of it beside the table's own files.
    """
    if dataset.features is None:
        # Told by the first rows: then they are text, numbers, lists and objects.
        return dataset
    plain = _without_decoding(dataset.features)
    return dataset if plain == dataset.features else dataset.cast(plain)


def _without_decoding(feature: Any) -> Any:
    """A description of columns in which nothing asks for decoding but JSON, which is text."""
    from datasets import Features, Json

    if isinstance(feature, Mapping):
        inner = {name: _without_decoding(part) for name, part in feature.items()}
        return Features(inner) if isinstance(feature, Features) else inner
    if isinstance(feature, list | tuple):
        return type(feature)(map(_without_decoding, feature))
    if not is_dataclass(feature) or isinstance(feature, type | Json):
        return feature
    names = {one.name for one in fields(feature) if one.init}
    if "decode" in names:
        return replace(feature, decode=False)
    if "feature" in names:
        return replace(feature, feature=_without_decoding(feature.feature))  # type: ignore[attr-defined]
    return feature


# --- what may be opened --------------------------------------------------------------------------------


def _refuse_other_than_tables(builder: DatasetBuilder, place: str) -> None:
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in TABLES:
        raise SetupError(
            f"{place} is read as {kind}, which is no table of text",
            f"preference data are   {', '.join(TABLES)}",
        )


def _files_of(builder: DatasetBuilder) -> list[str]:
    named = builder.config.data_files or {}
    return [str(file) for files in named.values() for file in files]


def _refuse_card_that_leads_out(path: Path) -> None:
    """Before `datasets` looks for the files that a card names: looking asks servers too."""
    for file in (path / CARD, path / SETTINGS):
        if file.is_file():
            for place in _texts(_described(file)):
                if OUTSIDE.search(place):
                    raise _leads_out(file, place)


def _described(file: Path) -> object:
    """The `configs` of a card: which files hold the rows, and how to read them."""
    with file.open("rb") as opened:
        text = opened.read(MAX_CARD).decode(errors="replace")
    if file.name == CARD:
        found = FRONT_MATTER.match(text)
        text = found.group(1) if found else ""
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise SetupError(f"{file} cannot be read: what it says of its files is not YAML") from error
    return document.get("configs") if isinstance(document, dict) else None


def _texts(node: object) -> Iterator[str]:
    if isinstance(node, Mapping):
        node = [*node.keys(), *node.values()]
    if isinstance(node, list):
        for item in node:
            yield from _texts(item)
    elif isinstance(node, str):
        yield node


def _refuse_saved_that_leads_out(path: Path) -> None:
    splits = path / SAVED_SPLITS
    listed = _json(splits).get("splits") if splits.is_file() else None
    names = [str(name) for name in listed] if isinstance(listed, list) else []
    for split in names:
        _refuse_more_than_a_name(splits, split)
    for directory in (path / name for name in names) if names else (path,):
        state = directory / SAVED
        if state.is_file():
            for entry in _json(state).get("_data_files") or ():
                file = str(entry.get("filename") if isinstance(entry, dict) else entry)
                _refuse_more_than_a_name(state, file)


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{file} is not JSON: {str(error)[:80]}") from error
    if not isinstance(value, dict):
        raise SetupError(f"{file} holds a JSON {type(value).__name__}, not an object")
    return value


def _refuse_more_than_a_name(file: Path, place: str) -> None:
    if place != Path(place).name or OUTSIDE.search(place):
        raise _leads_out(file, place)


def _refuse_outside(directory: Path, file: str) -> None:
    """Links included, but for those of the hub's cache: there a snapshot's files are links to blobs."""
    root = directory.resolve()
    real = Path(file).resolve()
    if not (real.is_relative_to(root) or real.parent == root.parent.parent / "blobs"):
        raise _leads_out(directory, file)


def _leads_out(file: Path | str, place: str) -> SetupError:
    return SetupError(
        f"{file} leads out of its directory, to {place[:160]!r}",
        "a data set holds its own files; name another file or directory with dataset.path",
    )
