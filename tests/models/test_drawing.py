"""Drawing: frequencies are those of the processed distribution, and a row is drawn by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from alignctl.models import drawing
from alignctl.models.drawing import draw, uniforms

DRAWS = 40_000
SMALL = torch.tensor([0.3, -1.2, 2.0, 0.0, float("-inf"), 1.1])


def numbers(n, seed=11):
    return torch.from_numpy(np.random.Generator(np.random.Philox(seed)).random(n))


def processed(logits, temperature, top_p):
    """Probabilities [n, V] as transformers processes logits."""
    chain = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)])
    return chain(torch.zeros(len(logits), 1, dtype=torch.int64), logits.double()).softmax(-1)  # type: ignore[arg-type]


def random_logits(rows, vocabulary, spread, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=generator) * spread


def chi_square(drawn, probabilities):
    """The p-value of drawn tokens; impossible ones must not be among them."""
    counts = torch.bincount(drawn, minlength=len(probabilities)).double()
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    if possible.sum() == 1:
        return 1.0
    expected = probabilities[possible] * len(drawn)
    return stats.chisquare(counts[possible].numpy(), expected.numpy()).pvalue


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.7, 0.5])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_processed_distribution(temperature, top_p):
    drawn = draw(SMALL.expand(DRAWS, -1), numbers(DRAWS), temperature=temperature, top_p=top_p)
    assert chi_square(drawn, processed(SMALL[None], temperature, top_p)[0]) > 1e-3


def test_temperature_comes_before_top_p():
    """At temperature 2 the nucleus of 0.7 has four tokens; on the raw distribution it would have two."""
    drawn = draw(SMALL.expand(DRAWS, -1), numbers(DRAWS), temperature=2.0, top_p=0.7)
    raw = processed(SMALL[None], 1.0, 0.7)[0]
    assert len(drawn.unique()) > int((raw > 0).sum())


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_blocks_and_their_edges_have_their_share(top_p):
    """A vocabulary of several blocks and a rest, frequencies compared in 20 strips."""
    logits = random_logits(1, 3 * drawing.BLOCK + 17, 1.0)
    drawn = draw(logits.expand(DRAWS, -1), numbers(DRAWS), temperature=1.0, top_p=top_p)
    strips = torch.arange(logits.shape[1]) * 20 // logits.shape[1]
    expected = torch.zeros(20, dtype=torch.float64).index_add(0, strips, processed(logits, 1.0, top_p)[0])
    assert chi_square(strips[drawn], expected / expected.sum()) > 1e-3


@pytest.mark.parametrize("top_p", [0.3, 0.8, 0.99])
@pytest.mark.parametrize("nucleus", [3, 40, 256])
def test_the_nucleus_is_the_one_of_transformers(monkeypatch, top_p, nucleus):
    """Every token of it can be drawn and no other, whether or not the likeliest few reach that far."""
    monkeypatch.setattr(drawing, "NUCLEUS", nucleus)
    logits = torch.cat([random_logits(4, 70, 3.0), random_logits(4, 70, 0.3)])
    grid = torch.linspace(0, 1, 4001, dtype=torch.float64)[:-1]
    for row, wanted in zip(logits, processed(logits, 1.0, top_p), strict=True):
        drawn = draw(row.expand(len(grid), -1), grid, temperature=1.0, top_p=top_p)
        common = wanted > 1 / 4000  # rarer ones may lie between two numbers of the grid
        assert set(common.nonzero()[:, 0].tolist()) <= set(drawn.tolist())
        assert set(drawn.tolist()) <= set((wanted > 0).nonzero()[:, 0].tolist())


def test_a_row_is_drawn_by_itself(monkeypatch):
    """Rows with a wide nucleus take another way than those with a narrow one; none changes the others."""
    monkeypatch.setattr(drawing, "NUCLEUS", 8)
    logits = torch.cat([random_logits(5, 700, 8.0), random_logits(5, 700, 0.5)])[torch.arange(10) * 3 % 10]
    number = numbers(10)
    together = draw(logits, number, temperature=1.0, top_p=0.9)
    alone = [draw(logits[i : i + 1], number[i : i + 1], temperature=1.0, top_p=0.9) for i in range(10)]
    assert together.tolist() == [int(token) for token in alone]


def test_of_equally_likely_tokens_as_many_stay_as_in_transformers():
    logits = torch.zeros(1, 10)
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    drawn = draw(logits.expand(1000, -1), grid, temperature=1.0, top_p=0.45)
    assert len(drawn.unique()) == 5 == int((processed(logits, 1.0, 0.45) > 0).sum())


@pytest.mark.parametrize("top_p", [1e-9, 0.5, 1.0])
def test_the_ends_of_the_unit_interval_are_possible_tokens(top_p):
    logits = torch.tensor([float("-inf"), 0.0, 1.0, float("-inf")]).expand(2, -1)
    ends = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    expected = [1, 2] if top_p == 1 else [2, 2]
    assert draw(logits, ends, temperature=1.0, top_p=top_p).tolist() == expected


@pytest.mark.parametrize("top_p", [0.5, 1.0])
def test_temperature_zero_is_the_likeliest_whatever_the_number(top_p):
    logits = torch.tensor([[0.1, 5.0, 2.0]] * 3)
    ends = torch.tensor([0.0, 0.5, 0.999], dtype=torch.float64)
    assert draw(logits, ends, temperature=0.0, top_p=top_p).tolist() == [1, 1, 1]
    assert draw(logits, ends, temperature=1e-6, top_p=top_p).tolist() == [1, 1, 1]


def test_numbers_of_different_answers_are_uniform_and_unrelated():
    of = np.array([uniforms(seed, step, i, 64) for seed in range(4) for step in range(4) for i in range(16)])
    assert stats.kstest(of.ravel(), "uniform").pvalue > 1e-3
    correlations = np.corrcoef(of) - np.eye(len(of))
    assert np.abs(correlations).max() < 0.65  # 64 numbers: a standard error of 0.125


def test_longer_answers_begin_with_the_same_numbers():
    assert (uniforms(3, 5, 7, 100)[:10] == uniforms(3, 5, 7, 10)).all()


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_each_row_may_have_a_temperature_of_its_own(top_p):
    logits, uniform = random_logits(90, 700, 2.0), numbers(90)
    temperatures = torch.tensor([0.0, 0.7, 1.0]).repeat(30)
    drawn = draw(logits, uniform, temperature=temperatures, top_p=top_p)
    for temperature in (0.0, 0.7, 1.0):
        rows = torch.isclose(temperatures, torch.tensor(temperature))
        alone = draw(logits[rows], uniform[rows], temperature=temperature, top_p=top_p)
        assert torch.equal(drawn[rows], alone)
    assert len({tuple(drawn[place::3].tolist()) for place in range(3)}) == 3
