"""Row forms: one line per way a row can be bad, and what the accepted forms become."""

from __future__ import annotations

import pytest

from alignctl.config import Columns
from alignctl.data.bad_rows import RowFault, bad_row
from alignctl.data.schemas import parse_row
from alignctl.records import Message, Row

PARTS = ("prompt", "chosen", "rejected", "completion", "messages", "p_chosen", "margin", "weight", "subset")
NO_COLUMNS = dict.fromkeys(PARTS)
GOOD = {"prompt": "What is 2 + 2?", "chosen": "4", "rejected": "5"}
USER = {"role": "user", "content": "hi"}
BOT = {"role": "assistant", "content": "hello"}
BOT2 = {"role": "assistant", "content": "go away"}
SYSTEM = {"role": "system", "content": "be kind"}
CHAT = {"prompt": [USER], "chosen": [BOT], "rejected": [BOT2]}


def parsed(fields, columns=NO_COLUMNS, *, kind="pairs", allow_empty_prompt=False) -> Row:
    names = Columns.model_validate(columns)
    return parse_row("f:1", fields, names, kind=kind, allow_empty_prompt=allow_empty_prompt).row


def text(**changes):
    return GOOD | changes


def chat(**changes):
    return CHAT | changes


def hh(*turns):
    return "".join(f"\n\n{speaker}: {words}" for speaker, words in turns)


H, A, A2 = ("Human", "q"), ("Assistant", "a"), ("Assistant", "b")

