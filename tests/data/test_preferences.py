"""Preference files as a whole: the list of bad rows, dropping, the split and the warnings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignctl.data.bad_rows import BadRows, count_reasons
from alignctl.errors import DataError, SetupError

HH = Path(__file__).parents[3] / "shared" / "data" / "hh-harmless-1.jsonl.gz"
GOOD = {"prompt": "What is 2 + 2?", "chosen": "4", "rejected": "5"}
CHAT = {
    "prompt": [{"role": "user", "content": "hi"}],
    "chosen": [{"role": "assistant", "content": "hello"}],
    "rejected": [{"role": "assistant", "content": "go away"}],
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def text(**changes):
    return GOOD | changes


def test_rows_of_another_form_than_most_are_bad(dataset, load_file, tmp_path):
    path = write(tmp_path / "rows.jsonl", [CHAT, GOOD, text(prompt="other")])
    with pytest.raises(BadRows) as caught:
        load_file(dataset(path), seed=0, kind="pairs")
    assert [bad.text for bad in caught.value.rows] == [
        f"{path}:1 row: in chat form where most rows are in text form"
    ]


def test_a_row_far_longer_than_the_others_is_bad_and_short_files_are_left_in_peace(
    dataset, load_file, tmp_path
):
    long = text(prompt="x" * 50_000)
    path = write(
        tmp_path / "rows.jsonl", [GOOD, long, text(prompt="o"), text(prompt="p"), text(prompt="x" * 5_000)]
    )
    with pytest.raises(BadRows) as caught:
        load_file(dataset(path), seed=0, kind="pairs")
    assert [bad.text for bad in caught.value.rows] == [
        f"{path}:2 row: over 100 times the median length (50002 characters)"
    ]


# --- the error and dropping ----------------------------------------------------------------------------


def test_the_error_lists_eight_rows_and_counts_the_rest(dataset, load_file, tmp_path):
    path = write(tmp_path / "rows.jsonl", [text(chosen="")] * 11 + [GOOD])
    with pytest.raises(BadRows) as caught:
        load_file(dataset(path), seed=0, kind="pairs")
    lines = caught.value.render().splitlines()
    assert lines[0] == "error: 11 rows cannot be used"
    assert lines[1] == f"  {path}:1 chosen: empty"
    assert lines[8] == f"  {path}:8 chosen: empty"
    assert lines[9] == "  +3 more"
    assert lines[10] == "  dataset.on_bad=drop leaves such rows out and counts them"
    assert len(lines) == 11
    assert len(caught.value.rows) == 11


@pytest.mark.parametrize(
    ("kind", "accepted"),
    [
        ("pairs", "accepted: prompt + chosen + rejected"),
        ("answers", "accepted: prompt + completion"),
        ("prompts", "accepted: prompt as text"),
    ],
)
def test_a_missing_column_tells_the_accepted_schemas(dataset, load_file, tmp_path, kind, accepted):
    path = write(tmp_path / "rows.jsonl", [{"question": "q"}])
    with pytest.raises(BadRows) as caught:
        load_file(dataset(path), seed=0, kind=kind)
    assert any(hint.startswith(accepted) for hint in caught.value.hints)
    with pytest.raises(BadRows) as caught:
        load_file(dataset(path, on_bad="drop"), seed=0, kind=kind)
    assert any(hint.startswith(accepted) for hint in caught.value.hints)


def test_dropping_keeps_the_good_rows_with_their_line_and_counts_by_reason(dataset, load_file, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [text(chosen=""), GOOD, text(chosen=""), text(prompt=" ")]
    path.write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows) + '{"prompt": "cut of')
    data = load_file(dataset(path, on_bad="drop"), seed=0, kind="pairs")
    assert [row.id for row in data.train] == [f"{path}:3"]
    assert count_reasons(data.bad) == {
        "chosen: empty": 2,
        "prompt: only white space": 1,
        "row: the line breaks off inside the JSON": 1,
    }


def test_dropping_stops_when_nothing_is_left(dataset, load_file, tmp_path):
    path = write(tmp_path / "rows.jsonl", [text(chosen="")] * 2)
    with pytest.raises(BadRows, match=r"2 rows cannot be used and no row of .* is left"):
        load_file(dataset(path, on_bad="drop"), seed=0, kind="pairs")


def test_an_empty_file_is_a_data_error_and_a_missing_one_a_setup_error(dataset, load_file, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no rows"):
        load_file(dataset(tmp_path / "rows.jsonl"), seed=0, kind="pairs")
    with pytest.raises(SetupError):
        load_file(dataset(tmp_path / "other.jsonl"), seed=0, kind="pairs")


def test_the_limit_counts_rows_before_any_check(dataset, load_file, tmp_path):
    path = write(tmp_path / "rows.jsonl", [GOOD, text(chosen=""), GOOD])
    assert len(load_file(dataset(path, limit=1), seed=0, kind="pairs").train) == 1
    data = load_file(dataset(path, limit=2, on_bad="drop"), seed=0, kind="pairs")
    assert count_reasons(data.bad) == {"chosen: empty": 1}


# --- split ---------------------------------------------------------------------------------------------


def test_an_eval_file_is_held_out_whole_and_its_overlap_is_told(dataset, load_file, tmp_path):
    train = write(tmp_path / "train.jsonl", [GOOD, text(prompt="other")])
    held = write(tmp_path / "eval.jsonl", [text(chosen="four"), text(prompt="new"), text(prompt="newer")])
    data = load_file(dataset(train, eval_path=str(held), eval_size=1, limit=2), seed=0, kind="pairs")
    assert (len(data.train), len(data.held_out)) == (2, 3)
    assert data.warnings == ("Held-out prompts that are also trained on: 1 of 3 rows.",)
    assert data.held_out[0].id == f"{held}:1"


# --- warnings ------------------------------------------------------------------------------------------

PLENTY = [text(prompt=f"q{n}") for n in range(20)]
WARNINGS = [
    (
        "14 extra columns",
        [text(id=1, note="x"), text(prompt="q", id=2)],
        "Columns that are not read: 'id', 'note'.",
    ),
    ("17 duplicates", [*PLENTY, *PLENTY[:2]], "Exact repeats of an earlier row: 2 of 22 rows."),
    ("17 few duplicates", [*PLENTY, PLENTY[0]], None),
    (
        "19 contradiction",
        [GOOD, text(chosen="5", rejected="4")],
        "Same prompt and answers, the other one chosen: 2 rows contradict another.",
    ),
    (
        "29 normal forms",
        [text(chosen="caf\u00e9", rejected="cafe\u0301")],
        "Answers that differ only in Unicode normalisation: 1 of 1 rows.",
    ),
    (
        "61 no preference anywhere",
        [text(p_chosen=0.5), text(prompt="x", p_chosen=0.5)],
        "p_chosen is 0.5 in every row, so neither answer is preferred anywhere.",
    ),
    ("61 a preference somewhere", [text(p_chosen=0.5), text(prompt="x", p_chosen=0.6)], None),
]


@pytest.mark.parametrize("case", WARNINGS, ids=lambda case: case[0])
def test_strange_but_usable_data_is_told_in_a_sentence(dataset, load_file, tmp_path, case):
    _, rows, sentence = case
    data = load_file(dataset(write(tmp_path / "rows.jsonl", rows)), seed=0, kind="pairs")
    assert data.warnings == (() if sentence is None else (sentence,))
    assert len(data.train) == len(rows)


# --- real and hostile files ----------------------------------------------------------------------------


@pytest.mark.skipif(not HH.exists(), reason=f"no real HH-RLHF rows at {HH.name} beside the repository")
def test_real_hh_rows_load_and_the_eight_unclean_ones_are_named(dataset, load_file):
    data = load_file(dataset(HH, on_bad="drop", eval_size=100), seed=0, kind="pairs")
    assert (len(data.train), len(data.held_out)) == (1292, 100)
    assert count_reasons(data.bad) == {
        "chosen: empty": 4,
        "prompt: two assistant turns in a row": 3,
        "rejected: its prompt differs from that of chosen": 1,
    }
    with pytest.raises(BadRows) as caught:
        load_file(dataset(HH), seed=0, kind="pairs")
    lines = [int(bad.id.rsplit(":", 1)[1]) for bad in caught.value.rows]
    assert lines == [87, 517, 668, 764, 926, 1104, 1255, 1320]
    assert count_reasons(caught.value.rows) == count_reasons(data.bad)
