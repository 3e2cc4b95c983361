"""The demo data set: its splits, its variety, and the laws of its gold score."""

from __future__ import annotations

import itertools
from dataclasses import astuple
from functools import partial

import pytest

from alignctl.config import DemoDataset
from alignctl.data import gold
from alignctl.data.demo import demo_prompts, load_demo
from alignctl.data.demo_families import all_material
from alignctl.data.demo_wordings import PREAMBLES
from alignctl.errors import UsageError
from alignctl.records import PreferenceData, Row


def config(seed: int = 0, pairs: int = 440, eval_pairs: int = 220, limit: int | None = None) -> DemoDataset:
    return DemoDataset(
        kind="demo",
        seed=seed,
        pairs=pairs,
        eval_pairs=eval_pairs,
        limit=limit,
        min_response_tokens=2,
        gold_samples=64,
        prompts=None,
    )


@pytest.fixture(scope="module")
def demo() -> PreferenceData:
    return load_demo(config(pairs=1100), kind="pairs")


def text(row: Row) -> str:
    return row.prompt[0].content


def totals(data: PreferenceData, rows: tuple[Row, ...], branch: int) -> list[float]:
    assert data.gold is not None
    return [data.gold(row, row.branches[branch]).total for row in rows]


# --- the splits ----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    first, again, other = (
        load_demo(config(), kind="pairs"),
        load_demo(config(), kind="pairs"),
        load_demo(config(seed=1), kind="pairs"),
    )
    assert (first.train, first.held_out) == (again.train, again.held_out)
    assert {text(row) for row in first.held_out} != {text(row) for row in other.held_out}


def test_a_smaller_data_set_is_the_beginning_of_a_larger_one(demo: PreferenceData):
    assert load_demo(config(pairs=50), kind="pairs").train == demo.train[:50]
    assert load_demo(config(pairs=440, limit=50), kind="pairs").train == demo.train[:50]


def test_rows_are_pairs_of_one_user_turn_with_ids_of_their_split(demo: PreferenceData):
    assert [len(demo.train), len(demo.held_out)] == [1100, 220]
    assert (demo.train[17].id, demo.held_out[3].id) == ("demo/train/17", "demo/held-out/3")
    for row in demo.train + demo.held_out:
        assert [message.role for message in row.prompt] == ["user"]
        assert len(row.branches) == 2
        assert all(answer == answer.strip() != "" for answer in row.branches)
        assert row.branches[0] != row.branches[1]


def test_no_prompt_comes_twice_in_or_across_the_splits(demo: PreferenceData):
    fresh = demo_prompts(config(pairs=1100), 300)
    prompts = [text(row) for row in demo.train + demo.held_out + fresh.train]
    assert len(set(prompts)) == len(prompts) == 1100 + 220 + 300


def test_prompts_without_answers_have_a_gold_score_too():
    fresh = demo_prompts(config(pairs=40), 22)
    answered = load_demo(config(pairs=62), kind="pairs").train[40:]
    assert all(row.branches == () for row in fresh.train)
    assert [(row.id, row.prompt) for row in fresh.train] == [(row.id, row.prompt) for row in answered]
    assert fresh.gold is not None
    assert [
        fresh.gold(row, pair.branches[0]).total for row, pair in zip(fresh.train, answered, strict=True)
    ] == [1.0] * 22


def test_answers_are_the_chosen_sides_and_prompts_have_none_of_the_same_rows_and_splits():
    pairs, answers, prompts = (load_demo(config(), kind=kind) for kind in ("pairs", "answers", "prompts"))
    assert answers.gold is not None
    assert prompts.gold is not None
    for split in ("train", "held_out"):
        rows = {"train": pairs.train, "held_out": pairs.held_out}[split]
        chosen = {"train": answers.train, "held_out": answers.held_out}[split]
        bare = {"train": prompts.train, "held_out": prompts.held_out}[split]
        assert [(row.id, row.prompt, row.subset) for row in rows] == [
            (row.id, row.prompt, row.subset) for row in chosen
        ]
        assert [row.branches for row in chosen] == [row.branches[:1] for row in rows]
        assert [(row.id, row.prompt, row.branches) for row in bare] == [(r.id, r.prompt, ()) for r in rows]
        assert {answers.gold(row, row.branches[0]).total for row in chosen} == {1.0}
        for row, pair in zip(bare, rows, strict=True):
            assert prompts.gold(row, pair.branches[0]).total > prompts.gold(row, pair.branches[1]).total


