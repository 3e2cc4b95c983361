"""Fifty steps of every algorithm in float64, step by step the losses that are kept in tests/golden/losses.

`ALIGNCTL_GOLDEN=write pytest FILE` writes them anew; the commit that changes one says why. The tasks are
those of `alignctl train`, made from words as typed; only the model is made float64 before it is handed to
them. Nothing may be left in float32 whose last bit belongs to the processor: rotary angles are float64 too,
and weights are drawn by numpy, since torch draws other last bits with other instructions. With those two left
as they are, AVX and plain instructions (ATEN_CPU_CAPABILITY=default) ended up to 20 % apart; so they agree to
14 digits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import TinyModel, TrainConfig, learning_rate
from alignctl.models.load import load_start
from alignctl.models.policy import causal_lm
from alignctl.models.tiny import tiny_directory
from alignctl.report.terminal import open_panel
from alignctl.runners.preparation import policy_of
from alignctl.runners.tasks import open_task
from alignctl.runners.tasks.ppo import PpoTask
from alignctl.runners.tasks.reward import RewardTask
from alignctl.runners.tasks.task import Setup, StepPlan, Task
from alignctl.runners.training_data import prepare_data
from alignctl.train.run_directory import open_run
from alignctl.train.schedule import derived_seed, learning_rate_at
from alignctl.train.signals import StopFlag

GOLDEN = Path(__file__).parents[1] / "golden" / "losses"
STEPS = 50
KEPT = ("loss", "grad_norm", "kl/sequence", "score/mean", "loss/value")
golden_value = partial(pytest.approx, rel=1e-7, abs=1e-9)
ONLINE = ("hypo", "ppo", "salsa-ppo")
SAMPLED = ("algo.max_new_tokens=6",)
LETTERS = ("reward=pattern", "reward.pattern=[aeiou]", "algo.missing_end_score=null", *SAMPLED)
RUNS = {
    "dpo": ("algo=dpo",),
    "ipo": ("algo=ipo",),
    "hinge": ("algo=hinge",),
    "slic": ("algo=slic",),
    "sft": ("algo=sft",),
    "reward": ("algo=reward",),
    "hypo": ("algo=hypo", "algo.prompts_per_step=2", "algo.lambda=0.1", *SAMPLED),
    "ppo": ("algo=ppo", "algo.samples=2", "algo.kl_target=0.5", *LETTERS),
    "salsa-ppo": ("algo=salsa-ppo", "algo.samples=2", "algo.critic=trunk", *LETTERS),
}


def rows() -> list[dict[str, str | float]]:
    """Twelve pairs of unequal lengths, some with a soft label or a weight."""
    return [
        {
            "prompt": "say " + "abcdefghijkl"[place] * (1 + place % 5),
            "chosen": "yes " * (1 + place % 3),
            "rejected": "no" + "!" * (place % 4),
            "p_chosen": (1.0, 0.9, 1.0, 0.75)[place % 4],
            "weight": (1.0, 1.0, 0.5)[place % 3],
        }
        for place in range(12)
    ]


@pytest.fixture
def words(tmp_path: Path, cache: Path) -> Sequence[str]:
    """What every run here is typed with; the tiny model has its drawn weights."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    drawn_model(0)
    small = ("model.hidden=32", "train.batch_size=4", "train.lr=1e-2", f"train.steps={STEPS}")
    return ("model=tiny", f"dataset={path}", "dataset.eval_size=0", "watch.action=off", *small)


def drawn_model(seed: int) -> str:
    """The directory of `model=tiny model.hidden=32 model.seed=SEED`, its matrices drawn anew."""
    config = TinyModel(kind="tiny", name="tiny", seed=seed, layers=2, hidden=32, lr=1e-3)
    file = tiny_directory(config) / "model.safetensors"
    random = np.random.default_rng(seed)
    tensors = {
        name: tensor if tensor.dim() == 1 else torch.from_numpy(0.02 * random.standard_normal(tensor.shape))
        for name, tensor in sorted(load_file(file).items())
    }
    save_file({name: tensor.float() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    return str(file.parent)


class ExactRotary(nn.Module):
    """Llama's rotary angles in float64; its own are float32 whatever the model is."""

    def __init__(self, size: int, base: float) -> None:
        super().__init__()
        self.frequencies = base ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].double() * self.frequencies
        both = torch.cat([angles, angles], dim=-1)
        return both.cos(), both.sin()


def exact(model: PreTrainedModel | PeftModel) -> None:
    """Make a Llama compute in float64 throughout."""
    model.double()
    decoder = causal_lm(model).get_decoder()
    config = decoder.config
    decoder.rotary_emb = ExactRotary(config.head_dim, config.rope_parameters["rope_theta"])


@contextmanager
def exact_task(config: TrainConfig, place: Path) -> Iterator[Task]:
    """The task of a run, its models in float64."""
    console = Console(quiet=True)
    with open_run(place, config, (), ()) as directory, open_panel(console, "golden") as panel:
        data = prepare_data(config, panel.note, panel.working)
        directory.update(decided={})
        start = load_start(data.source, config.adapter, seed=config.seed)
        exact(start.model)
        length, cpu = config.train.max_length, torch.device("cpu")
        ready = policy_of(start, dropout=0.0, max_length=length, device=cpu, dtype=torch.float64)
        task = open_task(Setup(config, data, ready, directory, panel, StopFlag(), resumes=False))
        if isinstance(task, PpoTask):
            exact(task.reference.policy.model)
        if isinstance(task, RewardTask):
            with torch.no_grad():
                task.reward_model.score.weight.copy_(torch.linspace(-1, 1, 32)[None])
        task.trained.double().train()
        yield task


def course(words: Sequence[str], place: Path) -> list[dict[str, float]]:
    """Loss, norm of the gradient and what is said of sampled answers, as the training loop would run it."""
    config = load(open_conf(None), words)
    assert isinstance(config, TrainConfig)
    found, carried = [], {}
    with exact_task(config, place) as task:
        for step in range(1, STEPS + 1):
            torch.manual_seed(derived_seed("step", config.seed, step))
            lr = learning_rate_at(step, peak=learning_rate(config), steps=STEPS, settings=config.train)
            out = task.step(StepPlan(step, lr, 4096, carried))
            assert out.applied
            carried = out.carried
            found.append({name: value for name, value in out.metrics.items() if name in KEPT})
    return found


def test_every_algorithm_is_here() -> None:
    offered = {path.stem for path in open_conf(None).shipped.glob("algo/*.yaml")}
    assert set(RUNS) == offered


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ONLINE)) for name in RUNS]
)
def test_losses_are_the_golden_ones(name: str, words: Sequence[str], tmp_path: Path) -> None:
    more = (f"algo.reference.members=[{drawn_model(0)},{drawn_model(1)}]",) if name == "salsa-ppo" else ()
    found = course([*words, *RUNS[name], *more], tmp_path / "run")
    file = GOLDEN / f"{name}.json"
    if os.environ.get("ALIGNCTL_GOLDEN") == "write":
        file.write_text("[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n")
    golden = json.loads(file.read_text())
    assert len(golden) == STEPS
    for step, (ours, theirs) in enumerate(zip(found, golden, strict=True), start=1):
        assert ours == golden_value(theirs), f"step {step}"


def test_a_beta_off_by_a_ten_thousandth_is_seen(words: Sequence[str], tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / "dpo.json").read_text())
    found = course([*words, *RUNS["dpo"], "algo.beta=0.1001"], tmp_path / "run")
    losses = [line["loss"] for line in golden]
    assert losses != golden_value([line["loss"] for line in found])
