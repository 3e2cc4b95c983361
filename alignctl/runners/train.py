"""`alignctl train`: from rows to a model on disk.

The order matters: the directory is locked first, rows are checked before a weight is loaded, and a checkpoint
is complete before anything relies on it. What a step computes is the task's business (runners/tasks); order,
records, checkpoints and signals are the same for every algorithm.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from alignctl.config import TrainConfig, learning_rate, request_hash, run_directory
from alignctl.data.bad_rows import BadRows
from alignctl.errors import AlignctlError
from alignctl.models.exhaustion import is_out_of_memory, memory_faults
from alignctl.models.memory import halved, peak_memory_gb
from alignctl.report.closing import Headline, Outcome, print_closing
from alignctl.report.console import ResultConsole, stderr_console
from alignctl.report.figures import Speed
from alignctl.report.model_card import CARD
from alignctl.report.output import OutputFormat, print_result
from alignctl.report.run_page import read_story, run_page
from alignctl.report.terminal import Panel, open_panel
from alignctl.report.watch_words import watch_words
from alignctl.runners.job import Job, prepare_job, resume
from alignctl.runners.lineage import TRAINED_ON
from alignctl.runners.model_cards import card_of_run
from alignctl.runners.part_times import PartTimes
from alignctl.runners.tasks.task import StepPlan
from alignctl.runners.training_data import TrainingData, list_bad_rows, prepare_data
from alignctl.runners.watching import look
from alignctl.runners.workload import longest_row
from alignctl.train.checkpoint import load_step, save_checkpoint
from alignctl.train.durable import encode, publish_directory, write_bytes
from alignctl.train.optimiser import restore_model, state_tensors
from alignctl.train.progress import Kept, Progress, headline
from alignctl.train.run_directory import RunDirectory, open_run
from alignctl.train.schedule import derived_seed, learning_rate_at, total_steps
from alignctl.train.signals import StopFlag, leave_if_stopped, stop_signals
from alignctl.train.step import StepOut
from alignctl.train.watch.anchor import ANCHOR

NON_FINITE_LIMIT = 3
LESS_MEMORY = (
    "try adapter=lora, train.dtype=bfloat16, a shorter train.max_length,",
    "or fewer and shorter answers where they are sampled: eval.max_new_tokens, algo.samples",
)
"""For what runs out outside a step, where the micro-batch has no say."""


def run(config: TrainConfig, *, argv: Sequence[str], overrides: Sequence[str], output: OutputFormat) -> int:
    """Train one model; returns 0, everything else is raised as an AlignctlError."""
    out = run_directory(config)
    run_opened = open_run(out, config, overrides, argv)
    with stop_signals() as stop, run_opened as directory, memory_faults(*LESS_MEMORY):
        with open_panel(stderr_console(), f"alignctl train  {out}", output=output) as panel:
            data = _checked_data(config, directory, panel)
            steps = total_steps(config.train, len(data.rows))
            panel.expect(steps)
            job, loaded = prepare_job(config, data, directory, steps, panel, stop)
            progress = resume(job, loaded) if loaded else _begin(job)
            progress = _train(job, progress, stop)
            kept = progress.kept(
                export_best=config.checkpoint.export == "best", alarm_decides=config.watch.decides
            )
            figures = headline(progress, kept)
            _export(job, progress, figures, kept)
        seconds = round(time.monotonic() - job.started, 1)
        status = "done" if progress.stopped is None else "stopped"
        directory.update(
            headline=figures,
            best_step=progress.best_step,
            kept={"step": kept.step, "why": kept.why},
            train_seconds=seconds,
            stopped=progress.stopped,
        )
        write_bytes(directory.path / "report.html", run_page(read_story(directory.path)).encode())
        directory.finish(status)
        record = directory.record
    outcome = Outcome(
        model_dir=f"{out}/model",
        exported_step=kept.step,
        why=kept.why,
        last_step=progress.step,
        seconds=seconds,
        chat=bool(data.tokenizer.chat_template),
        answers=config.algo.name != "reward",
        stopped=progress.stopped,
        watch=None if config.watch.action == "off" else watch_words(progress.verdict, config),
    )
    print_result(
        output,
        show=lambda: print_closing(ResultConsole(), figures, outcome),
        document=lambda: {
            "command": "train",
            "status": status,
            "out": out,
            "model": outcome.model_dir,
            "step": kept.step,
            "best_step": progress.best_step,
            "steps": progress.step,
            "stopped": progress.stopped,
            "watch": record.get("watch"),
            "headline": figures,
            "seconds": seconds,
            "warnings": record["warnings"],
        },
        line=outcome.model_dir,
    )
    return 0


def _checked_data(config: TrainConfig, directory: RunDirectory, panel: Panel) -> TrainingData:
    """All rows, checked; what is wrong with any of them goes to bad_rows.jsonl, dropped or not."""
    try:
        data = prepare_data(config, panel.note, panel.working)
    except BadRows as error:
        list_bad_rows(directory, error.rows)
        raise
    list_bad_rows(directory, data.bad)
    write_bytes(directory.path / TRAINED_ON, "".join(f"{key}\n" for key in data.trained_on).encode())
    return data


def _begin(job: Job) -> Progress:
    """Step 0: empty books and the first evaluation."""
    if job.directory.metrics.path.exists():
        job.directory.note_resume(0)
    job.directory.rewind({})
    return _evaluate(job, Progress())


def _train(job: Job, progress: Progress, stop: StopFlag) -> Progress:
    """Steps, evaluations and checkpoints until the last step; raises Interrupted after saving on a signal."""
    every, checkpoint = job.config.eval.every, job.config.checkpoint
    first = progress.step + 1 if progress.stopped is None else job.steps + 1
    for step in range(first, job.steps + 1):
        began = time.monotonic()
        job, out = _step_within_memory(job, step, progress)
        _record_step(job, step, out, time.monotonic() - began)
        progress = progress.stepped(step, applied=out.applied, carried=out.carried, stopped=out.stop)
        _heed(job, progress, out)
        last = step == job.steps or progress.stopped is not None
        if step % every == 0 or last:
            progress = _evaluate(job, progress)
            last = last or progress.stopped is not None
        if step % checkpoint.every == 0 or last or step in progress.protected or stop.received:
            _save(job, progress)
        leave_if_stopped(stop, f"saved at step {step}")
        if progress.stopped is not None:
            break
    return progress


def _step_within_memory(job: Job, step: int, progress: Progress) -> tuple[Job, StepOut]:
    """One step; out of memory halves the micro-batch, never the step's batch, and says so."""
    peak, settings = learning_rate(job.config), job.config.train
    lr = learning_rate_at(step, peak=peak, steps=job.steps, settings=settings)
    while True:
        # A repeated step draws what a resumed one would.
        torch.manual_seed(derived_seed("step", job.config.seed, step))
        try:
            plan = StepPlan(step, lr, job.plan.micro_tokens, progress.carried, progress.anchor)
            out = job.task.step(plan)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            longest = longest_row(job.config, job.data, job.start.policy.layout)
            job = replace(job, plan=halved(job.plan, longest_row=longest))
            smaller = job.plan.micro_tokens
            job.directory.update(decided={**job.directory.record["decided"], "micro_tokens": smaller})
            job.trouble(f"out of memory at step {step}: going on with hardware.micro_tokens={smaller}")
        else:
            adapts = job.config.watch.action == "adapt"
            return job, replace(out, metrics={**out.metrics, ANCHOR: progress.anchor}) if adapts else out


