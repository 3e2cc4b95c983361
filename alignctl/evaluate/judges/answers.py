"""`eval.opponent=FILE`: somebody else's answers to the same prompts, matched by the prompt's exact text.

One JSON object a line: {"prompt": text or [{"role": ..., "content": ...}, ...], "answer": text}. A prompt
given as text is one user turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alignctl.data.bad_rows import BadRows, RowFault, bad_row
from alignctl.data.conversations import ROLES
from alignctl.errors import DataError
from alignctl.evaluate.judges.rows import check_columns, read_rows, text_of
from alignctl.records import Message

Prompt = tuple[Message, ...]


def read_answers(path: str) -> dict[Prompt, str]:
    """Every prompt and its answer. Raises DataError naming FILE:LINE, also for a prompt given twice."""
    found: dict[Prompt, str] = {}
    lines: dict[Prompt, int] = {}
    repeated = []
    for line, (prompt, answer) in read_rows(path, _parse).items():
        if prompt in found:
            fault = RowFault("prompt", "is answered twice", f"first in line {lines[prompt]}")
            repeated.append(bad_row(f"{path}:{line}", fault))
        found[prompt] = answer
        lines.setdefault(prompt, line)
    if repeated:
        raise BadRows(repeated, left=f" of {path}")
    return found


def matched_answers(path: str, prompts: Sequence[Prompt]) -> tuple[str | None, ...]:
    """The file's answer to each of our prompts, None where it has none. Raises DataError if it has none at
    all, and as `read_answers` does."""
    answers = read_answers(path)
    matched = tuple(answers.get(prompt) for prompt in prompts)
    if all(answer is None for answer in matched):
        example = prompts[0][-1].content if prompts else ""
        raise DataError(
            f"eval.opponent={path} answers none of the {len(prompts)} prompts",
            "prompts are matched by their exact text and turns",
            f"the first one asked here ends with: {' '.join(example.split())[:80]}",
        )
    return matched


def _parse(row: Mapping[str, object]) -> tuple[Prompt, str]:
    check_columns(row, ("prompt", "answer"))
    return _prompt(row["prompt"]), text_of("answer", row["answer"], may_be_empty=True)


def _prompt(value: object) -> Prompt:
    if isinstance(value, str):
        return (Message("user", text_of("prompt", value)),)
    if not isinstance(value, list) or not value:
        raise RowFault("prompt", "is neither text nor messages", type(value).__name__)
    messages = tuple(map(_message, value))
    if messages[-1].role != "user":
        raise RowFault("prompt", "does not end with a user turn", messages[-1].role)
    return messages


def _message(turn: object) -> Message:
    if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
        raise RowFault("prompt", "has a turn that is not {role, content}", repr(turn)[:40])
    if turn["role"] not in ROLES:
        raise RowFault("prompt", "has an unknown role", repr(turn["role"])[:24])
    return Message(turn["role"], text_of("prompt", turn["content"]))
