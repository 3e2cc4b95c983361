"""Soups written in one line: what the tests of their weights and of their records share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from alignctl.config.soup import DareSoup, SoupMethod, TaskArithmeticSoup, TiesSoup, UniformSoup
from alignctl.models.soup.members import open_member
from alignctl.models.soup.merge import write_soup

UNIFORM = UniformSoup(method="uniform")


def based(kind: str, **settings: Any) -> SoupMethod:
    classes = {"task-arithmetic": TaskArithmeticSoup, "ties": TiesSoup, "dare": DareSoup}
    return classes[kind].model_validate(
        {"method": kind, "base": "x", "weights": None, "lambda": 1.0} | settings
    )


def held(directory: Path) -> dict[str, Tensor]:
    return {n: t for file in sorted(directory.glob("*.safetensors")) for n, t in load_file(file).items()}


def soup(out: Path, directories: list[Path], method: SoupMethod = UNIFORM, **settings: Any):
    base = settings.pop("base", None)
    opened = None if base is None else open_member(str(base))
    return write_soup([open_member(str(d)) for d in directories], method, out, base=opened, **settings)


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and torch.equal(a[n].view(torch.uint8), b[n].view(torch.uint8)) for n in a
    )
