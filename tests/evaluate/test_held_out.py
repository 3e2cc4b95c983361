"""Held-out figures against plain recomputation, and their independence from order and batches."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch
from torch import Tensor

from alignctl.algos import PairLoss, pair_loss
from alignctl.config import DpoConfig, IpoConfig, Reference
from alignctl.evaluate.held_out import (
    Evaluation,
    evaluate_answers,
    evaluate_given_answers,
    evaluate_pairs,
    joined,
)
from alignctl.evaluate.statistics import Estimate, mean_interval, wilson
from alignctl.records import Example, GoldScore, Message, Row, Scores

BETA = 0.1
FROZEN = Reference(kind="frozen", path=None, members=(), weights=None, alpha=None)
DPO: PairLoss = pair_loss(
    DpoConfig(name="dpo", beta=BETA, label_noise=0.0, reduction="sum", reference=FROZEN)
)
IPO: PairLoss = pair_loss(IpoConfig(name="ipo", tau=0.2, reduction="mean", reference=FROZEN))
N = 57


def held_out_set() -> tuple[list[Example], Scores, Scores]:
    """Pairs of ragged lengths with soft labels and weights, as float32 scores of a policy and a reference."""
    generator = np.random.default_rng(11)
    lengths = generator.integers(1, 60, size=(N, 2))
    labels = generator.choice([1.0, 0.75, 0.5], size=N)
    weights = generator.choice([1.0, 0.5, 2.0], size=N)
    examples = [
        Example(
            id=str(number),
            prompt=np.ones(3, dtype=np.int32),
            branches=tuple(np.ones(length, dtype=np.int32) for length in lengths[number]),
            p_chosen=float(labels[number]),
            weight=float(weights[number]),
        )
        for number in range(N)
    ]
    counts = torch.tensor(lengths)
    per_token = torch.tensor(generator.uniform(-3, -0.2, size=(N, 2)), dtype=torch.float32)
    drift = torch.tensor(generator.normal(0, 4, size=(N, 2)), dtype=torch.float32)
    policy = Scores(
        sums=per_token * counts,
        counts=counts,
        top_entropy=torch.tensor(generator.uniform(0, 3, size=(N, 2)), dtype=torch.float32) * counts,
        top_mass=torch.tensor(generator.uniform(0.2, 1, size=(N, 2)), dtype=torch.float32) * counts,
    )
    return examples, policy, Scores(sums=policy.sums - drift, counts=counts)


EXAMPLES, POLICY, REFERENCE = held_out_set()


def in_order(scores: Scores, order: list[int]) -> Scores:
    def rows(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[order]

    return Scores(scores.sums[order], scores.counts[order], rows(scores.top_entropy), rows(scores.top_mass))


def over_pairs(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def test_every_metric_is_a_plain_loop_over_the_pairs() -> None:
    policy, reference, counts = POLICY.sums.tolist(), REFERENCE.sums.tolist(), POLICY.counts.tolist()
    assert POLICY.top_entropy is not None
    assert POLICY.top_mass is not None
    losses, chosen_rewards, rejected_rewards = [], [], []
    for example, (good, bad), (ref_good, ref_bad) in zip(EXAMPLES, policy, reference, strict=True):
        z = BETA * ((good - ref_good) - (bad - ref_bad))
        p = example.p_chosen
        losses.append(example.weight * (p * math.log1p(math.exp(-z)) + (1 - p) * math.log1p(math.exp(z))))
        chosen_rewards.append(BETA * (good - ref_good))
        rejected_rewards.append(BETA * (bad - ref_bad))
    margins = [good - bad for good, bad in zip(chosen_rewards, rejected_rewards, strict=True)]
    chosen_tokens = sum(count for count, _ in counts)
    expected = {
        "loss": over_pairs(losses),
        "rewards/chosen": over_pairs(chosen_rewards),
        "rewards/rejected": over_pairs(rejected_rewards),
        "rewards/margins": over_pairs(margins),
        "rewards/accuracies": over_pairs([float(margin > 0) for margin in margins]),
        "logps/chosen": over_pairs([good for good, _ in policy]),
        "logps/rejected": over_pairs([bad for _, bad in policy]),
        "accuracy_logp": over_pairs([float(good > bad) for good, bad in policy]),
        "likelihood/chosen": over_pairs([good / n for (good, _), (n, _) in zip(policy, counts, strict=True)]),
        "likelihood/rejected": over_pairs([bad / n for (_, bad), (_, n) in zip(policy, counts, strict=True)]),
        "displacement": over_pairs(
            [float(good < r) for (good, _), (r, _) in zip(policy, reference, strict=True)]
        ),
        # Over positions of the chosen answers, not over pairs.
        "entropy/top10": math.fsum(POLICY.top_entropy[:, 0].tolist()) / chosen_tokens,
        "mass/top10": math.fsum(POLICY.top_mass[:, 0].tolist()) / chosen_tokens,
    }
    assert evaluate_pairs(EXAMPLES, POLICY, REFERENCE, DPO).metrics == pytest.approx(expected, rel=2e-6)


def test_rewards_of_the_loss_s_own_reduction_are_evaluated() -> None:
    margins = [
        0.2 * ((good - ref_good) / n_good - (bad - ref_bad) / n_bad)
        for (good, bad), (ref_good, ref_bad), (n_good, n_bad) in zip(
            POLICY.sums.tolist(), REFERENCE.sums.tolist(), POLICY.counts.tolist(), strict=True
        )
    ]
    found = evaluate_pairs(EXAMPLES, POLICY, REFERENCE, IPO).metrics
    assert found["rewards/margins"] == pytest.approx(over_pairs(margins), rel=2e-6)
    assert found["rewards/accuracies"] == over_pairs([float(margin > 0) for margin in margins])


@pytest.mark.parametrize("loss", [DPO, IPO], ids=["dpo", "ipo"])
@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_pairs_does_not_change_a_single_bit(loss: PairLoss, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(N).tolist()
    straight = evaluate_pairs(EXAMPLES, POLICY, REFERENCE, loss)
    shuffled = evaluate_pairs(
        [EXAMPLES[i] for i in order], in_order(POLICY, order), in_order(REFERENCE, order), loss
    )
    assert shuffled.metrics == straight.metrics
    values = {name: estimate.value for name, estimate in straight.estimates.items()}
    assert {name: estimate.value for name, estimate in shuffled.estimates.items()} == values


def test_estimates_are_about_the_metrics_of_the_same_name() -> None:
    # With rows of one weight; a weighted mean has no interval of this kind.
    examples = [replace(example, weight=1.0) for example in EXAMPLES]
    found = evaluate_pairs(examples, POLICY, REFERENCE, DPO)
    for name, estimate in found.estimates.items():
        assert estimate.value == pytest.approx(found.metrics[name], rel=1e-12), name
        assert estimate.n == N
        assert estimate.ci is not None
        assert estimate.ci[0] < estimate.value < estimate.ci[1]
    assert {name: estimate.method for name, estimate in found.estimates.items()} == {
        "loss": "t",
        "rewards/accuracies": "wilson",
        "accuracy_logp": "wilson",
        "rewards/margins": "t",
        "likelihood/chosen": "t",
    }


def test_ties_count_one_half() -> None:
    # A policy at its reference: every margin is a tie, the loss is ln 2 and nothing is displaced.
    examples = [replace(example, weight=1.0, p_chosen=1.0) for example in EXAMPLES]
    found = evaluate_pairs(examples, POLICY, Scores(POLICY.sums, POLICY.counts), DPO)
    assert found.metrics["rewards/accuracies"] == 0.5
    assert found.metrics["rewards/margins"] == 0.0
    assert found.metrics["displacement"] == 0.0
    assert found.metrics["loss"] == pytest.approx(math.log(2), rel=1e-7)
    assert found.estimates["rewards/accuracies"] == Estimate(0.5, wilson(N / 2, N), N, "wilson")


def test_a_single_tie_among_pairs() -> None:
    examples = [replace(EXAMPLES[0], id=str(i), p_chosen=1.0, weight=1.0) for i in range(4)]
    counts = torch.tensor([[len(branch) for branch in examples[0].branches]] * 4)
    reference = Scores(torch.full((4, 2), -20.0), counts)
    policy = Scores(torch.tensor([[-19.0, -21.0], [-18.0, -18.0], [-22.0, -20.0], [-20.0, -25.0]]), counts)
    found = evaluate_pairs(examples, policy, reference, DPO)
    assert found.metrics["rewards/accuracies"] == found.metrics["accuracy_logp"] == (1 + 0.5 + 0 + 1) / 4
    assert found.metrics["displacement"] == 1 / 4


def test_without_entropy_and_mass_there_are_no_such_metrics() -> None:
    found = evaluate_pairs(EXAMPLES, Scores(POLICY.sums, POLICY.counts), REFERENCE, DPO)
    assert not {"entropy/top10", "mass/top10"} & found.metrics.keys()


def test_errors_are_over_prompts() -> None:
    """Three rows to each of 19 prompts: the spread of the prompts' sums, worked out in a loop."""
    examples = [
        replace(example, prompt=np.full(2, number % 19, dtype=np.int32), weight=1.0)
        for number, example in enumerate(EXAMPLES)
    ]

    def expected(values: list[float], tokens: list[float]) -> float:
        ratio = math.fsum(values) / math.fsum(tokens)
        rests = [0.0] * 19
        for number, (value, token) in enumerate(zip(values, tokens, strict=True)):
            rests[number % 19] += value - ratio * token
        return math.sqrt(math.fsum(rest * rest for rest in rests) * 19 / 18) / math.fsum(tokens)

    found = evaluate_pairs(examples, POLICY, REFERENCE, DPO)
    counts = POLICY.counts[:, 0].tolist()
    assert POLICY.top_entropy is not None
    assert POLICY.top_mass is not None
    entropy, mass = POLICY.top_entropy[:, 0].tolist(), POLICY.top_mass[:, 0].tolist()
    assert found.metrics["entropy/top10_se"] == pytest.approx(expected(entropy, counts), rel=1e-9)
    assert found.metrics["mass/top10_se"] == pytest.approx(expected(mass, counts), rel=1e-9)
    alone = evaluate_pairs(examples, POLICY, REFERENCE, DPO).metrics["loss_se"]
    apart = [replace(row, prompt=np.full(2, number, dtype=np.int32)) for number, row in enumerate(examples)]
    separate = evaluate_pairs(apart, POLICY, REFERENCE, DPO)
    interval = separate.estimates["loss"].ci
    assert interval is not None
    # Where no prompt comes twice: the error behind Student's t interval, 2.0032 at 56 degrees of freedom.
    assert separate.metrics["loss_se"] == pytest.approx((interval[1] - interval[0]) / 2 / 2.0032, rel=1e-4)
    assert alone != separate.metrics["loss_se"]


