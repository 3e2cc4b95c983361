"""One step of PPO: experience of one rollout, several updates on it, and a look at what may go wrong.

A step's gradient does not depend on micro-batches: every term is a sum over tokens divided by the number of
tokens in its minibatch. Minibatches are made of whole prompts, in an order that (seed, step, epoch) decides.
Dropout has to be off: the ratios before the first update are 1, and an alarm says so when they are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignctl.algos import ppo
from alignctl.config import PpoConfig
from alignctl.errors import OutOfMemoryError
from alignctl.models.critic import Critic
from alignctl.models.exhaustion import is_out_of_memory
from alignctl.models.head import token_logps
from alignctl.models.live_reference import LiveReference
from alignctl.models.packing import micro_batches, pack, positions
from alignctl.models.policy import Policy, completion_hidden, head_parameters
from alignctl.records import Example, Experience, Sampled
from alignctl.train.experience import answers_of, collect, table
from alignctl.train.optimiser import trained_parameters
from alignctl.train.schedule import derived_seed
from alignctl.train.step import StepOut, optimiser_step
from alignctl.train.watch.rollouts import at_start, watch

ADAM_EPS = 1e-5
"""Larger than AdamW's own, as in the runs of arXiv 2403.17031: small second moments move little."""


@dataclass(frozen=True, slots=True)
class PpoUpdate:
    """What the updates on one rollout did."""

    metrics: Mapping[str, float]
    applied: bool
    """Whether any of the updates was made."""


def ppo_optimiser(
    policy: Policy, critic: Critic | None, config: PpoConfig, *, weight_decay: float
) -> torch.optim.AdamW:
    """Fused AdamW over policy and critic, the latter at `critic_lr_scale` times the learning rate."""
    groups: list[dict[str, Any]] = [{"params": list(trained_parameters(policy.model).values())}]
    if critic is not None:
        own = list(trained_parameters(critic).values())
        groups.append({"params": own, "lr_scale": config.critic_lr_scale})
    return torch.optim.AdamW(groups, lr=0.0, eps=ADAM_EPS, weight_decay=weight_decay, fused=True)


def ppo_step(
    policy: Policy,
    reference: LiveReference,
    critic: Critic | None,
    optimiser: torch.optim.Optimizer,
    sampled: Sampled,
    scores: Tensor,
    config: PpoConfig,
    *,
    step: int,
    lr: float,
    micro_tokens: int,
    scoring_tokens: int,
    max_grad_norm: float,
    seed: int,
    carried: Mapping[str, float],
) -> StepOut:
    """Learn from the answers to B prompts, `scores` [K] normalised; `step` counts from 1.

    `carried` is what the step before handed on, empty at the first: beta, where algo.kl_target moves it, and
    what the first step looked like.
    """
    beta = carried.get("beta", config.beta)
    experience, seen = collect(
        policy, reference, critic, sampled, scores, config, beta, token_budget=scoring_tokens
    )
    update = ppo_update(
        policy,
        critic,
        optimiser,
        sampled,
        experience,
        config,
        lr=lr,
        micro_tokens=micro_tokens,
        max_grad_norm=max_grad_norm,
        seed=seed,
        step=step,
    )
    metrics = {**seen, **update.metrics}
    start = at_start(metrics, carried)
    found = watch(metrics, start, config, first=not carried, dtype=policy.compute_dtype)
    return StepOut(
        metrics=metrics,
        applied=update.applied,
        tokens=sum(example.tokens for example in sampled.examples),
        carried={**start, **_next_beta(beta, metrics["kl/sequence"], config)},
        alarms=found.alarms,
        stop=found.stop,
    )


def _next_beta(beta: float, kl: float, config: PpoConfig) -> dict[str, float]:
    if config.kl_target is None:
        return {}
    return {"beta": ppo.adapted_beta(beta, kl, config.kl_target) if math.isfinite(kl) else beta}


# --- updates -------------------------------------------------------------------------------------------


def ppo_update(
    policy: Policy,
    critic: Critic | None,
    optimiser: torch.optim.Optimizer,
    sampled: Sampled,
    experience: Experience,
    config: PpoConfig,
    *,
    lr: float,
    micro_tokens: int,
    max_grad_norm: float,
    seed: int,
    step: int,
) -> PpoUpdate:
    """`epochs` passes over the answers in `minibatches` updates each; the first steps train the critic alone.

    Metrics are those of the first update, before anything moved, but for `clip_fraction` and `approx_kl`,
    which are those of the last. An update that is not finite moves nothing; `updates/skipped` counts them.
    """
    parts = partial(minibatches, len(sampled.examples), config.minibatches, seed=seed, step=step)
    found: list[dict[str, float]] = []
    applied = 0
    for prompts in [part for epoch in range(config.epochs) for part in parts(epoch=epoch)]:
        examples = [sampled.examples[prompt] for prompt in prompts]
        backward = partial(
            minibatch_backward,
            policy,
            critic,
            examples,
            answers_of(experience, prompts, config.samples),
            config,
            trains_policy=critic is None or step > config.critic_warmup,
        )
        longest = max(positions(example, policy.layout) for example in examples)
        metrics, moved, micro_tokens = _within_memory(
            partial(_updated, optimiser, backward, lr=lr, max_grad_norm=max_grad_norm),
            micro_tokens=micro_tokens,
            longest_row=longest,
            repeatable=not found,
        )
        found.append(metrics)
        applied += moved
    last = {name: found[-1][name] for name in ("clip_fraction", "approx_kl") if name in found[-1]}
    skipped = {"updates/skipped": len(found) - applied} if applied < len(found) else {}
    return PpoUpdate({**found[0], **last, **skipped}, applied > 0)