BAD = [
    ("1 empty chosen", text(chosen=""), "chosen: empty"),
    ("2 empty rejected", text(rejected=""), "rejected: empty"),
    ("3 both empty", text(chosen="", rejected=""), "chosen: empty"),
    ("4 white space alone", text(rejected=" \n\t"), "rejected: only white space"),
    ("5 empty prompt", text(prompt=""), "prompt: empty"),
    ("5 blank prompt", text(prompt="  "), "prompt: only white space"),
    ("6 equal answers", text(rejected="4"), "chosen: equal to rejected, nothing to learn from"),
    ("8 null answer", text(chosen=None), "chosen: neither text nor messages (null)"),
    ("8 null prompt", text(prompt=None), "prompt: neither text nor messages (null)"),
    ("9 number", text(rejected=5), "rejected: neither text nor messages (a number)"),
    ("9 boolean", text(chosen=True), "chosen: neither text nor messages (a boolean)"),
    ("9 object", text(prompt={}), "prompt: neither text nor messages (an object)"),
    ("10 no rejected", {"prompt": "q", "chosen": "a"}, "rejected: missing (found 'prompt', 'chosen')"),
    ("10 no columns", {}, "chosen: missing (the row has no columns)"),
    ("11 no prompt", {"chosen": "a", "rejected": "b"}, "prompt: missing (and chosen is no 'Human: ... As"),
    ("12 one is a prefix", {"chosen": "a b", "rejected": "a"}, "prompt: missing"),
    ("13 text prompt, chat answers", chat(prompt="q"), "prompt: missing"),
    ("13 chat prompt, text answers", text(prompt=[USER]), "chosen: text where the prompt is messages"),
    ("13 one answer of each", text(chosen=[BOT]), "chosen: messages where the other answer is text"),
    ("20 NUL", text(prompt="a\0b"), "prompt: contains a NUL character (at character 1)"),
    ("20 surrogate", text(chosen="\ud800"), "chosen: contains half a surrogate pair (at character 0)"),
    ("20 surrogate in chat", chat(chosen=[BOT | {"content": "x\udfff"}]), "chosen: contains half"),
    ("49 chosen is a user turn", chat(chosen=[USER]), "chosen: ends with a user turn, not an answer"),
    ("50 no messages", chat(prompt=[]), "prompt: an empty list of messages"),
    ("50 no messages in rejected", chat(rejected=[]), "rejected: an empty list of messages"),
    ("51 null content", chat(chosen=[BOT | {"content": None}]), "chosen: the content of a message is not"),
    ("52 parts", chat(prompt=[USER | {"content": [{"type": "text"}]}]), "prompt: the content of a message"),
    ("53 unknown role", chat(prompt=[USER | {"role": "tool"}]), "prompt: a role is not system, user, assis"),
    ("53 role is a list", chat(prompt=[USER | {"role": ["user"]}]), "prompt: a role is not system, user"),
    ("53 no role", chat(prompt=[{"content": "x"}]), "prompt: a message is not an object with role and"),
    ("53 a message is text", chat(prompt=["x"]), "prompt: a message is not an object with role and conte"),
    ("54 two user turns", chat(prompt=[USER, USER]), "prompt: two user turns in a row (turns 1 and 2)"),
    ("54 no user turn", chat(prompt=[SYSTEM]), "prompt: no user turn"),
    ("54 late system turn", chat(prompt=[USER, SYSTEM]), "prompt: a system turn that is not the first"),
    ("54 twice in HH", {"chosen": hh(H, A, A), "rejected": hh(H, A, A2)}, "prompt: two assistant turns in"),
    ("55 ends with an answer", chat(prompt=[USER, BOT]), "prompt: ends with an assistant turn"),
    ("56 prompts differ", chat(prompt=[USER], chosen=[SYSTEM, BOT]), "chosen: several messages that do not"),
    (
        "56 prompts differ, implicit",
        {"chosen": [USER, BOT], "rejected": [USER | {"content": "ho"}, BOT2]},
        "rejected: its prompt differs from that of chosen",
    ),
    ("56 in HH", {"chosen": hh(H, A), "rejected": hh(("Human", "r"), A2)}, "rejected: its prompt differs"),
    ("56 text prompt", {**CHAT, "prompt": "q", "chosen": [USER, BOT], "rejected": [USER, BOT2]}, "prompt: t"),
    (
        "HH ends with the human",
        {"chosen": hh(H, A, H), "rejected": hh(H, A)},
        "chosen: ends with a user turn",
    ),
    ("1 in HH", {"chosen": hh(H, ("Assistant", "")), "rejected": hh(H, A)}, "chosen: empty"),
    ("59 p over 1", text(p_chosen=1.1), "p_chosen: outside 0 to 1 (1.1)"),
    ("59 p negative", text(p_chosen=-0.1), "p_chosen: outside 0 to 1 (-0.1)"),
    ("59 p of 400 digits", text(p_chosen=10**400), "p_chosen: outside 0 to 1 (1000"),
    ("60 p null", text(p_chosen=None), "p_chosen: not a number (null)"),
    ("60 p text", text(p_chosen="0.5"), "p_chosen: not a number (text)"),
    ("60 p boolean", text(p_chosen=True), "p_chosen: not a number (a boolean)"),
    ("59 p infinite", text(p_chosen=float("inf")), "p_chosen: outside 0 to 1 (inf)"),
    ("60 p NaN", text(p_chosen=float("nan")), "p_chosen: outside 0 to 1 (nan)"),
    ("64 margin negative", text(margin=-0.5), "margin: not a finite number of 0 or more (-0.5)"),
    ("64 margin infinite", text(margin=float("inf")), "margin: not a finite number of 0 or more (inf)"),
    ("64 margin NaN", text(margin=float("nan")), "margin: not a finite number of 0 or more (nan)"),
    ("64 margin text", text(margin="1"), "margin: not a number (text)"),
    ("64 margin null", text(margin=None), "margin: not a number (null)"),
    ("weight infinite", text(weight=float("inf")), "weight: not a finite number over 0 (inf)"),
    ("weight NaN", text(weight=float("nan")), "weight: not a finite number over 0 (nan)"),
    ("weight zero", text(weight=0), "weight: not a finite number over 0 (0)"),
    ("weight of 400 digits", text(weight=10**400), "weight: not a finite number over 0 (1000"),
]


@pytest.mark.parametrize("case", BAD, ids=lambda case: case[0])
def test_a_bad_row_is_named_by_field_and_reason(case):
    _, row, expected = case
    with pytest.raises(RowFault) as caught:
        parsed(row)
    assert bad_row("f:1", caught.value).text.startswith(f"f:1 {expected}")


# --- accepted forms ------------------------------------------------------------------------------------


