"""Conversations out of the values of a row: messages, plain text, transcripts, and the checks of their turns.

Messages are {"role", "content"} or ShareGPT's {"from": "human", "value"}. HH-RLHF transcripts
("\\n\\nHuman: ...\\n\\nAssistant: ...") are read into turns stripped of surrounding white space, because the
white space is the transcript's own. All other text is kept exactly as given: refuse, never adjust.

The answers come by field (chosen and rejected, or completion alone), so that one reading serves rows of two
answers and rows of one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from alignctl.data.bad_rows import RowFault
from alignctl.records import Message

Form = Literal["text", "chat", "transcript"]

ROLES = ("system", "user", "assistant")
SHARE_GPT = {"human": "user", "gpt": "assistant"}
TURN = re.compile(r"\n\n(Human|Assistant):")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
UNENCODABLE = re.compile("[\x00\ud800-\udfff]")
KINDS = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt and the answers to it, and how they were written."""

    form: Form
    prompt: tuple[Message, ...]
    answers: tuple[str, ...]


def kind_of(value: object) -> str:
    """What JSON calls the value, for the detail of a fault."""
    return KINDS.get(type(value), type(value).__name__)


def with_answers(prompt: str | list[object] | None, sides: Mapping[str, object]) -> Conversation:
    """A prompt, None where the answers carry it, and one or two answers by field; raises RowFault."""
    chats = {field: value for field, value in sides.items() if isinstance(value, list)}
    if len(chats) == len(sides):
        return _chat(prompt, chats)
    return _text(prompt, {field: _answer(field, value, prompt) for field, value in sides.items()})


def without_answers(prompt: str | list[object]) -> Conversation:
    """A bare prompt, to be answered; raises RowFault when it ends with an answer."""
    if isinstance(prompt, str) and not _opens_transcript(prompt):
        return Conversation("text", (Message("user", prompt),), ())
    form: Form = "transcript" if isinstance(prompt, str) else "chat"
    turns = _transcript("prompt", prompt) if isinstance(prompt, str) else _messages("prompt", prompt)
    if form == "transcript" and turns[-1] == Message("assistant", ""):
        turns = turns[:-1]
    if turns[-1].role == "assistant":
        raise RowFault("prompt", "ends with an assistant turn")
    return Conversation(form, turns, ())


def whole_conversation(field: str, items: object, *, may_be_open: bool) -> Conversation:
    """Messages of which the last one is the answer; if it `may_be_open` they may also end with a question."""
    if not isinstance(items, list):
        raise RowFault(field, "not a list of messages", kind_of(items))
    turns = _messages(field, items)
    if may_be_open and turns[-1].role != "assistant":
        return Conversation("chat", turns, ())
    return Conversation("chat", *_shared_prompt({field: turns}))


def check_prompt(messages: tuple[Message, ...], *, allow_empty_prompt: bool) -> None:
    """Raise RowFault unless turns alternate, the last is the user's, and none of them is empty."""
    roles = [message.role for message in messages]
    if "user" not in roles:
        raise RowFault("prompt", "no user turn")
    if "system" in roles[1:]:
        raise RowFault("prompt", "a system turn that is not the first")
    if roles[-1] == "assistant":
        raise RowFault("prompt", "two assistant turns in a row", f"turn {len(roles)}")
    for place, (role, following) in enumerate(pairwise(roles), start=1):
        if role == following:
            raise RowFault("prompt", f"two {role} turns in a row", f"turns {place} and {place + 1}")
    for message in messages:
        _readable("prompt", message.content)
        # An empty system turn is a common way to say "no system prompt" and renders as such.
        if not allow_empty_prompt and message.role != "system":
            _filled("prompt", message.content)


def _readable(field: str, value: str) -> str:
    if found := UNENCODABLE.search(value):
        kind = "a NUL character" if found[0] == "\0" else "half a surrogate pair"
        raise RowFault(field, f"contains {kind}", f"at character {found.start()}")
    return value


def _filled(field: str, value: str) -> str:
    if not value:
        raise RowFault(field, "empty")
    if not value.strip():
        raise RowFault(field, "only white space")
    return _readable(field, value)


# --- text ----------------------------------------------------------------------------------------------


