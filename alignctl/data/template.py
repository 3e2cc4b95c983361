"""A tokenizer's chat template: applying it, proving it fit for training, and finding where an answer ends.

A template is a program from a stranger, run in transformers' sandbox, and the first time under limits, in a
process of its own (sandbox.py). What an answer ends with is not declared anywhere, so it is read off one
canary conversation; training and generation both take it from here, so a model stops at exactly the token it
was taught to stop at.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from jinja2 import TemplateSyntaxError

from alignctl.data.bad_rows import RowFault
from alignctl.data.sandbox import Allowance, Overrun, render_apart
from alignctl.errors import DataError, readable
from alignctl.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TEMPLATE = 64 * 1024
LONGEST_QUOTE = 120
QUESTION = "alpha"
ANSWER = "omega"
ROUND_TRIP = ("Hello, world!", "naïve café, 你好 🙂", "one\n\ntwo\tthree  four", "x = [1, 2]; y = {'a': 0}")


@dataclass(frozen=True, slots=True)
class Ending:
    """What follows the words of an answer."""

    token: int
    """Id of the end-of-turn token."""
    kept: str
    """Template text up to and including that token; empty when the template has none and it is appended."""
    cut: str
    """Template text after it, never trained on."""


def template_text(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template's source, None without one."""
    return tokenizer.get_chat_template() if tokenizer.chat_template else None


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of the chat template, of the empty text without one."""
    return hashlib.sha256((template_text(tokenizer) or "").encode()).hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over everything that decides ids: vocabulary, special tokens, template. Two models whose scores
    are compared must agree in it."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    special = json.dumps(sorted(special_tokens(tokenizer).items()))
    return hashlib.sha256(f"{vocabulary} {special} {template_hash(tokenizer)}".encode()).hexdigest()


def encoding_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over everything that decides the ids of a row, how a text is cut into tokens included."""
    from transformers import PreTrainedTokenizerFast

    whole = tokenizer.backend_tokenizer.to_str() if isinstance(tokenizer, PreTrainedTokenizerFast) else ""
    parts = f"{tokenizer_hash(tokenizer)} {tokenizer.bos_token_id} {tokenizer.eos_token_id} {whole}"
    return hashlib.sha256(parts.encode()).hexdigest()


def apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, opens_answer: bool
) -> str:
    """The conversation as text, with the opening of an answer after it if asked.

    Raises RowFault when the template refuses the conversation, whatever it raises: it is foreign code.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=opens_answer))
    except Exception as error:
        line = _template_line(error)
        where = f", template line {line}" if line else ""
        # The message may quote the row; a terminal must not obey what stands in it.
        said = readable(str(error), LONGEST_QUOTE)
        raise RowFault("prompt", "the chat template refuses it", said + where) from error


def _template_line(error: Exception) -> int | None:
    if isinstance(error, TemplateSyntaxError):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename == "<template>"), None)


def answer_ending(tokenizer: PreTrainedTokenizerBase) -> Ending:
    """How this tokenizer's template ends an answer; raises DataError when it is unfit for training."""
    tail = _canary_tail(tokenizer) if tokenizer.chat_template else ""
    (ids,) = encode(tokenizer, [tail])
    special = special_tokens(tokenizer)
    token = next((token for token in ids if token in special), None)
    if token is not None:
        end = tail.index(special[token]) + len(special[token])
        return Ending(token, tail[:end], tail[end:])
    if not isinstance(tokenizer.eos_token_id, int):
        raise DataError(
            "the tokenizer has no end-of-sequence token and its chat template ends answers with none"
        )
    return Ending(tokenizer.eos_token_id, "", tail)


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer, in training and in generation."""
    return answer_ending(tokenizer).token


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Where generation stops: the end of the turn, and the end of the sequence where that differs."""
    end, eos = end_token_id(tokenizer), tokenizer.eos_token_id
    return (end, eos) if isinstance(eos, int) and eos != end else (end,)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Id and text of every control token: those marked special, and the end of the sequence."""
    added = {
        number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    if isinstance(tokenizer.eos_token_id, int):
        added[tokenizer.eos_token_id] = str(tokenizer.eos_token)
    return added


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, nothing added: the template already holds every control token."""
    if not texts:
        # transformers fails on an empty batch.
        return []
    return tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)[
        "input_ids"
    ]


