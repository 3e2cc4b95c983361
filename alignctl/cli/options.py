"""The directories of YAML options, read without Hydra: groups, options, settings and their comments.

conf/ holds every default and, in the comment above each key, what it means; `ls`, `--help` and the
did-you-mean lines read both from there. A directory of the user's own may add options to the groups. It is
a stranger's file until proven otherwise: it is scanned before Hydra sees it, and may only hold settings of
its own group, so nothing in it can reach Hydra's configuration or name code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import yaml

from alignctl.errors import SetupError, UsageError

INTERPOLATION = re.compile(r"\$\{[\w.\[\]]+\}")
SECRET = re.compile(r"(?<![A-Za-z0-9])(sk-|hf_|ghp_|github_pat_)(?=[\w-]*\d)[\w-]{16,}")
# Groups that take a path or hub id in place of an option: the option that reads it, and an example.
PATH_OPTIONS = {
    "model": ("pretrained", "model=DIRECTORY or model=OWNER/NAME"),
    "dataset": ("file", "dataset=FILE or dataset=OWNER/NAME"),
}
# Last parts of the keys whose values are paths or hub ids.
PATHS = (
    *("path", "eval_path", "prompts", "parts", "out", "members", "models", "base", "reference"),
    *("opponent", "questions"),
)
VERBS = ("train", "soup", "eval")
# The group of chains of commands; no config holds it, so it has no option by default.
RECIPE = "recipe"
FORBIDDEN_KEYS = ("hydra", "_target_", "()", "searchpath")
MAX_CHARACTERS, MAX_DEPTH = 64 * 1024, 20
PLAIN_TAGS = ("null", "bool", "int", "float", "str", "timestamp", "seq", "map")
# YAML 1.1 reads 010 as 8 and 12:30 as 750.
SURPRISING_NUMBER = re.compile(r"[-+]?0\d+|\d+(:[0-5]?\d)+")


@dataclass(frozen=True)
class Setting:
    """A key of an option: its default as written in the YAML, and the comment above it."""

    key: str
    default: str
    comment: str


@dataclass(frozen=True)
class Conf:
    """The shipped options, a directory of the user's own (already scanned) or None, and for which command."""

    shipped: Path
    own: Path | None = None
    verb: str = "train"


def conf_directory() -> Path:
    """alignctl/conf in an installed wheel, conf/ beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for place in (package / "conf", package.parent / "conf"):
        if (place / "train.yaml").is_file():
            return place
    raise SetupError("the options (conf/train.yaml) are missing", "install alignctl again")


def open_conf(config_dir: str | None, verb: str = "train") -> Conf:
    """The options to choose from; raises UsageError for a directory that is missing or unsafe."""
    chosen = config_dir or os.environ.get("ALIGNCTL_CONF") or None
    conf = Conf(conf_directory(), verb=verb)
    if chosen is None:
        return conf
    own = Path(os.path.expanduser(chosen)).resolve()
    if not own.is_dir():
        raise UsageError(f"{'--config-dir ' if config_dir else 'ALIGNCTL_CONF='}{chosen} is not a directory")
    _check_directory(conf, own)
    return Conf(conf.shipped, own, verb)


def chosen_by_default(conf: Conf) -> dict[str, str]:
    """Group -> option, from the defaults list of the command's YAML."""
    return dict(_defaults(conf.shipped / f"{conf.verb}.yaml"))


@cache
def _defaults(file: Path) -> dict[str, str]:
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {
        group: option
        for entry in document["defaults"]
        if entry != "_self_"
        for group, option in entry.items()
    }


def all_groups(conf: Conf) -> dict[str, str]:
    """Group -> default option over all commands, in the order of the commands; recipes come last."""
    found: dict[str, str] = {}
    for verb in VERBS:
        for group, option in chosen_by_default(replace(conf, verb=verb)).items():
            found.setdefault(group, option)
    return found | {RECIPE: ""}