def _answer(field: str, value: object, prompt: object) -> str:
    """The answer as text; a list here means that the row mixes the two forms."""
    if isinstance(value, list):
        raise RowFault(field, "messages where the other answer is text")
    if not isinstance(value, str):
        raise RowFault(field, "neither text nor messages", kind_of(value))
    if isinstance(prompt, list):
        raise RowFault(field, "text where the prompt is messages")
    return _filled(field, value)


def _text(prompt: str | list[object] | None, texts: Mapping[str, str]) -> Conversation:
    if isinstance(prompt, str) and _opens_transcript(prompt):
        # The prompt is a transcript up to "Assistant:"; as plain text it would become one user turn.
        texts = {field: prompt + text for field, text in texts.items()}
    elif isinstance(prompt, str):
        return Conversation("text", (Message("user", prompt),), tuple(texts.values()))
    for field, text in texts.items():
        if not _opens_transcript(text):
            raise RowFault("prompt", "missing", f"and {field} is no 'Human: ... Assistant: ...' transcript")
    sides = {field: _transcript(field, text) for field, text in texts.items()}
    return Conversation("transcript", *_shared_prompt(sides))


def _opens_transcript(text: str) -> bool:
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def _transcript(field: str, text: str) -> tuple[Message, ...]:
    _readable(field, text)
    parts = TURN.split("\n\n" + text.lstrip())[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(SPEAKERS[speaker], content.strip()) for speaker, content in pairs)


# --- chat ----------------------------------------------------------------------------------------------


def _chat(prompt: str | list[object] | None, items: Mapping[str, list[object]]) -> Conversation:
    sides = {field: _messages(field, side) for field, side in items.items()}
    if isinstance(prompt, list):
        given = _messages("prompt", prompt)
        sides = {field: _continued(field, given, side) for field, side in sides.items()}
    messages, answers = _shared_prompt(sides)
    if isinstance(prompt, str) and not any(turn == Message("user", prompt) for turn in messages):
        fields = " and ".join(sides)
        raise RowFault("prompt", f"text that is no user turn of the messages in {fields}")
    return Conversation("chat", messages, answers)


def _messages(field: str, items: list[object]) -> tuple[Message, ...]:
    if not items:
        raise RowFault(field, "an empty list of messages")
    return tuple(_message(field, item, place) for place, item in enumerate(items, start=1))


def _message(field: str, item: object, place: int) -> Message:
    if isinstance(item, dict) and {"role", "content"} <= item.keys():
        role, content = item["role"], item["content"]
    elif isinstance(item, dict) and {"from", "value"} <= item.keys():
        speaker, content = item["from"], item["value"]
        role = SHARE_GPT.get(speaker, speaker) if isinstance(speaker, str) else speaker
    else:
        raise RowFault(field, "a message is not an object with role and content", f"message {place}")
    if not isinstance(role, str) or role not in ROLES:
        raise RowFault(field, f"a role is not {', '.join(ROLES)}", f"message {place}: {role!r}"[:60])
    if not isinstance(content, str):
        raise RowFault(field, "the content of a message is not text", f"message {place}: {kind_of(content)}")
    return Message(role, _readable(field, content))


def _continued(field: str, prompt: tuple[Message, ...], side: tuple[Message, ...]) -> tuple[Message, ...]:
    """The whole conversation, whether the side repeats the prompt or is one message after it."""
    if len(side) == 1:
        if prompt[-1].role == "assistant":
            raise RowFault("prompt", "ends with an assistant turn")
        return prompt + side
    if side[:-1] != prompt:
        raise RowFault(field, "several messages that do not start with the prompt")
    return side


def _shared_prompt(
    sides: Mapping[str, tuple[Message, ...]],
) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """Split conversations into what they share, all but the last turn, and the answers."""
    for field, side in sides.items():
        if side[-1].role != "assistant":
            raise RowFault(field, f"ends with a {side[-1].role} turn, not an answer")
    first = next(iter(sides))
    prompt = sides[first][:-1]
    for field, side in sides.items():
        if side[:-1] != prompt:
            raise RowFault(field, f"its prompt differs from that of {first}")
    if not prompt:
        hold = "holds" if len(sides) == 1 else "hold"
        raise RowFault("prompt", "missing", f"{' and '.join(sides)} {hold} the answer alone")
    return prompt, tuple(_filled(field, side[-1].content) for field, side in sides.items())
