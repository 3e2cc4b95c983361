"""What a run puts through its model: the heaviest micro-batches of its own steps, as lengths.

The rows of every step are known beforehand, since their order is a closed form of the seed; so what is
planned for is this run's heaviest step, not the worst one that could be drawn. Answers that are still to be
sampled count at their longest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from alignctl.config import (
    AlgoConfig,
    HypoConfig,
    LoraAdapter,
    ModelReward,
    PpoConfig,
    RewardModelConfig,
    TrainConfig,
    reference_of,
)
from alignctl.models.head import token_logps
from alignctl.models.head_kl import token_logps_and_kl
from alignctl.models.memory import MicroBatch, Work
from alignctl.models.packing import branch_ends, micro_batches, pack, positions
from alignctl.models.policy import Policy, branch_logps, branch_scores, completion_hidden, head_parameters
from alignctl.models.precision import settled_bytes
from alignctl.models.rehearsal import Pass, weight_bytes
from alignctl.records import Example, Layout
from alignctl.runners.preparation import scoring_tokens
from alignctl.runners.training_data import TrainingData
from alignctl.train.schedule import batch_indices, total_steps

HEAVY_STEPS = 24
"""Steps that are looked at closely, those of the most tokens and those of the longest rows."""
ASKED = "asked"
"""Name of a row without a pair."""
LOOKED_AT = 2**20
"""Rows, in the order of the run, among which they are sought."""
UNEVEN = 1.1
"""How much more attention than in the micro-batch of the most tokens is worth a look of its own."""


def work_of(config: TrainConfig, data: TrainingData, policy: Policy, max_length: int | None = None) -> Work:
    """Rows, passes and models beside; with `max_length`, as if rows were cut to it."""
    steps = _Steps(config, data, policy.layout, max_length)
    algo = config.algo
    # Of prompts that are both read and watched each is answered twice.
    answers, length = len(data.asked.rows) + watched_answers(config, data), config.eval.max_new_tokens
    if isinstance(algo, HypoConfig | PpoConfig):
        prompts = algo.prompts_per_step if isinstance(algo, HypoConfig) else config.train.batch_size
        answers, length = max(answers, algo.samples * prompts), max(length, algo.max_new_tokens)
    return Work(
        heaviest=steps.heaviest,
        forward=_forward(config),
        scored=steps.longest(scoring_tokens(policy.device)),
        score=_reward_pass if isinstance(algo, RewardModelConfig) else _score_pass,
        longest_row=int(steps.costs.max()),
        step_tokens=int(steps.costs.sum(axis=1).max()),
        sampled=(answers, int(data.lengths[:, 0].max()) + length),
        head_trained=not isinstance(algo, RewardModelConfig),
        beside_bytes=_beside_bytes(config, data, policy),
    )


def watched_answers(config: TrainConfig, data: TrainingData) -> int:
    """How many are sampled for the watch at every evaluation."""
    return min(config.watch.samples, len(data.watched.rows))


def kept_for_the_watch_alone(config: TrainConfig, data: TrainingData) -> bool:
    """Whether the reference stays in memory only to score watched answers."""
    watched = watched_answers(config, data) > 0 and not _trains_on_answers(config.algo)
    return watched and not _shares_its_weights(config, data)


def longest_row(config: TrainConfig, data: TrainingData, layout: Layout) -> int:
    """Positions of the longest row of any step: the least that a micro-batch has to hold."""
    return int(_Steps(config, data, layout, None).costs.max())


# --- rows ----------------------------------------------------------------------------------------------


class _Steps:
    """The lengths that go through the model at every step."""

    def __init__(
        self, config: TrainConfig, data: TrainingData, layout: Layout, max_length: int | None
    ) -> None:
        self._layout: Layout = layout
        self._given = _cut(data.lengths.astype(np.int64), max_length)
        self._order = _order(config, len(self._given))
        answered, self._own, asked = _own_answers(config, data)
        self._answered = np.arange(self._order.shape[1]) < answered
        # Prompts of their own may begin otherwise; what is not known to be shared is planned for as it is.
        self._stem = data.stem if layout == "shared" and not asked else 0
        self._asked = _examples([(prompt, *self._own) for prompt in asked], name=ASKED)
        self.costs = self._costs()
        """int64 [steps, rows]: positions of every row in a forward pass."""

    def longest(self, budget: int) -> Sequence[Example]:
        """The longest rows, as many as are scored together."""
        ranked = np.argsort(-self._given.sum(axis=1), kind="stable")[: budget + 1]
        own = self._own if self._given.shape[1] == 1 else ()
        rows = _examples([(*row, *own) for row in self._given[ranked].tolist()], self._stem)
        return [rows[index] for index in micro_batches(rows, token_budget=budget, layout=self._layout)[0]]

    def heaviest(self, budget: int) -> Sequence[MicroBatch]:
        """The micro-batch of the most tokens, and that of the most attention where it is another."""
        found = []
        by_sum, by_row = (np.argsort(-costs) for costs in (self.costs.sum(axis=1), self.costs.max(axis=1)))
        for step in {*by_sum[:HEAVY_STEPS].tolist(), *by_row[:HEAVY_STEPS].tolist()}:
            rows = self._rows(step)
            for place, group in enumerate(micro_batches(rows, token_budget=budget, layout=self._layout)):
                found.append(MicroBatch([rows[index] for index in group], accumulates=place > 0))
        most = max(found, key=lambda batch: (self._tokens(batch, 1), batch.accumulates))
        longest = max(found, key=lambda batch: (self._tokens(batch, 2), batch.accumulates))
        uneven = self._tokens(longest, 2) > UNEVEN * self._tokens(most, 2)
        return [most, longest] if uneven else [most]

    def _rows(self, step: int) -> list[Example]:
        """A step's rows, in order."""
        given = self._given[self._order[step]]
        answered = self._answered.tolist()
        rows = [(*row, *self._own) if own else row for row, own in zip(given.tolist(), answered, strict=True)]
        return [*_examples(rows, self._stem), *self._asked]

    def _costs(self) -> np.ndarray:
        given = self._given[self._order]
        branches = given.shape[2] - 1 + len(self._own) * self._answered
        copies = 1 if self._layout == "shared" else branches
        costs = copies * given[..., 0] + given[..., 1:].sum(axis=2) + sum(self._own) * self._answered
        asked = [positions(row, self._layout) for row in self._asked]
        return np.hstack([costs, np.tile(np.array(asked, dtype=np.int64), (len(costs), 1))])

    def _tokens(self, batch: MicroBatch, power: int) -> int:
        """Those of all rows, for the power 2 times those that they look at."""
        costs = [positions(row, self._layout) for row in batch.rows]
        return sum((cost - self._stem) * cost ** (power - 1) for cost in costs)


