"""Files of preference rows, mutated: what is read can be trained on, and what is not names file and row."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given

from alignctl.config import FileDataset
from alignctl.data.bad_rows import BadRows
from alignctl.data.preferences import Preferences, load_preferences, open_workshop
from alignctl.data.tabulation import Workshop
from alignctl.errors import DataError, SetupError
from alignctl.models.tiny import tiny_tokenizer
from fuzz.mutations import fuzz, mutated, odd_json
from fuzz.servant import Servant

CONF = Path(__file__).parents[2] / "conf" / "dataset" / "file.yaml"
TEXTS = [
    {
        "prompt": f"What is good about {number}?",
        "chosen": f"It is {number}.",
        "rejected": f"No, not {number}!",
    }
    for number in range(6)
]
CHATS = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
        "p_chosen": 0.75,
    }
    for row in TEXTS
]
WHOLE = [
    {side: f"\n\nHuman: {row['prompt']}\n\nAssistant: {row[side]}" for side in ("chosen", "rejected")}
    for row in TEXTS
]
SCORED = [row | {"score_chosen": 2, "score_rejected": 1.5, "weight": 1.0} for row in TEXTS]
VOTED = [
    {"history": row["prompt"], "human_ref_A": row["chosen"], "human_ref_B": row["rejected"], "labels": 1}
    for row in TEXTS
]
RANKED = [
    {
        "prompt": row["prompt"],
        "answers": [{"answer": row[side], "rank": 1 + place} for place, side in enumerate(row) if place],
    }
    for row in TEXTS
]
SETS = (TEXTS, CHATS, WHOLE, SCORED, VOTED, RANKED)


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[dict[str, Any]]) -> bytes:
    written = StringIO()
    writer = csv.DictWriter(written, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue().encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    written = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), written)
    return written.getvalue()


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servant]:
    """Reads an example, FILE NAME NUL BYTES, as training would, once with each way of treating bad rows."""
    home = tmp_path_factory.mktemp("rows")
    usual = yaml.safe_load(CONF.read_text()) | {"eval_size": 0, "min_response_tokens": 1, "max_bad": 1.0}
    plenty = {"vocabulary": 1 << 20, "max_length": 1 << 22, "max_prompt": 1 << 21}
    shops: dict[str, Workshop] = {}
    for way in ("error", "drop"):
        config = FileDataset.model_validate(usual | {"path": "unused", "on_bad": way})
        shops[way] = open_workshop(
            config, tiny_tokenizer(), cache=home / "cache", report=lambda *_: None, **plenty
        )

    def attempt(example: bytes) -> None:
        name, _, data = example.partition(b"\0")
        path = home / name.decode()
        path.write_bytes(data)
        for way, shop in shops.items():
            config = FileDataset.model_validate(usual | {"path": str(path), "on_bad": way})
            check(config, shop, path)
        shutil.rmtree(home / "cache", ignore_errors=True)

    servant = Servant(attempt)
    yield servant
    servant.stop()


def outcome(config: FileDataset, shop: Workshop) -> Preferences | DataError | SetupError:
    try:
        return load_preferences(config, shop, seed=0, kind="pairs")
    except (DataError, SetupError) as error:
        return error


def check(config: FileDataset, shop: Workshop, path: Path) -> None:
    """Rows with something on every side, or an error that names the file, and the row where it is one's."""
    found = outcome(config, shop)
    if isinstance(found, Preferences):
        for row in found.pool.rows(found.train):
            sides = ("".join(message.content for message in row.prompt), *row.branches)
            assert len(sides) == 3
            assert all(side.strip() for side in sides), sides
            assert 0 <= row.p_chosen <= 1
    elif not isinstance(found, BadRows):
        assert str(path) in found.message, found.message
    if isinstance(found, Preferences | BadRows):
        for row in found.bad if isinstance(found, Preferences) else found.rows:
            assert re.match(re.escape(str(path)) + r":\d+", row.id), row.id
            assert len(row.text) < 600
    if not isinstance(found, Preferences):
        assert len(found.render()) < 4000
        assert found.render().replace("\n", "").isprintable()


@fuzz(150)
@given(data=mutated([lines(rows) for rows in SETS]))
def test_lines_are_read_or_named(read: Servant, data: bytes) -> None:
    read(b"rows.jsonl\0" + data)


@fuzz(150)
@given(text=odd_json([rows[:2] for rows in SETS]))
def test_odd_values_in_an_array_are_read_or_named(read: Servant, text: str) -> None:
    read(b"rows.json\0" + text.encode("utf-8", "surrogatepass"))


@fuzz(50)
@given(data=mutated([json.dumps(rows, indent=1).encode() for rows in SETS]))
def test_an_array_is_read_or_named(read: Servant, data: bytes) -> None:
    read(b"rows.json\0" + data)


@fuzz(30)
@given(data=mutated([gzip.compress(lines(rows), mtime=0) for rows in SETS]))
def test_compressed_lines_are_read_or_named(read: Servant, data: bytes) -> None:
    read(b"rows.jsonl.gz\0" + data)


@fuzz(25)
@given(data=mutated([table(rows) for rows in (TEXTS, WHOLE, SCORED, VOTED)]))
def test_a_table_of_text_is_read_or_named(read: Servant, data: bytes) -> None:
    read(b"rows.csv\0" + data)


@fuzz(40)
@given(data=mutated([parquet(rows) for rows in SETS]))
def test_parquet_is_read_or_named(read: Servant, data: bytes) -> None:
    read(b"rows.parquet\0" + data)
