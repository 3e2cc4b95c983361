"""A run's data: sequences that are read when they are asked for, and what is known without reading them."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import TrainConfig
from alignctl.data.bad_rows import BadRows
from alignctl.errors import DataError
from alignctl.records import Example
from alignctl.runners.training_data import TrainingData, prepare_data

DEMO = ("model=tiny", "dataset.pairs=40", "dataset.eval_pairs=12", "dataset.gold_samples=3", "eval.samples=2")


def config_of(*words: str) -> TrainConfig:
    config = load(open_conf(None), list(words))
    assert isinstance(config, TrainConfig)
    return config


def prepared(*words: str) -> TrainingData:
    return prepare_data(config_of(*words), print)


@pytest.fixture
def rows(tmp_path, cache):
    """A file of rows with labels, and the settings that read it."""
    path = tmp_path / "rows.jsonl"
    lines = [
        {"prompt": f"q{n % 25}", "chosen": f"yes {n}", "rejected": "no " * (1 + n % 5), "weight": 1 + n % 2}
        | {"p_chosen": 0.5 + n / 100, "margin": n / 10}
        for n in range(50)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ("model=tiny", f"dataset={path}", "dataset.eval_size=10", "train.batch_size=8")


def plain_fingerprint(examples) -> str:
    """The fingerprint of rows held in memory, one number after another."""
    tokens = b"".join(
        len(part).to_bytes(4, "little") + b"".join(int(number).to_bytes(4, "little") for number in part)
        for example in examples
        for part in (example.prompt, *example.branches)
    )
    labels = np.array([(e.p_chosen, e.margin, e.weight) for e in examples]).tobytes()
    return hashlib.sha256(hashlib.sha256(tokens).hexdigest().encode() + labels).hexdigest()


@pytest.mark.parametrize("algo", ["dpo", "sft", "hypo", "reward"])
def test_the_fingerprint_is_that_of_all_rows_one_after_another(rows, algo):
    data = prepared(*rows, f"algo={algo}")
    examples = [*data.train, *data.held_out]
    if algo == "hypo":
        examples += [
            Example(row.id, ids, ())
            for row, ids in zip(data.unlabelled.rows, data.unlabelled.ids, strict=True)
        ]
    assert len(data.train) + len(data.held_out) == 50
    assert data.fingerprints["data"] == plain_fingerprint(examples)
    again = prepared(*rows, f"algo={algo}")
    assert again.fingerprints == data.fingerprints
    assert prepared(*rows, f"algo={algo}", "seed=1").fingerprints["data"] != data.fingerprints["data"]


def test_fingerprints_are_those_of_runs_that_began_before(cache):
    """A checkpoint of an older alignctl goes on: the demo's rows have the fingerprint they always had."""
    assert prepared("model=tiny").fingerprints["data"].startswith("5c268b248b97")
    assert prepared("model=tiny", "algo=hypo").fingerprints["data"].startswith("85f519ad6081")
    assert prepared("model=tiny", "algo=ppo", "reward=gold").fingerprints["data"].startswith("66ffb0900ffe")


def test_hypo_answers_the_prompts_of_its_pairs_and_ppo_every_prompt_once(rows):
    hypo = prepared(*rows, "algo=hypo")
    assert [row.id for row in hypo.unlabelled.rows] == [example.id for example in hypo.train]
    assert [ids.tolist() for ids in hypo.unlabelled.ids] == [row.prompt.tolist() for row in hypo.train]
    ppo = prepared(*rows, "algo=ppo", "reward=pattern", "reward.pattern=yes")
    assert len(ppo.train) == len(ppo.held_out) == 0
    assert {row.prompt for row in ppo.unlabelled.rows} == {row.prompt for row in hypo.unlabelled.rows}
    assert len({row.prompt for row in ppo.unlabelled.rows}) == len(ppo.rows)
    assert [row.branches for row in ppo.rows] == [()] * len(ppo.rows)


def test_the_prompts_asked_are_the_first_different_ones_held_out(rows):
    data = prepared(*rows, "eval.samples=3")
    firsts: dict[bytes, str] = {}
    for example in data.held_out:
        firsts.setdefault(example.prompt.tobytes(), example.id)
    assert [row.id for row in data.asked.rows] == list(firsts.values())[:3]
    assert [ids.tobytes() for ids in data.asked.ids] == list(firsts)[:3]


def test_the_demo_keeps_ids_gold_and_prompts_beside_its_rows(cache):
    data = prepared(*DEMO, "algo=hypo", "dataset.prompts=7")
    assert data.train[0].id == "demo/train/0"
    assert [row.id for row in data.unlabelled.rows] == [f"demo/train/{place}" for place in range(40, 47)]
    assert [row.id for row in data.asked.rows] == [f"demo/held-out/{place}" for place in range(3)]
    assert data.gold is not None
    for row in (*data.asked.rows, *data.unlabelled.rows):
        assert 0 <= data.gold(row, "An answer.").total <= 1
    assert not (cache / "data").exists()
    assert data.card.sources == ()


def test_the_card_counts_each_row_once_however_often_it_comes(rows, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(
        "".join(json.dumps({"prompt": f"o{n}", "chosen": "a", "rejected": "b"}) + "\n" for n in range(10))
    )
    parts = f"dataset.parts=[{tmp_path / 'rows.jsonl'},{other}]"
    words = ("model=tiny", "dataset=mixture", parts, "dataset.eval_size=0", "train.batch_size=4")
    data = prepared(*words, "dataset.weights=[2,0.5]")
    assert len(data.train) == len(data.rows) == len(data.lengths) == 2 * 50 + 5
    assert (data.card.train, data.card.epoch_rows, data.card.held_out) == (55, 105, 0)
    assert [(source.path, source.rows) for source in data.card.sources] == [
        (f"{tmp_path}/rows.jsonl", 50),
        (str(other), 10),
    ]
    assert data.card.subsets == {"rows": 50, "other": 5}
    assert len(data.trained_on) == 25 + 5


def test_too_few_rows_and_bad_ones_are_told_before_a_weight_is_loaded(rows, tmp_path):
    few = [word for word in rows if "eval_size" not in word]
    with pytest.raises(DataError, match=r"6 pairs to train on are fewer than train\.batch_size=8"):
        prepared(*few, "dataset.eval_size=44")
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text() + json.dumps({"prompt": "q", "chosen": "", "rejected": "x"}) + "\n")
    with pytest.raises(BadRows):
        prepared(*rows)
    dropped = prepared(*rows, "dataset.on_bad=drop")
    assert [bad.id for bad in dropped.bad] == [f"{path}:51"]
    assert dropped.card.dropped == {"chosen: empty": 1}


def test_progress_is_told(rows):
    told = []
    prepare_data(config_of(*rows), print, lambda *words: told.append(words))
    assert told[-1] == ("reading rows", 50, 50)
    told.clear()
    prepare_data(config_of(*rows), print, lambda *words: told.append(words))
    assert told == []


@pytest.mark.parametrize(("algo", "told"), [("dpo", True), ("hypo", True), ("reward", False), ("sft", False)])
def test_margins_that_an_algorithm_does_not_read_are_told(rows, algo, told):
    warnings = prepared(*rows, f"algo={algo}").warnings
    assert any("margins" in warning for warning in warnings) is told