def test_text_is_kept_as_given_and_marked_as_plain():
    row = parsed({"prompt": " q ", "chosen": " a", "rejected": "b\n"})
    assert row.prompt == (Message("user", " q "),)
    assert row.branches == (" a", "b\n")
    assert (row.chat, row.p_chosen, row.margin, row.weight) == (False, 1.0, 0.0, 1.0)


WHOLE = {"chosen": [SYSTEM, USER, BOT], "rejected": [SYSTEM, USER, BOT2]}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [SYSTEM, USER], "chosen": [BOT], "rejected": [BOT2]},
        {"prompt": [SYSTEM, USER], **WHOLE},
        {"prompt": "hi", **WHOLE},
        WHOLE,
    ],
    ids=["prompt and answers", "prompt repeated", "prompt as text besides", "implicit prompt"],
)
def test_every_chat_form_gives_the_same_row(row):
    loaded = parsed(row)
    assert loaded.prompt == (Message("system", "be kind"), Message("user", "hi"))
    assert loaded.branches == ("hello", "go away")
    assert loaded.chat


def test_transcripts_become_turns_stripped_of_white_space():
    start = "\n\nHuman:  Hi?\n\nAssistant: Yes:\n\n1. Human: no\n\nHuman: Go on \n\nAssistant:"
    expected = (
        Message("user", "Hi?"),
        Message("assistant", "Yes:\n\n1. Human: no"),
        Message("user", "Go on"),
    )
    row = parsed({"chosen": start + " a ", "rejected": start + " b"})
    assert (row.prompt, row.branches, row.chat) == (expected, ("a", "b"), True)
    assert parsed({"prompt": start, "chosen": " a", "rejected": " b"}).prompt == expected


def test_column_names_can_be_set_and_are_then_required():
    columns = NO_COLUMNS | {"prompt": "q", "chosen": "good", "p_chosen": "p", "weight": "w"}
    row = parsed({"q": "x", "good": "a", "rejected": "b", "p": 0.75, "w": 2, "prompt": 1}, columns)
    assert (row.prompt[0].content, row.branches) == ("x", ("a", "b"))
    assert (row.p_chosen, row.weight) == (0.75, 2.0)
    with pytest.raises(RowFault) as caught:
        parsed({"q": "x", "good": "a", "rejected": "b", "w": 2}, columns)
    assert caught.value.field == "p"


def test_a_margin_is_read_and_is_required_once_its_column_is_named():
    assert parsed(text(margin=0)).margin == 0.0
    assert parsed(text(margin=1.5)).margin == 1.5
    named = NO_COLUMNS | {"margin": "lead"}
    assert parsed(text(lead=2, margin=7), named).margin == 2.0
    with pytest.raises(RowFault) as caught:
        parsed(text(margin=7), named)
    assert (caught.value.field, caught.value.reason) == ("lead", "missing")


def test_an_empty_prompt_can_be_allowed():
    assert parsed(text(prompt=""), allow_empty_prompt=True).prompt == (Message("user", ""),)


def test_every_column_of_the_config_is_a_part_of_a_row():
    assert set(Columns.model_fields) == set(NO_COLUMNS)


def test_a_subset_is_read_as_text_and_may_be_absent():
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert parsed(pair).subset is None
    assert parsed(pair | {"subset": None}).subset is None
    assert parsed(pair | {"subset": 3}).subset == "3"
    assert parsed(pair | {"topic": "law"}, NO_COLUMNS | {"subset": "topic"}).subset == "law"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "missing"),
        ({"topic": ["law"]}, "not the name of a part"),
        ({"topic": ""}, "not the name of a part"),
    ],
)
def test_a_named_subset_column_has_to_name_a_part(fields, reason):
    with pytest.raises(RowFault, match=reason):
        parsed({"prompt": "q", "chosen": "a", "rejected": "b"} | fields, NO_COLUMNS | {"subset": "topic"})


# --- rows of one answer --------------------------------------------------------------------------------

ANSWER = {"prompt": "hi", "completion": "hello"}
TALK = [SYSTEM, USER, BOT]
SHARE_GPT = [
    {"from": "system", "value": "be kind"},
    {"from": "human", "value": "hi"},
    {"from": "gpt", "value": "hello"},
]
KIND_HI = (Message("system", "be kind"), Message("user", "hi"))
HI = (Message("user", "hi"),)