def test_the_error_of_a_given_answer_s_loss_is_that_of_a_ratio() -> None:
    rows = [
        Example(str(number), np.full(1, number, dtype=np.int32), (np.ones(length, dtype=np.int32),))
        for number, length in enumerate((2, 4, 3))
    ]
    scores = Scores(torch.tensor([[-2.0], [-8.0], [-2.0]]), torch.tensor([[2], [4], [3]]))
    found = evaluate_given_answers(rows, scores).metrics
    # 12 nats over 9 tokens; rests 2 - 8/3, 8 - 16/3, 2 - 4.
    rests = [2 - 8 / 3, 8 - 16 / 3, -2.0]
    assert found["loss"] == pytest.approx(4 / 3)
    assert found["loss_se"] == pytest.approx(math.sqrt(sum(rest**2 for rest in rests) * 3 / 2) / 9)


# --- answers -------------------------------------------------------------------------------------------


ASKED = [Row(id=str(i), prompt=(Message("user", f"question {i}"),), branches=("a", "b")) for i in range(5)]
GOLD = {
    "0 fine": GoldScore(total=1.0, form=1.0, content=1.0),
    "1 fine": GoldScore(total=1.0, form=1.0, content=1.0),
    "2 half": GoldScore(total=0.5, form=1.0, content=0.0),
    "3 poor": GoldScore(total=0.25, form=0.0, content=0.5),
    "4 none": GoldScore(total=0.0, form=0.0, content=0.0),
}


