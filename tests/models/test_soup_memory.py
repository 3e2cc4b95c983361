"""Peak memory of a soup depends neither on the size of the model nor on that of its largest tensor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alignctl.models.soup.writer import Entry, begin_shard

STATUS = Path("/proc/self/status")
CHILD = """
import sys
from pathlib import Path
from alignctl.config.soup import SlerpSoup, UniformSoup
from alignctl.models.soup.members import open_member
from alignctl.models.soup.merge import write_soup

method = SlerpSoup(method="slerp", t=0.5) if sys.argv[2] == "slerp" else UniformSoup(method="uniform")
members = [open_member(f"{sys.argv[1]}/{name}") for name in "ab"]
write_soup(members, method, Path(sys.argv[1]) / "soup", dtype="bfloat16", shard_bytes=10**8)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
MEGA = 1 << 20


def peak_mib(directory: Path, tensors: int, megabytes: int, method: str = "uniform") -> float:
    """Peak memory of a process that merges two models of zeros, whose files take no room on the disk."""
    directory.mkdir()
    for name in "ab":
        (directory / name).mkdir()
        (directory / name / "config.json").write_text(json.dumps({"model_type": "made-up"}))
        shape = (megabytes * MEGA // 4,)
        entries = [Entry(f"model.layers.{n}.weight", torch.float32, shape) for n in range(tensors)]
        begin_shard(directory / name / "model.safetensors", entries)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(directory), method], capture_output=True, text=True, check=True
    )
    return int(done.stdout) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="reads peak memory from /proc")
def test_peak_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    small = peak_mib(tmp_path / "small", 4, 8)
    large = peak_mib(tmp_path / "large", 64, 8)
    assert large - small < 48, "of 1 GiB read and 0.25 GiB written"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not STATUS.exists(), reason="reads peak memory from /proc")
@pytest.mark.parametrize("method", ["uniform", "slerp"])
def test_peak_memory_does_not_grow_with_the_largest_tensor(tmp_path: Path, method: str) -> None:
    small = peak_mib(tmp_path / "small", 8, 8, method)
    large = peak_mib(tmp_path / "large", 1, 256, method)
    assert large - small < 48, "of two tensors of 256 MiB"
