"""Compiled layers: the same gradients; scoring and sampling run as they did."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from alignctl.models.compiled import compile_layers
from alignctl.models.gate import choose_layout
from alignctl.models.packing import pack
from alignctl.models.policy import Policy, branch_logps

TREES = [(12, 5, 9), (20, 8, 2), (3, 4, 6)]
CPU = torch.device("cpu")
COMPILER = next(filter(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++")), None)


def gradients(policy, rows):
    policy.model.zero_grad()
    logps = branch_logps(policy, pack(rows, policy.layout))
    (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
    return logps.detach(), {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.requires_grad}


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="torch.compile takes a C++ compiler on a CPU")
@pytest.mark.parametrize(
    "kind",
    [
        "full",
        pytest.param("lora", marks=pytest.mark.long),
        pytest.param("checkpointed", marks=pytest.mark.long),
    ],
)
def test_gradients_are_those_of_the_uncompiled_layers(tiny, make_rows, kind):
    model, rows = tiny(dtype=torch.float32), make_rows(TREES)
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    layout = choose_layout(model, max_length=64, adapter_dropout=0.0, device=CPU).layout
    policy = Policy(model.train(), layout, torch.float32, CPU)
    expected_logps, expected = gradients(policy, rows)
    with torch.no_grad():
        scored = branch_logps(policy, pack(rows, layout))
    if kind == "checkpointed":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    compile_layers(policy)
    assert all(parameter.grad is None for parameter in model.parameters())
    logps, found = gradients(policy, rows)
    assert torch.allclose(logps, expected_logps, rtol=1e-5)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert float((found[name] - grad).norm() / grad.norm()) < 1e-5, name
    with torch.no_grad():
        assert torch.equal(branch_logps(policy, pack(rows, layout)), scored)


@pytest.mark.long
def test_without_a_compiler_the_answer_is_two_lines(tmp_path: Path):
    words = ["model=tiny", "dataset=demo", "train.steps=1", "hardware.compile=true", f"out={tmp_path}/run"]
    environment = os.environ | {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    ended = subprocess.run(
        [sys.executable, "-m", "alignctl", "train", *words], env=environment, capture_output=True, text=True
    )
    error = [line for line in ended.stderr.splitlines() if line.strip()][-2:]
    assert ended.returncode == 3, ended.stderr
    assert "torch cannot compile this model here" in error[0]
    assert "hardware.compile=false" in error[1]
