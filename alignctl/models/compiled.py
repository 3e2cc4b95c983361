"""Decoder layers through torch.compile, one layer's code for all of them, in training passes alone.

What is left between the matrix products of a step is elementwise work that a compiler fuses: on SmolLM2 in
bfloat16, two cores, 1.60 ms a token against 1.87 in one comparison and no difference in another, after 40 s
of compiling. Attention over trees stays as it is: its rows differ in length from step to step, and each
length would be compiled anew. Scoring and sampling run the layers uncompiled; they are other code to the
compiler, and short.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from alignctl.errors import SetupError
from alignctl.models import attention
from alignctl.models.gate import PROOF
from alignctl.models.machine import compiled_code
from alignctl.models.packing import pack
from alignctl.models.policy import Policy, branch_logps

Forward = Callable[..., Any]


def compile_layers(policy: Policy) -> None:
    """Compile every decoder layer of the policy and run a few tokens forward and backward.

    Results differ from the uncompiled ones by rounding. Raises SetupError where torch cannot compile: no C++
    compiler, or a layer that it does not understand.
    """
    # Where the next run finds the code again: 8 s instead of 40 on the machine above.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled_code()))
    AttentionInterface.register(attention.NAME, torch.compiler.disable(attention.tree_attention))
    compiled: dict[type[nn.Module], Forward] = {}
    for layer in policy.causal_lm.get_decoder().modules():
        if isinstance(layer, GradientCheckpointingLayer):
            kind = type(layer)
            if kind not in compiled:
                compiled[kind] = _training_only(kind.forward)
            layer.forward = MethodType(compiled[kind], layer)  # type: ignore[method-assign]
    try:
        with torch.random.fork_rng():  # adapter dropout draws
            branch_logps(policy, pack(PROOF, policy.layout).to(policy.device)).sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever the compiler or the tools it calls raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise SetupError(
            f"torch cannot compile this model here ({reason})",
            "hardware.compile=false; on a CPU compiling takes a C++ compiler and Python's headers",
        ) from error
    finally:
        policy.model.zero_grad(set_to_none=True)


def _training_only(forward: Forward) -> Forward:
    compiled = torch.compile(forward, dynamic=True)

    def run(layer: nn.Module, *inputs: Any, **named: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else forward)(layer, *inputs, **named)

    return run
