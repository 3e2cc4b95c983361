"""Answers of a model before its first step: read for the same draw, drawn anew for any other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from alignctl.models.kept_answers import Draw, Drawn, kept_answers
from alignctl.models.reference import as_tensors
from alignctl.records import Scores

DRAW = Draw(
    fingerprint="weights",
    dtype=torch.float32,
    prompts=[np.array([1, 2, 3], np.int32), np.array([4], np.int32)],
    sample_ids=[0, 1],
    temperatures=[0.7, 1.0],
    scored=[False, True],
    stop=[2],
    max_new_tokens=8,
    seed=0,
)
OTHER: dict[str, Any] = {
    "fingerprint": "others",
    "dtype": torch.bfloat16,
    "prompts": [np.array([1, 2], np.int32), np.array([3, 4], np.int32)],
    "sample_ids": [1, 0],
    "temperatures": [1.0, 0.7],
    "scored": [True, False],
    "stop": [2, 3],
    "max_new_tokens": 9,
    "seed": 1,
}


def drawn() -> Drawn:
    answers = [np.array([5, 6, 2], np.int32), np.array([7, 8], np.int32)]
    scores = Scores(
        torch.tensor([[-3.5]]), torch.tensor([[2]]), torch.tensor([[1.25]]), torch.tensor([[1.5]])
    )
    return answers, scores


def never() -> Drawn:
    raise AssertionError("these answers are in the cache")


def same(one: Drawn, other: Drawn) -> bool:
    (answers, scores), (others, other_scores) = one, other
    named, others_named = as_tensors(scores), as_tensors(other_scores)
    return (
        [answer.tolist() for answer in answers] == [answer.tolist() for answer in others]
        and all(answer.dtype == np.int32 for answer in others)
        and named.keys() == others_named.keys()
        and all(torch.equal(held, others_named[name]) for name, held in named.items())
    )


@pytest.mark.usefixtures("cache")
def test_drawn_once_and_read_afterwards() -> None:
    assert same(drawn(), kept_answers(DRAW, drawn))
    assert same(drawn(), kept_answers(replace(DRAW), never))


@pytest.mark.usefixtures("cache")
def test_answers_of_which_none_is_scored() -> None:
    nothing = torch.zeros(0, 1)
    unscored = drawn()[0], Scores(nothing, nothing.long(), nothing, nothing)
    kept_answers(DRAW, lambda: unscored)
    assert same(unscored, kept_answers(DRAW, never))


@pytest.mark.parametrize("name", OTHER)
def test_whatever_decides_a_draw_is_in_its_name(name: str) -> None:
    assert replace(DRAW, **{name: OTHER[name]}).path != DRAW.path


def test_every_field_of_a_draw_is_tried() -> None:
    assert set(OTHER) == set(Draw.__dataclass_fields__)


@pytest.mark.usefixtures("cache")
def test_damaged_answers_are_drawn_again() -> None:
    kept_answers(DRAW, drawn)
    content = bytearray(DRAW.path.read_bytes())
    content[-3] ^= 1
    DRAW.path.write_bytes(bytes(content))
    calls = []
    assert same(drawn(), kept_answers(DRAW, lambda: calls.append(1) or drawn()))
    assert calls
    assert same(drawn(), kept_answers(DRAW, never))
