"""Help and listings, made from the YAML and its comments alone, so that they answer at once."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from alignctl import __version__
from alignctl.cli.flags import FLAGS
from alignctl.cli.mistakes import alternatives
from alignctl.cli.options import (
    PATH_OPTIONS,
    Conf,
    Setting,
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
TAG_NAMES = ("name", "kind")


def overview(verbs: Mapping[str, str]) -> str:
    """`alignctl --help`."""
    lines = [f"alignctl {__version__}: preference alignment from the command line", "", "commands"]
    lines += [f"  alignctl {name:<8} {summary}" for name, summary in verbs.items()]
    lines += ["", "examples"]
    lines += ["  alignctl train                                   train on the demo pairs"]
    lines += ["  alignctl train --help                            every setting and its default"]
    lines += ["  alignctl train algo=ipo dataset=pairs.jsonl      train on your own pairs"]
    lines += ["  alignctl ls algo                                 the algorithms"]
    return "\n".join(lines)


def train_help(conf: Conf, words: Sequence[str]) -> str:
    """`alignctl train --help`: layered, and about the options that the other words choose."""
    chosen = chosen_by_default(conf) | _choices(conf, words)
    lines = ["alignctl train: align a model with preference pairs", ""]
    lines += ["usage   alignctl train [group=option] [key=value] [flags]   in any order", ""]
    lines += ["groups (* = chosen; the settings below are those of the chosen options)"]
    for group, option in chosen.items():
        names = "  ".join(f"*{name}" if name == option else name for name in options(conf, group))
        lines.append(f"  {group:<10}{names}")
        lines += [f"  {'':<10}your own: {PATH_OPTIONS[group][1]}"] if group in PATH_OPTIONS else []
    for group, option in chosen.items():
        title = f"{group}={option}: {describe(options(conf, group)[option])}"
        lines += ["", *textwrap.wrap(title, WIDTH), *_table(option_settings(conf, group, option).values())]
    lines += ["", "the run: the same settings whatever the options"]
    for _, section in itertools.groupby(
        verb_settings(conf).values(), lambda setting: setting.key.split(".")[0:-1]
    ):
        lines += [*_table(section), ""]
    lines += ["flags", *(f"  {flag:<18}{text}" for flag, text in FLAGS.items())]
    lines += ["", "examples"]
    lines += ["  alignctl train algo=ipo algo.tau=0.2 dataset=pairs.jsonl model=OWNER/NAME adapter=lora"]
    lines += ["  alignctl train --multirun algo=dpo,ipo seed=0,1,2 out=sweeps/first"]
    return "\n".join(lines)


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
    for group, default in chosen_by_default(conf).items():
        lines += ["", *_options(conf, group, default)]
    return "\n".join([*lines[1:], "", "settings of one group   alignctl ls GROUP"])


def group_listing(conf: Conf, group: str) -> str:
    """`alignctl ls GROUP`: its options, each with its settings and their defaults."""
    groups = chosen_by_default(conf)
    if group not in groups:
        raise UsageError(f"{group} is not a group of options", *alternatives(group, list(groups)))
    lines = _options(conf, group, groups[group])
    for name in options(conf, group):
        rows = _table(option_settings(conf, group, name).values())
        lines += ["", f"{group}={name}", *rows] if rows else []
    return "\n".join(lines)


def _options(conf: Conf, group: str, default: str) -> list[str]:
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
