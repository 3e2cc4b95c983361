"""The command line: verbs -> Hydra compose -> typed config -> runner.

Hydra's Compose API is used for everything, never `hydra.main`: so logging, the working directory and the
run directory stay ours, and no YAML, however hostile, is ever executed. Every mistake is told in a few
lines. Nothing heavy is imported before the config is accepted, and nothing at all for `--help` and `ls`
beyond a YAML reader: a typo answers in a fraction of a second.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from alignctl import __version__
from alignctl.cli import texts
from alignctl.cli.commands import COMMANDS, TRAIN, Command
from alignctl.cli.flags import Flags, output_format, split_flags
from alignctl.cli.mistakes import alternatives
from alignctl.cli.options import RECIPE, Conf, all_groups, open_conf
from alignctl.cli.topics import help_for
from alignctl.errors import AlignctlError, Interrupted, UsageError, full_storage
from alignctl.report.output import OutputFormat, discard_stdout, print_json


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (interface: 0 ok, 2 usage, 3 environment, ...)."""
    words = list(sys.argv[1:] if argv is None else argv)
    output = output_format(words)
    _ready_streams()
    try:
        code = dispatch(words)
        sys.stdout.flush()
    except AlignctlError as error:
        return _complain(error, output)
    except BrokenPipeError:
        # The reader left, as in `alignctl --help | head`: what is still buffered has nowhere to go.
        discard_stdout()
        return 128 + 13
    except KeyboardInterrupt:
        return _complain(Interrupted(signal.SIGINT, "stopped before the run began"), output)
    except Exception as error:
        return _complain(_told(error), output)
    return code


def _told(error: Exception) -> AlignctlError:
    """What no other part has put into words: a full disk or too long a name wherever met, else our fault."""
    file = error.filename if isinstance(error, OSError) and error.filename else "a file"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return UsageError(f"{file} is longer than the name of a file can be")
    return full_storage(error, file) or AlignctlError(
        f"unexpected {type(error).__name__}: {error}", "a fault in alignctl; ALIGNCTL_DEBUG=1 shows where"
    )


def _ready_streams() -> None:
    """Closed streams (`>&-`) become the null device, and no letter that a locale lacks ends a command."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An escape in its place, as Python does on stderr.
        sys.stdout.reconfigure(errors="backslashreplace")


def _complain(error: AlignctlError, output: OutputFormat) -> int:
    if os.environ.get("ALIGNCTL_DEBUG") == "1":
        traceback.print_exc()
    if output == "json":
        print_json(error.as_json(), sys.stderr)
    else:
        print(error.render(), file=sys.stderr)
    return error.exit_code


def dispatch(words: list[str]) -> int:
    """Find the verb and hand it the rest."""
    if not words or words[0] in ("--help", "-h", "help"):
        return _help(words[1:])
    verb, *rest = words
    if rest[:1] == ["help"]:
        rest[0] = "--help"
    if verb == "--version":
        print(f"alignctl {__version__}")
        return 0
    if verb in VERBS:
        return VERBS[verb].run(rest)
    if verb == "__complete":
        from alignctl.cli.completion import answer

        return answer(words[1:], _summaries())
    if verb.startswith("-") or "=" in verb:
        raise UsageError(f"a command comes first, got {verb}", f"did you mean   alignctl train {verb}")
    raise UsageError(f"{verb} is not a command of alignctl", *alternatives(verb, list(VERBS)))


def _summaries() -> dict[str, str]:
    return {name: verb.summary for name, verb in VERBS.items()}


def _help(words: list[str]) -> int:
    """`alignctl help`, and `alignctl help WORDS` for `alignctl WORDS --help`; a group's name will do too."""
    topics = [word for word in words if word not in ("--help", "-h", "help")]
    if not topics:
        print(texts.overview(_summaries()))
        return 0
    first, *rest = topics
    if first in VERBS:
        return VERBS[first].run(["--help", *rest])
    groups = all_groups(open_conf(None))
    if first in groups:
        return ls(topics)
    raise UsageError(
        f"there is no help on {first}", *alternatives(first, list(dict.fromkeys([*VERBS, *groups])))
    )


def configured(command: Command, words: list[str]) -> int:
    """A command with settings: its help, its composed config, a sweep of runs, a recipe, or one run."""
    flags, overrides = split_flags(words)
    conf = open_conf(flags.config_dir, command.name)
    if command is TRAIN and any(word.startswith(f"{RECIPE}=") for word in overrides):
        return _recipe(conf, flags, overrides)
    if flags.help:
        print(help_for(conf, overrides))
        return 0
    if flags.multirun:
        if command is not TRAIN:
            raise UsageError(f"--multirun starts several runs of alignctl train, not of {command.name}")
        from alignctl.cli.sweep import run_sweep

        return run_sweep(conf, overrides, flags.output)
    if flags.dry_run and command is not TRAIN:
        raise UsageError(
            f"--dry-run shows what alignctl train would do, not {command.name}",
            f"its settings, checked   alignctl {command.name} ... --cfg job",
        )
    return _once(conf, flags, overrides, argv=["alignctl", command.name, *words])