ANSWERS = [
    ("text", ANSWER, HI, "hello", False),
    ("text after messages", {"prompt": [SYSTEM, USER], "completion": "hello"}, KIND_HI, "hello", True),
    ("one message", {"prompt": [SYSTEM, USER], "completion": [BOT]}, KIND_HI, "hello", True),
    ("all messages", {"prompt": [SYSTEM, USER], "completion": TALK}, KIND_HI, "hello", True),
    ("transcript as prompt", {"prompt": hh(H) + "\n\nAssistant:", "completion": " a"}, None, "a", True),
    ("transcript alone", {"completion": hh(H, A)}, None, "a", True),
    ("messages", {"messages": TALK}, KIND_HI, "hello", True),
    ("messages beside their prompt", {"prompt": "hi", "messages": TALK}, KIND_HI, "hello", True),
    ("ShareGPT", {"conversations": SHARE_GPT}, KIND_HI, "hello", True),
    ("ShareGPT in messages", {"messages": SHARE_GPT}, KIND_HI, "hello", True),
    ("messages in conversations", {"conversations": TALK}, KIND_HI, "hello", True),
    ("chosen side, text", {"prompt": "hi", "chosen": "hello", "rejected": "b"}, HI, "hello", False),
    ("chosen side, chat", CHAT, HI, "hello", True),
    ("chosen side, whole", {"chosen": TALK, "rejected": [SYSTEM, USER, BOT2]}, KIND_HI, "hello", True),
    ("chosen side, transcript", {"chosen": hh(H, A), "rejected": hh(H, A2)}, None, "a", True),
    ("chosen alone", {"prompt": "hi", "chosen": "hello"}, HI, "hello", False),
    ("completion before chosen", ANSWER | {"chosen": "x", "rejected": "y"}, HI, "hello", False),
    ("null beside", ANSWER | {"completion": None, "messages": TALK}, KIND_HI, "hello", True),
]


@pytest.mark.parametrize("case", ANSWERS, ids=lambda case: case[0])
def test_every_form_of_an_answer_becomes_a_row_of_one_branch(case):
    _, fields, prompt, answer, chat = case
    row = parsed(fields, kind="answers")
    assert row.prompt == (prompt or (Message("user", "q"),))
    assert (row.branches, row.chat) == ((answer,), chat)


BAD_ANSWERS = [
    ("no answer", {"prompt": "q"}, "completion: missing (found 'prompt')"),
    ("no columns", {}, "completion: missing (the row has no columns)"),
    ("null", {"prompt": "q", "completion": None}, "completion: neither text nor messages (null)"),
    ("empty", ANSWER | {"completion": ""}, "completion: empty"),
    ("white space", ANSWER | {"completion": " \n"}, "completion: only white space"),
    ("NUL", ANSWER | {"completion": "a\0"}, "completion: contains a NUL character (at character 1)"),
    ("number", ANSWER | {"completion": 4}, "completion: neither text nor messages (a number)"),
    ("empty prompt", ANSWER | {"prompt": ""}, "prompt: empty"),
    ("null prompt", ANSWER | {"prompt": None}, "prompt: neither text nor messages (null)"),
    ("no prompt", {"completion": "a"}, "prompt: missing (and completion is no 'Human: ... Assistant: ...'"),
    ("empty after messages", {"prompt": [USER], "completion": ""}, "completion: empty"),
    ("question for answer", {"prompt": [USER], "completion": [USER]}, "completion: ends with a user turn"),
    ("answered already", {"prompt": [USER, BOT], "completion": "x"}, "prompt: ends with an assistant turn"),
    ("foreign start", {"prompt": [USER], "completion": TALK}, "completion: several messages that do not sta"),
    ("answer alone", {"messages": [BOT]}, "prompt: missing (messages holds the answer alone)"),
    ("no messages", {"messages": []}, "messages: an empty list of messages"),
    ("messages are text", {"messages": "hi"}, "messages: not a list of messages (text)"),
    ("ends with a question", {"messages": [SYSTEM, USER]}, "messages: ends with a user turn, not an answer"),
    ("empty answer", {"messages": [USER, BOT | {"content": ""}]}, "messages: empty"),
    ("empty question", {"messages": [USER | {"content": " "}, BOT]}, "prompt: only white space"),
    ("late system", {"messages": [USER, SYSTEM, BOT]}, "prompt: a system turn that is not the first"),
    ("two answers", {"messages": [USER, BOT, BOT2]}, "prompt: two assistant turns in a row (turn 2)"),
    ("two questions", {"messages": [USER, USER, BOT]}, "prompt: two user turns in a row (turns 1 and 2)"),
    ("no question", {"messages": [SYSTEM, BOT]}, "prompt: no user turn"),
    ("tool turn", {"messages": [USER, {"role": "tool", "content": "1"}, BOT]}, "messages: a role is not sys"),
    ("ShareGPT tool", {"conversations": [{"from": "tool", "value": "1"}]}, "conversations: a role is not"),
    ("ShareGPT null", {"conversations": [{"from": "gpt", "value": None}]}, "conversations: the content of a"),
    ("ShareGPT odd", {"conversations": [{"from": 1, "value": "1"}]}, "conversations: a role is not"),
    ("pair of equals", text(rejected="4"), "chosen: equal to rejected, nothing to learn from"),
    ("pair without rejected words", text(rejected=""), "rejected: empty"),
    ("pair of two prompts", {"chosen": TALK, "rejected": [USER, BOT2]}, "rejected: its prompt differs from"),
    ("weight", ANSWER | {"weight": -1}, "weight: not a finite number over 0 (-1)"),
    ("subset", ANSWER | {"subset": []}, "subset: not the name of a part (a list)"),
]


