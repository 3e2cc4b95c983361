"""`alignctl soup`: several checkpoints merged into one model directory, complete or absent.

A plain merge reads and writes tensors only: neither transformers nor peft is imported, so that two small
models are merged in little more than the time it takes to read them. Greedy and sweep evaluate models, and
import the rest.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignctl import __version__
from alignctl.config import GreedySoup, SoupConfig, SweepSoup, base_model, request_hash, run_directory
from alignctl.config.paths import local_path
from alignctl.errors import RunDirectoryError
from alignctl.evaluate.soup_points import SoupSearch, search_as_json
from alignctl.models.exhaustion import memory_faults
from alignctl.models.soup.members import Member, open_member
from alignctl.models.soup.merge import write_soup
from alignctl.models.soup.record import SoupReport
from alignctl.report.console import ResultConsole, stderr_console
from alignctl.report.model_card import CARD, Identity, soup_card
from alignctl.report.model_use import Kind
from alignctl.report.output import OutputFormat, print_result
from alignctl.report.soup_tables import print_soup
from alignctl.report.sweep_page import sweep_page
from alignctl.report.terminal import Panel, open_panel
from alignctl.runners.lineage import (
    MODEL,
    SOUP_RECORD,
    TRAINED_ON,
    Named,
    common_lineage,
    hub_base,
    is_hub_id,
    lineage_of,
    trained_on,
    understand,
)
from alignctl.train.durable import encode, publish_directory, remove_leftovers_of, write_bytes, write_json
from alignctl.train.lock import lock_beside, only_writer
from alignctl.train.signals import StopFlag, leave_if_stopped, stop_signals

LESS_MEMORY = (
    "a plain merge holds a few pieces of a tensor per model, soup=ties a whole tensor of each;",
    "soup=greedy and soup=sweep also score a model: hardware.micro_tokens=1024 or less",
)


def run(config: SoupConfig, *, argv: Sequence[str], output: OutputFormat) -> int:
    """Merge; returns 0, everything else is raised as an AlignctlError."""
    out = Path(run_directory(config))
    console = stderr_console()
    named = [understand(word) for word in config.members]
    _refuse_place(out, named)
    with (
        stop_signals() as stop,
        open_panel(console, f"alignctl soup  {out}", output=output) as panel,
        memory_faults(*LESS_MEMORY),
        ExitStack() as writing,
    ):
        # Members that are unfit are refused before anything is written, a lock included.
        members = [_open(word, panel) for word in config.members]
        base = base_model(config.soup)
        base_member = None if base is None else _open(base, panel)
        writing.enter_context(only_writer(out, lock_beside(out)))
        _refuse_finished(out, config)
        remove_leftovers_of(out)
        search = _search(config, members, panel, stop)
        reports: list[SoupReport] = []

        def write(directory: Path) -> None:
            report = write_soup(
                members,
                config.soup,
                directory,
                weights=None if search is None else search.points[search.best].weights,
                base=base_member,
                seed=config.seed,
                dtype=config.dtype,
                shard_bytes=int(config.shard_gb * 1e9),
                progress=lambda done, total: _progress(panel, stop, done, total),
            )
            lineage = common_lineage([lineage_of(one) for one in named])
            _add_record(directory, report, config, named, argv, search, lineage)
            identity = _identity(directory, out.name, members, lineage, argv, report)
            card = soup_card(identity, config, report, search, lineage)
            write_bytes(directory / CARD, encode(card))
            reports.append(report)

        publish_directory(write, out)
    report = reports[0]
    print_result(
        output,
        show=lambda: print_soup(ResultConsole(), report, str(out), search),
        document=lambda: {
            "command": "soup",
            "status": "done",
            "out": str(out),
            "model": str(out),
            "results": json.loads((out / SOUP_RECORD).read_bytes()),
            "warnings": list(report.warnings),
        },
        line=str(out),
        warnings=report.warnings,
    )
    return 0


def _open(word: str, panel: Panel) -> Member:
    """A member's files; what is no plain directory or hub id is written out or fetched first."""
    if local_path(word).exists() or ("/" in word and "@" not in word):
        return open_member(word)
    # Slow to import, and only RUN@STEP and the pinned model need it.
    from alignctl.runners.checkpoints import model_path

    return replace(open_member(model_path(word, panel.note)), name=word)