def test_held_out_prompts_are_about_other_topics(demo: PreferenceData):
    names = [topic.name for topic in all_material().topics]

    def about(rows: tuple[Row, ...]) -> set[str]:
        ends = tuple(f" {name}{mark}" for name in names for mark in (".", "?", " to ", " in "))
        return {end.strip(" .?toin") for end in ends if any(end in text(row) for row in rows)}

    trained, kept_back = about(demo.train), about(demo.held_out)
    assert len(trained) > 30
    assert len(kept_back) > 8
    assert not trained & kept_back


def test_more_prompts_than_there_are_is_an_error_that_names_the_key():
    with pytest.raises(UsageError, match=r"dataset.eval_pairs=100000: .* ends after [\d,]{5,} "):
        load_demo(config(pairs=1, eval_pairs=100_000), kind="pairs")


# --- variety -------------------------------------------------------------------------------------------


def test_instructions_and_answers_are_varied(demo: PreferenceData):
    openings = {" ".join(text(row).split()[:4]) for row in demo.train}
    chosen = {row.branches[0] for row in demo.train}
    assert len(openings) > 150
    assert len(chosen) > 600


def test_neither_length_nor_chatter_separates_the_answers(demo: PreferenceData):
    pairs = [row.branches for row in demo.train]
    longer = sum(len(chosen) > len(rejected) for chosen, rejected in pairs) / len(pairs)
    assert 0.2 < longer < 0.5
    chatty = sum(rejected.startswith(PREAMBLES) for _, rejected in pairs) / len(pairs)
    assert 0.1 < chatty < 1 / 3


def test_some_rejected_answers_keep_the_form_and_are_wrong(demo: PreferenceData):
    assert demo.gold is not None
    scores = [demo.gold(row, row.branches[1]) for row in demo.train]
    wrong = sum(score.form == 1.0 and score.content < 0.5 for score in scores) / len(scores)
    assert 0.15 < wrong < 0.4


# --- the gold score of whole answers -------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_chosen_answer_is_perfect_and_no_rejected_one_is_more_than_half_right(seed: int):
    data = load_demo(config(seed=seed), kind="pairs")
    rows = data.train + data.held_out
    assert set(totals(data, rows, 0)) == {1.0}
    assert max(totals(data, rows, 1)) <= 0.5


GIBBERISH = "Zxqv brmpf klonz wuggle trintic vorpa. Snerg blint!"
SALAD = "the of and to in is it for on with as at by from"


@pytest.mark.parametrize("answer", ["", "  \n", "...", "**", GIBBERISH, SALAD, "yes " * 40, "7 " * 40])
def test_answers_without_sense_earn_nothing(demo: PreferenceData, answer: str):
    assert demo.gold is not None
    assert max(demo.gold(row, answer).total for row in demo.held_out) <= 0.05


def test_an_echo_of_the_prompt_earns_nothing(demo: PreferenceData):
    assert demo.gold is not None
    for row in demo.held_out:
        echoes = (text(row), f"{text(row)} {text(row)}", text(row).lower(), " ".join(text(row).split()[:6]))
        assert [demo.gold(row, echo).total for echo in echoes] == [0.0] * 4


def test_one_word_of_the_right_answer_over_and_over_earns_nothing(demo: PreferenceData):
    assert demo.gold is not None
    for row in demo.held_out[:66]:
        for word in set(gold.words(row.branches[0])):
            assert demo.gold(row, " ".join([word] * 100)).total == 0.0
            assert demo.gold(row, "\n".join([word] * 100)).total == 0.0


def test_scores_lie_in_the_unit_interval_and_the_total_is_the_product(demo: PreferenceData):
    assert demo.gold is not None
    answers = [answer for row in demo.train[:40] for answer in row.branches] + [GIBBERISH, SALAD, ""]
    for row, answer in itertools.product(demo.held_out[:44], answers):
        score = demo.gold(row, answer)
        assert all(0.0 <= part <= 1.0 for part in astuple(score))
        assert score.total == score.form * score.content


# --- hand-worked scores --------------------------------------------------------------------------------

