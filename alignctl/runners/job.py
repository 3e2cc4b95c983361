"""A job: what the training loop reads, made from a config and checked data, or from a checkpoint of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from alignctl.config import (
    LoraAdapter,
    SalsaPpoConfig,
    TrainConfig,
    learning_rate,
    model_name,
    reference_of,
    request_hash,
)
from alignctl.models.compiled import compile_layers
from alignctl.models.load import Start, load_start
from alignctl.models.memory import MemoryPlan, give_freed_memory_back
from alignctl.models.product_speed import slow_bfloat16
from alignctl.report.data_card import labelled, short_lines
from alignctl.report.terminal import Panel
from alignctl.runners.memory import memory_line, memory_plan, refuse_too_large
from alignctl.runners.preparation import StartingPolicy, policy_of, resolve_device, resolve_dtype
from alignctl.runners.references import named_reference
from alignctl.runners.tasks import open_task
from alignctl.runners.tasks.task import Setup, Task
from alignctl.runners.training_data import TrainingData
from alignctl.train.checkpoint import Loaded, load_newest, set_aside_newer
from alignctl.train.optimiser import restore_model, restore_optimiser
from alignctl.train.progress import Progress, from_state, refuse_changes
from alignctl.train.run_directory import RunDirectory
from alignctl.train.signals import StopFlag

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Everything the loop reads; only weights and optimiser change."""

    config: TrainConfig
    data: TrainingData
    start: StartingPolicy
    task: Task
    fingerprints: Mapping[str, str]
    plan: MemoryPlan
    steps: int
    directory: RunDirectory
    panel: Panel
    started: float
    """time.monotonic() when training began, moved back by the time that earlier processes trained."""

    def warn(self, text: str) -> None:
        """Say it now and keep it in run.json."""
        self.panel.warn(text)
        self.directory.warn(text)

    def trouble(self, text: str) -> None:
        """The same of what befell this process: a warning that the model's card leaves out."""
        self.warn(text)
        known = self.directory.record.get("troubles", [])
        self.directory.update(troubles=[*known, text])


def prepare_job(
    config: TrainConfig,
    data: TrainingData,
    directory: RunDirectory,
    steps: int,
    panel: Panel,
    stop: StopFlag,
) -> tuple[Job, Loaded | None]:
    """The job, and the newest good checkpoint of the same request where there is one to go on from."""
    refuse_too_large(config, data)
    start = starting_policy(config, data, directory, panel)
    plan = memory_plan(config, data, start.policy, directory)
    panel.plan(
        [
            *labelled("model", model_lines(config, start)),
            *labelled("data", short_lines(data.card)),
            *labelled("plan", [f"{steps_line(config, data, steps)}; {memory_line(plan)}"]),
        ]
    )
    loaded = load_newest(directory.checkpoints, request=request_hash(config))
    task = open_task(Setup(config, data, start, directory, panel, stop, resumes=loaded is not None))
    fingerprints = {**data.fingerprints, **task.fingerprints}
    if loaded:
        refuse_changes(loaded.state["fingerprints"], fingerprints)
    directory.update(fingerprints=fingerprints, data=data.card.as_json())
    job = Job(
        config=config,
        data=data,
        start=start,
        task=task,
        fingerprints=fingerprints,
        plan=plan,
        steps=steps,
        directory=directory,
        panel=panel,
        started=time.monotonic() - directory.record.get("train_seconds", 0.0),
    )
    for warning in data.warnings:
        job.warn(warning)
    slow = slow_bfloat16(start.policy.compute_dtype, start.policy.device, "train.dtype")
    if slow:
        job.trouble(slow)
    if plan.activation_checkpointing:
        start.policy.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    task.trained.train()
    if config.hardware.compile:
        panel.note("compiling the layers, which takes most of a minute")
        compile_layers(start.policy)
    return job, loaded


def starting_policy(
    config: TrainConfig, data: TrainingData, directory: RunDirectory, panel: Panel
) -> StartingPolicy:
    """The policy before its first step, on its device, in the compute type that the run began with."""
    give_freed_memory_back()
    device = resolve_device(config.hardware)
    decided = directory.record.get("decided", {})
    dtype = DTYPES[decided["dtype"]] if decided else resolve_dtype(config, device)
    if config.hardware.threads:
        torch.set_num_threads(config.hardware.threads)
    dropout = config.adapter.dropout if isinstance(config.adapter, LoraAdapter) else 0.0
    length = config.train.max_length
    start = _start(config, data, panel)
    return policy_of(start, dropout=dropout, max_length=length, device=device, dtype=dtype)


def _start(config: TrainConfig, data: TrainingData, panel: Panel) -> Start:
    """The weights that training starts from: the model, or the soup that salsa-ppo is measured against."""
    if isinstance(config.algo, SalsaPpoConfig) and config.algo.policy_init == "soup":
        soup = named_reference(config.algo.reference, config.seed, panel.note)
        assert soup is not None  # the config's own check
        return soup
    return load_start(data.source, config.adapter, seed=config.seed)


# --- in words ------------------------------------------------------------------------------------------


def model_lines(config: TrainConfig, start: StartingPolicy) -> list[str]:
    """The model, how much of it is trained and how, and a reference that is not the model itself."""
    model = start.policy.model
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    what = "full fine-tune" if trained == total else f"adapter of {trained / 1e6:.2f}M parameters"
    layout = {"shared": "prompts shared", "packed": "packed, prompts not shared", "padded": "padded"}
    reason = f" ({start.layout_reason})" if start.layout_reason else ""
    dtype = str(start.policy.compute_dtype).removeprefix("torch.")
    reference = reference_of(config.algo)
    soup = (
        [f"reference: soup of {' and '.join(reference.members)}"]
        if reference is not None and reference.kind == "soup"
        else []
    )
    return [
        f"{model_name(config)}, {total / 1e6:.1f}M parameters, {what}, {dtype} on "
        f"{start.policy.device}; {layout[start.policy.layout]}{reason}",
        *soup,
    ]


def steps_line(config: TrainConfig, data: TrainingData, steps: int) -> str:
    """How much is trained."""
    batch = f"{steps} steps of {config.train.batch_size} {data.unit}"
    return f"{config.algo.name}, {batch}, lr {learning_rate(config):g}"


# --- resume --------------------------------------------------------------------------------------------


def resume(job: Job, loaded: Loaded) -> Progress:
    """Put weights, moments and records back to a checkpoint; returns where it stood."""
    for reason in loaded.skipped:
        job.trouble(f"checkpoint not used: {reason}")
    set_aside_newer(job.directory.checkpoints, loaded.step)
    restore_model(job.task.trained, loaded.tensors("model"))
    restore_optimiser(job.task.optimiser, job.task.trained, loaded.tensors("optimizer"))
    job.directory.rewind(loaded.state["offsets"])
    job.directory.note_resume(loaded.step)
    job.panel.note(f"going on from step {loaded.step}")
    return from_state(loaded.state["progress"])
