"""A reward model by Bradley-Terry, saved as a sequence classifier. There is no reference.

Answers are scored where a reader of the saved model would score them: after whatever the chat template
writes behind the end of a turn (often a line break).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignctl.algos.bradley_terry import RewardLoss, reward_loss
from alignctl.config import RewardModelConfig
from alignctl.data.rendering import closing_ids
from alignctl.data.template import end_token_id
from alignctl.evaluate.held_out import Evaluation, evaluate_rewards
from alignctl.models.policy import Policy
from alignctl.models.reward_model import (
    RewardModel,
    prove_classifier,
    row_rewards,
    save_reward_model,
    start_reward_model,
    with_padding,
)
from alignctl.records import Example
from alignctl.report.terminal import Report
from alignctl.runners.preparation import scoring_tokens
from alignctl.runners.tasks.task import Setup, StepPlan
from alignctl.train.optimiser import build_optimiser
from alignctl.train.reward_step import reward_backward
from alignctl.train.step import StepOut, optimiser_step


@dataclass(frozen=True, slots=True, eq=False)
class RewardTask:
    """Pairs, and the model whose scores have to tell their answers apart."""

    setup: Setup
    reward_model: RewardModel
    tokenizer: PreTrainedTokenizerBase
    """What is saved with the model: its padding token is one that no conversation contains."""
    train: Sequence[Example]
    held_out: Sequence[Example]
    loss: RewardLoss
    optimiser: torch.optim.Optimizer
    fingerprints: Mapping[str, str]
    unit: str = "pairs"

    @property
    def trained(self) -> nn.Module:
        """The policy's model, or its adapter, and the score."""
        return self.reward_model

    @property
    def policy(self) -> Policy:
        """How the model under the score is run forward."""
        return self.setup.start.policy

    def examples(self, step: int) -> Sequence[Example]:
        """The pairs of a step."""
        return [self.train[row] for row in self.setup.places(step, len(self.train))]

    def step(self, plan: StepPlan) -> StepOut:
        """One update on the step's pairs."""
        examples = self.examples(plan.step)
        backward = partial(
            reward_backward,
            self.reward_model,
            self.policy,
            self.loss,
            examples,
            micro_tokens=plan.micro_tokens,
        )
        limit = self.setup.config.train.max_grad_norm
        metrics, applied = optimiser_step(self.optimiser, backward, lr=plan.lr, max_grad_norm=limit)
        return StepOut(metrics, applied, tokens=sum(example.tokens for example in examples))

    def evaluate(self, step: int, report: Report) -> Evaluation | None:
        """Loss and accuracy on the held-out pairs."""
        if not self.held_out:
            return None
        rewards = row_rewards(
            self.reward_model,
            self.policy,
            self.held_out,
            token_budget=scoring_tokens(self.policy.device),
            progress=lambda done, total: report("held-out pairs", done, total),
        )
        return evaluate_rewards(self.held_out, rewards, self.loss)

    def export(self, directory: Path) -> None:
        """The sequence classifier, adapters merged."""
        save_reward_model(self.reward_model, self.tokenizer, directory)


def open_reward_task(setup: Setup) -> RewardTask:
    """A fresh score on the starting model; proved to be what transformers will read, before it is trained."""
    algo, data, start = setup.config.algo, setup.data, setup.start
    assert isinstance(algo, RewardModelConfig)
    reward_model = start_reward_model(start.policy, seed=setup.config.seed)
    tokenizer = with_padding(data.tokenizer, {*data.stop, *end_ids(start.policy)})
    prove_classifier(reward_model, start.policy, tokenizer)
    close = partial(
        closed,
        end=end_token_id(data.tokenizer),
        closing=np.array(closing_ids(data.tokenizer), dtype=np.int32),
        max_length=setup.config.train.max_length,
    )
    return RewardTask(
        setup=setup,
        reward_model=reward_model,
        tokenizer=tokenizer,
        train=ClosedRows(data.train, close),
        held_out=ClosedRows(data.held_out, close),
        loss=reward_loss(algo),
        optimiser=build_optimiser(reward_model, weight_decay=setup.config.train.weight_decay),
        fingerprints={"model": start.fingerprint},
    )


def end_ids(policy: Policy) -> list[int]:
    """The tokens that end a text, by the model's config."""
    ends = policy.causal_lm.config.get_text_config().eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


class ClosedRows(Sequence[Example]):
    """Rows with their answers closed, each made anew when it is asked for."""

    def __init__(self, rows: Sequence[Example], close: Callable[[Example], Example]) -> None:
        self._rows, self._close = rows, close

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return ClosedRows(self._rows[index], self._close)
        return self._close(self._rows[index])

    def __iter__(self) -> Iterator[Example]:
        return map(self._close, self._rows)


def closed(example: Example, *, end: int, closing: np.ndarray, max_length: int) -> Example:
    """The row with what the template writes after an answer, as the saved model's reader will see it.

    Not after an answer that was cut, whose turn goes on, nor where it would lead beyond `max_length`.
    """
    room = max_length - len(example.prompt) - len(closing)
    branches = tuple(
        np.concatenate([branch, closing]) if branch[-1] == end and len(branch) <= room else branch
        for branch in example.branches
    )
    return replace(example, branches=branches)
