"""Rows as token ids: the prompt once, then each answer with its end-of-turn token.

The boundary between prompt and answer is proved for every row. Where encoding the whole text starts with
the ids of the prompt alone, it is split there; where a token would reach over the boundary, the answer is
encoded on its own, which is what generation does too, and counted. Prompts keep their last tokens, answers
their first; an answer that was cut has no end token, so nothing teaches the model to stop in mid-sentence.

What the template writes after the end token is no part of an answer, since no model comes to write it; a
reward model, which reads whole conversations, gets it from `closing_ids`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from alignctl.data.bad_rows import RowFault, bad_row
from alignctl.data.template import (
    Ending,
    answer_ending,
    apply_template,
    check_round_trip,
    decode,
    encode,
    special_tokens,
)
from alignctl.errors import DataError
from alignctl.records import BadRow, Example, Message, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 512
"""Rows encoded at once: enough for the tokenizer's threads, little enough to hold as Python lists."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """Rows that became examples, and those that could not; the caller decides whether that is an error."""

    examples: tuple[Example, ...]
    truncated: int
    """Examples of which the prompt or an answer was cut."""
    boundary_merges: int
    """Examples with an answer that was encoded apart, since a token would have joined it to the prompt."""
    bad: tuple[BadRow, ...]


@dataclass(frozen=True, slots=True, eq=False)
class RenderedPrompts:
    """Prompts as token ids, in the order of the rows, `bad` ones left out."""

    ids: tuple[np.ndarray, ...]
    """int32 [P] each, P >= 1."""
    truncated: int
    """Prompts that were cut to their last tokens."""
    bad: tuple[BadRow, ...]


@dataclass(frozen=True, slots=True)
class _Texts:
    """A row after the template: the prompt, and each answer as it goes on from there."""

    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Limits:
    max_length: int
    max_prompt: int
    min_response_tokens: int
    vocab_size: int


def render(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    max_prompt: int,
    min_response_tokens: int,
    vocab_size: int,
    allow_control_tokens: bool,
) -> Rendered:
    """Render rows to int32 ids; prompt + any one answer is at most `max_length` tokens.

    `vocab_size` is the number of embedding rows. Raises DataError when the tokenizer or its template is
    unfit for all rows; what is wrong with single rows is in `bad`.
    """
    _check_template(rows, tokenizer)
    check_round_trip(tokenizer)
    ending = answer_ending(tokenizer)
    limits = _Limits(max_length, max_prompt, min_response_tokens, vocab_size)
    control = None if allow_control_tokens else _control_pattern(tokenizer)
    examples: list[Example] = []
    bad: list[BadRow] = []
    merges = 0
    for start in range(0, len(rows), CHUNK):
        for row, result in _render_chunk(rows[start : start + CHUNK], tokenizer, ending, control, limits):
            if isinstance(result, RowFault):
                bad.append(bad_row(row.id, result))
            else:
                example, merged = result
                examples.append(example)
                merges += merged
    truncated = sum(example.truncated for example in examples)
    return Rendered(tuple(examples), truncated, merges, tuple(bad))


def render_prompts(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt: int,
    vocab_size: int,
    allow_control_tokens: bool,
) -> RenderedPrompts:
    """The prompts of rows alone, as `render` makes them: what generation starts from.

    Raises DataError when the tokenizer or its template is unfit for all rows; what is wrong with single rows
    is in `bad`.
    """
    _check_template(rows, tokenizer)
    check_round_trip(tokenizer)
    # Its canary shows that a prompt stays the same once an answer follows.
    answer_ending(tokenizer)
    control = None if allow_control_tokens else _control_pattern(tokenizer)
    kept: list[np.ndarray] = []
    bad: list[BadRow] = []
    truncated = 0
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        for row, ids in zip(chunk, _encode_prompts(chunk, tokenizer, control), strict=True):
            if isinstance(ids, list) and (fault := _id_fault([ids], vocab_size)):
                ids = fault
            if isinstance(ids, RowFault):
                bad.append(bad_row(row.id, ids))
                continue
            kept.append(np.array(ids[-max_prompt:], dtype=np.int32))
            truncated += len(ids) > max_prompt
    return RenderedPrompts(tuple(kept), truncated, tuple(bad))


