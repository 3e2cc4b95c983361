"""What a run puts through its model, from lengths alone, is what its steps really put through it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import TrainConfig
from alignctl.models.load import skeleton
from alignctl.models.packing import micro_batches, pack, positions
from alignctl.models.policy import Policy, set_attention
from alignctl.models.rehearsal import ghost_of, training_bytes, weight_bytes
from alignctl.records import Example
from alignctl.runners.training_data import TrainingData, prepare_data
from alignctl.runners.workload import longest_row, work_of
from alignctl.train.schedule import batch_indices

STEPS = 7
PPO = ("algo=ppo", "reward=pattern", "reward.pattern=yes")


@pytest.fixture
def words(tmp_path, cache):
    """Rows of very different lengths, and the settings that read them."""
    path = tmp_path / "rows.jsonl"
    lines = [
        {"prompt": f"q{n} " * (1 + n % 7), "chosen": "yes " * (1 + n % 11), "rejected": "no " * (1 + n % 5)}
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return (
        "model=tiny",
        f"dataset={path}",
        "dataset.eval_size=6",
        "train.batch_size=6",
        f"train.steps={STEPS}",
    )


def config_of(*words: str) -> TrainConfig:
    config = load(open_conf(None), list(words))
    assert isinstance(config, TrainConfig)
    return config


def policy_of(config: TrainConfig, data: TrainingData, layout="shared") -> Policy:
    policy = Policy(skeleton(data.source, config.adapter), layout, torch.float32, torch.device("cpu"))
    set_attention(policy.causal_lm, layout)
    return policy


def steps_of(config: TrainConfig, data: TrainingData, answered: int) -> list[list[Example]]:
    """The rows of every step; the first `answered` of each have answers of their own, at their longest."""
    size, found = config.train.batch_size, []
    for step in range(1, STEPS + 1):
        rows = [
            data.rows[i] for i in batch_indices(step, rows=len(data.rows), batch_size=size, seed=config.seed)
        ]
        algo = config.algo
        own = (np.zeros(algo.max_new_tokens, np.int32),) * algo.samples if answered else ()
        found.append(
            [
                Example(row.id, row.prompt, (*row.branches, *(own if place < answered else ())))
                for place, row in enumerate(rows)
            ]
        )
    return found


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize(
    ("algo", "answered"),
    [
        (("algo=dpo",), 0),
        (("algo=sft",), 0),
        (("algo=hypo", "algo.prompts_per_step=4", "algo.samples=3"), 4),
        (PPO, 6),
    ],
)
def test_rows_and_micro_batches_are_those_of_the_steps(words, algo, answered, layout):
    config = config_of(*words, *algo)
    data = prepare_data(config, print)
    work = work_of(config, data, policy_of(config, data, layout))
    steps = steps_of(config, data, answered)
    costs = [[positions(row, layout) for row in rows] for rows in steps]
    assert work.longest_row == longest_row(config, data, layout) == max(map(max, costs))
    assert work.step_tokens == max(map(sum, costs))
    for budget in (work.longest_row, 700):
        groups = [
            [rows[index] for index in group]
            for rows in steps
            for group in micro_batches(rows, token_budget=budget, layout=layout)
        ]
        most = max(pack(group, layout).tokens for group in groups)
        planned = max(pack(batch.rows, layout).tokens for batch in work.heaviest(budget))
        # The rows of one step may have more in common than those of all steps, which are planned for.
        assert most <= planned <= (1.05 * most if layout == "shared" else most)
    assert not work.heaviest(10**6)[0].accumulates


def test_prompts_of_their_own_are_rows_of_their_own(words):
    prompts = ("dataset.prompts=5", "algo.prompts_per_step=2", "algo.samples=2", "algo.max_new_tokens=9")
    demo = ("model=tiny", "dataset.pairs=40", "dataset.eval_pairs=12", "dataset.gold_samples=3")
    config = config_of(*demo, "algo=hypo", *prompts, f"train.steps={STEPS}", "train.batch_size=4")
    data = prepare_data(config, print)
    (batch,) = work_of(config, data, policy_of(config, data)).heaviest(10**6)
    asked = [tuple(map(len, row.branches)) for row in batch.rows if len(row.branches) == 2][-2:]
    assert len(batch.rows) == 4 + 2
    assert asked == [(9, 9), (9, 9)]
    longest = max(len(ids) for ids in data.unlabelled.ids)
    assert [len(row.prompt) for row in batch.rows[-2:]] == [longest] * 2


def test_rows_cut_to_a_length_lose_the_ends_of_their_answers(words):
    config = config_of(*words)
    data = prepare_data(config, print)
    policy = policy_of(config, data)
    cut = work_of(config, data, policy, 64)
    for batch in cut.heaviest(10**6):
        for row in batch.rows:
            assert all(
                len(row.prompt) + len(branch) <= max(64, len(row.prompt) + 1) for branch in row.branches
            )
    assert cut.longest_row < work_of(config, data, policy).longest_row


def test_the_longest_rows_are_scored_together_as_many_as_fit(words):
    config = config_of(*words, "hardware.device=cpu")
    data = prepare_data(config, print)
    scored = work_of(config, data, policy_of(config, data)).scored
    ranked = sorted((row.tokens for row in data.rows), reverse=True)
    assert [row.tokens for row in scored] == ranked[: len(scored)]
    assert sum(ranked[: len(scored)]) <= 2048
    assert len(scored) == len(ranked) or sum(ranked[: len(scored) + 1]) > 2048


def test_hypo_keeps_more_of_the_vocabulary_than_its_pairs_do(words):
    """Over the whole vocabulary the head keeps two values per token of an answer, else one."""
    taken = {}
    for estimator in ("rloo", "full"):
        algo = ("algo=hypo", "algo.samples=2", "algo.max_new_tokens=200", "algo.prompts_per_step=6")
        config = config_of(*words, *algo, f"algo.estimator={estimator}")
        data = prepare_data(config, print)
        policy = policy_of(config, data)
        work = work_of(config, data, policy)
        (batch,) = work.heaviest(10**6)
        taken[estimator] = training_bytes(
            ghost_of(policy), batch.rows, work.forward, checkpointing=False, accumulates=False
        )
    assert taken["full"] > taken["rloo"]


def test_models_beside_are_counted_where_they_stay(words):
    def beside(*algo: str) -> float:
        config = config_of(*words, *algo)
        data = prepare_data(config, print)
        policy = policy_of(config, data)
        return work_of(config, data, policy).beside_bytes / weight_bytes(policy.model)

    hypo = ("algo=hypo", "algo.prompts_per_step=4")
    assert beside("algo=dpo") == 1  # the watch asks the reference for the KL of fresh answers
    assert beside("algo=dpo", "watch.samples=0") == 0  # its scores are kept
    assert beside(*hypo) == 1
    assert beside(*hypo, "adapter=lora") == 0  # the reference is the policy without its adapter
    assert beside(*PPO) == 1
    assert beside(*PPO, "algo.critic=separate") == 5  # with gradients and moments of its own
