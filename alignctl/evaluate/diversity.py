"""How varied token sequences are: expectation-adjusted distinct n-grams (arXiv 2202.13587).

EAD = N / (K (1 - ((K - 1) / K)^C)): the N different n-grams among C, over the number expected of C draws from
K equally likely ones. K is V^n, the n-grams that V tokens can form: with V itself the expected number of
pairs would level off at V, which different pairs do not. For n > 1 and any amount of text that a run samples
the correction is then nothing, and the figure is the plain share of different n-grams (arXiv 1510.03055).
Text is no draw from equally likely tokens, so the figure still falls as answers grow longer.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from statistics import fmean

LONGEST = 5


def ngrams(items: Sequence[Hashable], n: int) -> Iterable[tuple[Hashable, ...]]:
    """All runs of n neighbours, in their order."""
    return zip(*(items[start:] for start in range(n)), strict=False)


def adjusted_distinct(grams: Sequence[Hashable], kinds: int) -> float:
    """Different ones of C >= 1 n-grams over the number expected of draws from `kinds` equally likely ones."""
    expected = -kinds * math.expm1(len(grams) * math.log1p(-1 / kinds)) if kinds > 1 else 1.0
    return len(set(grams)) / expected


def mean_distinct(answers: Sequence[Sequence[int]], vocabulary: int) -> float | None:
    """EAD of all answers' token n-grams together, averaged over n = 1 to 5.

    No n-gram spans two answers. Lengths that no answer reaches are left out; None when there are no tokens.
    """
    found = []
    for n in range(1, LONGEST + 1):
        grams = [gram for answer in answers for gram in ngrams(answer, n)]
        if grams:
            found.append(adjusted_distinct(grams, vocabulary**n))
    return fmean(found) if found else None


def distinct_error(answers: Sequence[Sequence[int]], vocabulary: int) -> float | None:
    """Standard error of `mean_distinct` over answers, each to a prompt of its own; None for fewer than two.

    The jackknife: a figure of the whole text is no mean over answers, and resampling would repeat some.
    """
    n = len(answers)
    without = [mean_distinct([*answers[:place], *answers[place + 1 :]], vocabulary) for place in range(n)]
    values = [value for value in without if value is not None]
    if n < 2 or len(values) < n:
        return None
    centre = fmean(values)
    return math.sqrt((n - 1) / n * math.fsum((value - centre) ** 2 for value in values))
