"""What adding an algorithm takes: a config class, its file, its option, and a place in `pair_loss`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import alignctl.algos
from alignctl.algos import pair_loss
from alignctl.cli.compose import load
from alignctl.cli.options import conf_directory, open_conf
from alignctl.config import AlgoConfig, HypoConfig, PairwiseConfig, Settings
from alignctl.records import PairLogps

UNION: tuple[type[Settings], ...] = get_args(get_args(AlgoConfig)[0])
PAIRWISE: tuple[type[Settings], ...] = get_args(PairwiseConfig)
OPTIONS = sorted(file.stem for file in (conf_directory() / "algo").glob("*.yaml"))


def name_of(config_class: type[Settings]) -> str:
    return get_args(config_class.model_fields["name"].annotation)[0]


def algo(option: str) -> Any:
    return load(open_conf(None), [f"algo={option}"]).algo


def test_every_member_of_the_union_has_an_option_and_every_option_a_member() -> None:
    assert sorted(map(name_of, UNION)) == OPTIONS


PAIR_OPTIONS = [name_of(member) for member in PAIRWISE]


@pytest.mark.parametrize("option", PAIR_OPTIONS)
def test_the_option_leads_to_the_loss_in_the_file_of_its_name(option: str) -> None:
    config = algo(option)
    assert type(config) in UNION
    loss = pair_loss(config)
    assert isinstance(loss, partial)
    assert loss.func.__module__ == f"alignctl.algos.{option}"
    assert loss.keywords == {"config": config}
    assert (Path(alignctl.algos.__file__).parent / f"{option}.py").is_file()


def test_hypo_has_the_loss_of_dpo() -> None:
    config = algo("hypo")
    assert type(config) is HypoConfig
    loss = pair_loss(config)
    assert isinstance(loss, partial)
    assert loss.func.__module__ == "alignctl.algos.dpo"


@pytest.mark.parametrize("option", [*PAIR_OPTIONS, "hypo"])
def test_the_loss_of_every_option_pulls_the_right_way(option: str) -> None:
    chosen = torch.tensor([-5.0, -6.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-5.5, -5.0], dtype=torch.float64, requires_grad=True)
    pairs = PairLogps(
        chosen=chosen,
        rejected=rejected,
        ref_chosen=torch.tensor([-5.0, -5.5], dtype=torch.float64),
        ref_rejected=torch.tensor([-5.0, -5.5], dtype=torch.float64),
        chosen_tokens=torch.tensor([4, 3]),
        rejected_tokens=torch.tensor([5, 5]),
        p_chosen=torch.ones(2, dtype=torch.float64),
    )
    losses = pair_loss(algo(option))(pairs).losses
    assert losses.shape == (2,)
    losses.sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (chosen.grad < 0).all(), "a likelier chosen answer costs less"
    assert (rejected.grad > 0).all(), "a likelier rejected answer costs more"