def _recipe(conf: Conf, flags: Flags, words: list[str]) -> int:
    """`alignctl train recipe=NAME`: its help, its stages as they would run, or the chain itself."""
    if flags.help:
        from alignctl.cli.recipe_texts import recipe_help

        print(recipe_help(conf, words))
        return 0
    if flags.multirun:
        raise UsageError("a recipe is a chain of commands, and --multirun starts several single runs")
    if flags.dry_run:
        raise UsageError(
            "a recipe is a chain of commands, and --dry-run goes through one", "show its stages   --cfg job"
        )
    from alignctl.cli.recipe_plan import as_document, plan, shown

    chain = plan(conf, words)
    if flags.show_config and flags.output == "json":
        print_json(as_document(chain))
        return 0
    if flags.show_config:
        print(shown(chain))
        return 0
    from alignctl.cli.recipe_run import run_chain

    return run_chain(conf, chain, flags.output)


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for garbage: a tenth of the time that Hydra takes to be imported and to compose."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _once(conf: Conf, flags: Flags, overrides: list[str], *, argv: list[str]) -> int:
    with _uncollected():
        from alignctl.cli.compose import load
        from alignctl.config import EvalConfig, SoupConfig, TrainConfig, as_plain, as_yaml

        if COMMANDS[conf.verb].inputs is not None:
            from alignctl.cli.own_data import with_own_data

            overrides = with_own_data(conf.verb, overrides)
        config = load(conf, overrides)

    if flags.show_config and flags.output == "json":
        print_json(as_plain(config))
        return 0
    if flags.show_config:
        print(as_yaml(config), end="")
        return 0
    # Waiting threads sleep instead of spinning: as fast on an idle machine, twice as fast on a busy one
    # (ten seconds against five for the same work beside one other busy process, two cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from alignctl.cli.extras import need_for

    need_for(config)
    # The runners import torch, so only now that the config is accepted.
    match config:
        case TrainConfig() if flags.dry_run:
            from alignctl.runners.dry_run import dry_run

            return dry_run(config, argv=argv, overrides=overrides, output=flags.output)
        case TrainConfig():
            from alignctl.runners.train import run as train

            return train(config, argv=argv, overrides=overrides, output=flags.output)
        case SoupConfig():
            from alignctl.runners.soup import run as soup

            return soup(config, argv=argv, output=flags.output)
        case EvalConfig():
            from alignctl.runners.evaluation import run as evaluate

            return evaluate(config, argv=argv, overrides=overrides, output=flags.output)


def ls(words: list[str]) -> int:
    """`alignctl ls [group]`: the options of every group, or one group's with their settings."""
    flags, groups = split_flags(words)
    conf = open_conf(flags.config_dir)
    if flags.help:
        print(texts.ls_help(conf))
        return 0
    if len(groups) > 1:
        raise UsageError(f"alignctl ls lists one group, got {len(groups)}", "all of them   alignctl ls")
    if flags.output != "text":
        return _ls_for_programs(conf, groups, flags.output)
    if groups == [RECIPE]:
        from alignctl.cli.recipe_texts import recipe_listing

        print(recipe_listing(conf))
        return 0
    print(texts.group_listing(conf, groups[0]) if groups else texts.listing(conf))
    return 0


def _ls_for_programs(conf: Conf, groups: Sequence[str], output: OutputFormat) -> int:
    from alignctl.cli.listings import listed, names_alone

    document = listed(conf, groups[0] if groups else None)
    if output == "json":
        print_json(document)
    else:
        print(names_alone(document))
    return 0


def completion(words: list[str]) -> int:
    """`alignctl completion SHELL`."""
    from alignctl.cli.completion import completion as script

    return script(words)


def doctor(words: list[str]) -> int:
    """`alignctl doctor`."""
    from alignctl.cli.doctor import doctor as examine

    return examine(words)


@dataclass(frozen=True)
class Verb:
    """A command: what `alignctl --help` says of it and what it runs."""

    summary: str
    run: Callable[[list[str]], int]


VERBS = {
    **{name: Verb(command.summary, partial(configured, command)) for name, command in COMMANDS.items()},
    "ls": Verb("list the options of a group and their settings", ls),
    "completion": Verb("a script that completes command lines in bash, zsh or fish", completion),
    "doctor": Verb("what this machine has, and whether a training step works on it", doctor),
}
