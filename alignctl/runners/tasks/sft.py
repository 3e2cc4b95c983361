"""Supervised fine-tuning on given answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from alignctl.evaluate.held_out import Evaluation, evaluate_given_answers, joined
from alignctl.models.scoring import score
from alignctl.records import Example
from alignctl.report.terminal import Report
from alignctl.runners.checkpoints import write_model
from alignctl.runners.preparation import scoring_tokens
from alignctl.runners.tasks.answers import answer_held_out, judged
from alignctl.runners.tasks.task import Setup, StepPlan
from alignctl.train.answer_step import answer_backward
from alignctl.train.optimiser import build_optimiser
from alignctl.train.step import StepOut, optimiser_step


@dataclass(frozen=True, slots=True, eq=False)
class SftTask:
    """Prompts with one answer each."""

    setup: Setup
    optimiser: torch.optim.Optimizer
    fingerprints: Mapping[str, str]
    unit: str = "rows"

    @property
    def trained(self) -> nn.Module:
        """The policy, or its adapter."""
        return self.setup.start.policy.model

    def examples(self, step: int) -> Sequence[Example]:
        """The rows of a step."""
        train = self.setup.data.train
        return [train[row] for row in self.setup.places(step, len(train))]

    def step(self, plan: StepPlan) -> StepOut:
        """One update on the step's rows."""
        examples = self.examples(plan.step)
        backward = partial(answer_backward, self.setup.start.policy, examples, micro_tokens=plan.micro_tokens)
        limit = self.setup.config.train.max_grad_norm
        metrics, applied = optimiser_step(self.optimiser, backward, lr=plan.lr, max_grad_norm=limit)
        return StepOut(metrics, applied, tokens=sum(example.tokens for example in examples))

    def evaluate(self, step: int, report: Report) -> Evaluation | None:
        """Loss of the held-out answers, and own answers."""
        data, parts = self.setup.data, []
        if data.held_out:
            scores = score(
                self.setup.start.policy,
                data.held_out,
                token_budget=scoring_tokens(self.setup.start.policy.device),
                with_top=True,
                progress=lambda done, total: report("held-out rows", done, total),
            )
            parts.append(evaluate_given_answers(data.held_out, scores))
        parts += judged(self.setup, answer_held_out(self.setup, step, report), None, report)
        return joined(parts) if parts else None

    def export(self, directory: Path) -> None:
        """The policy, or its adapter."""
        write_model(self.setup.start.loaded, self.setup.data.tokenizer, directory)


def open_sft_task(setup: Setup) -> SftTask:
    """No reference: the answers are given."""
    return SftTask(
        setup=setup,
        optimiser=build_optimiser(setup.start.policy.model, weight_decay=setup.config.train.weight_decay),
        fingerprints={"model": setup.start.fingerprint},
    )
