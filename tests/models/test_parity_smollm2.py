"""The packed path against a plain one, on SmolLM2-135M and real preference rows, in float32.

The plain side is written out below: chosen and rejected each in a forward pass of their own, padded to the
longest row, whole logits, attention as transformers' eager code has it. The policy has left its reference
by two optimiser steps at the rates with which a run warms up, as it would have early in training.

What limits agreement is float32 itself, on both sides. Measured on four pairs of HH-harmless: log-probs
differ by 4e-5 nats; gradients of weight matrices by 3e-6 of their norm in the median and 6.5e-6 at most;
of single norm vectors by up to 1.2e-5 (2e-5 on other pairs), since they add up over all tokens to a small
remainder, and by 4e-6 taken together. So the bound is 1e-5 for every matrix and for the norms as one.
Against float64 the packed side is no worse than the plain one. Two things would hide that: torch's float32
log_softmax on the CPU is off by some 1e-5 nats a token over 49,152 terms (hence float64 from the logits
on), and its SDPA kernel doubles the plain side's gradient error (hence eager).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignctl.algos import pair_loss
from alignctl.algos.pairs import pair_view
from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import learning_rate
from alignctl.models.packing import pack
from alignctl.models.policy import branch_logps
from alignctl.models.scoring import score
from alignctl.records import Example
from alignctl.runners.preparation import StartingPolicy, prepare_policy
from alignctl.runners.training_data import prepare_data
from alignctl.train.optimiser import build_optimiser, trained_parameters
from alignctl.train.schedule import learning_rate_at
from alignctl.train.step import optimiser_step, pair_backward

pytestmark = pytest.mark.slow

HH = Path(__file__).parents[3] / "shared" / "data" / "hh-harmless-1.jsonl.gz"
REAL = (f"dataset={HH}", "dataset.limit=160", "dataset.on_bad=drop")
ROWS = REAL if HH.is_file() else ("dataset=demo", "dataset.gold_samples=0")
LENGTHS = range(60, 111) if HH.is_file() else range(40, 171)
LOSSES = ("dpo", "ipo", "hinge")
PAIRS, STEPS = 4, 2

Gradients = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Side:
    """One way to compute it: log-probabilities [2 * PAIRS], and loss -> parameter -> gradient."""

    logps: Tensor
    gradients: Gradients


@dataclass(frozen=True)
class BothSides:
    packed: Side
    plain: Side
    drift: float
    """Largest change of a log-probability since the reference, in nats."""


def config_of(*words: str):
    return load(open_conf(None), ["model=smollm2-135m", "train.dtype=float32", *ROWS, *words])


def plain_logps(model, rows: list[Example]) -> Tensor:
    """Sums over completion tokens, chosen and rejected alternating; the two sides run one after the other."""
    sides = []
    for side in (0, 1):
        texts = [[*row.prompt.tolist(), *row.branches[side].tolist()] for row in rows]
        longest = max(map(len, texts))
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        sums = []
        for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
            predicting = logits[number, len(row.prompt) - 1 : len(text) - 1].double().log_softmax(-1)
            targets = ids[number, len(row.prompt) : len(text), None]
            sums.append(predicting.gather(1, targets).sum())
        sides.append(torch.stack(sums))
    return torch.stack(sides, dim=1).flatten()


def gradients(start: StartingPolicy, rows: list[Example], logps: Tensor, reference: Tensor) -> Gradients:
    parameters = trained_parameters(start.policy.model)
    found = {}
    for name in LOSSES:
        loss = pair_loss(config_of(f"algo={name}").algo)
        mean = loss(pair_view(rows, logps.view(-1, 2), reference)).losses.mean()
        parts = torch.autograd.grad(mean, list(parameters.values()), retain_graph=True)
        found[name] = dict(zip(parameters, parts, strict=True))
    return found


@pytest.fixture(
    scope="module", params=["none", pytest.param("lora", marks=pytest.mark.long)], ids=["full", "lora"]
)
def both_sides(request, smollm2) -> BothSides:
    config = config_of(f"adapter={request.param}")
    data = prepare_data(config, print)
    start = prepare_policy(
        data.source,
        config.adapter,
        seed=0,
        max_length=config.train.max_length,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    assert start.policy.layout == "shared"
    rows = [row for row in data.train if row.tokens in LENGTHS][: STEPS * PAIRS]
    assert len(rows) == STEPS * PAIRS
    reference = score(start.policy, rows, token_budget=4096, with_top=False).sums
    optimiser = build_optimiser(start.policy.model, weight_decay=0.0)
    for step in range(STEPS):
        taken = slice(step * PAIRS, (step + 1) * PAIRS)
        rate = learning_rate_at(step + 1, peak=learning_rate(config), steps=80, settings=config.train)
        backward = partial(
            pair_backward,
            start.policy,
            pair_loss(config.algo),
            rows[taken],
            reference[taken],
            micro_tokens=4096,
        )
        _, applied = optimiser_step(optimiser, backward, lr=rate, max_grad_norm=1.0)
        assert applied
    return measured(start, rows[:PAIRS], reference[:PAIRS])


def measured(start: StartingPolicy, rows: list[Example], reference: Tensor) -> BothSides:
    policy = start.policy
    logps = branch_logps(policy, pack(rows, "shared"))
    packed = Side(logps.detach(), gradients(start, rows, logps, reference))
    policy.causal_lm.set_attn_implementation("eager")
    logps = plain_logps(policy.model, rows)
    plain = Side(logps.detach(), gradients(start, rows, logps, reference))
    return BothSides(packed, plain, float((packed.logps.view(-1, 2) - reference).abs().max()))


def difference(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def test_the_policy_has_left_its_reference(both_sides):
    assert 0.1 < both_sides.drift < 20


def test_log_probabilities_agree(both_sides):
    packed, plain = both_sides.packed.logps, both_sides.plain.logps
    assert float((packed - plain).abs().max()) < 1e-4
    assert packed.dtype == torch.float32


@pytest.mark.parametrize("loss", LOSSES)
def test_every_gradient_agrees(both_sides, loss):
    found, expected = both_sides.packed.gradients[loss], both_sides.plain.gradients[loss]
    differences = {name: difference(found[name], expected[name]) for name in expected}
    matrices = {name: value for name, value in differences.items() if expected[name].dim() > 1}
    norms = [name for name in expected if expected[name].dim() == 1]
    # An adapter's small matrices differ by float32's own rounding, like single norm vectors.
    limit = 1e-5 if norms else 2e-5
    assert max(matrices.values()) < limit, max(matrices.items(), key=lambda item: item[1])
    if norms:  # adapters have none
        together = difference(*(torch.cat([side[name] for name in norms]) for side in (found, expected)))
        assert together < 1e-5
        assert max(differences[name] for name in norms) < 3e-5


def test_real_rows_were_compared():
    if not HH.is_file():
        pytest.skip("shared/data/hh-harmless-1.jsonl.gz is absent: the rows above were the demo's")
