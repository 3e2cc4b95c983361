"""Recipes: chains of ordinary commands as data, conf/recipe/NAME.yaml.

    # What the recipe makes.
    stages:
      # What the stage is for.
      NAME: train algo=sft seed=0
      OTHER: eval {NAME} judge=gold

Decisions. A stage is a line as one would type it, without `alignctl`: nothing to learn, and nothing that a
recipe can do and a person could not. `{NAME}` stands for the directory of an earlier stage, which makes the
order of the file the order of the work. No stage is called like a setting, so that `STAGE.key=value` on the
command line never means two things.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from alignctl.cli.mistakes import alternatives, nearest
from alignctl.cli.options import RECIPE, VERBS, Conf, describe, option_settings, options
from alignctl.config import EvalConfig, Settings, SoupConfig, TrainConfig
from alignctl.errors import UsageError

STAGE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
TAKEN = re.compile(r"(?<!\$)\{(?P<stage>[A-Za-z][\w-]*)\}(?P<rest>[^\s,\[\]{}]*)")
"""`{NAME}` in a word, and what follows it inside the same path: `{NAME}@40`, `{NAME}/model`."""
SECTIONS = frozenset({RECIPE, *TrainConfig.model_fields, *SoupConfig.model_fields, *EvalConfig.model_fields})
"""First parts of the settings of all commands."""
CHAINS_OWN = (RECIPE, "out", "overwrite")
"""Settings of the chain as a whole."""


class RecipeFile(Settings):
    """What a recipe's file holds: stage -> command."""

    stages: Annotated[dict[str, str], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Line:
    """A stage as its recipe writes it."""

    name: str
    verb: str
    words: tuple[str, ...]
    """The words after the verb, with `{NAME}` still in them."""
    comment: str

    @property
    def shown(self) -> str:
        """The command as the recipe has it."""
        return " ".join(["alignctl", self.verb, *self.words])


@dataclass(frozen=True, slots=True)
class Recipe:
    """A checked file; nothing is known yet of whether its commands can be composed."""

    name: str
    description: str
    lines: tuple[Line, ...]


def key_of(word: str) -> str:
    """`train.lr` for `train.lr=1e-5`."""
    return word.lstrip("+").partition("=")[0]


def named_recipe(words: Sequence[str]) -> str | None:
    """NAME where `recipe=NAME` is among the words; raises UsageError when it is there twice."""
    names = [word.partition("=")[2] for word in words if key_of(word) == RECIPE and "=" in word]
    if len(names) > 1:
        raise UsageError(f"{RECIPE} is given twice", "leave one of them out")
    return names[0] if names else None


def read_recipe(conf: Conf, name: str) -> Recipe:
    """The recipe of that name, shipped or the user's own; raises UsageError for what cannot be a chain."""
    files = options(conf, RECIPE)
    if name not in files:
        raise UsageError(f"{RECIPE}={name} is not a recipe", *alternatives(name, list(files)))
    file = files[name]
    stages = _stages_of(file)
    comments = {key: setting.comment for key, setting in option_settings(conf, RECIPE, name).items()}
    lines: list[Line] = []
    for stage, run in stages.items():
        words = _words_of(file, stage, run)
        _check_words(file, stage, words, [line.name for line in lines])
        verb, *rest = words
        lines.append(Line(stage, verb, tuple(rest), comments[f"{RECIPE}.stages.{stage}"]))
    return Recipe(name, describe(file), tuple(lines))


def _stages_of(file: Path) -> dict[str, str]:
    try:
        return RecipeFile.model_validate(yaml.safe_load(file.read_bytes())).stages
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        hint = "a recipe holds   stages:, and below it   NAME: COMMAND"
        raise UsageError(f"{file}: {where}: {first['msg'].lower()}", hint) from error


def _words_of(file: Path, stage: str, run: str) -> list[str]:
    if not STAGE_NAME.fullmatch(stage):
        raise UsageError(f"{file}: {stage} cannot name a stage", "letters, digits, - and _, a letter first")
    if stage in SECTIONS:
        raise UsageError(
            f"{file}: stage {stage} has the name of a setting, so {stage}.key=value would mean two things",
            f"give it another name, such as   {stage}-1",
        )
    try:
        words = shlex.split(run)
    except ValueError as error:
        raise UsageError(f"{file}: stage {stage} has a quote that is not closed") from error
    if not words or words[0] not in VERBS:
        verb = words[0] if words else ""
        close = nearest(verb, VERBS)
        hints = (f"did you mean   {close}",) if close else ()
        message = f"{file}: stage {stage} starts with {verb or 'nothing'}, not with {', '.join(VERBS)}"
        raise UsageError(message, *hints)
    return words


def _check_words(file: Path, stage: str, words: Sequence[str], earlier: Sequence[str]) -> None:
    """Refuse flags, what belongs to the chain as a whole, and directories of stages yet to come."""
    for word in words[1:]:
        if word.startswith("-"):
            raise UsageError(f"{file}: stage {stage} has the flag {word}", "stages hold settings only")
        if "=" in word and key_of(word) in CHAINS_OWN:
            raise UsageError(
                f"{file}: stage {stage} sets {key_of(word)}, which is set for the recipe as a whole",
                f"type it beside recipe=   {key_of(word)}=VALUE",
            )
        for taken in TAKEN.finditer(word):
            if taken["stage"] not in earlier:
                error = no_earlier_stage(taken["stage"], earlier)
                raise UsageError(f"{file}: stage {stage}: {error.message}", *error.hints)


def no_earlier_stage(name: str, earlier: Sequence[str]) -> UsageError:
    """The error for `{NAME}` where no earlier stage has that name."""
    hints = alternatives(name, earlier) if earlier else ("there is no stage before the first one",)
    return UsageError(f"{{{name}}} is not an earlier stage", *hints)