def render_prompt(row: Row, tokenizer: PreTrainedTokenizerBase, max_prompt: int) -> np.ndarray:
    """One prompt's ids as in training, int32 [P], unchecked: the row was rendered before."""
    _check_template([row], tokenizer)
    (ids,) = _encode_prompts([row], tokenizer, None)
    if isinstance(ids, RowFault):
        raise DataError(bad_row(row.id, ids).text) from ids
    return np.array(ids[-max_prompt:], dtype=np.int32)


def closing_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of what the template writes after the end token of an answer; often a line break, often nothing.

    Prompt, answer and these are the ids of the whole conversation as `tokenizer.apply_chat_template(...)`
    gives them, unless prompt or answer was cut or the two had to be encoded apart. Without a template, or
    where it writes no end token and `render` appends one, nothing follows. Raises DataError when the template
    is unfit.
    """
    ending = answer_ending(tokenizer)
    if not ending.kept:
        return []
    # Encoded together: what stands alone may be spelled otherwise than after the token.
    (ids,) = encode(tokenizer, [ending.kept + ending.cut])
    return ids[ids.index(ending.token) + 1 :]


def _check_template(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.chat_template:
        return
    if chat := next((row for row in rows if row.chat), None):
        raise DataError(
            f"{chat.id} is a conversation, but the tokenizer has no chat template",
            "start from an instruction-tuned model, or give prompt, chosen and rejected as text",
        )


def _control_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    tokens = special_tokens(tokenizer).values()
    return re.compile("|".join(map(re.escape, tokens))) if tokens else None


# --- text ----------------------------------------------------------------------------------------------


def _render_chunk(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    ending: Ending,
    control: re.Pattern[str] | None,
    limits: _Limits,
) -> Iterator[tuple[Row, tuple[Example, bool] | RowFault]]:
    texts = [_row_texts(row, tokenizer, ending, control) for row in rows]
    good = [text for text in texts if isinstance(text, _Texts)]
    prompts = iter(encode(tokenizer, [text.prompt for text in good]))
    wholes = iter(encode(tokenizer, [text.prompt + answer for text in good for answer in text.answers]))
    leading = _leading(tokenizer)
    for row, text in zip(rows, texts, strict=True):
        if isinstance(text, RowFault):
            yield row, text
            continue
        prompt = next(prompts)
        encoded = [(answer, next(wholes)) for answer in text.answers]
        try:
            branches = [_split(prompt, whole, answer, tokenizer, ending) for answer, whole in encoded]
            example = _fit(row, leading + prompt, [ids for ids, _ in branches], limits)
            yield row, (example, any(merged for _, merged in branches))
        except RowFault as fault:
            yield row, fault


def _row_texts(
    row: Row, tokenizer: PreTrainedTokenizerBase, ending: Ending, control: re.Pattern[str] | None
) -> _Texts | RowFault:
    try:
        _check_control(row, control)
        prompt = _prompt_text(row, tokenizer)
        answers = (_answer_text(row, answer, prompt, tokenizer, ending) for answer in row.branches)
        return _Texts(prompt, tuple(answers))
    except RowFault as fault:
        return fault


def _check_control(row: Row, control: re.Pattern[str] | None) -> None:
    if control is None:
        return
    fields = [("prompt", message.content) for message in row.prompt]
    fields += [(_side(place, len(row.branches)), branch) for place, branch in enumerate(row.branches)]
    for field, content in fields:
        if found := control.search(content):
            raise RowFault(field, "contains a control token", found[0])


def _side(place: int, branches: int) -> str:
    """What a reader calls a branch: a pair has sides, one answer alone has none."""
    if branches == 1:
        return "answer"
    return ("chosen", "rejected")[place] if branches == 2 else f"answer {place + 1}"


def _prompt_text(row: Row, tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.chat_template:
        return apply_template(tokenizer, row.prompt, opens_answer=True)
    return "".join(message.content for message in row.prompt)


def _answer_text(
    row: Row, answer: str, prompt: str, tokenizer: PreTrainedTokenizerBase, ending: Ending
) -> str:
    """The answer as the template writes it, up to and including the end token's text."""
    if not tokenizer.chat_template:
        return answer
    whole = apply_template(tokenizer, [*row.prompt, Message("assistant", answer)], opens_answer=False)
    if not whole.startswith(prompt):
        raise RowFault("prompt", "the chat template writes it differently once an answer follows")
    response = whole[len(prompt) :]
    if not response.endswith(ending.kept + ending.cut):
        raise RowFault("prompt", "the chat template ends this answer unlike others")
    return response.removesuffix(ending.cut)


