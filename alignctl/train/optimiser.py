"""AdamW and the tensors a checkpoint keeps: what is trained, and the optimiser's moments, by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from alignctl.errors import RunDirectoryError

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are trained, tied ones once; all of them for full fine-tuning, else the adapter's."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def build_optimiser(model: nn.Module, *, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW; the learning rate is set at every step."""
    return torch.optim.AdamW(
        trained_parameters(model).values(), lr=0.0, weight_decay=weight_decay, fused=True
    )


@torch.no_grad()
def make_moments(optimiser: torch.optim.Optimizer) -> None:
    """Give every parameter that has a gradient its moments, as AdamW would at its first step.

    AdamW makes them one by one while it already counts the step: where memory runs out among them, a
    repeated step would begin from other moments. Made here, before anything moves, it begins from the same.
    """
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and parameter not in optimiser.state:
                optimiser.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }


def state_tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """What `save_checkpoint` writes: file stem -> name -> tensor."""
    parameters = trained_parameters(model)
    moments = {
        f"{name}.{moment}": optimiser.state[parameter][moment]
        for name, parameter in parameters.items()
        if parameter in optimiser.state
        for moment in MOMENTS
    }
    return {"model": {name: p.detach() for name, p in parameters.items()}, "optimizer": moments}


@torch.no_grad()
def restore_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy saved parameters back. Raises RunDirectoryError when names or shapes are another model's."""
    parameters = trained_parameters(model)
    if {n: p.shape for n, p in parameters.items()} != {n: t.shape for n, t in tensors.items()}:
        raise RunDirectoryError(
            "the checkpoint's tensors are not those of this model",
            "the model directory has changed since the run began; start over with another out=DIR",
        )
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def restore_optimiser(
    optimiser: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Put saved moments back, bit for bit, on the parameters' devices; the step count stays a host float."""
    for name, parameter in trained_parameters(model).items():
        if f"{name}.step" in tensors:
            optimiser.state[parameter] = {
                moment: tensors[f"{name}.{moment}"].to(parameter.device) for moment in MOMENTS
            }
