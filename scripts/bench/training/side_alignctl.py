"""alignctl's side: the functions that `alignctl train algo=dpo` runs, in its order, on given batches.

Load and adapter, layout, memory plan, reference pass through the cache (an empty one), optimiser, then steps.
What the command does besides is left out on both sides: evaluation, checkpoints, metrics on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor
from worker import BETA, CLIP, LORA_ALPHA, LORA_RANK, SEED, Job, Pair, Timeline, main, now, same_adapter

from alignctl.algos import pair_loss
from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import DpoConfig, TrainConfig
from alignctl.errors import OutOfMemoryError
from alignctl.models.compiled import compile_layers
from alignctl.models.live_reference import LiveReference
from alignctl.models.load import locate_path
from alignctl.models.memory import MemoryPlan, MicroBatch, Work, plan_memory, present_memory
from alignctl.models.packing import micro_batches, pack, positions
from alignctl.models.policy import Policy, branch_logps
from alignctl.models.reference import cached_scores
from alignctl.records import Example
from alignctl.runners.preparation import (
    StartingPolicy,
    prepare_policy,
    resolve_device,
    resolve_dtype,
    scoring_tokens,
)
from alignctl.train.optimiser import build_optimiser
from alignctl.train.step import optimiser_step, pair_backward


def composed(job: Job) -> TrainConfig:
    """What the command line would compose for this case."""
    words = [
        *("algo=dpo", f"algo.beta={BETA}", f"train.batch_size={job.case.batch}"),
        *(f"train.dtype={job.case.dtype}", "train.weight_decay=0", f"train.max_grad_norm={CLIP}"),
    ]
    if job.case.adapter == "lora":
        words += ["adapter=lora", f"adapter.r={LORA_RANK}", f"adapter.alpha={LORA_ALPHA}"]
    if job.side == "alignctl-compiled":
        words.append("hardware.compile=true")
    config = load(open_conf(None), words)
    assert isinstance(config, TrainConfig)
    return config


def start_of(config: TrainConfig, job: Job, longest: int) -> StartingPolicy:
    """The policy before its first step."""
    device = resolve_device(config.hardware)
    start = prepare_policy(
        locate_path(job.model),
        config.adapter,
        seed=SEED,
        max_length=max(longest, config.train.max_length),
        device=device,
        dtype=resolve_dtype(config, device),
    )
    same_adapter(dict(start.policy.model.named_parameters()))
    return start


def plan_of(policy: Policy, steps: Sequence[Sequence[Example]]) -> MemoryPlan:
    """What the command decides before its first step, for these very batches."""
    rows = [example for step in steps for example in step]
    ranked = sorted(rows, key=lambda example: -positions(example, policy.layout))
    budget = scoring_tokens(policy.device)
    scored = micro_batches(ranked, token_budget=budget, layout=policy.layout)[0]
    work = Work(
        heaviest=partial(heaviest, policy, steps),
        forward=forward,
        scored=[ranked[index] for index in scored],
        score=forward,
        longest_row=positions(ranked[0], policy.layout),
        step_tokens=max(sum(positions(example, policy.layout) for example in step) for step in steps),
    )
    memory = present_memory(policy.device)
    plan = plan_memory(policy, work, memory, micro_tokens=None, activation_checkpointing=None)
    if not plan.fits:
        raise OutOfMemoryError(f"about {plan.needed_bytes / 1e9:.1f} GB are needed")
    return plan


def heaviest(policy: Policy, steps: Sequence[Sequence[Example]], budget: int) -> list[MicroBatch]:
    """The micro-batch of the most positions."""
    parts = [
        MicroBatch([step[index] for index in group], accumulates=place > 0)
        for step in steps
        for place, group in enumerate(micro_batches(step, token_budget=budget, layout=policy.layout))
    ]
    return [max(parts, key=lambda part: sum(positions(row, policy.layout) for row in part.rows))]


def forward(policy: Policy, rows: Sequence[Example]) -> Tensor:
    """What a micro-batch goes through."""
    return branch_logps(policy, pack(rows, policy.layout).to(policy.device))


def score_reference(
    start: StartingPolicy, steps: Sequence[Sequence[Example]], *, adapted: bool
) -> tuple[Tensor, float]:
    """Float [n, 2], computed (the controller gives every process an empty cache), and the seconds it took.

    As for steps, the first batch is a warm-up that is not timed.
    """
    with LiveReference(start.policy, adapter_off=adapted).active() as frozen:
        scored = partial(
            cached_scores,
            frozen,
            start.fingerprint,
            token_budget=scoring_tokens(frozen.device),
            with_top=False,
        )
        scored(steps[0])
        begin = now()
        scores, found = scored([example for step in steps for example in step])
    assert not found
    return scores.sums, now() - begin


def train(job: Job, batches: Sequence[Sequence[Pair]]) -> Timeline:
    """One pass over the batches."""
    config = composed(job)
    steps = [[as_example(pair) for pair in batch] for batch in batches]
    start = start_of(config, job, max(pair.longer for batch in batches for pair in batch))
    policy, plan = start.policy, plan_of(start.policy, steps)
    if plan.activation_checkpointing:
        policy.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    policy.model.train()
    if config.hardware.compile:
        compile_layers(policy)
    reference, seconds = score_reference(start, steps, adapted=job.case.adapter == "lora")
    optimiser = build_optimiser(policy.model, weight_decay=config.train.weight_decay)
    assert isinstance(config.algo, DpoConfig)
    update = partial(pair_backward, policy, pair_loss(config.algo), micro_tokens=plan.micro_tokens)
    training, ends, done = now(), [], []
    for pairs, ref_sums in zip(steps, reference.split(job.case.batch), strict=True):
        backward = partial(update, pairs, ref_sums)
        metrics, applied = optimiser_step(optimiser, backward, lr=job.lr, max_grad_norm=CLIP)
        assert applied
        done.append(metrics)
        ends.append(now())
    return Timeline(
        training=training,
        reference=seconds,
        ends=tuple(ends),
        loss=tuple(one["loss"] for one in done),
        grad_norm=tuple(one["grad_norm"] for one in done),
        padded=tuple(sum(positions(example, policy.layout) for example in step) for step in steps),
    )


def as_example(pair: Pair) -> Example:
    """The record that alignctl trains on."""
    return Example("", pair.prompt, (pair.chosen, pair.rejected))


if __name__ == "__main__":
    main(train)
