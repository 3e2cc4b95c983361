"""A model ready to run: device, compute type, layout, and the start of training."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from alignctl.config import AdapterConfig, HardwareConfig, LoraAdapter, TrainConfig
from alignctl.errors import SetupError
from alignctl.models.gate import choose_layout
from alignctl.models.load import Source, Start, load_start
from alignctl.models.policy import Policy
from alignctl.models.precision import settle_precision

SCORING_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens per forward without gradients: enough to keep the device busy, little enough to fit anywhere.

On a CPU what a layer writes should stay in its cache: of 512 to 8192 tokens, 2048 were the fastest on SmolLM2
(float32, two cores of a Xeon, 60 HH pairs: 14.1 s against 20.3 s with 8192).
"""


def resolve_device(hardware: HardwareConfig) -> torch.device:
    """`hardware.device`, auto meaning CUDA where there is one. Raises SetupError for a GPU that is absent."""
    wanted = hardware.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SetupError(
            "hardware.device=cuda, but torch sees no GPU", "hardware=cpu, or install a CUDA build of torch"
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """`train.dtype`, auto meaning bfloat16 on CUDA and float32 elsewhere."""
    if config.train.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if config.train.dtype == "bfloat16" else torch.float32


@dataclass(frozen=True, slots=True, eq=False)
class StartingPolicy:
    """The policy before its first step."""

    policy: Policy
    loaded: Start
    layout_reason: str
    """Why the layout is not the fastest; empty when it is."""

    @property
    def fingerprint(self) -> str:
        """What the model hashed to before anything was attached."""
        return self.loaded.fingerprint


def prepare_policy(
    source: Source,
    adapter: AdapterConfig,
    *,
    seed: int,
    max_length: int,
    device: torch.device,
    dtype: torch.dtype,
) -> StartingPolicy:
    """Load a model, attach the adapter, choose the layout, move it to the device."""
    start = load_start(source, adapter, seed=seed)
    dropout = adapter.dropout if isinstance(adapter, LoraAdapter) else 0.0
    return policy_of(start, dropout=dropout, max_length=max_length, device=device, dtype=dtype)


def policy_of(
    start: Start, *, dropout: float, max_length: int, device: torch.device, dtype: torch.dtype
) -> StartingPolicy:
    """A loaded model with its layout chosen, on the device; `dropout` is its adapter's."""
    model = start.model.to(device)  # type: ignore[arg-type]
    gate = choose_layout(model, max_length=max_length, adapter_dropout=dropout, device=device)
    settle_precision(model, dtype)
    return StartingPolicy(Policy(model, gate.layout, dtype, device), start, gate.reason)


def scoring_tokens(device: torch.device, hardware: HardwareConfig | None = None) -> int:
    """Tokens per forward where nothing is trained: `hardware.micro_tokens`, else what suits the device."""
    if hardware is None or hardware.micro_tokens == "auto":
        return SCORING_TOKENS[device.type]
    return hardware.micro_tokens
