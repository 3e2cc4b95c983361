"""What a policy's own answers say of it: how likely they are to it, how varied, how far it has drifted.

Likelihood over-optimisation is looked for here (arXiv 2410.11677): the entropy of the ten likeliest tokens
turns down, or their mass falls and tokens become random. Answers are drawn at temperature 1, so that
log pi - log ref estimates KL(pi || ref) without bias; drawn at another they would not be the policy's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from torch import Tensor

from alignctl.algos.online_kl import kl_metrics
from alignctl.evaluate.diversity import distinct_error, mean_distinct
from alignctl.evaluate.held_out import Evaluation
from alignctl.evaluate.statistics import Quotient, mean_interval, named_errors, quotient_interval
from alignctl.records import Example, Scores


def evaluate_samples(
    examples: Sequence[Example],
    policy: Scores,
    reference: Tensor | None,
    *,
    stop: Collection[int],
    vocabulary: int,
) -> Evaluation:
    """Figures of n distinct prompts with one sampled answer each, and their standard errors over prompts.

    `policy` scores the answers with top-10 entropy and mass, [n, 1]; `reference` are their summed
    log-probabilities under the reference, float [n, 1], None where there is none. The `stop` token that ends
    an answer is not counted among its n-grams: it is the same for all. `vocabulary` is the tokenizer's size.
    """
    assert policy.top_entropy is not None
    assert policy.top_mass is not None
    sums, counts = policy.sums[:, 0].double(), policy.counts[:, 0].double()
    tokens, answers = counts.numpy(), np.ones(len(examples))
    quotients = {
        "sampled/likelihood": Quotient((sums / counts).numpy(), answers),
        "sampled/entropy_top10": Quotient(policy.top_entropy[:, 0].double().numpy(), tokens),
        "sampled/mass_top10": Quotient(policy.top_mass[:, 0].double().numpy(), tokens),
        "response_length": Quotient(tokens, answers),
    }
    metrics = {name: quotient.value for name, quotient in quotients.items()}
    prompts = np.arange(len(examples))
    metrics |= named_errors({name: quotient.error(prompts) for name, quotient in quotients.items()})
    metrics |= _distinct([_said(example.branches[0], stop) for example in examples], vocabulary)
    estimates = {"response_length": mean_interval(tokens)}
    if reference is not None:
        nats = sums - reference[:, 0].double()
        metrics |= kl_metrics(nats, counts, samples=1)
        estimates["kl/token"] = quotient_interval(Quotient(nats.numpy(), tokens))
    return Evaluation(metrics, estimates)


def _said(answer: np.ndarray, stop: Collection[int]) -> list[int]:
    tokens: list[int] = answer.tolist()
    return tokens[:-1] if tokens[-1] in stop else tokens


def _distinct(said: Sequence[Sequence[int]], vocabulary: int) -> dict[str, float]:
    """Nothing where every answer is empty."""
    value = mean_distinct(said, vocabulary)
    if value is None:
        return {}
    return {"sampled/distinct": value, **named_errors({"sampled/distinct": distinct_error(said, vocabulary)})}