def batch_encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[str]], list[list[int]]]:
    """`encode` for many long texts, past the wrapper where it is seen to add nothing.

    The wrapper copies offsets, masks and types of every token that nobody asked for: a third of the time.
    A few tokenizers change the text before they encode it; theirs is the wrapper.
    """
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return partial(encode, tokenizer)
    backend = tokenizer.backend_tokenizer

    def quick(texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    canary = [*ROUND_TRIP, "".join(f"{token} a " for token in special_tokens(tokenizer).values())]
    # The wrapper comes first: it switches off what tokenizer.json may say of truncation and padding.
    return quick if encode(tokenizer, canary) == quick(canary) else partial(encode, tokenizer)


@dataclass(frozen=True, slots=True)
class Anchor:
    """A control token that cuts a text in two which are encoded without regard to each other."""

    id: int
    text: str

    def cut(self, text: str, ids: Sequence[int]) -> tuple[int, int]:
        """Where it comes last, in characters and in tokens; (0, 0) where the two do not tell the same."""
        found = text.count(self.text)
        if not found or found != ids.count(self.id):
            return 0, 0
        return text.rindex(self.text), max(place for place, token in enumerate(ids) if token == self.id)


def find_anchor(
    tokenizer: PreTrainedTokenizerBase, encoder: Callable[[Sequence[str]], list[list[int]]]
) -> Anchor | None:
    """The control token that opens an answer, if it is seen to keep apart what stands around it.

    None without a template, or where the token takes white space along or texts on both sides matter to each
    other.
    """
    if not tokenizer.chat_template:
        return None
    opening = apply_template(tokenizer, [Message("user", QUESTION)], opens_answer=True)
    firm = {
        number: token.content
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
    }
    anchors = [Anchor(number, text) for number, text in firm.items() if text in opening]
    if not anchors:
        return None
    last = max(anchors, key=lambda anchor: opening.rindex(anchor.text))
    sides = (*ROUND_TRIP, " a ", "\n")
    before, after = encoder(sides), encoder([last.text + side for side in sides])
    wholes = encoder([left + last.text + right for left in sides for right in sides])
    return last if wholes == [left + right for left in before for right in after] else None


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of the ids, control tokens included, nothing tidied."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def check_round_trip(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise DataError when the tokenizer does not give back the text it was given."""
    for text, ids in zip(ROUND_TRIP, encode(tokenizer, ROUND_TRIP), strict=True):
        if (back := decode(tokenizer, ids)) != text:
            raise DataError(
                f"the tokenizer turns {text!r} into {back!r}",
                "use the model's fast tokenizer (tokenizer.json)",
            )


# --- canary --------------------------------------------------------------------------------------------


def _canary_tail(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes after an answer, once it is seen to treat prompt and answer as it must."""
    size = len(template_text(tokenizer) or "")
    if size > MAX_TEMPLATE:
        raise DataError(f"the chat template has {size} characters, over the limit of {MAX_TEMPLATE}")
    question, answer = Message("user", QUESTION), Message("assistant", ANSWER)
    try:
        bare, prompt, whole = render_apart(
            lambda: (
                apply_template(tokenizer, [question], opens_answer=False),
                apply_template(tokenizer, [question], opens_answer=True),
                apply_template(tokenizer, [question, answer], opens_answer=False),
            ),
            Allowance(),
        )
    except Overrun as error:
        raise DataError(f"the chat template {error} on a plain question") from error
    except RowFault as fault:
        raise DataError(f"the chat template fails on a plain question: {fault.detail}") from fault
    if len(whole) > MAX_TEMPLATE + 16 * len(QUESTION + ANSWER):
        raise DataError(f"the chat template turns ten letters into {len(whole)} characters")
    response = whole.removeprefix(prompt)
    if not whole.startswith(prompt):
        raise DataError("the chat template writes the prompt differently once an answer follows it")
    if ANSWER not in response:
        raise DataError("the chat template leaves the answer out")
    if bare == prompt and not response.lstrip().startswith(ANSWER):
        raise DataError("the chat template ignores add_generation_prompt: it does not open an answer")
    return response[response.rindex(ANSWER) + len(ANSWER) :]
