"""Help and listings, made from the YAML and its comments alone, so that they answer at once."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from alignctl import __version__
from alignctl.cli.commands import COMMANDS, TRAIN
from alignctl.cli.flags import FLAGS
from alignctl.cli.mistakes import alternatives
from alignctl.cli.options import (
    PATH_OPTIONS,
    RECIPE,
    Conf,
    Setting,
    all_groups,
    chosen_by_default,
    describe,
    option_for_path,
    option_settings,
    options,
    verb_settings,
)
from alignctl.errors import UsageError

WIDTH = 98
# Keys that the choice of an option sets; nobody types them.
TAG_NAMES = ("name", "kind", "method")


def overview(verbs: Mapping[str, str]) -> str:
    """`alignctl --help`."""
    lines = [f"alignctl {__version__}: preference alignment from the command line", "", "commands"]
    lines += [f"  alignctl {name:<8} {summary}" for name, summary in verbs.items()]
    lines += ["", "examples"]
    lines += ["  alignctl train                                   train on the demo pairs"]
    lines += ["  alignctl train --help                            every setting and its default"]
    lines += ["  alignctl train algo=ipo dataset=pairs.jsonl      train on your own pairs"]
    lines += ["  alignctl soup runs/a runs/b out=soups/ab         the mean of two runs"]
    lines += ["  alignctl eval runs/a runs/b                      which of two runs to ship, and by how much"]
    lines += ["  alignctl train recipe=salsa-2seeds               a chain of commands, stage by stage"]
    lines += ["  alignctl ls algo                                 the algorithms"]
    return "\n".join(lines)


def command_help(conf: Conf, words: Sequence[str]) -> str:
    """`alignctl train --help` and its like: layered, and about the options that the other words choose."""
    command = COMMANDS[conf.verb]
    chosen = chosen_by_default(conf) | _choices(conf, words)
    lines = [f"alignctl {command.name}: {command.summary}", ""]
    lines += [f"usage   {command.usage}   in any order", ""]
    if command.inputs:
        lines += ["MODEL   a run directory, RUN@STEP, a model or adapter directory, or a hub id", ""]
    lines += ["groups (* = chosen; the settings below are those of the chosen options)"]
    for group, option in chosen.items():
        names = "  ".join(f"*{name}" if name == option else name for name in options(conf, group))
        lines.append(f"  {group:<10}{names}")
        lines += [f"  {'':<10}your own: {PATH_OPTIONS[group][1]}"] if group in PATH_OPTIONS else []
    if command is TRAIN:
        lines += ["", "recipes, chains of commands: alignctl train recipe=NAME --help"]
        lines += [f"  {RECIPE:<10}{'  '.join(options(conf, RECIPE))}"]
    for group, option in chosen.items():
        title = f"{group}={option}: {describe(options(conf, group)[option])}"
        lines += ["", *textwrap.wrap(title, WIDTH), *_table(option_settings(conf, group, option).values())]
    lines += ["", "the same settings whatever the options"]
    for _, section in itertools.groupby(
        verb_settings(conf).values(), lambda setting: setting.key.split(".")[0:-1]
    ):
        lines += [*_table(section), ""]
    flags = {flag: text for flag, text in FLAGS.items() if conf.verb == "train" or flag != "--multirun"}
    lines += ["flags", *(f"  {flag:<18}{text}" for flag, text in flags.items())]
    return "\n".join([*lines, "", "examples", *(f"  {example}" for example in command.examples)])


def _choices(conf: Conf, words: Sequence[str]) -> dict[str, str]:
    """Group -> option among the words; what is no choice of an option is left for the run to refuse."""
    chosen: dict[str, str] = {}
    for word in words:
        group, _, value = word.partition("=")
        if group in chosen_by_default(conf):
            option = value if value in options(conf, group) else option_for_path(group, value)
            chosen |= {group: option} if option else {}
    return chosen


def listing(conf: Conf) -> str:
    """`alignctl ls`: every group with its options."""
    lines: list[str] = []
    for group, default in all_groups(conf).items():
        lines += ["", *option_lines(conf, group, default)]
    return "\n".join([*lines[1:], "", "settings of one group   alignctl ls GROUP"])


def group_listing(conf: Conf, group: str) -> str:
    """`alignctl ls GROUP`: its options, each with its settings and their defaults."""
    groups = all_groups(conf)
    if group not in groups:
        raise UsageError(f"{group} is not a group of options", *alternatives(group, list(groups)))
    lines = option_lines(conf, group, groups[group])
    for name in options(conf, group):
        rows = _table(option_settings(conf, group, name).values())
        lines += ["", f"{group}={name}", *rows] if rows else []
    return "\n".join(lines)


def option_lines(conf: Conf, group: str, default: str) -> list[str]:
    """A group and its options, each with what it is; * before the default."""
    lines = [group]
    for name, file in options(conf, group).items():
        mark = "*" if name == default else " "
        lines += textwrap.wrap(
            describe(file), WIDTH, initial_indent=f" {mark}{name:<16}", subsequent_indent=" " * 18
        ) or [f" {mark}{name}"]
    return [*lines, f"  your own: {PATH_OPTIONS[group][1]}"] if group in PATH_OPTIONS else lines


def _table(settings: Iterable[Setting]) -> list[str]:
    """One line per setting: key, default, comment; long comments go on below."""
    lines: list[str] = []
    for setting in settings:
        if setting.key.count(".") == 1 and setting.key.split(".")[1] in TAG_NAMES:
            continue
        default = "(needed)" if setting.default == "???" else setting.default
        start = f"  {setting.key:<33} {default:<10} "
        lines += textwrap.wrap(setting.comment, WIDTH, initial_indent=start, subsequent_indent=" " * 47) or [
            start.rstrip()
        ]
    return lines
