"""Data sets from strangers: nothing in them is run, decoded, fetched, or followed to another place."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from artefacts import ROWS, Payload, Place, checked, write_rows

Spoil = Callable[[Place, Payload], object]
NET = "http://192.0.2.1"
MEDIA = {
    "image": datasets.Image(),
    "audio": datasets.Audio(),
    "video": datasets.Video(),
    "pdf": datasets.Pdf(),
    "nifti": datasets.Nifti(),
    "images": datasets.List(datasets.Image()),
    "nested": {"deep": datasets.List({"image": datasets.Image()})},
}
"""Columns whose rows `datasets` opens, wherever they say that they lie."""


STATE = {
    **dict.fromkeys(("_fingerprint", "_split"), "train"),
    **dict.fromkeys(("_format_columns", "_format_type")),
    "_format_kwargs": {},
    "_output_all_columns": False,
}
FORMS = ("rows.parquet", "./tables", "./saved")


def located(path: str) -> dict[str, Any]:
    """Values of those columns that lie elsewhere."""
    value = {"path": path, "bytes": None}
    return {**dict.fromkeys(MEDIA, value), "images": [value], "nested": {"deep": [{"image": value}]}}


def write_tables(place: Place, path: str) -> None:
    """Good rows beside columns of media, as a file, a directory of files, and as `save_to_disk` has them."""
    plain = [{**row, **located(path)} for row in ROWS]
    features = datasets.Features({**datasets.Dataset.from_list(ROWS).features, **MEDIA})
    rows = pyarrow.Table.from_pylist(plain, schema=features.arrow_schema)
    pyarrow.parquet.write_table(rows, place.work / "rows.parquet")
    (place.work / "tables").mkdir()
    pyarrow.parquet.write_table(rows, place.work / "tables" / "train.parquet")
    # By hand, since `save_to_disk` would fetch what such columns name.
    saved = place.work / "saved"
    saved.mkdir()
    with pyarrow.ipc.new_stream(saved / "data.arrow", rows.schema) as file:
        file.write_table(rows)
    (saved / "dataset_info.json").write_text(json.dumps({"features": features.to_dict()}))
    (saved / "state.json").write_text(json.dumps({**STATE, "_data_files": [{"filename": "data.arrow"}]}))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["net", "file"])
def test_media_are_neither_fetched_nor_opened(where: str, form: str, place: Place) -> None:
    """The text that they stand beside is read all the same, and it is told what is not."""
    write_tables(place, f"{NET}/picture.png" if where == "net" else str(place.away / "secret.txt"))
    text = checked(place.train(f"dataset={form}", "--dry-run"), 0)
    assert "10 pairs to train on" in text
    assert "image" in text


def card(*places: str) -> Spoil:
    """A README that says which files hold the rows."""

    def spoil(place: Place, _: Payload) -> None:
        directory = place.work / "data"
        directory.mkdir()
        write_rows(directory / "train.jsonl", ROWS)
        write_rows(place.away / "rows.jsonl", ROWS)
        files = json.dumps([one.format(away=place.away) for one in places])
        front = f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {files}\n"
        (directory / "README.md").write_text(f"---\n{front}---\nRows.\n")

    return spoil


def standalone_card(place: Place, payload: Payload) -> None:
    card("train.jsonl")(place, payload)
    (place.work / "data" / ".huggingface.yaml").write_text(
        f"configs:\n- config_name: default\n  data_dir: {place.away}\n"
    )


def card_that_is_a_link(place: Place, payload: Payload) -> None:
    card("train.jsonl")(place, payload)
    (place.work / "data" / "README.md").rename(place.away / "README.md")
    (place.work / "data" / "README.md").symlink_to(place.away / "README.md")


def directory_of(**files: bytes | str) -> Spoil:
    """Files by name, with _ for the dot before the ending."""

    def spoil(place: Place, payload: Payload) -> None:
        (place.work / "data").mkdir()
        for name, content in files.items():
            stem, _, ending = name.rpartition("_")
            data = content if isinstance(content, bytes) else content.format(source=payload.source).encode()
            (place.work / "data" / f"{stem}.{ending}").write_bytes(data or payload.pickle)

    return spoil


def linked_rows(place: Place, _: Payload) -> None:
    write_rows(place.away / "rows.jsonl", ROWS)
    (place.work / "data").mkdir()
    (place.work / "data" / "train.jsonl").symlink_to(place.away / "rows.jsonl")


def linked_directory(place: Place, _: Payload) -> None:
    (place.work / "data").mkdir()
    (place.away / "rows").mkdir()
    write_rows(place.away / "rows" / "train.jsonl", ROWS)
    (place.work / "data" / "rows").symlink_to(place.away / "rows")


def saved(change: Callable[[Place, Path], object]) -> Spoil:
    """What save_to_disk wrote, then changed."""

    def spoil(place: Place, _: Payload) -> None:
        directory = place.work / "data"
        datasets.Dataset.from_list(ROWS).save_to_disk(directory)
        datasets.Dataset.from_list(ROWS).save_to_disk(place.away / "rows")
        change(place, directory)

    return spoil


def state_names(where: str) -> Callable[[Place, Path], object]:
    def change(place: Place, directory: Path) -> None:
        state = json.loads((directory / "state.json").read_text())
        state["_data_files"] = [{"filename": where.format(away=place.away)}]
        (directory / "state.json").write_text(json.dumps(state))

    return change


def splits_elsewhere(place: Place, directory: Path) -> None:
    (directory / "dataset_dict.json").write_text(json.dumps({"splits": ["../../away/rows"]}))


def saved_link(_: Place, directory: Path) -> None:
    (file,) = directory.glob("*.arrow")
    file.rename(directory.parent.parent / "away" / "rows.arrow")
    file.symlink_to(directory.parent.parent / "away" / "rows.arrow")


def tar_bytes(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            data = json.dumps(ROWS[0]).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        link = tarfile.TarInfo("link.json")
        link.type, link.linkname = tarfile.SYMTYPE, "../../away/secret.txt"
        archive.addfile(link)
    return buffer.getvalue()


def zip_bytes(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "".join(f"{json.dumps(row)}\n" for row in ROWS))
    return buffer.getvalue()


REFUSED: dict[str, tuple[int, Spoil]] = {
    "card: files above": (3, card("../../away/rows.jsonl")),
    "card: files by absolute path": (3, card("{away}/rows.jsonl")),
    "card: a pattern over the machine": (3, card("/etc/*")),
    "card: files on the net": (3, card(f"{NET}/rows.jsonl")),
    "card: files on the hub": (3, card("hf://datasets/stranger/rows/train.jsonl")),
    "card: chained addresses": (3, card(f"zip://x.jsonl::{NET}/rows.zip")),
    "card: one of several": (3, card("train.jsonl", "~/rows.jsonl")),
    "card: settings beside it": (3, standalone_card),
    "card: is a link": (3, card_that_is_a_link),
    "card: python tags": (
        3,
        directory_of(
            train_jsonl="{{}}", README_md="---\nconfigs: !!python/object/apply:os.system [a]\n---\n"
        ),
    ),
    "script alone": (3, directory_of(data_py="{source}")),
    "script beside rows": (3, directory_of(data_py="{source}", train_jsonl="{{}}")),
    "pickle alone": (3, directory_of(train_pkl=b"")),
    "pickles named as tables": (3, directory_of(train_parquet=b"")),
    "pickle of tensors": (3, directory_of(train_pth=b"")),
    "pictures": (
        3,
        directory_of(a_png=b"\x89PNG", metadata_jsonl='{{"file_name": "../away/x"}}'),
    ),
    "tar with names that lead out": (3, directory_of(train_tar=tar_bytes("../../away/x.json", "/a.json"))),
    "zip with names that lead out": (3, directory_of(train_zip=zip_bytes("../../away/x.jsonl"))),
    "link to rows": (3, linked_rows),
    "link to a directory": (3, linked_directory),
    "saved: file above": (3, saved(state_names("../../away/rows/data-00000-of-00001.arrow"))),
    "saved: file by absolute path": (3, saved(state_names("{away}/rows/data-00000-of-00001.arrow"))),
    "saved: file on the net": (3, saved(state_names(f"{NET}/rows.arrow"))),
    "saved: splits above": (3, saved(splits_elsewhere)),
    "saved: link": (3, saved(saved_link)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_directory_that_leads_out_or_holds_no_table_is_refused(
    name: str, place: Place, payload: Payload
) -> None:
    code, spoil = REFUSED[name]
    spoil(place, payload)
    place.refused(code, "dataset=./data")


def test_scripts_beside_the_rows_are_left_alone(place: Place, payload: Payload) -> None:
    directory_of(setup_py="{source}", conftest_py="{source}", rows_pkl=b"")(place, payload)
    write_rows(place.work / "data" / "train.jsonl", ROWS)
    checked(place.train("dataset=./data", "--dry-run"), 0)


def odd_pandas_metadata(file: Path) -> None:
    """What pandas would take as instructions, and what older readers unpickled."""
    rows = pyarrow.Table.from_pylist(ROWS)
    pandas = {"index_columns": ["chosen"], "columns": [{"name": "chosen", "numpy_type": "object"}]}
    extension = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": b"cos\nsystem\n(S'true'\ntR.",
    }
    fields = [field.with_metadata(extension) if field.name == "prompt" else field for field in rows.schema]
    schema = pyarrow.schema(fields, metadata={"pandas": json.dumps(pandas)})
    pyarrow.parquet.write_table(rows.cast(schema), file)


def test_metadata_of_a_table_are_no_instructions(place: Place) -> None:
    odd_pandas_metadata(place.work / "rows.parquet")
    checked(place.train("dataset=rows.parquet", "--dry-run"), 0)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("https://192.0.2.1/rows.jsonl", 3),
        ("file:///etc/passwd", 3),
        ("hf://datasets/stranger/rows", 3),
        ("zip://rows.jsonl::rows.zip", 3),
        ("s3://stranger/rows.parquet", 3),
    ],
)
def test_rows_are_a_file_a_directory_or_a_hub_id_and_no_address(name: str, code: int, place: Place) -> None:
    seen = place.train(f"dataset={name}")
    assert seen.code == code, seen.text
    assert seen.events == []


def test_a_gzip_bomb_in_one_line_is_one_bad_row(place: Place) -> None:
    with gzip.open(place.work / "bomb.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(b'{"prompt": "')
        for _ in range(64):
            file.write(b"a" * 2**20)
    assert "longer than 1 MiB" in place.refused(6, "dataset=bomb.jsonl.gz")


def test_rows_cannot_command_the_terminal(place: Place) -> None:
    write_rows(place.work / "prefs.jsonl", [*ROWS, {**ROWS[0], "chosen": {"\x1b]0;title\x07": "\x1b[2J"}}])
    place.refused(6)


def test_addresses_in_the_text_of_rows_are_text(place: Place) -> None:
    rows = [{**row, "image": f"{NET}/a.png", "chosen": f"{row['chosen']} {NET}"} for row in ROWS]
    write_rows(place.work / "prefs.jsonl", rows)
    checked(place.train("--dry-run"), 0)
