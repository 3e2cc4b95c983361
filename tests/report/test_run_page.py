"""report.html of a training run: it claims what its intervals allow, shows every course, escapes all text."""

from __future__ import annotations

import re

import pytest

from alignctl.report.run_page import RunStory, run_page, sentence

HOSTILE = "<script>alert(1)</script>\"'&"


def estimate(value: float, half: float, n: int = 100) -> dict[str, object]:
    return {"value": value, "ci": [value - half, value + half], "n": n, "method": "t"}


def story(**changes: object) -> RunStory:
    """A run of ten steps, evaluated at 0, 5 and 10, that kept step 5."""
    gold = {"start": estimate(0.1, 0.02), "best": estimate(0.3, 0.05), "last": estimate(0.2, 0.05)}
    loss = {"start": estimate(0.69, 0.1), "best": estimate(0.6, 0.1), "last": estimate(0.7, 0.1)}
    record = {
        "argv": ["alignctl", "train", "algo=dpo"],
        "headline": {"loss": loss, "gold/mean": gold},
        "best_step": 5,
        "kept": {"step": 5, "why": "loss"},
        "stopped": None,
        "train_seconds": 75.0,
        "warnings": ["answers got shorter"],
        "versions": {"torch": "2.13.0"},
    }
    config = {
        "algo": {"name": "dpo"},
        "model": {"name": "tiny"},
        "dataset": {"kind": "demo"},
        "train": {"batch_size": 8},
        "checkpoint": {"export": "best"},
    }
    metrics = [{"step": step, "split": "train", "loss": 0.7 - step / 50, "lr": 1e-5} for step in range(1, 11)]
    metrics += [
        {"step": step, "split": "eval", "gold/mean": gold} for step, gold in ((0, 0.1), (5, 0.3), (10, 0.2))
    ]
    samples = [
        {"step": step, "id": "a", "prompt": "Name a fruit.", "answer": f"answer {step}", "gold": 0.5}
        for step in (0, 5, 10)
    ]
    return RunStory(record | changes, config, metrics, samples)


@pytest.mark.parametrize(
    ("gold", "told"),
    [
        (estimate(0.3, 0.05), "The gold score of its answers rose from 0.100 to 0.300"),
        (estimate(0.13, 0.05), "The gold score of its answers went from 0.100 to 0.130, within its noise"),
        (estimate(0.01, 0.01), "The gold score of its answers fell from 0.100 to 0.010"),
    ],
)
def test_the_sentence_claims_a_change_only_where_intervals_are_apart(gold: object, told: str):
    headline = {"gold/mean": {"start": estimate(0.1, 0.02), "best": gold, "last": gold}}
    assert sentence(story(headline=headline)) == f"{told}."


def test_a_run_without_held_out_rows_says_so():
    assert sentence(story(headline={})) == "Nothing was measured on held-out data."
    assert "model/ holds step 10, the last step." in run_page(
        story(headline={}, kept={"step": 10, "why": "last"})
    )


def test_the_page_says_what_the_watch_found():
    words = {
        "verdict": f"Over-optimised since step 8: {HOSTILE}.",
        "meaning": "It learns by heart.",
        "keep": "Keep step 5.",
        "ways": ["train.steps=5", "train.lr=1e-06"],
    }
    page = run_page(story(watch={"action": "warn", "words": words}, kept={"step": 5, "why": "alarm"}))
    assert "model/ holds step 5, before it was over-optimised." in page
    assert "Over-optimised since step 8" in page
    assert "<code>train.steps=5</code>, <code>train.lr=1e-06</code>" in page
    assert HOSTILE not in page
    assert "Over-optimisation" not in run_page(story())


def test_the_page_tells_the_run():
    page = run_page(story())
    assert "model/ holds step 5, the lowest held-out loss." in page
    assert "answers got shorter" in page
    assert "alignctl train algo=dpo" in page
    assert [f"answer {step}" in page for step in (0, 5, 10)] == [True] * 3
    # A course is a line through every step, and held-out values have marks of their own.
    (course,) = re.findall(r'<title>loss</title>.*?<polyline class="line" points="([^"]*)"', page, re.S)
    assert len(course.split()) == 10
    assert page.count("held out, step") == 3


def test_the_data_card_is_told_in_words():
    card = {
        "train": 640,
        "sources": [{"path": "prefs.jsonl", "columns": ["prompt", "chosen"], "unread": []}],
        "tokens": {"prompt": {"p50": 45, "max": 58}, "row": {"p50": 70, "max": 136}},
        "chosen_longer": 0.33630952,
        "dropped": {},
        "soft": None,
        "subsets": {"number": 141, "list": 140},
    }
    page = run_page(story(data=card))
    for name, words in (
        ("train", "640"),
        ("sources 1", "path prefs.jsonl, columns prompt, chosen, unread none"),
        ("tokens prompt", "p50 45, max 58"),
        ("tokens row", "p50 70, max 136"),
        ("chosen_longer", "0.336"),
        ("subsets", "number 141, list 140"),
    ):
        assert f"<dt>{name}</dt><dd>{words}</dd>" in page
    assert "dropped" not in page
    assert "<dt>soft</dt>" not in page


def test_the_run_that_stopped_early_says_why():
    assert "The run ended early: answers collapsed." in run_page(story(stopped="answers collapsed"))


def test_every_text_is_escaped_and_nothing_comes_from_elsewhere():
    known = story(warnings=[HOSTILE], argv=["alignctl", HOSTILE])
    known.config["model"]["name"] = HOSTILE
    samples = [{"step": 0, "id": "a", "prompt": HOSTILE, "answer": HOSTILE}]
    page = run_page(RunStory(known.record, known.config, known.metrics, samples))
    assert "<script" not in page
    assert "alert(1)" in page
    assert not re.search(r'(?:src|href)="', page)