def _progress(panel: Panel, stop: StopFlag, done: int, total: int) -> None:
    panel.working("merging", done, total)
    leave_if_stopped(stop, "nothing was written")


def _search(config: SoupConfig, members: list[Member], panel: Panel, stop: StopFlag) -> SoupSearch | None:
    """The weights that greedy or sweep comes to; None for methods that are given theirs."""
    if not isinstance(config.soup, GreedySoup | SweepSoup):
        return None
    from alignctl.runners.soup_search import search

    return search(config, members, panel, stop)


def _refuse_place(out: Path, members: Sequence[Named]) -> None:
    """Raise RunDirectoryError where no soup may ever be put."""
    if out.resolve() in (Path("/"), Path.home().resolve()):
        raise RunDirectoryError(f"{out} cannot hold a soup", "name another place: out=DIR")
    if any(out.resolve() == member.path.resolve() for member in members):
        raise RunDirectoryError(f"{out} is one of the members", "name another place: out=DIR")


def _refuse_finished(out: Path, config: SoupConfig) -> None:
    """Raise RunDirectoryError unless the place is free, empty, or a soup that may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / SOUP_RECORD).is_file():
        raise RunDirectoryError(
            f"{out} is not empty and not a soup: it has no {SOUP_RECORD}",
            "nothing in it was touched; name another place: out=DIR",
        )
    if not config.overwrite:
        raise RunDirectoryError(
            f"{out} is finished",
            "out=DIR          write into another directory",
            "overwrite=true   replace this one",
        )


def _add_record(
    directory: Path,
    report: SoupReport,
    config: SoupConfig,
    members: Sequence[Named],
    argv: Sequence[str],
    search: SoupSearch | None,
    lineage: dict[str, Any] | None,
) -> None:
    """soup.json with what only the command knows; the prompts the members were trained on beside it."""
    record = report.as_dict() | {"argv": list(argv), "request": request_hash(config), "lineage": lineage}
    if search is not None:
        record["search"] = search_as_json(search)
        write_bytes(directory / f"{search.kind}.html", encode(sweep_page(search)))
    write_json(directory / SOUP_RECORD, record)
    keys = sorted(frozenset().union(*(trained_on(named) for named in members)))
    if keys:
        write_bytes(directory / TRAINED_ON, "".join(f"{key}\n" for key in keys).encode())


def _identity(
    directory: Path,
    name: str,
    members: Sequence[Member],
    lineage: dict[str, Any] | None,
    argv: Sequence[str],
    report: SoupReport,
) -> Identity:
    """What the card says first of the soup in `directory`."""
    return Identity(
        name=name,
        kind=_kind(members[0]),
        chat=_has_template(directory),
        base=_base(members[0], lineage),
        argv=argv,
        versions={
            "alignctl": __version__,
            "python": platform.python_version(),
            "torch": version("torch"),
        },
        warnings=report.warnings,
    )


def _base(member: Member, lineage: dict[str, Any] | None) -> str | None:
    """The hub id that the members began with: what they say of themselves, else what the first one is."""
    if lineage is not None:
        return hub_base(MODEL.validate_python(lineage["model"]))
    named = str(member.config["base_model_name_or_path"]) if member.kind == "adapter" else member.name
    return named if is_hub_id(named) else None


def _kind(member: Member) -> Kind:
    if member.kind == "adapter":
        return "adapter"
    names = member.config.get("architectures") or ()
    return "classifier" if any(name.endswith("ForSequenceClassification") for name in names) else "causal"


def _has_template(directory: Path) -> bool:
    """Whether the tokenizer came with a chat template, in either of the two places where it may stand."""
    settings = directory / "tokenizer_config.json"
    inside = settings.is_file() and "chat_template" in json.loads(settings.read_bytes())
    return inside or (directory / "chat_template.jinja").is_file()