FORMS = [
    (partial(gold.list_form, n=3), "1. Apple\n2. Pear\n3. Fig", 1.0),
    (partial(gold.list_form, n=3), "* **Apple**\n* **Pear**\n* **Fig**", 1.0),
    (partial(gold.list_form, n=3), "Apple\nPear\n\nFig", 1.0),
    (partial(gold.list_form, n=3), "Here you go:\n\n1. Apple\n2. Pear\n3. Fig", 1.0),
    (partial(gold.list_form, n=2), "1. Apple\n2. Pear\n3. Fig", 0.25),  # one off of two
    (partial(gold.list_form, n=3), "Apple, pear and fig.", 0.5 / 3),  # one line, two off of three
    (partial(gold.list_form, n=2), "\n".join("abcd"), 0.0),
    (partial(gold.comma_form, n=3), "apple, pear, fig", 1.0),
    (partial(gold.comma_form, n=3), "Apple, sweet potato, and fig.", 1.0),
    (partial(gold.comma_form, n=3), "Here are three: apple, pear, fig", 0.5),
    (partial(gold.comma_form, n=4), "apple, pear, fig", 0.375),  # one off of four
    (partial(gold.comma_form, n=3), "1. Apple\n2. Pear\n3. Fig", 0.0),
    (gold.lower_form, "bees make honey.", 1.0),
    (gold.lower_form, "Bees make honey.", 0.4),
    (gold.lower_form, "Bees make honey. They fly. I like them.", 0.2),
    (gold.lower_form, "BEES MAKE honey", 0.0),
    (gold.lower_form, "12", 0.0),
    (partial(gold.closing_form, phrase="Take care!"), "Bees make honey. Take care!", 1.0),
    (partial(gold.closing_form, phrase="Take care!"), "Bees make honey. take care.", 0.5),
    (partial(gold.closing_form, phrase="Take care!"), "Take care! Bees make honey.", 0.25),
    (partial(gold.closing_form, phrase="Take care!"), "Bees make honey.", 0.0),
    (gold.bare_form, "12", 1.0),
    (gold.bare_form, " Paris.\n", 1.0),
    (gold.bare_form, "**12**", 0.5),
    (gold.bare_form, "12 apples", 0.25),
    (gold.bare_form, "The answer is 12.", 0.125),
]


@pytest.mark.parametrize(("form", "answer", "expected"), FORMS)
def test_form_by_hand(form: partial[float], answer: str, expected: float):
    assert form(answer) == pytest.approx(expected)


FRUIT = tuple(map(gold.stems, ("apple", "pear", "fig", "pepper", "bell pepper")))
LIST = partial(gold.items_content, split=gold.list_items, pool=FRUIT)
COMMA = partial(gold.items_content, split=gold.comma_items, pool=FRUIT)
BEES = partial(
    gold.topic_content,
    topic=gold.keywords("small insects that make honey and fly to a flower"),
    prompt="What are bees?",
)
TWELVE = partial(gold.number_content, value=12)
COLD = partial(gold.word_content, accepted={"cold", "cool"}, rivals={"wet", "dry"})
CONTENTS = [
    (LIST, "1. Apples\n2. **Pear**: sweet\n3. Fig", 1.0),
    (LIST, "1. Apple\n2. Apple\n3. Fig", 2 / 3),
    (LIST, "1. Hammer\n2. Saw", 0.0),
    (LIST, "1. Bell pepper\n2. Bell pepper", 0.5),
    (COMMA, "apple, pear, and fig", 1.0),
    (COMMA, "apple, saw", 0.5),
    (BEES, "Bees are insects that make honey.", 1.0),
    (BEES, "Bees are insects that sting.", 0.5),
    (BEES, "insect honey flower", 0.0),  # a heap of keywords
    (BEES, "What are bees? Bees are bees.", 0.0),  # nothing the prompt did not say
    (TWELVE, "12", 1.0),
    (TWELVE, "**12**", 1.0),
    (TWELVE, "7 + 5 = 12", 1.0),
    (TWELVE, "12, since 7 + 5 is that", 1.0),
    (TWELVE, "10 or 12 or 14", 0.0),
    (TWELVE, "112", 0.0),
    (TWELVE, "twelve", 0.0),
    (COLD, "Cold", 1.0),
    (COLD, "The opposite is cool.", 1.0),
    (COLD, "cold wet dry", 1 / 3),
    (COLD, "Wet", 0.0),
]


@pytest.mark.parametrize(("content", "answer", "expected"), CONTENTS)
def test_content_by_hand(content: partial[float], answer: str, expected: float):
    assert content(answer) == pytest.approx(expected)


def test_the_right_number_buried_in_chatter_earns_almost_nothing():
    judge = gold.Judge("What is 7 + 5? Only the number.", gold.bare_form, TWELVE)
    chatter = "Well, that is a good question. If you add them up, then you get exactly 12"
    assert gold.score(judge, "12").total == 1.0
    assert 0.0 < gold.score(judge, chatter).total < 0.05


def test_padding_a_right_answer_with_repetition_costs_content():
    judge = gold.Judge("What are bees?", partial(gold.closing_form, phrase="honey."), BEES)
    sentence = "Bees are insects that make honey."
    assert gold.score(judge, sentence).total == 1.0
    assert gold.score(judge, " ".join([sentence] * 10)).total == 0.0
