"""What a checkpoint keeps of model and optimiser, and that it comes back bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from alignctl.config import TinyModel
from alignctl.errors import RunDirectoryError
from alignctl.models.tiny import tiny_model
from alignctl.train.optimiser import (
    MOMENTS,
    build_optimiser,
    make_moments,
    restore_model,
    restore_optimiser,
    state_tensors,
    trained_parameters,
)

IDS = torch.tensor([[5, 9, 3, 14, 7, 8, 4, 11, 2]])


def new_model(seed: int = 0) -> LlamaForCausalLM:
    return tiny_model(TinyModel(kind="tiny", name="tiny", seed=seed, layers=2, hidden=32, lr=1e-3))


def new_adapter(seed: int = 0) -> PeftModel:
    torch.manual_seed(seed)
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules="all-linear")
    return get_peft_model(new_model(), lora)  # type: ignore[arg-type,return-value]


def train(model: nn.Module, optimiser: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimiser.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimiser.param_groups[0]["lr"] = 1e-2
        optimiser.step()


def through_files(tensors: dict[str, dict[str, Tensor]], directory: Path) -> dict[str, dict[str, Tensor]]:
    for stem, group in tensors.items():
        save_file(
            {name: tensor.contiguous() for name, tensor in group.items()}, directory / f"{stem}.safetensors"
        )
    return {stem: load_file(directory / f"{stem}.safetensors") for stem in tensors}


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


@pytest.mark.parametrize("make", [new_model, new_adapter], ids=["full", "lora"])
def test_a_restored_model_goes_on_as_if_it_had_never_stopped(make, tmp_path: Path) -> None:
    model = make()
    optimiser = build_optimiser(model, weight_decay=0.1)
    train(model, optimiser, 3)
    saved = through_files(state_tensors(model, optimiser), tmp_path)

    other = make(seed=1) if make is new_model else make()
    other_optimiser = build_optimiser(other, weight_decay=0.1)
    restore_model(other, saved["model"])
    restore_optimiser(other_optimiser, other, saved["optimizer"])
    for stem, group in state_tensors(other, other_optimiser).items():
        assert same_bits(group, saved[stem])

    train(model, optimiser, 2)
    train(other, other_optimiser, 2)
    assert same_bits(dict(model.named_parameters()), dict(other.named_parameters()))
    assert same_bits(
        state_tensors(model, optimiser)["optimizer"], state_tensors(other, other_optimiser)["optimizer"]
    )


def test_every_trained_parameter_has_its_three_moments_by_name() -> None:
    model = new_model()
    optimiser = build_optimiser(model, weight_decay=0.0)
    assert state_tensors(model, optimiser)["optimizer"] == {}, "nothing before the first step"
    train(model, optimiser, 2)
    tensors = state_tensors(model, optimiser)
    assert set(tensors["optimizer"]) == {f"{name}.{part}" for name in tensors["model"] for part in MOMENTS}
    assert {float(v) for name, v in tensors["optimizer"].items() if name.endswith(".step")} == {2.0}


def test_tied_weights_are_kept_once_and_stay_tied() -> None:
    model = new_model()
    saved = state_tensors(model, build_optimiser(model, weight_decay=0.0))["model"]
    assert "lm_head.weight" in model.state_dict()
    assert "lm_head.weight" not in saved
    assert "model.embed_tokens.weight" in saved
    other = new_model(seed=1)
    restore_model(other, {name: tensor.clone() for name, tensor in saved.items()})
    assert other.lm_head.weight is other.get_input_embeddings().weight
    assert torch.equal(other.state_dict()["lm_head.weight"], model.state_dict()["lm_head.weight"])


def test_an_adapter_alone_is_kept_and_its_base_does_not_move() -> None:
    model = new_adapter()
    base = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" not in n}
    optimiser = build_optimiser(model, weight_decay=0.1)
    train(model, optimiser, 2)
    tensors = state_tensors(model, optimiser)
    assert all("lora_" in name for group in tensors.values() for name in group)
    # Seven linear layers in each of two blocks, A and B for each.
    assert len(tensors["model"]) == 2 * 7 * 2
    assert set(tensors["model"]) == set(trained_parameters(model))
    assert same_bits(base, {n: p.detach() for n, p in model.named_parameters() if "lora_" not in n})
    size, whole = (
        sum(t.numel() for t in part.values()) for part in (tensors["model"], new_model().state_dict())
    )
    assert size < whole / 3


def missing(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(list(tensors.items())[1:])


def extra(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "model.layers.2.mlp.up_proj.weight": torch.zeros(64, 32)}


def wrong_shape(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "model.norm.weight": torch.ones(16)}


def broadcastable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "model.norm.weight": torch.ones(1)}


@pytest.mark.parametrize("spoil", [missing, extra, wrong_shape, broadcastable])
def test_tensors_of_another_model_are_refused_before_anything_is_copied(spoil) -> None:
    saved = {name: p.detach().clone() for name, p in trained_parameters(new_model(seed=1)).items()}
    model = new_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(RunDirectoryError, match="not those of this model"):
        restore_model(model, spoil(saved))
    assert same_bits(before, {name: p.detach() for name, p in model.named_parameters()})


def test_an_adapter_checkpoint_is_not_taken_for_a_whole_model() -> None:
    adapter = state_tensors(new_adapter(), build_optimiser(new_adapter(), weight_decay=0.0))["model"]
    with pytest.raises(RunDirectoryError):
        restore_model(new_model(), adapter)


def test_the_weight_decay_reaches_the_optimiser_and_the_rate_waits_for_the_step() -> None:
    (group,) = build_optimiser(new_model(), weight_decay=0.25).param_groups
    assert (group["weight_decay"], group["lr"]) == (0.25, 0.0)


def test_moments_made_beforehand_are_those_that_adamw_makes() -> None:
    early, late = new_model(), new_model()
    optimisers = [build_optimiser(model, weight_decay=0.1) for model in (early, late)]
    early(input_ids=IDS, labels=IDS).loss.backward()
    frozen = next(early.parameters())
    frozen.grad = None
    make_moments(optimisers[0])
    assert frozen not in optimisers[0].state
    train(early, optimisers[0], 1)
    train(late, optimisers[1], 1)
    for stem, group in state_tensors(late, optimisers[1]).items():
        assert same_bits(state_tensors(early, optimisers[0])[stem], group)
    train(late, optimisers[1], 1)
    moved = state_tensors(late, optimisers[1])["optimizer"]
    make_moments(optimisers[1])
    assert same_bits(state_tensors(late, optimisers[1])["optimizer"], moved)