@pytest.mark.parametrize("case", BAD_ANSWERS, ids=lambda case: case[0])
def test_a_bad_row_of_one_answer_is_named_by_field_and_reason(case):
    _, fields, expected = case
    with pytest.raises(RowFault) as caught:
        parsed(fields, kind="answers")
    assert bad_row("f:1", caught.value).text.startswith(f"f:1 {expected}")


def test_answers_have_weights_and_subsets_and_no_labels_of_pairs():
    row = parsed(ANSWER | {"weight": 3, "subset": "law", "p_chosen": 7, "margin": "x"}, kind="answers")
    assert (row.weight, row.subset, row.p_chosen, row.margin) == (3.0, "law", 1.0, 0.0)


@pytest.mark.parametrize(
    ("named", "answer"),
    [
        ({"completion": "out"}, "1"),
        ({"messages": "talk"}, "hello"),
        ({"chosen": "good"}, "2"),
        ({"chosen": "good", "completion": "out"}, "1"),
        ({}, "3"),
    ],
    ids=str,
)
def test_the_named_column_says_which_form_is_read(named, answer):
    fields = {"prompt": "q", "out": "1", "talk": TALK, "good": "2", "completion": "3", "messages": [USER]}
    assert parsed(fields, NO_COLUMNS | named, kind="answers").branches == (answer,)


@pytest.mark.parametrize("part", ["completion", "messages", "chosen"])
def test_a_named_column_of_answers_is_required(part):
    with pytest.raises(RowFault) as caught:
        parsed(ANSWER, NO_COLUMNS | {part: "other"}, kind="answers")
    assert (caught.value.field, caught.value.reason) == ("other", "missing")


# --- rows of none --------------------------------------------------------------------------------------

QUESTIONS = [
    ("text", {"prompt": "hi"}, HI, False),
    ("messages as prompt", {"prompt": [SYSTEM, USER]}, KIND_HI, True),
    ("transcript", {"prompt": "\n\nHuman: hi\n\nAssistant:"}, HI, True),
    (
        "transcript without the opening",
        {"prompt": hh(H, A, ("Human", "hi"))},
        (Message("user", "q"), Message("assistant", "a"), Message("user", "hi")),
        True,
    ),
    ("open messages", {"messages": [SYSTEM, USER]}, KIND_HI, True),
    ("open ShareGPT", {"conversations": SHARE_GPT[:2]}, KIND_HI, True),
    ("null beside", {"prompt": "hi", "completion": None, "chosen": None}, HI, False),
    ("rejected alone beside", {"prompt": "hi", "rejected": "x"}, HI, False),
    *((f"answered: {name}", fields, prompt, chat) for name, fields, prompt, _, chat in ANSWERS),
]


