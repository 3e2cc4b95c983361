"""Distinct n-grams: worked by hand, flat for random tokens, and an error that matches the spread."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from alignctl.evaluate.diversity import adjusted_distinct, distinct_error, mean_distinct


def expected_distinct(kinds: int, draws: int) -> Fraction:
    """How many of `kinds` equally likely ones are seen in `draws`, exactly."""
    return kinds * (1 - Fraction(kinds - 1, kinds) ** draws)


def test_the_mean_over_n_is_the_one_worked_by_hand() -> None:
    # Single tokens: 1 and 2 among 5, of a vocabulary of 3. Pairs: (1, 2) and twice (2, 1), of 9 kinds. Three:
    # (1, 2, 1) alone, of 27. Nothing is longer, and no n-gram spans the two answers.
    parts = [2 / expected_distinct(3, 5), 2 / expected_distinct(9, 3), 1 / expected_distinct(27, 1)]
    assert parts[0] == Fraction(2 * 81, 211)
    assert mean_distinct([[1, 2, 1], [2, 1]], 3) == pytest.approx(float(sum(parts) / 3), rel=1e-12)


def test_all_five_lengths_count_where_an_answer_reaches_them() -> None:
    # One token again and again, eight times: a single kind of every length among 8, 7, 6, 5 and 4 of them.
    parts = [1 / expected_distinct(5**n, 9 - n) for n in range(1, 6)]
    assert mean_distinct([[4] * 8], 5) == pytest.approx(float(sum(parts) / 5), rel=1e-9)


def test_for_long_n_grams_of_a_real_vocabulary_it_is_the_plain_share() -> None:
    grams = [(1, 2, 3, 4, 5)] * 3 + [(2, 3, 4, 5, 6)]
    assert adjusted_distinct(grams, 49_152**5) == pytest.approx(0.5, rel=1e-12)


def test_adjusted_distinct_of_random_tokens_is_one_whatever_their_number() -> None:
    generator = np.random.default_rng(0)
    for count in (50, 2000, 60_000):
        drawn = [int(token) for token in generator.integers(0, 1000, count)]
        assert adjusted_distinct(drawn, 1000) == pytest.approx(1.0, abs=0.06)
    plain = [len(set(generator.integers(0, 1000, count).tolist())) / count for count in (50, 60_000)]
    assert plain[0] > 50 * plain[1]
    assert adjusted_distinct([3, 3, 3], 1) == 1.0
    assert adjusted_distinct([3], 40_000) == pytest.approx(1.0)


def test_no_tokens_have_no_figure_and_one_answer_no_error() -> None:
    assert mean_distinct([[], []], 9) is None
    assert distinct_error([[1, 2, 3]], 9) is None
    assert distinct_error([[1, 2], []], 9) is None  # without the first there would be nothing


def test_the_error_is_the_spread_over_fresh_answers() -> None:
    """Answers from a few common phrases and rare words: figures of 300 sets against the jackknife of each."""
    generator = np.random.default_rng(3)
    phrases = generator.integers(0, 200, (6, 8)).tolist()

    def answer() -> list[int]:
        start = phrases[generator.integers(0, len(phrases))]
        return [*start, *generator.integers(0, 200, generator.integers(2, 20)).tolist()]

    sets = [[answer() for _ in range(16)] for _ in range(300)]
    values = [mean_distinct(one, 200) for one in sets]
    errors = [distinct_error(one, 200) or 0.0 for one in sets[:60]]
    spread = float(np.std(np.array(values, dtype=float), ddof=1))
    assert math.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.3)
