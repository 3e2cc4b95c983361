"""What a model's own answers look like: length, endings, repetition, variety, and drift from the reference.

- `repetition_4gram`: mean over answers of the share of their token 4-grams that came before in the same
  answer (arXiv 1908.04319); answers of fewer than four tokens have none and are left out.
- `distinct_1` to `distinct_4`: different word n-grams over all word n-grams of all answers
  (arXiv 1510.03055). It falls with the amount of text, so `ead_1` corrects it (diversity.py). It is taken
  over tokens, whose number V is known and the same for all models, and for single ones only: for longer
  n-grams the correction is nothing. Resamples repeat answers and would all be less varied than the sample,
  so these figures of the whole text have no interval.
- `kl/token`: sum of log pi - log ref over sum of tokens, on samples from pi at temperature 1 an unbiased
  estimate of the KL divergence along the answers, at other settings a measure of drift; it may come out below
  zero. `kl/sequence` is the mean sum.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from alignctl.evaluate.diversity import adjusted_distinct, ngrams
from alignctl.evaluate.over_prompts import estimate, estimates, mean_of, ratio_of, share_of, without_interval
from alignctl.evaluate.statistics import Estimate

REPEATED = 4
LONGEST = 4

_WORD = re.compile(r"\w+")


def generation_metrics(
    answers: Sequence[np.ndarray],
    texts: Sequence[str],
    ended: Sequence[bool],
    prompts: np.ndarray,
    *,
    vocabulary: int,
    seed: int,
) -> dict[str, Estimate]:
    """Figures of n answers: token ids [C] each, their texts, whether each ended by itself, int64 [n] prompts.

    `vocabulary` is the tokenizer's size. A figure that no answer is long enough for is left out; no answers
    give no figures.
    """
    if not answers:
        return {}
    lengths = np.array([len(answer) for answer in answers], dtype=np.float64)
    found = estimates(
        {
            "response_length": mean_of(lengths, (0.0, math.inf)),
            "no_end_rate": share_of(1.0 - np.asarray(ended, dtype=np.float64)),
        },
        prompts,
        seed,
    )
    long = lengths >= REPEATED
    if long.any():
        repeated = np.array([_repetition(answer) for answer in answers if len(answer) >= REPEATED])
        found["repetition_4gram"] = estimate(mean_of(repeated, (0.0, 1.0)), prompts[long], seed)
    words = [_WORD.findall(text.lower()) for text in texts]
    for n in range(1, LONGEST + 1):
        grams = [gram for said in words for gram in ngrams(said, n)]
        if grams:
            found[f"distinct_{n}"] = without_interval(len(set(grams)) / len(grams), len(answers))
    tokens = [int(token) for answer in answers for token in answer]
    if tokens:
        found["ead_1"] = without_interval(adjusted_distinct(tokens, vocabulary), len(answers))
    return found


def drift_metrics(
    policy: np.ndarray, reference: np.ndarray, tokens: np.ndarray, prompts: np.ndarray, *, seed: int
) -> dict[str, Estimate]:
    """`kl/token` and `kl/sequence` in nats, from the answers' summed log-probabilities [n] under both
    models and their tokens [n], each at least one."""
    return estimates(
        {
            "kl/token": ratio_of(policy - reference, tokens),
            "kl/sequence": mean_of(policy - reference),
        },
        prompts,
        seed,
    )


def _repetition(answer: np.ndarray) -> float:
    grams = list(ngrams([int(token) for token in answer], REPEATED))
    return 1.0 - len(set(grams)) / len(grams)
