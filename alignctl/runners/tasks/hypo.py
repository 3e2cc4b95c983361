"""HyPO, arXiv 2406.01462: DPO on given pairs, KL to the reference on answers sampled at every step.

Everything that concerns pairs is the pair task's. Without `dataset.prompts` the first
`algo.prompts_per_step` pairs of a step lend their prompts, so a prompt is read once for its pair and its
answers; prompts of their own are gone through in epochs, in an order of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from alignctl.algos.anchor import anchored
from alignctl.config import HypoConfig
from alignctl.evaluate.held_out import Evaluation
from alignctl.models.live_reference import LiveReference
from alignctl.records import Example, Sampled
from alignctl.report.terminal import Report
from alignctl.runners.references import frozen
from alignctl.runners.tasks.pairs import PairTask, open_pair_task
from alignctl.runners.tasks.task import Setup, StepPlan
from alignctl.train.hypo_step import hypo_backward, joint_rows
from alignctl.train.sampling import sample_answers
from alignctl.train.schedule import batch_indices, derived_seed
from alignctl.train.step import StepOut, optimiser_step


@dataclass(frozen=True, slots=True, eq=False)
class HypoTask:
    """The pairs, and the reference that the answers are held against."""

    setup: Setup
    algo: HypoConfig
    pairs: PairTask
    reference: LiveReference

    @property
    def unit(self) -> str:
        """A step counts its pairs."""
        return self.pairs.unit

    @property
    def trained(self) -> nn.Module:
        """The policy, or its adapter."""
        return self.pairs.trained

    @property
    def optimiser(self) -> torch.optim.Optimizer:
        """The pair task's."""
        return self.pairs.optimiser

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """The pair task's: the live reference is the one that scored its pairs."""
        return self.pairs.fingerprints

    def examples(self, step: int) -> Sequence[Example]:
        """The pairs of a step."""
        return self.pairs.examples(step)

    def prompt_places(self, step: int) -> list[int]:
        """Which of the unlabelled prompts are answered at a step."""
        config, wanted = self.setup.config, self.algo.prompts_per_step
        if config.dataset.prompts is None:
            return self.pairs.rows(step)[:wanted]
        prompts = len(self.setup.data.unlabelled.ids)
        return own_prompts(step, prompts=prompts, wanted=wanted, seed=config.seed)

    def sample(self, step: int) -> Sampled:
        """Answers of the present weights to the step's prompts."""
        data, places = self.setup.data, self.prompt_places(step)
        return sample_answers(
            self.setup.start.policy,
            [data.unlabelled.rows[place] for place in places],
            [data.unlabelled.ids[place] for place in places],
            data.decode,
            samples=self.algo.samples,
            stop=data.stop,
            max_new_tokens=self.algo.max_new_tokens,
            seed=self.setup.config.seed,
            step=step,
            progress=partial(self.setup.panel.working, "answers"),
        )

    def step(self, plan: StepPlan) -> StepOut:
        """One update on the step's pairs and on fresh answers."""
        rows, examples = self.pairs.rows(plan.step), self.examples(plan.step)
        sampled = self.sample(plan.step)
        backward = partial(
            hypo_backward,
            self.setup.start.policy,
            self.reference,
            anchored(self.pairs.loss, plan.anchor),
            examples,
            self.pairs.references.train.sums[rows],
            sampled,
            lambda_=self.algo.lambda_,
            estimator=self.algo.estimator,
            samples=self.algo.samples,
            micro_tokens=plan.micro_tokens,
        )
        limit = self.setup.config.train.max_grad_norm
        metrics, applied = optimiser_step(self.optimiser, backward, lr=plan.lr, max_grad_norm=limit)
        tokens = sum(row.example.tokens for row in joint_rows(examples, sampled))
        return StepOut(metrics, applied, tokens=tokens)

    def evaluate(self, step: int, report: Report) -> Evaluation | None:
        """The pair task's."""
        return self.pairs.evaluate(step, report)

    def export(self, directory: Path) -> None:
        """The policy, or its adapter."""
        self.pairs.export(directory)


def own_prompts(step: int, *, prompts: int, wanted: int, seed: int) -> list[int]:
    """Places of a step's prompts among `prompts` of their own: epochs, not in the order of the pairs."""
    seed = derived_seed("prompts", seed, 0)
    return batch_indices(step, rows=prompts, batch_size=wanted, seed=seed)


def open_hypo_task(setup: Setup, algo: HypoConfig) -> HypoTask | PairTask:
    """The pair task alone when lambda is 0: nothing is sampled then, and no reference stays in memory."""
    pairs, found = open_pair_task(setup, algo)
    if algo.lambda_ == 0:
        return pairs
    return HypoTask(setup, algo, pairs, pairs.reference or frozen(found, setup.start))