def _cut(lengths: np.ndarray, max_length: int | None) -> np.ndarray:
    """Answers that end where prompt and answer have `max_length` tokens."""
    if max_length is None:
        return lengths
    room = np.maximum(max_length - lengths[:, :1], 1)
    return np.hstack([lengths[:, :1], np.minimum(lengths[:, 1:], room)])


def _own_answers(config: TrainConfig, data: TrainingData) -> tuple[int, tuple[int, ...], list[int]]:
    """How many of a step's first rows are answered, the longest answers, and lengths of further prompts."""
    algo = config.algo
    if not isinstance(algo, HypoConfig | PpoConfig) or (isinstance(algo, HypoConfig) and algo.lambda_ == 0):
        return 0, (), []
    own = (algo.max_new_tokens,) * algo.samples
    if isinstance(algo, PpoConfig):
        return config.train.batch_size, own, []
    if config.dataset.prompts is None:
        return algo.prompts_per_step, own, []
    longest = max(len(ids) for ids in data.unlabelled.ids)
    return 0, own, [longest] * algo.prompts_per_step


def _order(config: TrainConfig, rows: int) -> np.ndarray:
    """int64 [steps, B]: the rows of each step; of PPO's, as many as one update learns from."""
    batch = config.train.batch_size
    places = min(total_steps(config.train, rows) * batch, max(LOOKED_AT, batch))
    whole = partial(batch_indices, rows=rows, batch_size=rows, seed=config.seed)
    order = np.concatenate([whole(epoch + 1) for epoch in range(-(-places // rows))])
    size = -(-batch // config.algo.minibatches) if isinstance(config.algo, PpoConfig) else batch
    return order[: places // batch * batch].reshape(-1, batch)[:, :size]


def _examples(lengths: Iterable[Sequence[int]], stem: int = 0, *, name: str = "") -> list[Example]:
    """Rows of (prompt, answer, answer, ...) tokens; what they say does not matter, only that their prompts
    have the first `stem` tokens in common and no more, with rows of another name none."""
    own = 2 if name else 0
    return [
        Example(
            id=name,
            prompt=np.where(np.arange(prompt) < stem, own, own + number % 2).astype(np.int32),
            branches=tuple(np.zeros(length, dtype=np.int32) for length in answers),
        )
        for number, (prompt, *answers) in enumerate(lengths, start=1)
    ]


# --- passes --------------------------------------------------------------------------------------------


def _forward(config: TrainConfig) -> Pass:
    algo = config.algo
    if isinstance(algo, RewardModelConfig):
        return _reward_pass
    if isinstance(algo, HypoConfig) and algo.lambda_ > 0:
        return partial(_hypo_pass, algo)
    return _given_pass


def _given_pass(policy: Policy, rows: Sequence[Example]) -> Tensor:
    return branch_logps(policy, pack(rows, policy.layout).to(policy.device))


def _score_pass(policy: Policy, rows: Sequence[Example]) -> Tensor:
    return torch.stack(branch_scores(policy, pack(rows, policy.layout).to(policy.device)))


def _reward_pass(policy: Policy, rows: Sequence[Example]) -> Tensor:
    """A score reads the last token of each answer, and no vocabulary."""
    batch = pack(rows, policy.layout).to(policy.device)
    return completion_hidden(policy, replace(batch, score_index=branch_ends(batch))).float()


def _hypo_pass(algo: HypoConfig, policy: Policy, rows: Sequence[Example]) -> Tensor:
    """The head is asked for pairs and for sampled answers before either's backward pass."""
    batch = pack(rows, policy.layout).to(policy.device)
    hidden, head = completion_hidden(policy, batch), head_parameters(policy.causal_lm)
    own_branches = [row.id == ASKED or place >= 2 for row in rows for place in range(len(row.branches))]
    is_own = torch.tensor(own_branches, device=policy.device)[batch.branch]
    pairs, own = (~is_own).nonzero()[:, 0], is_own.nonzero()[:, 0]
    given = token_logps(hidden.index_select(0, pairs), *head, batch.targets[pairs])
    sampled, targets = hidden.index_select(0, own), batch.targets[own]
    if algo.estimator == "rloo":
        return given.sum() + token_logps(sampled, *head, targets).sum()
    logps, kl = token_logps_and_kl(sampled, *head, targets, sampled.detach(), *head)
    return given.sum() + logps.sum() + kl.sum()


def _beside_bytes(config: TrainConfig, data: TrainingData, policy: Policy) -> int:
    """Weights of the other models that lie beside the policy while it trains."""
    algo = config.algo
    own = weight_bytes(policy.model)
    critic = 4 * own if isinstance(algo, PpoConfig) and algo.critic == "separate" else 0
    reward = own if isinstance(algo, PpoConfig) and isinstance(config.reward, ModelReward) else 0
    stays = _trains_on_answers(algo) or watched_answers(config, data) > 0
    kept = stays and not _shares_its_weights(config, data)
    return critic + reward + (settled_bytes(policy.model, policy.compute_dtype) if kept else 0)


def _trains_on_answers(algo: AlgoConfig) -> bool:
    return isinstance(algo, PpoConfig) or (isinstance(algo, HypoConfig) and algo.lambda_ > 0)


def _shares_its_weights(config: TrainConfig, data: TrainingData) -> bool:
    """The reference, if any, is the policy with its adapter switched off."""
    reference = reference_of(config.algo)
    if reference is None or reference.kind == "adapter_off":
        return True
    fresh = isinstance(config.adapter, LoraAdapter) and data.source.adapter is None
    return fresh and reference.kind == "frozen" and reference.path is None
