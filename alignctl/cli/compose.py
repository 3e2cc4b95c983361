"""Typed words -> the config of a command: Hydra composes, pydantic checks, every mistake is gathered.

Composition reads YAML and nothing else. Hydra's own node is thrown away; with a directory of the user's own
it is first compared with ours, as a second lock behind the scan in options.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from alignctl.cli.mistakes import Mistake, as_error
from alignctl.cli.mixture import with_parts
from alignctl.cli.options import PATHS, Conf, chosen_by_default, unsafe_text
from alignctl.cli.overrides import Request, quoted, read
from alignctl.cli.refusals import SCHEMAS, is_tag, refusals
from alignctl.config import Config, parse
from alignctl.errors import UsageError


def load(conf: Conf, words: Sequence[str]) -> Config:
    """The checked config of one command; raises UsageError with all mistakes at once."""
    request = read(words, conf)
    schema = SCHEMAS[conf.verb]
    for key in [key for key in request.settings if is_tag(key, schema)]:
        del request.settings[key]
        group = key.partition(".")[0]
        hints = (f"type   {group}=OPTION        (all: alignctl ls {group})",)
        request.mistakes.append(Mistake(key, f"{key} is set by the choice of {group}", hints))
    choices = chosen_by_default(conf) | request.choices
    wrong = {mistake.key for mistake in request.mistakes if mistake.key in choices}
    # A group whose option is unknown is composed with its default, and what is wrong inside it is not told.
    request.settings = {
        key: value for key, value in request.settings.items() if key.split(".")[0] not in wrong
    }
    composed, missing = compose_settings(conf, request)
    composed, in_parts = resolve_parts(conf, composed)
    typed = {mistake.key for mistake in request.mistakes}
    needed = _needed([key for key in missing if key not in typed], choices)
    mistakes = [*request.mistakes, *needed, *_unusable_text(composed), *in_parts]
    try:
        config: Config = parse(schema, composed)
    except ValidationError as error:
        told = {mistake.key for mistake in mistakes}
        found = refusals(error, schema, composed, choices, conf, list(request.settings))
        mistakes += [one for one in found if one.group not in wrong and one.key not in told]
    else:
        if not mistakes:
            return config
    raise as_error(mistakes)


def compose_settings(conf: Conf, request: Request) -> tuple[dict[str, Any], list[str]]:
    """Compose into plain dicts, lists and scalars; also the keys that still have no value (`???`)."""
    try:
        node = _composed(conf, request.hydra_overrides())
        missing = sorted(OmegaConf.missing_keys(node))
        plain = OmegaConf.to_container(node, resolve=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:160]
        raise UsageError(f"the settings cannot be composed: {reason}") from error
    assert isinstance(plain, dict)
    return {str(key): _home_expanded(str(key), value) for key, value in plain.items()}, missing


def resolve_parts(conf: Conf, composed: dict[str, Any]) -> tuple[dict[str, Any], list[Mistake]]:
    """The composed settings with the parts of a mixture as settings, each composed as its option alone is."""

    @cache
    def settings_of(option: str) -> dict[str, Any]:
        found, _ = compose_settings(conf, Request(choices={"dataset": option}))
        return found["dataset"]

    return with_parts(composed, conf, settings_of)


def _composed(conf: Conf, overrides: list[str]) -> DictConfig:
    # 1.4 deprecates the argument that 1.3 asks for.
    version = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}
    with initialize_config_dir(str(conf.shipped), **version):
        if conf.own is None:
            return compose(conf.verb, overrides)
        search = f"hydra.searchpath=[{quoted(f'file://{conf.own}')}]"
        ours = compose(conf.verb, [search], return_hydra_config=True)
        node = compose(conf.verb, [search, *overrides], return_hydra_config=True)
    if _fixed_part(node) != _fixed_part(ours):
        raise UsageError(f"{conf.own} changes Hydra's own configuration", "it may hold settings only")
    return OmegaConf.masked_copy(node, [str(key) for key in node if key != "hydra"])


def _fixed_part(node: DictConfig) -> dict[str, Any]:
    """Hydra's node without what it records of the command line itself."""
    plain = OmegaConf.to_container(node.hydra, resolve=False)
    assert isinstance(plain, dict)
    job = {key: value for key, value in plain["job"].items() if key != "override_dirname"}
    recorded = ("overrides", "runtime", "job")
    return {**{str(key): value for key, value in plain.items() if key not in recorded}, "job": job}


def _home_expanded(key: str, value: Any) -> Any:
    """`~` in paths; a local path stays relative, as only its reader knows whether it is a hub id."""
    if isinstance(value, dict):
        return {inner: _home_expanded(str(inner), item) for inner, item in value.items()}
    if isinstance(value, list):
        return [_home_expanded(key, item) for item in value]
    is_path = key in PATHS and isinstance(value, str)
    # An unknown ~user stays as it is: the file of that name is then not found.
    return os.path.expanduser(value) if is_path and value.startswith("~") else value


def _needed(missing: list[str], choices: dict[str, str]) -> list[Mistake]:
    if not missing:
        return []
    options = {key.split(".")[0] for key in missing}
    reason = " ".join(f"{group}={choices[group]}" for group in sorted(options) if group in choices)
    typed = " ".join(f"{key}=VALUE" for key in missing)
    return [Mistake(key, f"{reason} needs {' and '.join(missing)}", (f"add   {typed}",)) for key in missing]


def _unusable_text(composed: dict[str, Any]) -> list[Mistake]:
    """Text that means something else than it seems to."""
    found = []
    for key, text in _texts(composed, ""):
        reason = unsafe_text(text)
        if reason:
            found.append(Mistake(key, f"the value of {key} {reason}"))
        elif text == "None":
            found.append(Mistake(key, f"{key}=None is text here", (f"for no value   {key}=null",)))
    return found


def _texts(node: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for inner, item in node.items():
            yield from _texts(item, f"{key}.{inner}" if key else str(inner))
    elif isinstance(node, list):
        for item in node:
            yield from _texts(item, key)
    elif isinstance(node, str):
        yield key, node
