"""README.md of a model directory: what the hub reads of it, what it says, and what it must not say."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml

from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import SoupConfig, TrainConfig
from alignctl.models.soup.distances import Distances
from alignctl.models.soup.record import MemberRecord, SoupReport
from alignctl.report.model_card import Identity, Rows, Training, soup_card, training_card
from alignctl.report.portable import portable, portable_command, portable_values

ARGV = ("alignctl", "train", "--format", "json", "dataset=/home/ann/data/pairs.jsonl", "out=/scratch/ann/run")
IDENTITY = Identity(
    name="run",
    kind="causal",
    chat=True,
    base="owner/base",
    argv=ARGV,
    versions={"alignctl": "1.2", "torch": "9.9"},
    warnings=("/home/ann/data/pairs.jsonl: 3 rows | repeat <others>",),
)
ROWS = Rows(unit="pairs", train=64, held_out=12, dropped=3, datasets=("owner/prefs",))
FIGURE = {"value": 0.25, "ci": [0.125, 0.5], "n": 12}
TRAINING = Training(
    kept_step=50,
    why="loss",
    last_step=80,
    stopped=None,
    headline={"loss": {"start": {"value": 0.75, "ci": None, "n": 12}, "best": FIGURE, "last": None}},  # type: ignore[dict-item]
    fingerprints={"data": "abc", "model": "def"},
    dtype="float32",
)


def train_config(*words: str) -> TrainConfig:
    config = load(open_conf(None), ["model=/srv/models/start", "dataset=/home/ann/data/pairs.jsonl", *words])
    assert isinstance(config, TrainConfig)
    return config


def front_of(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(front)
    return found


def test_the_front_matter_is_what_the_hub_reads() -> None:
    assert front_of(training_card(IDENTITY, train_config(), ROWS, TRAINING)) == {
        "base_model": "owner/base",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["alignctl", "preference-alignment", "dpo"],
        "datasets": ["owner/prefs"],
    }


def test_what_is_not_on_the_hub_is_left_out_of_it() -> None:
    adapter = replace(IDENTITY, kind="adapter", base=None)
    front = front_of(
        training_card(adapter, train_config("adapter=lora"), replace(ROWS, datasets=()), TRAINING)
    )
    assert "base_model" not in front
    assert "datasets" not in front
    assert front["library_name"] == "peft"
    assert front["tags"][-1] == "lora"


def test_the_card_says_what_was_made_from_what_and_how() -> None:
    card = training_card(IDENTITY, train_config("algo=ipo", "algo.tau=0.25"), ROWS, TRAINING)
    for words in (
        "trained with `ipo` on 64 pairs of `pairs.jsonl`",
        "step 50 of 80, the lowest held-out loss",
        "| loss | 0.7500 | 0.2500 [0.1250, 0.5000] | - | 12 |",
        "64 pairs to train on, 12 held out, 3 dropped",
        "reference: the model it started from",
        "fingerprint of data: `abc`",
        "alignctl train dataset=pairs.jsonl out=run\n",
        "  tau: 0.25\n",
        "alignctl 1.2, torch 9.9",
        "AutoModelForCausalLM.from_pretrained(path)",
        r"- pairs.jsonl: 3 rows \| repeat &lt;others&gt;",
        "Not tested: other kinds of prompts",
    ):
        assert words in card, words


def test_no_place_on_the_machine_and_no_secret_is_in_the_card() -> None:
    config = train_config("algo.reference.path=~/models/other", "hardware.threads=3", "out=/scratch/ann/run")
    card = training_card(IDENTITY, config, ROWS, TRAINING)
    assert not re.search(r"ann|scratch|srv|~|threads|--format", card)
    assert "reference: `other`" in card


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"headline": {}}, "Nothing was held out, so nothing was measured."),
        ({"kept_step": 80, "why": "last"}, "step 80 of 80, the last step"),
        ({"stopped": "loss is *not* finite"}, r"ended early: loss is \*not\* finite."),
    ],
)
def test_a_run_that_went_otherwise(changes: dict[str, Any], words: str) -> None:
    assert words in training_card(IDENTITY, train_config(), ROWS, replace(TRAINING, **changes))


@pytest.mark.parametrize(
    ("kind", "chat", "words"),
    [
        ("causal", False, 'tokenizer("Three fruits are"'),
        ("adapter", True, "PeftModel.from_pretrained"),
        ("classifier", True, "AutoModelForSequenceClassification.from_pretrained"),
        ("classifier", False, 'tokenizer("Three fruits are apples'),
    ],
)
def test_how_to_load_it_fits_the_model_and_is_python(kind: Any, chat: bool, words: str) -> None:
    card = training_card(replace(IDENTITY, kind=kind, chat=chat), train_config(), ROWS, TRAINING)
    code = card.split("```python\n")[1].split("```")[0]
    assert words in code
    assert ("apply_chat_template" in code) == chat
    compile(code, "card", "exec")


def a_report(**changes: Any) -> SoupReport:
    members = tuple(
        MemberRecord(name, f"/home/ann/{name}", sha, "float32", 20)
        for name, sha in (("/home/ann/runs/a", "aa11"), ("owner/b", "bb22"))
    )
    report = SoupReport(
        method="weighted",
        kind="full",
        parameters={"weights": [0.25, 0.75]},
        members=members,
        base=None,
        dtype="float32",
        files=("model.safetensors",),
        bytes=1,
        distances=Distances((), (), {}),
        warnings=(),
        mergekit=None,
    )
    return replace(report, **changes)


def test_a_soup_names_its_members_their_weights_and_what_they_share() -> None:
    conf = open_conf(None, "soup")
    config = load(conf, ["members=[/home/ann/runs/a,owner/b]", "soup=weighted", "soup.weights=[1,3]"])
    assert isinstance(config, SoupConfig)
    lineage = {
        "model": {"kind": "pretrained", "path": "/home/ann/start", "revision": None, "lr": 1e-6},
        "reference": {"kind": "frozen", "path": None, "members": [], "weights": None, "alpha": None},
        "beta": 0.1,
    }
    argv = ("alignctl", "soup", "/home/ann/runs/a", "owner/b", "soup.weights=[1,3]")
    card = soup_card(replace(IDENTITY, argv=argv, warnings=()), config, a_report(), None, lineage)
    assert front_of(card)["base_model_relation"] == "merge"
    assert front_of(card)["tags"] == ["alignctl", "merge", "model-soup", "weighted"]
    for words in (
        "| a | 0.25 | float32 | 20 | aa11 |",
        "| owner/b | 0.75 |",
        "fingerprint of owner/b: `bb22`",
        "the members were trained from: `start`",
        "alignctl soup a owner/b 'soup.weights=[1,3]'",
        "Merging measures nothing. ",
    ):
        assert words in card, words
    assert "ann" not in card
    assert "## Warnings" not in card


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ann/my data/x.jsonl", "x.jsonl"),
        ("~/runs/a/model", "a/model"),
        ("/runs/a@100", "a@100"),
        ("runs/a", "runs/a"),
        ("../b/c", "../b/c"),
        ("owner/name", "owner/name"),
        ("[/data/a.jsonl,/data/b.jsonl]", "[a.jsonl,b.jsonl]"),
        ("rows of /data/a.jsonl:12 and/or 1/2", "rows of a.jsonl:12 and/or 1/2"),
        ("https://ann:secret@host/v1/score", "https://host/v1/score"),
        ("<think></think>", "<think></think>"),
        ("/", "/"),
        ("", ""),
    ],
)
def test_paths_keep_their_last_part(text: str, shown: str) -> None:
    assert portable(text) == shown


def test_commands_and_settings_are_made_portable_word_by_word() -> None:
    assert portable_command(["alignctl", "train", "--format=json", "-cd", "/home/ann/own", "a=~/x y"]) == (
        "alignctl train -cd own 'a=x y'"
    )
    assert portable_values({"a": ["/x/y", 1, None], "b": {"c": True}}) == {
        "a": ["y", 1, None],
        "b": {"c": True},
    }
