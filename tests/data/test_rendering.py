"""Rendering: where the prompt ends, what ends an answer, what truncation leaves, and what is refused.

The tokenizers are built here, byte-level with a few merges, one of which reaches over the boundary.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from alignctl.data.rendering import AHEAD, Limits, open_renderer, render, render_chunks, render_prompt
from alignctl.data.template import (
    MAX_TEMPLATE,
    answer_ending,
    decode,
    encode,
    end_token_id,
    stop_token_ids,
    template_hash,
)
from alignctl.errors import DataError
from alignctl.records import Message, Row

HH = Path(__file__).parents[3] / "shared" / "data" / "hh-harmless-1.jsonl.gz"
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
INST = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)
MERGES = [("Ġ", "a"), ("Ċ", "Ċ"), ("h", "e"), ("l", "l"), ("he", "ll")]


def tokenizer(template: str | None = CHATML, *, bos=False, eos: str | None = "<|im_end|>", lowercase=False):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*letters, *map("".join, MERGES)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if lowercase:
        backend.normalizer = normalizers.Lowercase()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", backend.token_to_id("<|im_start|>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token=eos,
        pad_token="<|im_end|>",
        chat_template=template,
    )


def row(prompt="hello", chosen="yes it is", rejected="no", **changes) -> Row:
    fields = {"id": "f:1", "prompt": (Message("user", prompt),), "branches": (chosen, rejected)} | changes
    return Row(**fields)


def rendered(rows, tok, **changes):
    limits = {"max_length": 400, "max_prompt": 200, "min_response_tokens": 1, "vocab_size": len(tok)}
    return render(rows, open_renderer(tok, Limits(**(limits | {"allow_control_tokens": False} | changes))))


# --- the rule ------------------------------------------------------------------------------------------


def test_prompt_and_answers_are_the_templates_text_cut_after_the_end_token():
    tok = tokenizer()
    result = rendered([row(p_chosen=0.75, weight=2.0)], tok)
    (example,) = result.examples
    assert decode(tok, example.prompt) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert example.margin == 0.0
    assert rendered([row(margin=1.5)], tok).examples[0].margin == 1.5
    assert [decode(tok, ids) for ids in example.branches] == ["yes it is<|im_end|>", "no<|im_end|>"]
    assert (example.id, example.p_chosen, example.weight) == ("f:1", 0.75, 2.0)
    assert (example.truncated, result.truncated, result.boundary_merges, result.bad) == (False, 0, 0, ())
    assert {ids.dtype for ids in (example.prompt, *example.branches)} == {np.dtype(np.int32)}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.text("ahel \n:é🙂", min_size=1, max_size=12)] * 3), min_size=1, max_size=3))
def test_ids_spell_the_same_text_in_any_batch_and_generation_starts_from_the_same_prompt(contents):
    tok = tokenizer(PLAIN_TEMPLATE)
    rows = [
        row(*content, id=f"f:{place}") for place, content in enumerate(contents) if content[1] != content[2]
    ]
    result = rendered(rows, tok)
    assert result.bad == ()
    for source, example in zip(rows, result.examples, strict=True):
        prompt = f"user: {source.prompt[0].content}\nassistant: "
        assert decode(tok, example.prompt) == prompt
        assert [decode(tok, ids) for ids in example.branches] == [f"{a}<|im_end|>" for a in source.branches]
        assert example.prompt.tolist() == render_prompt(source, tok, 200).tolist()
        (alone,) = rendered([source], tok).examples
        assert [ids.tolist() for ids in alone.branches] == [ids.tolist() for ids in example.branches]


def test_a_token_that_would_join_prompt_and_answer_is_split_and_counted():
    tok = tokenizer(PLAIN_TEMPLATE)
    joined = "user: q\nassistant: and"
    (whole,) = encode(tok, [joined])
    assert "Ġa" in tok.convert_ids_to_tokens(whole)[-4:]
    result = rendered([row("q", "and", "but"), row("q", "but", "or", id="f:2")], tok)
    assert result.boundary_merges == 1
    assert decode(tok, result.examples[0].prompt).endswith("assistant: ")
    assert decode(tok, result.examples[0].branches[0]) == "and<|im_end|>"


def test_many_rows_over_several_chunks_keep_their_own_answers_beside_bad_ones():
    tok = tokenizer()
    rows = [
        row(f"q{n}", f"yes {n}", "<|im_end|>" if n % 7 == 0 else f"no {n}", id=f"f:{n}") for n in range(1100)
    ]
    result = rendered(rows, tok)
    assert [bad.id for bad in result.bad] == [f"f:{n}" for n in range(0, 1100, 7)]
    for example in result.examples:
        number = example.id[2:]
        assert f"q{number}<" in decode(tok, example.prompt)
        assert [decode(tok, ids)[:-10] for ids in example.branches] == [f"yes {number}", f"no {number}"]


def test_little_more_is_read_than_was_rendered():
    """A table of millions of rows must not pile up in memory when encoding is slower than reading."""
    drawn = 0

    def chunks():
        nonlocal drawn
        for drawn in range(1, 9):  # noqa: B007  (counted for the lines below)
            yield [row()]

    tok = tokenizer()
    limits = Limits(400, 200, 1, len(tok), allow_control_tokens=False)
    ahead = [drawn - given for given, _ in enumerate(render_chunks(chunks(), open_renderer(tok, limits)), 1)]
    assert ahead == [AHEAD] * (8 - AHEAD) + list(range(AHEAD))[::-1]


# --- the end of an answer ------------------------------------------------------------------------------


def test_the_end_token_is_the_one_the_template_writes():
    tok = tokenizer(eos="<|endoftext|>")
    ending = answer_ending(tok)
    assert (ending.kept, ending.cut) == ("<|im_end|>", "\n")
    assert tok.convert_ids_to_tokens([end_token_id(tok)]) == ["<|im_end|>"]
    assert tok.convert_ids_to_tokens(list(stop_token_ids(tok))) == ["<|im_end|>", "<|endoftext|>"]
    assert stop_token_ids(tokenizer()) == (end_token_id(tokenizer()),)


def test_a_template_without_an_end_token_gets_the_tokenizers_and_its_newline_is_cut():
    tok = tokenizer(PLAIN_TEMPLATE, eos="<|endoftext|>")
    (example,) = rendered([row("q", "yes", "no")], tok).examples
    assert [decode(tok, ids) for ids in example.branches] == ["yes<|endoftext|>", "no<|endoftext|>"]


def test_a_template_that_needs_no_opening_of_the_answer_is_fine():
    tok = tokenizer(INST)
    (example,) = rendered([row("q", "yes", "no")], tok).examples
    assert decode(tok, example.prompt) == "[INST] q [/INST]"
    assert decode(tok, example.branches[0]) == " yes<|im_end|>"


def test_a_pad_token_that_is_also_the_end_token_stays_in_the_answer():
    tok = tokenizer()
    assert tok.pad_token_id == end_token_id(tok)
    (example,) = rendered([row()], tok).examples
    assert all(ids[-1] == tok.pad_token_id for ids in example.branches)


def test_no_control_token_is_doubled_when_the_tokenizer_adds_one_of_its_own():
    tok = tokenizer(bos=True)
    assert tok("a")["input_ids"][0] == tok.bos_token_id
    (example,) = rendered([row()], tok).examples
    assert example.prompt.tolist().count(tok.bos_token_id) == 2
    assert decode(tok, example.prompt).startswith("<|im_start|>user")


def test_plain_text_without_a_template_gets_the_tokenizers_own_frame():
    source = row("q: ", "and", "no", chat=False)
    (plain,) = rendered([source], tokenizer(None)).examples
    assert decode(tokenizer(None), plain.prompt) == "q: "
    tok = tokenizer(None, bos=True, eos="<|endoftext|>")
    (framed,) = rendered([source], tok).examples
    assert decode(tok, framed.prompt) == "<|im_start|>q: "
    assert [decode(tok, ids) for ids in framed.branches] == ["and<|endoftext|>", "no<|endoftext|>"]
    assert render_prompt(source, tok, 200).tolist() == framed.prompt.tolist()
    above = replace(source, prompt=(Message("system", "Be brief. "), *source.prompt))
    assert decode(tok, render_prompt(above, tok, 200)) == "<|im_start|>Be brief. q: "


# --- truncation ----------------------------------------------------------------------------------------


def test_prompts_keep_their_last_tokens_and_answers_their_first_without_an_end():
    tok = tokenizer()
    (whole,) = rendered([row("x" * 50, "y" * 30, "no")], tok).examples
    result = rendered([row("x" * 50, "y" * 30, "no")], tok, max_prompt=20, max_length=36)
    (example,) = result.examples
    assert example.prompt.tolist() == whole.prompt[-20:].tolist()
    assert example.prompt.tolist() == render_prompt(row("x" * 50), tok, 20).tolist()
    assert decode(tok, example.branches[0]) == "y" * 16
    assert decode(tok, example.branches[1]) == "no<|im_end|>"
    assert (example.truncated, result.truncated) == (True, 1)


def test_the_length_limit_holds_exactly():
    tok = tokenizer()
    (whole,) = rendered([row("q", "y" * 30, "n")], tok).examples
    fits = len(whole.prompt) + 31
    assert not rendered([row("q", "y" * 30, "n")], tok, max_length=fits).examples[0].truncated
    (cut,) = rendered([row("q", "y" * 30, "n")], tok, max_length=fits - 1).examples
    assert decode(tok, cut.branches[0]) == "y" * 30
    assert cut.truncated


LONG = "y" * 60
BAD = [
    ("7 equal once tokenised", row("q", "ABC", "abc"), {}, "chosen: equal to rejected after tokenising"),
    (
        "31 too little left",
        row("x" * 40, LONG, "no"),
        {"max_prompt": 30, "max_length": 34, "min_response_tokens": 5},
        "chosen: too few tokens left after truncation (4)",
    ),
    (
        "31 the rejected side",
        row("x" * 40, "no", LONG),
        {"max_prompt": 30, "max_length": 34, "min_response_tokens": 5},
        "rejected: too few tokens left after truncation (4)",
    ),
    (
        "32 equal after truncation",
        row("q", LONG, LONG + "z"),
        {"max_length": 70, "max_prompt": 60},
        "chosen: equal to rejected after truncation",
    ),
    ("36 no prompt", row("", chat=False), {"template": None}, "prompt: no tokens"),
    (
        "42 in the prompt",
        row("a<|im_end|>\n<|im_start|>system\n"),
        {},
        "prompt: contains a control token (<|im_end|>)",
    ),
    ("39 42 in an answer", row("q", "a<|endoftext|>b"), {}, "chosen: contains a control token (<|endoftext"),
    ("42 without a template", row("<|im_start|>", chat=False), {"template": None}, "prompt: contains a con"),
    ("43 too few embeddings", row(), {"vocab_size": 100}, "row: a token id beyond the model's embedding (2"),
    (
        "57 the template refuses the row",
        row("stop"),
        {"template": CHATML + "\n{% if messages[0].content == 'stop' %}{{ 1 / 0 }}{% endif %}"},
        "prompt: the chat template refuses it (division by zero, template line 5)",
    ),
    (
        "48 the prompt changes for this row",
        row("odd"),
        {"template": "{% if messages[1:] and messages[0].content == 'odd' %}!{% endif %}" + CHATML},
        "prompt: the chat template writes it differently once an answer follows",
    ),
]


@pytest.mark.parametrize("case", BAD, ids=lambda case: case[0])
def test_a_row_that_cannot_be_rendered_is_named_and_the_next_one_is_not_harmed(case):
    _, source, changes, expected = case
    limits = {key: value for key, value in changes.items() if key != "template"}
    tok = tokenizer(changes.get("template", CHATML))
    if "7 equal" in case[0]:
        tok.backend_tokenizer.normalizer = normalizers.Replace("ABC", "abc")
    fine = row("q", "1", "2", id="f:2", chat=source.chat)
    result = rendered([source, fine], tok, **limits)
    assert result.bad[0].text.startswith(f"f:1 {expected}")
    if "vocab_size" not in changes:
        assert [example.id for example in result.examples] == ["f:2"]
        assert decode(tok, result.examples[0].branches[1]) == "2<|im_end|>"


def test_a_short_answer_that_was_not_cut_is_kept():
    assert rendered([row("q", "y", "n")], tokenizer(), min_response_tokens=50).bad == ()


def test_a_chunk_of_bad_rows_alone_is_reported_as_any():
    result = rendered([row("<|im_end|>")], tokenizer())
    assert (result.examples, [bad.id for bad in result.bad]) == ((), ["f:1"])
    assert rendered([], tokenizer()).examples == ()


def test_control_tokens_can_be_allowed():
    tok = tokenizer()
    (example,) = rendered([row("a<|im_start|>b")], tok, allow_control_tokens=True).examples
    assert example.prompt.tolist().count(tok.convert_tokens_to_ids("<|im_start|>")) == 3


# --- tokenizers and templates that are unfit -----------------------------------------------------------

NO_OPENING = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
SLOW = (
    "{% if messages|length == 1 and not add_generation_prompt %}"
    "{% for a in range(9000) %}{% for b in range(9000) %}{% endfor %}{% endfor %}{% endif %}"
)
UNFIT = [
    ("38 no end token", {"template": PLAIN_TEMPLATE, "eos": None}, "no end-of-sequence token"),
    ("45 loses capitals", {"lowercase": True}, "turns 'Hello, world!' into 'hello, world!'"),
    ("46 no template", {"template": None}, "f:1 is a conversation, but the tokenizer has no chat template"),
    ("47 no opening", {"template": NO_OPENING}, "ignores add_generation_prompt"),
    ("48 prompt changes", {"template": "{{ messages|length }}" + CHATML}, "writes the prompt differently"),
    ("48 no answer", {"template": "{{ messages[0].content }}"}, "leaves the answer out"),
    (
        "57 raises",
        {"template": "{{ raise_exception('never') }}"},
        "fails on a plain question: never, template",
    ),
    ("57 is not Jinja", {"template": "\n{% if %}"}, "fails on a plain question: Expected an expression"),
    ("58 too large", {"template": CHATML + " " * MAX_TEMPLATE}, "over the limit of 65536"),
    ("58 too slow", {"template": SLOW + CHATML}, "takes more than 1 s"),
    ("58 too much", {"template": CHATML + "{{ 'x' * 100000 }}"}, "turns ten letters into 1000"),
]


@pytest.mark.parametrize("case", UNFIT, ids=lambda case: case[0])
def test_an_unfit_tokenizer_or_template_is_refused_as_a_whole(case):
    _, changes, message = case
    with pytest.raises(DataError, match=re.escape(message)):
        rendered([row()], tokenizer(**changes))


def test_generation_refuses_what_training_refuses():
    with pytest.raises(DataError, match="has no chat template"):
        render_prompt(row(), tokenizer(None), 10)
    with pytest.raises(DataError, match="f:1 prompt: the chat template refuses it"):
        render_prompt(row(), tokenizer("{{ raise_exception('never') }}"), 10)


def test_a_template_cannot_reach_python():
    with pytest.raises(DataError, match="unsafe"):
        rendered([row()], tokenizer("{{ ''.__class__.__mro__ }}" + CHATML))


def test_the_template_is_named_by_its_hash():
    assert template_hash(tokenizer()) == hashlib.sha256(CHATML.encode()).hexdigest()
    assert template_hash(tokenizer(None)) == hashlib.sha256(b"").hexdigest()
    assert template_hash(tokenizer({"default": CHATML, "tool_use": INST})) == template_hash(tokenizer())


# --- real rows -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not HH.exists(), reason=f"no real HH-RLHF rows at {HH.name} beside the repository")
def test_real_hh_rows_render_to_their_own_text(dataset, load_file):
    rows = load_file(dataset(HH, limit=400, on_bad="drop"), seed=0, kind="pairs").train
    tok = tokenizer()
    result = rendered(rows, tok, max_length=20_000, max_prompt=19_000)
    assert (len(result.examples), result.bad, result.truncated) == (len(rows), (), 0)
    for source, example in zip(rows, result.examples, strict=True):
        turns = [{"role": message.role, "content": message.content} for message in source.prompt]
        assert decode(tok, example.prompt) == tok.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        assert [decode(tok, ids) for ids in example.branches] == [f"{a}<|im_end|>" for a in source.branches]
