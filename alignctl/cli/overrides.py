"""Typed words -> Hydra overrides: group choices, settings, sugar and quoting.

Every setting becomes `++key=value`, so that Hydra never refuses one and the typed parse is the single place
that knows which keys exist; nobody ever types `+`. Values that Hydra's grammar cannot read (`~/x`, `a=b`,
`é`, `#`, `(1)`) are quoted here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from alignctl.cli.commands import COMMANDS
from alignctl.cli.mistakes import Mistake, alternatives
from alignctl.cli.options import (
    FORBIDDEN_KEYS,
    PATH_OPTIONS,
    Conf,
    chosen_by_default,
    option_for_path,
    options,
    unsafe_text,
)
from alignctl.errors import AlignctlError
from alignctl.runners.lineage import lineage_of, understand

LOOK = "settings look like   train.lr=1e-5"
KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
# Settings taken to the letter, whatever Hydra's grammar would make of brackets and commas.
VERBATIM = ("reward.pattern",)
LIST_TOKEN = re.compile(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[][{},]|[^][{},"']+""")
"""In a list or a group: a quoted text, a sign of the grammar, or whatever lies between two of those."""


@dataclass
class Request:
    """What was typed, understood: group -> option, models, key -> value for Hydra, and the mistakes."""

    choices: dict[str, str] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    inherited: dict[str, str] = field(default_factory=dict)
    """Settings that a chosen model brings along; anything typed wins."""
    mistakes: list[Mistake] = field(default_factory=list)

    def hydra_overrides(self) -> list[str]:
        """The list that Hydra composes with."""
        chosen = [f"{group}={option}" for group, option in self.choices.items()]
        settings = self.inherited | self.settings
        return chosen + [f"++{key}={value}" for key, value in settings.items()]


def read(words: Sequence[str], conf: Conf) -> Request:
    """Understand the words of one command; what is wrong with them is in `mistakes`, nothing is raised."""
    request, groups = Request(), chosen_by_default(conf)
    inputs = COMMANDS[conf.verb].inputs
    for word in words:
        if inputs and is_input(word):
            request.inputs.append(word)
            continue
        key, equals, value = word.partition("=")
        key = key.lstrip("+")
        mistake = _refused(word, key, equals, value)
        if mistake is not None:
            request.mistakes.append(mistake)
        elif key in request.choices or key in request.settings:
            request.mistakes.append(Mistake(key, f"{key} is given twice", ("leave one of them out",)))
        elif key in groups:
            _choose(request, conf, key, value)
        elif (conf.shipped / key).is_dir():
            hint = f"groups   {'  '.join(groups)}"
            request.mistakes.append(Mistake(key, f"{key} is not a setting of alignctl {conf.verb}", (hint,)))
        else:
            _set(request, key, value)
    if inputs and request.inputs:
        _set(request, inputs, f"[{','.join(map(quoted, request.inputs))}]")
    return request


def is_input(word: str) -> bool:
    """Whether a word is a model rather than a setting: no `=`, or one inside a path."""
    key, equals, _ = word.partition("=")
    return not word.startswith("+") and (not equals or "/" in key)


def _refused(word: str, key: str, equals: str, value: str) -> Mistake | None:
    if key.startswith("~"):
        return Mistake(
            key,
            f"{word} cannot take a setting away",
            ("to switch something off   adapter=none, train.steps=null",),
        )
    if not equals:
        guess = f"did you mean   dataset={word}" if "." in word or "/" in word else LOOK
        return Mistake(key, f"{word} is neither a flag nor a setting", (guess,))
    if any(part in FORBIDDEN_KEYS for part in re.split(r"[./@:]", key)):
        return Mistake(key, f"{key} is refused: Hydra's own settings and code are not configurable")
    if not KEY.fullmatch(key):
        return Mistake(key, f"{key} is not the name of a setting", (LOOK,))
    reason = unsafe_text(value)
    return Mistake(key, f"the value of {key} {reason}") if reason else None