def _record_step(job: Job, step: int, out: StepOut, seconds: float) -> None:
    examples, unit = job.task.examples(step), job.task.unit
    line = {
        "step": step,
        "split": "train",
        **out.metrics,
        "epoch": step * len(examples) / len(job.data.rows),
        "tokens": out.tokens,
        "truncated": sum(example.truncated for example in examples) / len(examples),
    }
    job.directory.metrics.append(line if out.applied else {**line, "skipped": True})
    memory = peak_memory_gb(job.start.policy.device)
    per_second = len(examples) / seconds
    job.directory.timing.append(
        {
            "step": step,
            "split": "train",
            "seconds": round(seconds, 4),
            f"{unit}_per_second": round(per_second, 3),
            "tokens_per_second": round(out.tokens / seconds, 1),
            "memory_gb": round(memory, 3),
        }
    )
    job.panel.train_step(step, out.metrics, Speed(per_second, unit), memory)


def _heed(job: Job, progress: Progress, out: StepOut) -> None:
    """Say what was wrong with a step; raises after too many that changed nothing."""
    for alarm in out.alarms:
        if alarm not in job.directory.record["warnings"]:
            job.warn(alarm)
    if progress.stopped is not None:
        job.warn(f"stopped after step {progress.step}: {progress.stopped}")
    if out.applied:
        return
    step = progress.step
    ids = ", ".join(example.id for example in job.task.examples(step))
    job.warn(f"step {step} was not finite and changed nothing; its {job.task.unit}: {ids}")
    if progress.skipped_in_row >= NON_FINITE_LIMIT:
        raise AlignctlError(
            f"loss or gradient was not finite at {NON_FINITE_LIMIT} steps in a row, the last being {step}",
            "a lower train.lr or train.dtype=float32 is the usual cure",
            f"the {job.task.unit} are named in {job.directory.path / 'run.json'}",
        )


def _evaluate(job: Job, progress: Progress) -> Progress:
    """Held-out figures of the present weights, into metrics.jsonl and the books."""
    times = PartTimes(job.panel.working)
    found = job.task.evaluate(progress.step, times)
    if found is None:
        return progress
    job.directory.timing.append({"step": progress.step, "split": "eval", **times.as_json()})
    if found.metrics:
        job.directory.metrics.append({"step": progress.step, "split": "eval", **found.metrics})
        job.panel.evaluated(progress.step, found.metrics)
    figures = {name: estimate.as_json() for name, estimate in found.estimates.items()}
    return look(job, progress, figures, found.metrics.get("loss"))


def _save(job: Job, progress: Progress) -> None:
    offsets = job.directory.offsets()
    save_checkpoint(
        job.directory.checkpoints,
        progress.step,
        state_tensors(job.task.trained, job.task.optimiser),
        {"progress": progress.as_state(), "offsets": offsets, "fingerprints": dict(job.fingerprints)},
        request=request_hash(job.config),
        keep=job.config.checkpoint.keep,
        protect=progress.protected,
    )
    job.directory.update(train_seconds=round(time.monotonic() - job.started, 1))


# --- after the last step -------------------------------------------------------------------------------


def _export(job: Job, progress: Progress, figures: Headline, kept: Kept) -> None:
    """Write model/ from the kept checkpoint, its card with it: complete or absent."""
    if kept.step != progress.step:
        found = load_step(job.directory.checkpoints, kept.step, request=request_hash(job.config))
        restore_model(job.task.trained, found.tensors("model"))

    def write(model: Path) -> None:
        job.task.export(model)
        # PEFT puts a form to be filled in where the card belongs.
        (model / CARD).write_bytes(encode(card_of_run(job, progress, figures, kept)))

    publish_directory(write, job.directory.path / "model")