def options(conf: Conf, group: str) -> dict[str, Path]:
    """Option -> file of one group, shipped and own, by name."""
    places = [conf.shipped] if conf.own is None else [conf.shipped, conf.own]
    # By name: sorted as paths, tldr-2.yaml would come before tldr.yaml.
    named = [sorted((place / group).glob("*.yaml"), key=lambda file: file.stem) for place in places]
    return {file.stem: file for files in named for file in files}


def option_for_path(group: str, value: str) -> str | None:
    """The option that reads `value` as a path or hub id, or None where it does not look like one."""
    # What stands before @ may be a run: RUN@STEP.
    named = value.partition("@")[0]
    looks = "/" in value or "." in value or (named != "" and Path(named).exists())
    return PATH_OPTIONS[group][0] if group in PATH_OPTIONS and looks and "," not in value else None


def describe(file: Path) -> str:
    """What an option is: the first comment line of its file."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")


def option_settings(conf: Conf, group: str, option: str) -> dict[str, Setting]:
    """Key -> setting of an option, with what it takes over from the options it builds on."""
    file = options(conf, group)[option]
    text = file.read_text(encoding="utf-8")
    found: dict[str, Setting] = {}
    for base in _bases(_root(text)):
        found |= option_settings(conf, group, base)
    for setting in _settings(text, _root(text), f"{group}."):
        known = found.get(setting.key, setting)
        found[setting.key] = Setting(setting.key, setting.default, setting.comment or known.comment)
    return found


def built_on(conf: Conf, group: str, option: str) -> list[str]:
    """The options that an option takes its settings over from."""
    return _bases(_root(options(conf, group)[option].read_text(encoding="utf-8")))


def verb_settings(conf: Conf) -> dict[str, Setting]:
    """Key -> setting of the command's YAML itself, the ones that no option changes."""
    text = (conf.shipped / f"{conf.verb}.yaml").read_text(encoding="utf-8")
    return {setting.key: setting for setting in _settings(text, _root(text), "")}


def option_sections(conf: Conf, group: str, option: str) -> dict[str, str]:
    """Section -> the comment above it, for keys that hold other keys: `algo.reference`."""
    text = options(conf, group)[option].read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for base in _bases(_root(text)):
        found |= option_sections(conf, group, base)
    return found | {key: comment for key, comment in _sections(text, _root(text), f"{group}.") if comment}


def verb_sections(conf: Conf) -> dict[str, str]:
    """Section -> the comment above it in the command's YAML itself: `train`."""
    text = (conf.shipped / f"{conf.verb}.yaml").read_text(encoding="utf-8")
    return dict(_sections(text, _root(text), ""))


def _root(text: str) -> yaml.MappingNode:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise UsageError("an option file holds no settings")
    return root


def _settings(text: str, node: yaml.MappingNode, prefix: str) -> Iterator[Setting]:
    for key, value in node.value:
        if key.value == "defaults":
            continue
        if isinstance(value, yaml.MappingNode):
            yield from _settings(text, value, f"{prefix}{key.value}.")
        else:
            default = text[value.start_mark.index : value.end_mark.index]
            yield Setting(prefix + key.value, default, _comment_above(text, key.start_mark.line))


