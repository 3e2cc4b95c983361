"""What a person names as a model, found: a run, a checkpoint of a run, a soup, a directory, a hub id.

RUN@STEP is written out once, as a model directory in the cache, so that everything which takes a model takes
it too. What a run or a soup knows of itself (its reference, its beta, the prompts it was trained on) comes
along as `Origin`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignctl.config import (
    ModelConfig,
    PpoConfig,
    PretrainedModel,
    RewardModelConfig,
    TrainConfig,
    request_hash,
)
from alignctl.errors import RunDirectoryError, SetupError, storage_faults
from alignctl.models.load import (
    Source,
    Start,
    load_start,
    load_tokenizer,
    locate,
    locate_path,
    name_base,
    order_targets,
)
from alignctl.models.machine import cache_root
from alignctl.models.pinned import pinned_directory
from alignctl.runners.lineage import Lineage, lineage_of, read_config, trained_on, understand
from alignctl.train.checkpoint import Loaded, load_step, step_name
from alignctl.train.durable import publish_directory
from alignctl.train.optimiser import restore_model

Say = Callable[[str], None]
PINNED = "smollm2-135m"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model comes from, as far as its directory says; all empty for a foreign model."""

    run: Path | None = None
    step: int | None = None
    reference: Source | None = None
    """The model its rewards are measured against."""
    beta: float | None = None
    trained_on: frozenset[str] = frozenset()
    """Keys of the prompts it was trained on."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model as it was named, and where its files are."""

    name: str
    source: Source
    origin: Origin


def open_checkpoint(word: str, say: Say) -> Checkpoint:
    """Find a model by what a person typed; loads no weight unless RUN@STEP has to be written out.

    Raises SetupError when there is no such model, RunDirectoryError for a run or step that cannot be used.
    """
    source, named = locate_path(model_path(word, say)), understand(word)
    lineage = lineage_of(named)
    if lineage is None:
        return Checkpoint(word, source, Origin(trained_on=trained_on(named)))
    reference = _own_reference(lineage, say)
    origin = Origin(named.run, named.step, reference, lineage.beta, trained_on(named))
    return Checkpoint(word, source, origin)


def model_path(word: str, say: Say) -> str:
    """A path or hub id that every loader takes: RUN@STEP and the pinned model become directories."""
    if word == PINNED:
        return str(pinned_directory(say))
    named = understand(word)
    return word if named.step is None else str(_written_out(named.path, named.step, say))


def write_model(start: Start, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write the model as it is now as what plain transformers (or PEFT) opens."""
    if isinstance(start.model, PeftModel):
        order_targets(start.model)
    start.model.save_pretrained(str(directory))
    if isinstance(start.model, PeftModel):
        name_base(start.base, directory)
    tokenizer.save_pretrained(str(directory))


def locate_model(config: ModelConfig, say: Say) -> Source:
    """A model option's files; its path may name whatever a person may type."""
    if isinstance(config, PretrainedModel):
        return locate_path(model_path(config.path, say), config.revision)
    return locate(config, say)


def _written_out(run: Path, step: int, say: Say) -> Path:
    """The checkpoint as a model directory in the cache."""
    config = read_config(run)
    checkpoint = run / "checkpoints" / step_name(step)
    if not checkpoint.is_dir():
        kept = sorted(int(path.name.removeprefix("step-")) for path in checkpoint.parent.glob("step-*"))
        raise RunDirectoryError(
            f"{run} keeps no checkpoint of step {step}",
            f"it keeps   {'  '.join(map(str, kept)) or 'none'}        (more: checkpoint.keep when training)",
        )
    loaded = load_step(checkpoint.parent, step, request=request_hash(config))
    seal = hashlib.sha256((checkpoint / "MANIFEST.json").read_bytes()).hexdigest()[:16]
    target = cache_root() / "exports" / f"{run.resolve().name}-{step_name(step)}-{seal}"
    if not target.is_dir():
        say(f"writing step {step} of {run} as a model, once, to {target}")
        with storage_faults(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        source = locate_model(config.model, say)
        start = load_start(source, config.adapter, seed=config.seed)
        restore_model(start.model, _policy_tensors(config, loaded))
        publish_directory(partial(write_model, start, load_tokenizer(source)), target)
    return target


def _policy_tensors(config: TrainConfig, loaded: Loaded) -> dict[str, Tensor]:
    """The policy among the tensors of a checkpoint: ppo keeps it beside its critic."""
    if isinstance(config.algo, RewardModelConfig):
        raise SetupError(
            f"{loaded.path} holds a reward model, which is written out at the end of its run alone",
            "name the run without a step; checkpoint.export=last keeps its last step",
        )
    tensors = loaded.tensors("model")
    if not isinstance(config.algo, PpoConfig):
        return tensors
    prefix = "policy."
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}


def _own_reference(lineage: Lineage, say: Say) -> Source | None:
    """The run's reference; None when it was a soup in memory or lies no longer where it was."""
    wanted = lineage.reference
    if wanted.kind == "soup":
        return None
    with suppress(SetupError):
        if wanted.path is not None:
            return locate_path(model_path(wanted.path, say))
        start = locate_model(lineage.model, say)
        return Source(start.base, start.revision) if wanted.kind == "adapter_off" else start
    return None