def gold(row: Row, answer: str) -> GoldScore:
    return GOLD[f"{row.id} {answer}"]


def test_gold_scores_are_averaged_part_by_part() -> None:
    answers = [key.split()[1] for key in GOLD]
    found = evaluate_answers(ASKED, answers, gold)
    assert found.metrics == {
        "gold/mean": pytest.approx(2.75 / 5),
        "gold/mean_se": pytest.approx(0.2),  # deviation sqrt(0.2) of five
        "gold/form": pytest.approx(3 / 5),
        "gold/content": pytest.approx(2.5 / 5),
    }
    totals = [score.total for score in GOLD.values()]
    assert found.estimates["gold/mean"] == mean_interval(totals, bounds=(0.0, 1.0))
    assert set(found.estimates) == {"gold/mean", "gold/form", "gold/content"}
    assert found.estimates["gold/mean"].value == pytest.approx(fmean(totals))


def test_answers_that_do_not_match_their_prompts_in_number_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        evaluate_answers(ASKED, ["fine"] * 4, lambda row, answer: GOLD["0 fine"])


def test_joining_keeps_everything_of_every_part() -> None:
    pairs = evaluate_pairs(EXAMPLES, POLICY, REFERENCE, DPO)
    answers = evaluate_answers(ASKED, [key.split()[1] for key in GOLD], gold)
    both = joined([pairs, answers])
    assert both.metrics == pairs.metrics | answers.metrics
    assert both.estimates == pairs.estimates | answers.estimates
    assert joined([]) == Evaluation({}, {})
