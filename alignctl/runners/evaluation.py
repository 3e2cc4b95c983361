"""`alignctl eval`: which of several models to ship, and how sure that is.

One model is in memory at a time. Pairs are scored through the cache and answers are kept in the directory,
so the same command after a kill repeats nothing that was finished.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignctl import __version__
from alignctl.config import EndpointJudge, EvalConfig, NoJudge, as_plain, dataset_name, run_directory
from alignctl.config.paths import local_path
from alignctl.data.bad_rows import BadRows
from alignctl.errors import GateError, UsageError
from alignctl.evaluate.flags import over_steps
from alignctl.evaluate.judges.contest import Judge
from alignctl.evaluate.length import baselines
from alignctl.evaluate.results import GateResult, ModelResult, Results, as_json
from alignctl.evaluate.verdict import decide
from alignctl.models.exhaustion import memory_faults
from alignctl.models.load import Source
from alignctl.models.product_speed import slow_bfloat16
from alignctl.report.console import ResultConsole, stderr_console
from alignctl.report.evaluation_tables import print_evaluation, warning_words
from alignctl.report.output import OutputFormat, print_result
from alignctl.report.terminal import Report, open_panel
from alignctl.runners.checkpoints import Checkpoint, Origin, Say, open_checkpoint
from alignctl.runners.evaluation_data import EvaluationData, prepare_evaluation
from alignctl.runners.evaluation_files import write_files
from alignctl.runners.evaluation_results import Entry, comparisons, entry, gate_results, model_results
from alignctl.runners.measurement import (
    DTYPES,
    AnswerFile,
    Measured,
    measure,
    open_policy,
    score_answers,
)
from alignctl.runners.preparation import StartingPolicy, resolve_device, scoring_tokens
from alignctl.runners.training_data import list_bad_rows
from alignctl.runners.win_rates import Judged, Side, judge_all, open_judge, side, side_from_file
from alignctl.train.run_directory import RunDirectory, open_run
from alignctl.train.signals import leave_if_stopped, stop_signals

DEFAULT_BETA = 0.1
LESS_MEMORY = (
    "try hardware.micro_tokens=1024 or less, eval.dtype=bfloat16,",
    "or shorter rows and answers: eval.max_length, eval.max_new_tokens",
)
PACKAGES = ("torch", "transformers", "numpy", "scipy")


@dataclass(frozen=True, slots=True)
class Field:
    """Who takes part."""

    models: tuple[Checkpoint, ...]
    """The last one is the reference where it was not among the models already."""
    names: tuple[str, ...]
    reference: int | None
    """Its place among the models."""
    opponent: Checkpoint | None
    """A model that only answers, to be judged against; None for the reference or a file."""

    @property
    def reference_name(self) -> str | None:
        """What the tables call the reference."""
        return None if self.reference is None else self.names[self.reference]

    @property
    def sources(self) -> tuple[tuple[str, Source], ...]:
        """Every model that runs."""
        models = (*self.models, *((self.opponent,) if self.opponent else ()))
        return tuple((model.name, model.source) for model in models)


def run(config: EvalConfig, *, argv: Sequence[str], overrides: Sequence[str], output: OutputFormat) -> int:
    """Evaluate; returns 0, raises GateError when a model is below a gate, else an AlignctlError."""
    out = run_directory(config)
    with (
        stop_signals() as stop,
        open_run(out, config, overrides, argv) as directory,
        memory_faults(*LESS_MEMORY),
    ):
        with open_panel(stderr_console(), f"alignctl eval  {out}", output=output) as panel:
            field = open_field(config, panel.note)
            data = _checked_data(config, field, directory, panel.working)
            panel.plan([_plan(field), *data.card])

            def report(what: str, done: int, total: int, tokens: int | None = None, /) -> None:
                panel.working(what, done, total, tokens)
                leave_if_stopped(stop, "what was scored is kept")

            if config.hardware.threads:
                torch.set_num_threads(config.hardware.threads)
            device, store = resolve_device(config.hardware), AnswerFile(directory.path / "answers.jsonl")
            slow = slow_bfloat16(DTYPES[config.eval.dtype], device, "eval.dtype")
            if slow:
                panel.warn(slow)
            session = Session(config, field, data, directory.path, device, store, panel.note, report)
            results, entries = evaluate(session)
        write_files(directory.path, results, entries, data)
        directory.finish("done", verdict=results.verdict.sentence)
    print_result(
        output,
        show=lambda: _show(results, out),
        document=lambda: {
            "command": "eval",
            "status": "done",
            "out": out,
            "report": f"{out}/report.html",
            "results": as_json(results),
        },
        line=out,
        warnings=warning_words(results),
    )
    _enforce(results.gates)
    return 0


def _show(results: Results, out: str) -> None:
    print_evaluation(ResultConsole(), results)
    print(f"\nreport  {out}/report.html")


def _checked_data(
    config: EvalConfig, field: Field, directory: RunDirectory, report: Report
) -> EvaluationData:
    """All rows, checked; what is wrong with any of them goes to bad_rows.jsonl, dropped or not."""
    try:
        data = prepare_evaluation(config, field.models, field.sources, report)
    except BadRows as error:
        list_bad_rows(directory, error.rows)
        raise
    list_bad_rows(directory, data.bad)
    return data


# --- who takes part ------------------------------------------------------------------------------------


def open_field(config: EvalConfig, say: Say) -> Field:
    """Find the models, their reference and the opponent; raises UsageError where they do not fit together."""
    models = [open_checkpoint(word, say) for word in config.models]
    reference = common_reference(config, models, say)
    place = None
    if reference is not None:
        places = [number for number, model in enumerate(models) if model.source == reference.source]
        place = places[0] if places else len(models)
        models += [] if places else [reference]
    opponent = config.eval.opponent
    named = opponent is not None and not local_path(opponent).is_file()
    if not isinstance(config.judge, NoJudge) and opponent is None and reference is None:
        raise UsageError(
            "the judge needs answers to compare with, and no reference is known",
            "name a model or a file of answers   eval.opponent=MODEL",
        )
    _refuse_blind_gates(config, place is not None)
    return Field(
        models=tuple(models),
        names=short_names([model.name for model in models]),
        reference=place,
        opponent=open_checkpoint(str(opponent), say) if named else None,
    )


def common_reference(config: EvalConfig, models: Sequence[Checkpoint], say: Say) -> Checkpoint | None:
    """The named reference, else the one that the models which know theirs agree on."""
    if config.reference is not None:
        return open_checkpoint(config.reference, say)
    known = {model.origin.reference: model.name for model in models if model.origin.reference is not None}
    if len(known) > 1:
        names = " and ".join(list(known.values())[:2])
        raise UsageError(
            f"{names} were trained against different references",
            "name the one to measure with   reference=MODEL",
        )
    return None if not known else Checkpoint(_source_name(next(iter(known))), next(iter(known)), Origin())


def _source_name(source: Source) -> str:
    return str(source.adapter or source.base)


def _refuse_blind_gates(config: EvalConfig, has_reference: bool) -> None:
    if config.gate.accuracy is not None and not has_reference:
        raise UsageError(
            "gate.accuracy needs a reference", "name it   reference=MODEL, or use gate.accuracy_logp"
        )
    if config.gate.gold is not None and config.eval.samples == 0:
        raise UsageError("gate.gold needs answers", "eval.samples above 0")


def short_names(words: Sequence[str]) -> tuple[str, ...]:
    """The last part of each path, with as many parts before it as it takes to tell them apart."""
    parts = [word.rstrip("/").split("/") for word in words]
    parts = [one[:-1] if len(one) > 1 and one[-1] == "model" else one for one in parts]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(words)


def _plan(field: Field) -> str:
    reference = "no reference" if field.reference_name is None else f"reference {field.reference_name}"
    return f"models {', '.join(field.names)}; {reference}"


# --- measuring -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """One evaluation under way."""

    config: EvalConfig
    field: Field
    data: EvaluationData
    directory: Path
    device: torch.device
    store: AnswerFile
    say: Say
    report: Report

    def open(self, source: Source) -> StartingPolicy:
        """A model ready to score and to answer."""
        return open_policy(source, self.config, self.data, self.device)

    def measure(self, start: StartingPolicy, name: str) -> Measured:
        """Its pairs scored and its answers sampled."""
        return measure(start, name, self.config, self.data, self.store, self.report)

    def open_judge(self) -> Judge:
        """The configured judge, ready."""
        return open_judge(
            self.config.judge,
            self.data,
            self.directory,
            device=self.device,
            dtype=DTYPES[self.config.eval.dtype],
            say=self.say,
        )


def evaluate(session: Session) -> tuple[Results, tuple[Entry, ...]]:
    """Run every model once, the reference last, then compute every figure."""
    config, field, data = session.config, session.field, session.data
    # A server that is not there is told before hours of work; a judging model would only take up memory.
    early = session.open_judge() if isinstance(config.judge, EndpointJudge) else None
    entries = _entries(session)
    judged = Judged((), None, ())
    if not isinstance(config.judge, NoJudge):
        judged = _judged(session, entries, early or session.open_judge())
    models = model_results(entries, data, reference_name=field.reference_name, seed=config.seed)
    compared = comparisons(entries, seed=config.seed)
    results = Results(
        models=models,
        comparisons=compared,
        win_rates=judged.win_rates,
        judge_check=judged.check,
        gates=gate_results(config.gate, models, judged.win_rates, but=field.reference_name),
        verdict=decide(models, compared, judged.win_rates, field.reference_name),
        baselines=baselines(entries[0].pairs, seed=config.seed),
        reference=field.reference_name,
        dataset=_described(config, data),
        judge=config.judge.kind,
        settings=as_plain(config)["eval"] | {"seed": config.seed, "max_length": data.max_length},
        versions={
            "alignctl": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
        warnings=(*data.warnings, *judged.warnings, *_over_steps(models)),
    )
    return results, entries


def _described(config: EvalConfig, data: EvaluationData) -> dict[str, Any]:
    return {
        "name": dataset_name(config.dataset),
        "rows": len(data.rows),
        "dropped": len(data.bad),
        "truncated": int(data.facts.truncated.sum()),
        "fingerprint": data.fingerprint,
    }


def _over_steps(models: Sequence[ModelResult]) -> list[str]:
    """What checkpoints of one run say together, in words."""
    sentence = over_steps(models)
    return [] if sentence is None else [sentence]


def _entries(session: Session) -> tuple[Entry, ...]:
    """Every model measured, one in memory at a time; the reference also scores the others' answers."""
    field, config = session.field, session.config
    order = sorted(range(len(field.models)), key=lambda place: place == field.reference)
    measured: dict[int, Measured] = {}
    ref_own: dict[int, np.ndarray] = {}
    for place in order:
        start, name = session.open(field.models[place].source), field.names[place]
        measured[place] = session.measure(start, name)
        if place == field.reference:
            for other in [one for one in order[:-1] if measured[one].own]:
                ref_own[other] = score_answers(
                    start,
                    name,
                    measured[other].own,
                    session.report,
                    token_budget=scoring_tokens(session.device, config.hardware),
                )
    reference = None if field.reference is None else measured[field.reference].scores
    return tuple(
        entry(
            field.names[place],
            model.name,
            model.origin,
            measured[place],
            session.data,
            reference=None if place == field.reference else reference,
            ref_own_logps=ref_own.get(place),
            beta=config.eval.beta or model.origin.beta or DEFAULT_BETA,
        )
        for place, model in enumerate(field.models)
    )


def _judged(session: Session, entries: Sequence[Entry], judge: Judge) -> Judged:
    """Win rates of every model but the opponent."""
    sides = [side(one.name, one.measured) for one in entries]
    opponent = _opponent(session, sides)
    others = [one for one in sides if one is not opponent]
    return judge_all(judge, others, opponent, session.data, session.report, seed=session.config.seed)


def _opponent(session: Session, sides: Sequence[Side]) -> Side:
    opponent = session.field.opponent
    if opponent is not None:
        return side(opponent.name, session.measure(session.open(opponent.source), opponent.name))
    if session.config.eval.opponent is not None:
        return side_from_file(session.config.eval.opponent, session.data)
    assert session.field.reference is not None  # open_field has seen to it
    return sides[session.field.reference]


# --- gates ---------------------------------------------------------------------------------------------


def _enforce(gates: Sequence[GateResult]) -> None:
    failed = [gate for gate in gates if not gate.passed]
    if not failed:
        return
    lines = [
        f"{gate.model}: {gate.metric} {gate.value:.3f}, gate.{gate.metric}={gate.threshold:g}"
        for gate in failed
    ]
    raise GateError(f"{len(failed)} of {len(gates)} gates failed", *lines[:8])
