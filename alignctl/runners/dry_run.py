"""`alignctl train --dry-run`: everything before the first step, in a place that is gone afterwards.

What is checked is what a run checks, by the same code and in the same order, so its mistakes get the same
answers and exit codes: the run's directory, every row, the model, its memory, the models beside it. Left out
is what would take a run's time: the reference's log-probabilities, the scale of a reward, the evaluation of
the start. The caches of models and of tokenised data are read and filled, since the run reads them next; the
run's own directory is not made.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from alignctl.config import (
    PpoConfig,
    RewardModelConfig,
    SftConfig,
    TrainConfig,
    learning_rate,
    model_name,
    run_directory,
)
from alignctl.data.template import decode, special_tokens
from alignctl.models.memory import MemoryPlan
from alignctl.report.console import stderr_console, write_line
from alignctl.report.data_card import entries_of, print_card, print_entries, print_row
from alignctl.report.output import OutputFormat, print_result
from alignctl.report.terminal import open_panel
from alignctl.runners.job import model_lines, starting_policy, steps_line
from alignctl.runners.memory import memory_lines, memory_plan, refuse_too_large
from alignctl.runners.preparation import StartingPolicy
from alignctl.runners.references import find_reference
from alignctl.runners.tasks import open_task
from alignctl.runners.tasks.task import Setup
from alignctl.runners.training_data import TrainingData, prepare_data
from alignctl.train.run_directory import open_run, standing
from alignctl.train.schedule import total_steps
from alignctl.train.signals import StopFlag

Standing = Literal["new", "unfinished", "replaced"]
STANDING: dict[Standing, str] = {
    "new": "new",
    "unfinished": "this very run, unfinished: it would go on from its newest checkpoint",
    "replaced": "overwrite=true: the run that is there would be removed",
}


@dataclass(frozen=True, slots=True, eq=False)
class Rehearsal:
    """A run that has come to its first step."""

    config: TrainConfig
    data: TrainingData
    start: StartingPolicy
    plan: MemoryPlan
    out: str
    standing: Standing
    """What its directory is now."""

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return total_steps(self.config.train, len(self.data.rows))

    @property
    def epochs(self) -> float:
        """How often the whole run goes through its rows."""
        return self.steps * self.config.train.batch_size / len(self.data.rows)


def dry_run(
    config: TrainConfig, *, argv: Sequence[str], overrides: Sequence[str], output: OutputFormat
) -> int:
    """Check a run and show what it would do; returns 0, raises what the run would raise."""
    out = run_directory(config)
    found = standing(out, config)
    console = stderr_console()
    with (
        tempfile.TemporaryDirectory(prefix="alignctl-dry-run-") as scratch,
        open_run(Path(scratch) / "run", config, overrides, argv) as directory,
        open_panel(console, "alignctl train --dry-run", output=output) as panel,
    ):
        data = prepare_data(config, panel.note, panel.working)
        if output == "text":
            _show_data(console, data)
        refuse_too_large(config, data)
        start = starting_policy(config, data, directory, panel)
        plan = memory_plan(config, data, start.policy, directory)
        _open_models(Setup(config, data, start, directory, panel, StopFlag(), resumes=False))
    rehearsal = Rehearsal(config, data, start, plan, out, found)
    print_result(
        output,
        show=partial(_show_plan, console, rehearsal),
        document=partial(as_document, rehearsal),
        line=out,
        warnings=data.warnings,
    )
    return 0


def _open_models(setup: Setup) -> None:
    """What the algorithm needs beside its policy, without the work that grows with the rows."""
    config = setup.config
    match config.algo:
        case PpoConfig():
            # To measure the reward's scale, the model would have to answer prompts.
            raw = config.reward.model_copy(update={"normalise": False})
            open_task(replace(setup, config=config.model_copy(update={"reward": raw})))
        case SftConfig() | RewardModelConfig():
            open_task(setup)
        case algo:
            find_reference(algo.reference, config, setup.start, setup.data, setup.panel.note)


# --- what is shown -------------------------------------------------------------------------------------


def _show_data(console: Console, data: TrainingData) -> None:
    """The card, the first row with its loss mask, and what is odd."""
    print_card(console, data.card)
    control = tuple(special_tokens(data.tokenizer).values())
    print_row(console, data.rows[0], data.card, partial(decode, data.tokenizer), control)
    for warning in data.warnings:
        write_line(console, f"warning: {warning}", style="yellow")


def _show_plan(console: Console, run: Rehearsal) -> None:
    """The model, what the run would do, what it needs, and where it would write."""
    config = run.config
    evaluations = f"held-out figures every {config.eval.every} steps"
    checkpoints = f"a checkpoint every {config.checkpoint.every} steps ({config.checkpoint.keep} kept)"
    sections = {
        "model": model_lines(config, run.start),
        "plan": [
            steps_line(config, run.data, run.steps),
            f"epochs {run.epochs:.3g}, {evaluations}, {checkpoints}",
        ],
        "memory": memory_lines(run.plan),
        "writes": [f"{run.out}  ({STANDING[run.standing]})"],
        "dry run": ["nothing was written; the same command without --dry-run starts the run"],
    }
    print_entries(console, [entry for label, lines in sections.items() for entry in entries_of(label, lines)])


def as_document(run: Rehearsal) -> dict[str, Any]:
    """The same for programs."""
    config, policy, plan = run.config, run.start.policy, run.plan
    parameters = list(policy.model.parameters())
    return {
        "dry_run": True,
        "out": run.out,
        "standing": run.standing,
        "data": run.data.card.as_json(),
        "model": {
            "name": model_name(config),
            "parameters": sum(p.numel() for p in parameters),
            "trained": sum(p.numel() for p in parameters if p.requires_grad),
            "dtype": str(policy.compute_dtype).removeprefix("torch."),
            "device": policy.device.type,
            "layout": policy.layout,
        },
        "plan": {
            "algo": config.algo.name,
            "steps": run.steps,
            "batch_size": config.train.batch_size,
            "unit": run.data.unit,
            "epochs": run.epochs,
            "lr": learning_rate(config),
            "micro_tokens": plan.micro_tokens,
            "activation_checkpointing": plan.activation_checkpointing,
        },
        "memory": {
            "needed_bytes": plan.needed_bytes,
            "resident_bytes": plan.resident_bytes,
            "state_bytes": plan.state_bytes,
            "work_bytes": plan.work_bytes,
            "available_bytes": plan.available_bytes,
        },
        "warnings": list(run.data.warnings),
    }