@pytest.mark.parametrize("case", QUESTIONS, ids=lambda case: case[0])
def test_every_form_of_a_prompt_becomes_a_row_without_branches(case):
    _, fields, prompt, chat = case
    row = parsed(fields, kind="prompts")
    assert row.prompt == (prompt or (Message("user", "q"),))
    assert (row.branches, row.chat) == ((), chat)


BAD_PROMPTS = [
    ("nothing", {}, "prompt: missing (the row has no columns)"),
    ("other columns", {"question": "q", "rejected": "x"}, "prompt: missing (found 'question', 'rejected')"),
    ("null", {"prompt": None}, "prompt: neither text nor messages (null)"),
    ("number", {"prompt": 3}, "prompt: neither text nor messages (a number)"),
    ("empty", {"prompt": ""}, "prompt: empty"),
    ("white space", {"prompt": "\n"}, "prompt: only white space"),
    ("surrogate", {"prompt": "\ud800"}, "prompt: contains half a surrogate pair (at character 0)"),
    ("no messages", {"prompt": []}, "prompt: an empty list of messages"),
    ("answered", {"prompt": [USER, BOT]}, "prompt: ends with an assistant turn"),
    ("answered transcript", {"prompt": hh(H, A)}, "prompt: ends with an assistant turn"),
    ("system alone", {"prompt": [SYSTEM]}, "prompt: no user turn"),
    ("system last", {"prompt": [USER, SYSTEM]}, "prompt: a system turn that is not the first"),
    ("two questions", {"messages": [USER, USER]}, "prompt: two user turns in a row (turns 1 and 2)"),
    (
        "texts for messages",
        {"prompt": ["q", "r"]},
        "prompt: a message is not an object with role and content",
    ),
    ("bad pair", text(rejected="4"), "chosen: equal to rejected, nothing to learn from"),
    ("bad answer", ANSWER | {"completion": " "}, "completion: only white space"),
]


@pytest.mark.parametrize("case", BAD_PROMPTS, ids=lambda case: case[0])
def test_a_bad_prompt_is_named_by_field_and_reason(case):
    _, fields, expected = case
    with pytest.raises(RowFault) as caught:
        parsed(fields, kind="prompts")
    assert bad_row("f:1", caught.value).text.startswith(f"f:1 {expected}")


def test_prompts_have_subsets_and_no_labels():
    labels = {"weight": 0, "p_chosen": 7, "margin": -1, "subset": "law"}
    row = parsed({"prompt": "q"} | labels, kind="prompts")
    assert (row.weight, row.p_chosen, row.margin, row.subset) == (1.0, 1.0, 0.0, "law")


def test_columns_named_for_answers_may_be_absent_where_only_the_prompt_is_wanted():
    named = NO_COLUMNS | {"chosen": "good", "rejected": "worse", "completion": "out", "messages": "talk"}
    assert parsed({"prompt": "hi"}, named, kind="prompts").prompt == HI
    assert parsed({"good": TALK, "worse": [SYSTEM, USER, BOT2]}, named, kind="prompts").prompt == KIND_HI
    with pytest.raises(RowFault) as caught:
        parsed({"prompt": "hi"}, NO_COLUMNS | {"prompt": "question"}, kind="prompts")
    assert (caught.value.field, caught.value.reason) == ("question", "missing")


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("pairs", GOOD, {"prompt", "chosen", "rejected", "p_chosen", "margin", "weight", "subset"}),
        ("answers", GOOD, {"prompt", "chosen", "rejected", "weight", "subset"}),
        ("answers", ANSWER, {"prompt", "completion", "weight", "subset"}),
        ("answers", {"conversations": SHARE_GPT}, {"conversations", "weight", "subset"}),
        ("prompts", {"messages": TALK}, {"messages", "subset"}),
        ("prompts", {"prompt": "q"}, {"prompt", "subset"}),
    ],
)
def test_the_columns_that_were_read_are_told(kind, fields, expected):
    names = Columns.model_validate(NO_COLUMNS)
    assert parse_row("f:1", fields, names, kind=kind, allow_empty_prompt=False).columns == expected