def _choose(request: Request, conf: Conf, group: str, value: str) -> None:
    """A group choice: an option, or a path where the group takes one."""
    names = list(options(conf, group))
    if value in names:
        request.choices[group] = value
    elif path_option := option_for_path(group, value):
        request.choices[group] = path_option
        _set(request, f"{group}.path", value)
        if group == "model":
            request.inherited |= _own_rate(value)
    elif any(separator in value for separator in ",([{"):
        request.mistakes.append(_several_values(group, f"{group}={value}"))
    else:
        hints = alternatives(value, names)
        if group in PATH_OPTIONS:
            hints = (*hints, f"your own   {PATH_OPTIONS[group][1]}")
        request.mistakes.append(Mistake(group, f"{group}={value} is not an option of {group}", hints))


def _own_rate(model: str) -> dict[str, str]:
    """The learning rate of the model that a run or soup started from: it suits what became of it as well, and
    the rate of an unknown model would not."""
    with suppress(AlignctlError):  # a run that cannot be read is told by who opens it
        lineage = lineage_of(understand(model))
        if lineage is not None:
            return {"model.lr": repr(lineage.model.lr)}
    return {}


def _set(request: Request, key: str, value: str) -> None:
    override = parsed(key, value)
    if override is None and value.startswith(("[", "{")):
        mended = _with_quotes(key, value)
        override = parsed(key, mended)
        value = value if override is None else mended
    if key in request.settings:
        request.mistakes.append(Mistake(key, f"{key} is given twice", ("leave one of them out",)))
    elif key in VERBATIM:
        request.settings[key] = quoted(value)
    elif override is not None and override.is_sweep_override():
        request.mistakes.append(_several_values(key, f"{key}={value}"))
    elif override is None and value.startswith(("[", "{")):
        hint = f"quote what holds other signs   '{key}=[\"a (1)\",b]'"
        request.mistakes.append(Mistake(key, f"{key}={value} cannot be read as a list", (hint,)))
    else:
        request.settings[key] = value if override is not None else quoted(value)


def _with_quotes(key: str, value: str) -> str:
    """A list or group with quotes around the texts that Hydra's grammar cannot read, such as ~/a.jsonl."""
    found: list[str] = []
    opened: list[str] = []
    for token in LIST_TOKEN.findall(value):
        if token in "[{":
            opened.append(token)
        elif token in "]}" and opened:
            opened.pop()
        name, colon, text = token.partition(":") if opened[-1:] == ["{"] else ("", "", token)
        bare = token not in "[]{}," and token[0] not in "\"'" and text.strip()
        if bare and parsed(key, text.strip()) is None:
            token = f"{name}{colon}{quoted(text.strip())}"
        found.append(token)
    return "".join(found)


def _several_values(key: str, word: str) -> Mistake:
    value = word.partition("=")[2]
    hints = ("to run each of them   add --multirun", f"one list              '{key}=[{value}]'")
    if "." not in key:
        mixed = f"to mix them           dataset=mixture 'dataset.parts={value}'"
        hints = (hints[0], mixed) if key == "dataset" and value.startswith("[") else hints[:1]
    return Mistake(key, f"{word} gives {key} several values", hints)


def parsed(key: str, value: str) -> Override | None:
    """The override in Hydra's grammar, or None where the grammar cannot read the value.

    It has no limit of its own on how deep lists go, and leaves the one on the digits of a number to Python.
    """
    try:
        return OverridesParser.create().parse_override(f"++{key}={value}")
    except (HydraException, RecursionError, ValueError):
        return None


def quoted(value: str) -> str:
    """The value as a quoted string of Hydra's grammar, where a backslash only escapes before a quote."""
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f'"{escaped}{chr(92) * trailing}"'


def written(value: Any) -> str:
    """A plain value (group, list or scalar) in Hydra's grammar, which reads it back as it was."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {written(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    return quoted(value) if isinstance(value, str) else json.dumps(value)
