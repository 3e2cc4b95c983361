"""Small files and published directories are whole or absent; JSON is strict."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from alignctl.errors import SetupError
from alignctl.train.durable import (
    encode,
    is_temporary,
    publish_directory,
    remove,
    remove_leftovers,
    remove_leftovers_of,
    strict_json,
    temporary_name,
    write_bytes,
    write_json,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": 0.1}, '{"b": 1, "a": 0.1}'),
        (
            {"x": float("nan"), "y": [float("inf"), -float("inf"), 1e-300]},
            '{"x": null, "y": [null, null, 1e-300]}',
        ),
        ({"nested": ({"deep": float("nan")},)}, '{"nested": [{"deep": null}]}'),
        ({"text": 'é "q"\n\u2028'}, '{"text": "é \\"q\\"\\n\u2028"}'),
    ],
)
def test_strict_json(value: object, text: str) -> None:
    assert strict_json(value) == text


def test_a_lone_surrogate_survives_the_way_to_disk_and_back() -> None:
    assert json.loads(encode(strict_json({"text": "a\udc80b\U0001f600"}))) == {"text": "a\udc80b\U0001f600"}


def test_write_replaces_whole_files_and_leaves_no_temporary_name(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.txt", b"old")
    write_bytes(tmp_path / "a.txt", b"new")
    write_json(tmp_path / "b.json", {"x": 1})
    assert (tmp_path / "a.txt").read_bytes() == b"new"
    assert (tmp_path / "b.json").read_text() == '{\n  "x": 1\n}\n'
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.json"]


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.txt", b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2, limits[1]))
    try:
        with pytest.raises(SetupError, match=r"cannot write .*a\.txt: File too large"):
            write_bytes(tmp_path / "a.txt", b"newer")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "a.txt").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_publish_replaces_a_directory_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def first(directory: Path) -> None:
        assert not target.exists()
        save_file({"w": torch.ones(2)}, directory / "model.safetensors")
        (directory / "sub").mkdir()
        (directory / "sub" / "config.json").write_text("{}")

    publish_directory(first, target)
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*.*")) == [
        "model.safetensors",
        "sub/config.json",
    ]
    rights = {path.stat().st_mode & 0o777 for path in target.rglob("*.*")}
    assert rights == {target.stat().st_mode & 0o666}

    publish_directory(lambda directory: (directory / "other.txt").touch(), target)
    assert os.listdir(target) == ["other.txt"]
    assert os.listdir(tmp_path) == ["model"]


def test_publish_that_fails_keeps_the_old_directory(tmp_path: Path) -> None:
    target = tmp_path / "model"
    publish_directory(lambda directory: (directory / "good.txt").touch(), target)

    def fail(directory: Path) -> None:
        (directory / "half.txt").touch()
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        publish_directory(fail, target)
    assert os.listdir(target) == ["good.txt"]
    assert os.listdir(tmp_path) == ["model"]


def test_leftovers_are_recognised_by_the_whole_name(tmp_path: Path) -> None:
    temporary_name(tmp_path / "a.json").touch()
    temporary_name(tmp_path / "model").mkdir()
    (temporary_name(tmp_path / "step-000001") / "deep").mkdir(parents=True)
    for name in (".tmp-mine", "tmp-a-01234567", ".tmp--", ".tmp-a-0123456G"):
        (tmp_path / name).touch()
        assert not is_temporary(name)
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".tmp--", ".tmp-a-0123456G", ".tmp-mine", "tmp-a-01234567"]
    remove_leftovers(tmp_path / "absent")


def test_leftovers_of_one_name_go_and_others_stay(tmp_path: Path) -> None:
    others = [".tmp-soup-2-0123abcd", ".tmp-soup-x", "soup", ".tmp-s*p-0123abcd"]
    for name in (*others, ".tmp-soup-0123abcd"):
        (tmp_path / name).mkdir()
    remove_leftovers_of(tmp_path / "soup")
    assert sorted(os.listdir(tmp_path)) == sorted(others)
    remove_leftovers_of(tmp_path / "s*p")
    assert sorted(os.listdir(tmp_path)) == sorted(others[:-1])


def test_removing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / "model").symlink_to(tmp_path / "precious")
    remove(tmp_path / "model")
    assert os.listdir(tmp_path) == ["precious"]
    assert os.listdir(tmp_path / "precious") == ["file"]