# --- ids -----------------------------------------------------------------------------------------------


def _encode_prompts(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, control: re.Pattern[str] | None
) -> Iterator[list[int] | RowFault]:
    """The ids of each row's prompt, or why there are none, in order."""
    texts: list[str | RowFault] = []
    for row in rows:
        try:
            _check_control(row, control)
            texts.append(_prompt_text(row, tokenizer))
        except RowFault as fault:
            texts.append(fault)
    encoded = iter(encode(tokenizer, [text for text in texts if isinstance(text, str)]))
    leading = _leading(tokenizer)
    return (text if isinstance(text, RowFault) else leading + next(encoded) for text in texts)


def _id_fault(sequences: Sequence[list[int]], vocab_size: int) -> RowFault | None:
    """What is wrong with the prompt's ids and the branches' after it."""
    if not sequences[0]:
        return RowFault("prompt", "no tokens")
    largest = max(max(ids, default=0) for ids in sequences)
    if largest >= vocab_size:
        return RowFault("row", "a token id beyond the model's embedding", f"{largest} of {vocab_size}")
    return None


def _leading(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-sequence id, where no template writes it and the tokenizer would."""
    bos = tokenizer.bos_token_id
    if tokenizer.chat_template or not isinstance(bos, int):
        return []
    return [bos] if tokenizer("a")["input_ids"][:1] == [bos] else []


def _split(
    prompt: list[int], whole: list[int], answer: str, tokenizer: PreTrainedTokenizerBase, ending: Ending
) -> tuple[list[int], bool]:
    """The answer's ids with its end token, and whether they had to be encoded apart from the prompt."""
    merged = whole[: len(prompt)] != prompt
    ids = whole[len(prompt) :]
    if merged:
        (ids,) = encode(tokenizer, [answer])
        if decode(tokenizer, ids) != answer:
            raise RowFault("prompt", "cannot be told from the answer in the token ids")
    if not ending.kept:
        return [*ids, ending.token], merged
    if ids[-1:] != [ending.token]:
        raise RowFault("prompt", "the end token is missing after tokenising")
    return ids, merged


def _fit(row: Row, prompt: list[int], branches: list[list[int]], limits: _Limits) -> Example:
    if fault := _id_fault([prompt, *branches], limits.vocab_size):
        raise fault
    kept = prompt[-limits.max_prompt :]
    room = limits.max_length - len(kept)
    cut = any(len(ids) > room for ids in branches)
    for place, ids in enumerate(branches):
        if len(ids) > room and room < limits.min_response_tokens:
            raise RowFault(_side(place, len(branches)), "too few tokens left after truncation", f"{room}")
    fitted = tuple(np.array(ids[:room], dtype=np.int32) for ids in branches)
    if len(fitted) == 2 and np.array_equal(*fitted):
        raise RowFault("chosen", "equal to rejected after " + ("truncation" if cut else "tokenising"))
    return Example(
        id=row.id,
        prompt=np.array(kept, dtype=np.int32),
        branches=fitted,
        p_chosen=row.p_chosen,
        margin=row.margin,
        weight=row.weight,
        truncated=cut or len(kept) < len(prompt),
    )
