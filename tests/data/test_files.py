"""Reading JSON lines strictly: what is refused, where it is said to be, and what is read all the same."""

from __future__ import annotations

import gzip
import os

import pytest

from alignctl.data.bad_rows import RowFault
from alignctl.data.files import MAX_ROW, read_json_lines, read_records
from alignctl.errors import DataError, SetupError, UsageError

GOOD = b'{"a": 1}\n'


def records_of(path, *, split="train", limit=None, key="dataset.path"):
    return list(read_records(str(path), key=key, split=split, limit=limit))


def outcomes(path):
    """Each line as its number and either its fields or the fault in words."""
    return [
        (line, f"{record.reason} ({record.detail})" if isinstance(record, RowFault) else dict(record))
        for line, record in read_json_lines(path)
    ]


BAD_LINES = [
    ("20 byte order mark", b"\xef\xbb\xbf" + GOOD, 1, "starts with a byte order mark"),
    ("21 bytes that are not UTF-8", GOOD + b'{"a": "\xff"}\n', 2, "not UTF-8 (byte 16 of the file)"),
    ("22 breaks off in a string", GOOD + b'{"a": "it was', 2, "the line breaks off inside the JSON"),
    ("22 breaks off after a comma", GOOD + b'{"a": 1,', 2, "the line breaks off inside the JSON"),
    ("22 breaks off before a value", GOOD + b'{"a": ', 2, "the line breaks off inside the JSON"),
    ("23 CSV", b"prompt,chosen,rejected\n", 1, "not a JSON object (starts with 'prompt,chosen,rejected\\n'"),
    ("23 a bare value", GOOD + b"3\n", 2, "not a JSON object"),
    ("23 two objects", GOOD + b'{"a": 1} {"a": 2}\n', 2, "not JSON (Extra data, column 10)"),
    ("24 a key twice", b'{"a": 1, "b": 1, "a": 2}\n', 1, "a key is given twice ('a')"),
    ("24 a key twice inside", b'{"a": [{"b": 1, "b": 2}]}\n', 1, "a key is given twice ('b')"),
    ("25 NaN", b'{"p": NaN}\n', 1, "NaN and Infinity are not JSON (NaN)"),
    ("25 Infinity", b'{"p": -Infinity}\n', 1, "NaN and Infinity are not JSON (-Infinity)"),
    ("26 over 1 MiB", b'{"a": "' + b"x" * MAX_ROW + b'"}\n', 1, "longer than 1 MiB"),
    ("nested without end", b'{"a": ' + b"[" * 200_000 + b"\n", 1, "not usable JSON"),
    ("a number of 5000 digits", b'{"a": ' + b"9" * 5000 + b"}\n", 1, "not usable JSON"),
]


@pytest.mark.parametrize("case", BAD_LINES, ids=lambda case: case[0])
def test_a_damaged_line_is_named_and_the_next_line_is_still_read(tmp_path, case):
    _, content, line, reason = case
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content + (b"" if content.endswith(b"\n") else b"\n") + GOOD)
    results = outcomes(path)
    number, said = results[line - 1]
    assert number == line
    assert str(said).startswith(reason)
    assert results[-1] == (line + 1, {"a": 1})


def test_blank_lines_count_as_lines_but_not_as_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n" + GOOD + b"  \r\n" + GOOD.replace(b"\n", b"\r\n"))
    assert outcomes(path) == [(2, {"a": 1}), (4, {"a": 1})]
    assert [line for line, _ in records_of(path, limit=1)] == [2]


def test_a_line_of_exactly_one_mebibyte_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": "' + b"x" * (MAX_ROW - 9) + b'"}\n' + GOOD)
    assert [line for line, record in read_json_lines(path) if not isinstance(record, RowFault)] == [1, 2]


def test_gzip_is_known_by_its_content(tmp_path):
    path = tmp_path / "rows"
    path.write_bytes(gzip.compress(GOOD * 3))
    assert outcomes(path) == [(line, {"a": 1}) for line in (1, 2, 3)]


@pytest.mark.parametrize("damage", [lambda b: b[:-12], lambda b: b[:30] + b"\xff\xff\xff" + b[33:]])
def test_damaged_gzip_is_a_data_error(tmp_path, damage):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(damage(gzip.compress(b"".join(b'{"a": %d}\n' % number for number in range(500)))))
    with pytest.raises(DataError, match="gzip data is damaged after line"):
        outcomes(path)


def test_a_gzip_bomb_stops_at_the_cap(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b"0" * 2**24))
    with pytest.raises(DataError, match="over 4194304 bytes when inflated"):
        list(read_json_lines(path, max_inflated=2**22))


def test_a_json_array_is_told_apart_from_json_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\n[\n  {"a": 1}\n]\n'.lstrip())
    with pytest.raises(DataError, match="is a JSON array") as caught:
        outcomes(path)
    assert "jq" in caught.value.hints[0]


@pytest.mark.parametrize("name", ["no.jsonl", "./no", "../no/rows", "word", "owner/rows.parquet"])
def test_a_missing_file_is_a_setup_error_and_not_looked_up_on_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SetupError, match=r"dataset\.prompts: there is no file"):
        records_of(name, key="dataset.prompts")


def test_a_symlink_loop_and_an_empty_directory_are_setup_errors(tmp_path):
    os.symlink("loop.jsonl", tmp_path / "loop.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("loop.jsonl", "folder.jsonl"):
        with pytest.raises(SetupError):
            records_of(tmp_path / name)


def test_csv_is_read_through_datasets(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,chosen,rejected,p_chosen\nq,a,b,0.75\nq,c,d,1.0\n")
    records = records_of(path, limit=1)
    assert records == [(1, {"prompt": "q", "chosen": "a", "rejected": "b", "p_chosen": 0.75})]


def test_an_unknown_split_of_a_directory_names_the_key(tmp_path):
    (tmp_path / "train.csv").write_text("prompt,chosen,rejected\nq,a,b\n")
    assert len(records_of(tmp_path)) == 1
    with pytest.raises(UsageError, match=r"split test of dataset\.path=.* cannot be used") as caught:
        records_of(tmp_path, split="test")
    assert "dataset.split" in caught.value.hints[0]