def minibatches(prompts: int, parts: int, *, seed: int, step: int, epoch: int) -> list[list[int]]:
    """Numbers of `prompts` prompts in `parts` parts whose sizes differ by one at most, in a drawn order.

    Raises ValueError when there are more parts than prompts.
    """
    if parts > prompts:
        raise ValueError(f"{prompts} prompts cannot be cut into {parts} minibatches")
    random = np.random.Generator(np.random.Philox(derived_seed(f"minibatches {epoch}", seed, step)))
    return [part.tolist() for part in np.array_split(random.permutation(prompts), parts)]


def _updated(
    optimiser: torch.optim.Optimizer,
    backward: Callable[..., Mapping[str, float]],
    micro_tokens: int,
    *,
    lr: float,
    max_grad_norm: float,
) -> tuple[dict[str, float], bool]:
    whole = partial(backward, micro_tokens=micro_tokens)
    return optimiser_step(optimiser, whole, lr=lr, max_grad_norm=max_grad_norm)


def _within_memory(
    update: Callable[[int], tuple[dict[str, float], bool]],
    *,
    micro_tokens: int,
    longest_row: int,
    repeatable: bool,
) -> tuple[dict[str, float], bool, int]:
    """An update, its micro-batch halved here when memory runs out, and the size that it took.

    While nothing has moved (`repeatable`) the fault is passed on: the loop halves for good and repeats the
    step. After that a repeated step would begin from other weights.
    """
    while True:
        try:
            return *update(micro_tokens), micro_tokens
        except (RuntimeError, MemoryError) as error:
            if repeatable or not is_out_of_memory(error):
                raise
            if micro_tokens <= longest_row:
                raise OutOfMemoryError(
                    f"one prompt with its answers, {longest_row} tokens, does not fit in memory",
                    "fewer or shorter answers: algo.samples, algo.max_new_tokens",
                ) from error
            micro_tokens = max(longest_row, micro_tokens // 2)


# --- gradients -----------------------------------------------------------------------------------------


def minibatch_backward(
    policy: Policy,
    critic: Critic | None,
    examples: Sequence[Example],
    experience: Experience,
    config: PpoConfig,
    *,
    micro_tokens: int,
    trains_policy: bool,
) -> dict[str, float]:
    """Add the gradient of the mean loss over a minibatch's tokens; returns its metrics before the update."""
    tokens = int(experience.mask.sum())
    logps, policy_loss, value_loss = [], 0.0, 0.0
    for group in micro_batches(examples, token_budget=micro_tokens, layout=policy.layout):
        rows = [examples[index] for index in group]
        part = answers_of(experience, group, config.samples)
        if trains_policy:
            on_trunk = critic if critic is not None and critic.own is None else None
            found, of_policy, of_values = _policy_backward(policy, on_trunk, rows, part, config, tokens)
            logps.append(found)
            policy_loss += of_policy
            value_loss += of_values
        if critic is not None and (critic.own is not None or not trains_policy):
            value_loss += _critic_backward(critic, policy, rows, part, config, tokens)
    metrics = {"loss": policy_loss + config.critic_weight * value_loss}
    if critic is not None:
        metrics["loss/value"] = value_loss
    if not trains_policy:
        return metrics
    new, clip = torch.cat(logps), config.clip
    moved = ppo.update_metrics(new, experience.logps, experience.advantages, experience.mask, clip)
    return {**metrics, "loss/policy": policy_loss, **moved}


def _policy_backward(
    policy: Policy,
    on_trunk: Critic | None,
    rows: Sequence[Example],
    part: Experience,
    config: PpoConfig,
    tokens: int,
) -> tuple[Tensor, float, float]:
    """Log-probabilities [k, L], policy loss and value loss of a micro-batch, its gradient added.

    A critic on the policy's trunk shares the forward and the backward pass.
    """
    batch = pack(rows, policy.layout).to(policy.device)
    hidden = completion_hidden(policy, batch)
    logps = table(token_logps(hidden, *head_parameters(policy.causal_lm), batch.targets), part.mask)
    losses = ppo.policy_losses(logps, part.logps, part.advantages, part.mask, config.clip)
    policy_loss = losses.sum() / tokens
    if on_trunk is None:
        policy_loss.backward()
        return logps.detach(), float(policy_loss.detach()), 0.0
    value_loss = _value_loss(on_trunk, hidden, part, config, tokens)
    (policy_loss + config.critic_weight * value_loss).backward()
    return logps.detach(), float(policy_loss.detach()), float(value_loss.detach())


def _critic_backward(
    critic: Critic, policy: Policy, rows: Sequence[Example], part: Experience, config: PpoConfig, tokens: int
) -> float:
    """Value loss of a micro-batch, its gradient added to the critic alone, wherever its head sits."""
    reader = critic.own or policy
    batch = pack(rows, reader.layout).to(reader.device)
    with torch.set_grad_enabled(critic.own is not None):
        hidden = completion_hidden(reader, batch)
    value_loss = _value_loss(critic, hidden, part, config, tokens)
    (config.critic_weight * value_loss).backward()
    return float(value_loss.detach())


def _value_loss(critic: Critic, hidden: Tensor, part: Experience, config: PpoConfig, tokens: int) -> Tensor:
    values = table(critic(hidden).to(part.values), part.mask)
    return ppo.value_losses(values, part.values, part.returns, part.mask, config.value_clip).sum() / tokens
