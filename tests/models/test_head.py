"""The chunked head against whole logits: values, gradients, chunk edges, kept and recomputed softmax."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from alignctl.models import head
from alignctl.models.head import token_logps, token_scores

HIDDEN, VOCABULARY = 6, 23


def in_blocks(monkeypatch, rows):
    """Logits of so many rows at a time, their log-probabilities three at a time."""
    monkeypatch.setattr(head, "CHUNK_BYTES", rows * VOCABULARY * 4)
    monkeypatch.setattr(head, "CACHED_BYTES", 3 * VOCABULARY * 4)


def inputs(rows: int, *, dtype=torch.float64, seed=0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

    targets = torch.randint(VOCABULARY, (rows,), generator=generator)
    return draw(rows, HIDDEN), draw(VOCABULARY, HIDDEN), draw(VOCABULARY), targets


def whole(hidden, weight, bias, targets):
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def value_and_gradients(function, hidden, weight, bias, targets):
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None]
    logps = function(hidden, weight, bias, targets)
    upstream = torch.linspace(-1, 2, len(targets), dtype=logps.dtype)
    return [logps.detach(), *torch.autograd.grad(logps, leaves, upstream)]


@pytest.mark.parametrize("kept_bytes", [2**30, 0, 3 * VOCABULARY * 4], ids=["kept", "row by row", "3 rows"])
@pytest.mark.parametrize("chunk_rows", [1, 4, 5, 256])
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("with_bias", [False, True])
def test_chunked_is_whole(monkeypatch, rows, chunk_rows, kept_bytes, with_bias):
    in_blocks(monkeypatch, chunk_rows)
    monkeypatch.setattr(head, "KEPT_BYTES", kept_bytes)
    hidden, weight, bias, targets = inputs(rows)
    arguments = (hidden, weight, bias if with_bias else None, targets)
    found = value_and_gradients(token_logps, *arguments)
    expected = value_and_gradients(whole, *arguments)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) < 1e-12


@pytest.mark.parametrize("kept_bytes", [2**30, 0], ids=["kept", "recomputed"])
def test_gradcheck(monkeypatch, kept_bytes):
    monkeypatch.setattr(head, "KEPT_BYTES", kept_bytes)
    in_blocks(monkeypatch, 2)
    hidden, weight, bias, targets = inputs(5)
    # A second backward pass recomputes what the first has used up, and may round otherwise.
    assert torch.autograd.gradcheck(
        lambda h, w, b: token_logps(h, w, b, targets), (hidden, weight, bias), nondet_tol=1e-12
    )


def test_second_backward_pass_gives_the_same_gradient():
    hidden, weight, bias, targets = inputs(7)
    logps = token_logps(hidden, weight, bias, targets)
    first = torch.autograd.grad(logps.sum(), (hidden, weight, bias), retain_graph=True)
    second = torch.autograd.grad(logps.sum(), (hidden, weight, bias))
    for one, other in zip(first, second, strict=True):
        assert float((one - other).abs().max()) < 1e-13


def test_gradient_of_the_gradient_is_refused_rather_than_wrong():
    hidden, weight, _, targets = inputs(3)
    squares = token_logps(hidden, weight, None, targets) ** 2
    (gradient,) = torch.autograd.grad(squares.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_frozen_head_gets_no_gradient_and_changes_none():
    hidden, weight, _, targets = inputs(5)
    (expected,) = torch.autograd.grad(whole(hidden, weight, None, targets).sum(), hidden)
    token_logps(hidden, weight.detach(), None, targets).sum().backward()
    assert hidden.grad is not None
    assert float((hidden.grad - expected).abs().max()) < 1e-12
    assert weight.grad is None


def test_gradient_over_the_logits_sums_to_zero():
    """The bias enters every logit once, so its gradient is the logits'."""
    hidden, weight, bias, targets = inputs(9)
    (gradient,) = torch.autograd.grad(token_logps(hidden, weight, bias, targets).sum(), bias)
    assert abs(float(gradient.sum())) < 1e-12


def test_a_constant_on_all_logits_changes_nothing():
    hidden, weight, bias, targets = inputs(4)
    shifted = token_logps(hidden, weight, bias + 300.0, targets)
    assert torch.allclose(shifted, token_logps(hidden, weight, bias, targets), rtol=0, atol=1e-11)


def test_bfloat16_products_over_float32_weights_and_bias():
    hidden, weight, bias, targets = inputs(50, dtype=torch.float32)
    narrow = hidden.detach().bfloat16().requires_grad_()
    logps = token_logps(narrow, weight, bias, targets)
    assert logps.dtype == torch.float32
    assert float((logps - whole(hidden, weight, bias, targets)).abs().max()) < 0.1
    logps.sum().backward()
    assert (narrow.grad.dtype, weight.grad.dtype, bias.grad.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    expected = torch.autograd.grad(whole(hidden, weight, bias, targets).sum(), weight)[0]
    assert float((weight.grad - expected).norm() / expected.norm()) < 0.02


# --- top ten -------------------------------------------------------------------------------------------


def scores_of(probabilities: list[float], target: int = 0):
    """The head's view of one position with these probabilities: hidden state 1, weights their logarithms."""
    weight = torch.tensor(probabilities, dtype=torch.float64).log()[:, None]
    hidden = torch.ones(1, 1, dtype=torch.float64)
    return token_scores(hidden, weight, None, torch.tensor([target]))


@pytest.mark.parametrize(
    ("probabilities", "entropy", "mass"),
    [
        ([0.25] * 4, 2.0, 1.0),
        ([0.5, 0.25, 0.125, 0.125], 1.75, 1.0),
        ([0.05] * 20, math.log2(10), 0.5),
        ([0.5] + [0.5 / 9] * 9, 1 + 0.5 * math.log2(9), 1.0),
        ([0.4] + [0.04] * 9 + [0.24 / 30] * 30, None, 0.76),
        ([1.0, 0.0, 0.0], 0.0, 1.0),
    ],
)
def test_top_ten_by_hand(probabilities, entropy, mass):
    found = scores_of(probabilities)
    if entropy is None:
        share = torch.tensor([0.4] + [0.04] * 9, dtype=torch.float64) / 0.76
        entropy = float(-(share * share.log2()).sum())
    assert float(found.top_entropy) == pytest.approx(entropy, abs=1e-9)
    assert float(found.top_mass) == pytest.approx(mass, abs=1e-12)
    assert float(found.logps) == pytest.approx(math.log(probabilities[0]), abs=1e-12)


@pytest.mark.parametrize("chunk_rows", [1, 4, 256])
def test_scores_are_the_logps_and_for_a_vocabulary_of_ten_the_full_entropy(monkeypatch, chunk_rows):
    in_blocks(monkeypatch, chunk_rows)
    hidden, weight, bias, _ = inputs(9)
    weight, bias = weight[:10], bias[:10]
    targets = torch.arange(9)
    found = token_scores(hidden, weight, bias, targets)
    logps = torch.nn.functional.linear(hidden, weight, bias).log_softmax(-1)
    entropy = -(logps.exp() * logps).sum(-1) / math.log(2)
    assert float((found.logps - token_logps(hidden, weight, bias, targets)).abs().max()) < 1e-12
    assert float((found.top_entropy - entropy).abs().max()) < 1e-12
    assert float((found.top_mass - 1).abs().max()) < 1e-12