def _sections(text: str, node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in node.value:
        if isinstance(value, yaml.MappingNode):
            yield prefix + key.value, _comment_above(text, key.start_mark.line)
            yield from _sections(text, value, f"{prefix}{key.value}.")


def _comment_above(text: str, line: int) -> str:
    lines = text.splitlines()
    first = line
    while first > 0 and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(comment.strip().lstrip("# ") for comment in lines[first:line])


# --- a directory of the user's own ---------------------------------------------------------------------


def _check_directory(conf: Conf, own: Path) -> None:
    groups = all_groups(conf)
    for verb in VERBS:
        if (own / f"{verb}.yaml").exists():
            raise UsageError(
                f"{own}/{verb}.yaml is not read", "a directory of your own adds options: DIR/algo/mine.yaml"
            )
    files = [(group, file) for group in groups for file in sorted((own / group).glob("*.yaml"))]
    if not files:
        raise UsageError(f"{own} holds no options", f"looked for   {' '.join(f'{g}/*.yaml' for g in groups)}")
    for group, file in files:
        shipped = options(conf, group)
        if file.stem in shipped:
            raise UsageError(f"{file} has the name of a shipped option", "give it another name")
        if not file.resolve().is_relative_to(own):
            raise UsageError(f"{file} is a link out of {own}", "copy the option into the directory")
        _check_file(file, shipped)


def _check_file(file: Path, shipped: dict[str, Path]) -> None:
    """Refuse what an option may not hold, with FILE:LINE; nothing is constructed from it here."""
    try:
        _scan(file, file.read_text(encoding="utf-8"), shipped)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{file}:{line} is not YAML: {error.problem}") from error
    except (UnicodeDecodeError, yaml.YAMLError, OSError) as error:
        raise UsageError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error


def _scan(file: Path, text: str, shipped: dict[str, Path]) -> None:
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(r"\s*#\s*@", line):
            raise UsageError(
                f"{file}:{number} moves the option with @package; an option sets its own group only"
            )
    _check_events(file, text)
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"{file}:1 is not a list of settings (key: value)")
    _check_node(file, root)
    for base in _bases(root):
        if base not in shipped:
            raise UsageError(
                f"{file} builds on {base}", f"defaults may name   {' '.join(shipped)}   and _self_"
            )


def _check_events(file: Path, text: str) -> None:
    """Refuse, before anything is built, what makes YAML explode: size, depth, aliases."""
    if len(text) > MAX_CHARACTERS:
        raise UsageError(f"{file} is longer than {MAX_CHARACTERS} characters")
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UsageError(f"{file} is nested more than {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.AliasEvent):
            raise UsageError(f"{file} uses YAML aliases (*name)", "write the value out")


def _bases(root: yaml.MappingNode) -> list[str]:
    """The options that an option builds on: the plain names in its defaults list."""
    entries = [value.value for key, value in root.value if key.value == "defaults"]
    return [str(entry.value) for entry in (entries[0] if entries else []) if entry.value != "_self_"]


def _check_node(file: Path, node: yaml.Node) -> None:
    place = f"{file}:{node.start_mark.line + 1}"
    if node.tag.removeprefix("tag:yaml.org,2002:") not in PLAIN_TAGS:
        raise UsageError(f"{place} has the tag {node.tag}; plain values only")
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(place, node)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_node(file, item)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            _check_key(f"{file}:{key.start_mark.line + 1}", key, seen)
            _check_node(file, value)


def _check_key(place: str, node: yaml.Node, seen: set[str]) -> None:
    key = str(node.value)
    if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str":
        raise UsageError(f"{place} {key} is not the name of a setting")
    if key in FORBIDDEN_KEYS or key.startswith("hydra"):
        raise UsageError(f"{place} {key} is refused: options hold settings, never Hydra's own or code")
    if key in seen:
        raise UsageError(f"{place} {key} is set twice")
    seen.add(key)


def _check_scalar(place: str, node: yaml.ScalarNode) -> None:
    reason = unsafe_text(node.value)
    if reason:
        raise UsageError(f"{place} {reason}")
    if node.style is None and SURPRISING_NUMBER.fullmatch(node.value):
        read = yaml.safe_load(node.value)
        raise UsageError(
            f"{place} {node.value} is read as {read!r} by YAML", f'write {read!r} or "{node.value}"'
        )


def unsafe_text(text: str) -> str | None:
    """Why a value may not stand in a config (a resolver, a secret), or None."""
    if "${" in INTERPOLATION.sub("", text):
        return "calls a resolver; only plain references such as ${train.lr} are allowed"
    if SECRET.search(text):
        return "looks like an access token, and would be written to the run; keep it in the environment"
    return None
