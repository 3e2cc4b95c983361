"""A recipe's stages run one after another, each in a fresh child process, and gone on with after a stop.

Whether a stage is finished is read from its own directory, which is complete or absent: so a chain that was
killed at any moment goes on rightly, and a stage whose directory was deleted runs again. `recipe.json` says
what the chain is, so that its directory is never gone on with as another one. Stages may change as long as
nothing of them, or of what comes after them, has begun.
"""

from __future__ import annotations

import json
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from alignctl.cli.children import STOPPED, child_command, run_child
from alignctl.cli.extras import need_for
from alignctl.cli.options import Conf
from alignctl.cli.recipe_plan import Chain, Stage, place
from alignctl.config import EvalConfig, Settings, SoupConfig
from alignctl.errors import AlignctlError, GateError, RunDirectoryError
from alignctl.report.output import OutputFormat, print_json, print_note, print_result
from alignctl.runners.lineage import SOUP_RECORD
from alignctl.train.durable import remove, write_json
from alignctl.train.lock import LOCK, only_writer

RECORD = "recipe.json"


class StageRecord(Settings):
    """A stage in recipe.json."""

    name: str
    command: str
    directory: str
    request: str
    exit_code: int | None
    """None until it ended."""


class Record(Settings):
    """recipe.json."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    recipe: str
    stages: tuple[StageRecord, ...]


def run_chain(conf: Conf, chain: Chain, output: OutputFormat) -> int:
    """Run what is not finished; returns 0, or the exit code of the stage that stopped the chain.

    Raises SetupError before the first stage when one of them lacks a package, RunDirectoryError when the
    directory holds another chain.
    """
    for stage in chain.stages:
        need_for(stage.config)
    with only_writer(chain.directory, chain.directory / LOCK) as lock:
        before = _record_in(chain.directory)
        if before is not None and chain.overwrite:
            _clear(chain.directory, before)
        elif before is not None:
            _refuse_another(chain, before)
        return _run_stages(conf, chain, lock, output)


def _run_stages(conf: Conf, chain: Chain, lock: int, output: OutputFormat) -> int:
    codes = [ended_with(stage) for stage in chain.stages]
    _write_record(chain, codes)
    for n, stage in enumerate(chain.stages):
        where = place(n + 1, len(chain.stages), stage.name)
        if codes[n] is None:
            print_note(output, f"{where}: {stage.command}")
            command = child_command(conf, stage.verb, stage.own_words, output)
            codes[n] = run_child(command, lock=lock, output=output)
            _write_record(chain, codes)
        else:
            print_note(output, f"{where} is done: {stage.directory}")
        code = codes[n]
        if code:
            _tell_end(output, code, *_ended(chain, stage, where, code))
            return code
    print_result(
        output,
        show=lambda: print(_summary(chain)),
        document=lambda: (
            {"command": "train", "status": "done", "out": str(chain.directory)} | _described(chain, codes)
        ),
        line=str(chain.directory),
    )
    return 0


def ended_with(stage: Stage) -> int | None:
    """The exit code that a finished stage's directory stands for; None where the stage has to be run."""
    try:
        if isinstance(stage.config, SoupConfig):
            soup = json.loads((stage.directory / SOUP_RECORD).read_bytes())
            return 0 if soup["request"] == stage.request else None
        run = json.loads((stage.directory / "run.json").read_bytes())
        if run["request"] != stage.request or run["status"] not in ("done", "stopped"):
            return None
        if isinstance(stage.config, EvalConfig):
            gates = json.loads((stage.directory / "results.json").read_bytes())["gates"]
            return 0 if all(gate["passed"] for gate in gates) else GateError.exit_code
        return 0
    except (OSError, ValueError, KeyError, TypeError):
        # What cannot be read is left to the stage's own command, which says what is wrong with it.
        return None


def _ended(chain: Chain, stage: Stage, where: str, code: int) -> tuple[str, ...]:
    """Why the chain ends at a stage, and the ways on."""
    if code in STOPPED:
        return (f"stopped in {where}; the same command goes on from there",)
    if code == GateError.exit_code:
        return (f"{where}: a gate failed, and the stage is complete: {stage.directory}",)
    return (
        f"{where} ended with exit code {code}; the same command goes on from there",
        f"with other settings for it   delete {stage.directory}, and add out={chain.directory}",
    )


def _tell_end(output: OutputFormat, code: int, message: str, *hints: str) -> None:
    """On stderr, after what the stage itself said there."""
    if output == "json":
        print_json(AlignctlError(message, *hints).as_json() | {"exit_code": code}, sys.stderr)
    else:
        print("\n  ".join([message, *hints]), file=sys.stderr)


def _summary(chain: Chain) -> str:
    width = max(len(stage.name) for stage in chain.stages)
    lines = ["", "stages", *(f"  {stage.name:<{width}}  {stage.directory}" for stage in chain.stages)]
    report = chain.stages[-1].directory / "report.html"
    return "\n".join([*lines, *([f"report  {report}"] if report.exists() else [])])


# --- recipe.json ---------------------------------------------------------------------------------------


def _described(chain: Chain, codes: list[int | None]) -> dict[str, Any]:
    stages = [
        {
            "name": stage.name,
            "command": stage.command,
            "directory": str(stage.directory),
            "request": stage.request,
            "exit_code": code,
        }
        for stage, code in zip(chain.stages, codes, strict=True)
    ]
    return {"recipe": chain.recipe.name, "stages": stages}


def _write_record(chain: Chain, codes: list[int | None]) -> None:
    write_json(chain.directory / RECORD, {"schema": 1} | _described(chain, codes))


def _record_in(directory: Path) -> Record | None:
    """The record of the chain that was started there; raises RunDirectoryError for anything else."""
    file = directory / RECORD
    if not file.exists():
        return None
    try:
        return Record.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise RunDirectoryError(f"{file} is not a recipe's record", "choose another out=DIR") from error


def _refuse_another(chain: Chain, before: Record) -> None:
    """Raise RunDirectoryError with the first difference, where the stage or a later one has begun."""
    ways = ("choose another out=DIR", "or start over   overwrite=true")
    if before.recipe != chain.recipe.name:
        raise RunDirectoryError(f"{chain.directory} holds the recipe {before.recipe}", *ways)
    for n, (old, new) in enumerate(zip_longest(before.stages, chain.stages)):
        same = old is not None and new is not None and old.name == new.name and old.request == new.request
        if same:
            continue
        if not any(made.exists() for made in _directories(chain.directory, before)[n:]):
            return
        raise RunDirectoryError(
            f"{chain.directory} holds this recipe with another stage {n + 1}",
            f"was   {old.command if old else 'no such stage'}",
            f"now   {new.command if new else 'no such stage'}",
            *ways,
        )


def _clear(directory: Path, before: Record) -> None:
    """Delete what the recorded chain made, and nothing else."""
    for made in _directories(directory, before):
        if made.is_dir() and not made.is_symlink():
            remove(made)
    (directory / RECORD).unlink()


def _directories(directory: Path, before: Record) -> list[Path]:
    """The stages' directories, by their numbers and names: always directly below the chain's."""
    return [directory / f"{n}-{Path(stage.name).name}" for n, stage in enumerate(before.stages, start=1)]
