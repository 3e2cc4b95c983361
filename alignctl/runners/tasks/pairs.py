"""Algorithms on given pairs: dpo, ipo, hinge, slic. The reference is scored first, then forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from alignctl.algos import PairLoss, pair_loss
from alignctl.algos.anchor import anchored
from alignctl.config import HypoConfig, PairwiseConfig
from alignctl.errors import AlignctlError
from alignctl.evaluate.held_out import Evaluation, evaluate_pairs, joined
from alignctl.models.live_reference import LiveReference
from alignctl.models.machine import cache_root
from alignctl.models.packing import pack
from alignctl.models.policy import branch_logps, evaluating
from alignctl.models.scoring import score
from alignctl.records import Example
from alignctl.report.terminal import Report
from alignctl.runners.checkpoints import write_model
from alignctl.runners.preparation import scoring_tokens
from alignctl.runners.references import (
    Found,
    References,
    find_reference,
    frozen,
    keep,
    kept,
    score_all,
)
from alignctl.runners.tasks.answers import answer_held_out, judged
from alignctl.runners.tasks.task import Setup, StepPlan
from alignctl.train.optimiser import build_optimiser
from alignctl.train.signals import leave_if_stopped
from alignctl.train.step import StepOut, optimiser_step, pair_backward

START_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Nats per token by which policy and reference may differ before the first step, where they are one model."""


@dataclass(frozen=True, slots=True, eq=False)
class PairTask:
    """Pairs, their loss, and what the reference says of them."""

    setup: Setup
    loss: PairLoss
    references: References
    reference: LiveReference | None
    """Asked about the policy's own answers; None where none are watched."""
    optimiser: torch.optim.Optimizer
    fingerprints: Mapping[str, str]
    unit: str = "pairs"

    @property
    def trained(self) -> nn.Module:
        """The policy, or its adapter."""
        return self.setup.start.policy.model

    def rows(self, step: int) -> list[int]:
        """Places in the training data of the step's pairs."""
        return self.setup.places(step, len(self.setup.data.train))

    def examples(self, step: int) -> Sequence[Example]:
        """The pairs of a step."""
        return [self.setup.data.train[row] for row in self.rows(step)]

    def step(self, plan: StepPlan) -> StepOut:
        """One update on the step's pairs."""
        rows, examples = self.rows(plan.step), self.examples(plan.step)
        backward = partial(
            pair_backward,
            self.setup.start.policy,
            anchored(self.loss, plan.anchor),
            examples,
            self.references.train.sums[rows],
            micro_tokens=plan.micro_tokens,
        )
        limit = self.setup.config.train.max_grad_norm
        metrics, applied = optimiser_step(self.optimiser, backward, lr=plan.lr, max_grad_norm=limit)
        return StepOut(metrics, applied, tokens=sum(example.tokens for example in examples))

    def evaluate(self, step: int, report: Report) -> Evaluation | None:
        """Held-out pairs and own answers. At the start, where both are one model, the reference's scores are
        the policy's; that they agree is proved first."""
        data, references, parts = self.setup.data, self.references, []
        at_start = step == 0 and references.is_start
        if at_start:
            prove_start(self.setup, references)
        if references.held_out is not None:
            scores = references.held_out
            if not at_start:
                scores = score(
                    self.setup.start.policy,
                    data.held_out,
                    token_budget=scoring_tokens(self.setup.start.policy.device),
                    with_top=True,
                    progress=lambda done, total: report("held-out pairs", done, total),
                )
            parts.append(evaluate_pairs(data.held_out, scores, references.held_out, self.loss))
        answers = answer_held_out(self.setup, step, report)
        parts += judged(self.setup, answers, self.reference, report, at_start=at_start)
        return joined(parts) if parts else None

    def export(self, directory: Path) -> None:
        """The policy, or its adapter."""
        write_model(self.setup.start.loaded, self.setup.data.tokenizer, directory)


def open_pair_task(setup: Setup, algo: PairwiseConfig | HypoConfig) -> tuple[PairTask, Found]:
    """Score the reference, or read what the run began with; also the reference itself, for who asks it on."""
    found = find_reference(algo.reference, setup.config, setup.start, setup.data, setup.panel.note)
    references, digest = _references(setup, found)
    start = setup.start
    task = PairTask(
        setup=setup,
        loss=pair_loss(algo),
        references=references,
        reference=frozen(found, start) if setup.data.watched.rows else None,
        optimiser=build_optimiser(start.policy.model, weight_decay=setup.config.train.weight_decay),
        fingerprints={"model": start.fingerprint, "reference": digest},
    )
    return task, found


def _references(setup: Setup, found: Found) -> tuple[References, str]:
    if setup.resumes:
        return kept(setup.directory, setup.data)

    def report(done: int, total: int) -> None:
        setup.panel.working("reference log-probabilities", done, total)
        leave_if_stopped(setup.stop, "stopped before the first step")

    references = score_all(found, setup.data, report)
    if references.cached:
        setup.panel.note("reference log-probabilities found in the cache")
    return references, keep(references, setup.directory)


@torch.no_grad()
def prove_start(setup: Setup, references: References) -> None:
    """Policy and reference are one model before the first step: their log-probabilities must agree."""
    policy, rows = setup.start.policy, setup.data.train[:2]
    batch = pack(rows, policy.layout).to(policy.device)
    # As the reference was scored: a trained adapter's dropout would set the two apart.
    with evaluating(policy.model):
        found = branch_logps(policy, batch).cpu().view(-1, 2)
    counts = references.train.counts[: len(rows)]
    difference = float(((found - references.train.sums[: len(rows)]).abs() / counts).max())
    if not difference <= START_TOLERANCE[policy.compute_dtype]:
        raise AlignctlError(
            f"reference and starting model are one, but differ by {difference:.2g} nats a token",
            f"a damaged cache is the likely cause: delete {cache_root() / 'reference'} and start again",
        )
