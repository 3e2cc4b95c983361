"""The head with the KL divergence against whole log-softmax: values, gradients, budgets, precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from alignctl.models import head
from alignctl.models.head import token_logps
from alignctl.models.head_kl import token_logps_and_kl

HIDDEN, REF_HIDDEN, VOCABULARY = 6, 4, 23
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def in_blocks(monkeypatch, rows):
    """Logits of so many rows at a time, their log-probabilities three at a time."""
    monkeypatch.setattr(head, "CHUNK_BYTES", rows * VOCABULARY * 4)
    monkeypatch.setattr(head, "CACHED_BYTES", 3 * VOCABULARY * 4)


def inputs(rows: int, *, dtype: torch.dtype = torch.float64) -> Inputs:
    """hidden, weight, bias, targets, then the reference's three, whose hidden size is its own."""
    generator = torch.Generator().manual_seed(rows)

    def draw(*shape: int, trained: bool = True) -> Tensor:
        drawn = torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)
        return drawn.requires_grad_(trained)

    return (
        draw(rows, HIDDEN),
        draw(VOCABULARY, HIDDEN),
        draw(VOCABULARY),
        torch.randint(VOCABULARY, (rows,), generator=generator),
        draw(rows, REF_HIDDEN, trained=False),
        draw(VOCABULARY, REF_HIDDEN, trained=False),
        draw(VOCABULARY, trained=False),
    )


def whole(hidden, weight, bias, targets, ref_hidden, ref_weight, ref_bias):
    """The same by autograd, from [N, V] log-softmax."""
    log_p = torch.nn.functional.linear(hidden, weight, bias).log_softmax(-1)
    log_q = torch.nn.functional.linear(ref_hidden, ref_weight, ref_bias).log_softmax(-1).detach()
    return log_p.gather(1, targets[:, None])[:, 0], (log_p.exp() * (log_p - log_q)).sum(-1)


def values_and_gradients(function, *arguments):
    leaves = [leaf for leaf in arguments[:3] if leaf is not None]
    logps, kl = function(*arguments)
    upstream = torch.linspace(-1, 2, len(logps), dtype=logps.dtype)
    # Both results at once, weighted apart, as an estimator mixes them.
    gradients = torch.autograd.grad([logps, kl], leaves, [upstream, 1.5 - upstream**2])
    return [logps.detach(), kl.detach(), *gradients]


@pytest.mark.parametrize(
    "kept_bytes", [2**30, 0, 2 * 3 * VOCABULARY * 8], ids=["kept", "none kept", "3 rows"]
)
@pytest.mark.parametrize("chunk_rows", [1, 4, 256])
@pytest.mark.parametrize("rows", [1, 3, 4, 9])
@pytest.mark.parametrize("with_bias", [False, True])
def test_chunked_is_whole(monkeypatch, rows, chunk_rows, kept_bytes, with_bias):
    in_blocks(monkeypatch, chunk_rows)
    monkeypatch.setattr(head, "KEPT_BYTES", kept_bytes)
    hidden, weight, bias, targets, ref_hidden, ref_weight, ref_bias = inputs(rows)
    if not with_bias:
        bias = ref_bias = None
    arguments = (hidden, weight, bias, targets, ref_hidden, ref_weight, ref_bias)
    found = values_and_gradients(token_logps_and_kl, *arguments)
    expected = values_and_gradients(whole, *arguments)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) < 1e-12


@pytest.mark.parametrize("kept_bytes", [2**30, 0], ids=["kept", "recomputed"])
def test_gradcheck(monkeypatch, kept_bytes):
    monkeypatch.setattr(head, "KEPT_BYTES", kept_bytes)
    in_blocks(monkeypatch, 2)
    hidden, weight, bias, targets, *reference = inputs(5)
    # A second backward pass recomputes what the first has used up, and may round otherwise.
    assert torch.autograd.gradcheck(
        lambda h, w, b: token_logps_and_kl(h, w, b, targets, *reference),
        (hidden, weight, bias),
        nondet_tol=1e-12,
    )


def test_one_result_alone_has_its_own_gradient():
    hidden, weight, bias, targets, *reference = inputs(7)
    for place in (0, 1):
        found = torch.autograd.grad(
            token_logps_and_kl(hidden, weight, bias, targets, *reference)[place].sum(), (hidden, weight, bias)
        )
        expected = torch.autograd.grad(
            whole(hidden, weight, bias, targets, *reference)[place].sum(), (hidden, weight, bias)
        )
        for one, other in zip(found, expected, strict=True):
            assert float((one - other).abs().max()) < 1e-12


def test_second_backward_pass_gives_the_same_gradient():
    hidden, weight, bias, targets, *reference = inputs(7)
    logps, kl = token_logps_and_kl(hidden, weight, bias, targets, *reference)
    first = torch.autograd.grad((logps + kl).sum(), (hidden, weight, bias), retain_graph=True)
    second = torch.autograd.grad((logps + kl).sum(), (hidden, weight, bias))
    for one, other in zip(first, second, strict=True):
        assert float((one - other).abs().max()) < 1e-13


def test_the_head_shared_with_the_reference_is_trained_as_the_policys_only():
    """Adapter off: one weight on both sides, of which the reference's side is a constant."""
    hidden, weight, _, targets, *_ = inputs(6)
    ref_hidden = hidden.detach().flip(0) + 0.3
    found = values_and_gradients(token_logps_and_kl, hidden, weight, None, targets, ref_hidden, weight, None)
    expected = values_and_gradients(whole, hidden, weight, None, targets, ref_hidden, weight, None)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) < 1e-12


def test_nothing_of_the_reference_gets_a_gradient():
    hidden, weight, bias, targets, *reference = inputs(4)
    wanted = [tensor.requires_grad_() for tensor in reference]
    sum(token_logps_and_kl(hidden, weight, bias, targets, *wanted)).sum().backward()
    assert [tensor.grad for tensor in wanted] == [None, None, None]
    assert weight.grad is not None


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, _, targets, ref_hidden, ref_weight, _ = inputs(5)
    arguments = (targets, ref_hidden, ref_weight, None)
    (expected,) = torch.autograd.grad(whole(hidden, weight, None, *arguments)[1].sum(), hidden)
    token_logps_and_kl(hidden, weight.detach(), None, *arguments)[1].sum().backward()
    assert hidden.grad is not None
    assert float((hidden.grad - expected).abs().max()) < 1e-12
    assert weight.grad is None


def test_logps_are_those_of_the_head_without_kl():
    hidden, weight, bias, targets, *reference = inputs(9)
    logps, _ = token_logps_and_kl(hidden, weight, bias, targets, *reference)
    expected = token_logps(hidden, weight, bias, targets)
    assert float((logps - expected).detach().abs().max()) < 1e-12


def test_divergence_from_oneself_is_zero_and_so_is_its_gradient():
    hidden, weight, bias, targets, *_ = inputs(8)
    _, kl = token_logps_and_kl(hidden, weight, bias, targets, hidden, weight, bias)
    assert float(kl.detach().abs().max()) < 1e-15
    for gradient in torch.autograd.grad(kl.sum(), (hidden, weight, bias)):
        assert float(gradient.abs().max()) < 1e-14


def test_divergence_by_hand():
    """p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): KL = 1/2 ln 2 - 1/4 ln 2."""
    one = torch.ones(1, 1, dtype=torch.float64)
    by_hand = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
    p, q = (torch.tensor(x, dtype=torch.float64).log()[:, None] for x in by_hand)
    logps, kl = token_logps_and_kl(one, p, None, torch.tensor([1]), one, q, None)
    assert float(kl) == pytest.approx(0.25 * 0.6931471805599453, rel=1e-12)
    assert float(logps) == pytest.approx(-2 * 0.6931471805599453, rel=1e-12)


def test_a_small_divergence_survives_float32():
    """Where policies differ little, as after a few steps, the plain float32 sum is mostly rounding."""
    generator = torch.Generator().manual_seed(0)
    rows, vocabulary = 20, 4096
    exact = [3 * torch.randn(rows, vocabulary, dtype=torch.float64, generator=generator)]
    exact.append(exact[0] + 1e-3 * torch.randn(rows, vocabulary, dtype=torch.float64, generator=generator))
    # Logits of exactly these float32 values: one-hot hidden states over a weight that holds them.
    p, q = (logits.float() for logits in exact)
    eye, targets = torch.eye(rows), torch.zeros(rows, dtype=torch.int64)
    _, found = token_logps_and_kl(eye, p.T.contiguous(), None, targets, eye, q.T.contiguous(), None)
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    truth = (log_p.exp() * (log_p - log_q)).sum(-1)
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    plain = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert float(truth.max()) < 1e-5
    error, plain_error = ((kl.double() - truth).abs().max() for kl in (found, plain))
    assert float(error) < 1e-7
    assert float(plain_error) > 5 * float(error)


def test_bfloat16_products_over_float32_weights_and_bias():
    arguments = inputs(50, dtype=torch.float32)
    hidden, weight, bias, targets, *reference = arguments
    expected = torch.autograd.grad(whole(*arguments)[1].sum(), weight)[0]
    narrow = hidden.detach().bfloat16().requires_grad_()
    reference[0] = reference[0].bfloat16()
    logps, kl = token_logps_and_kl(narrow, weight, bias, targets, *reference)
    assert (logps.dtype, kl.dtype) == (torch.float32, torch.float32)
    assert float((kl - whole(*arguments)[1]).detach().abs().max()) < 0.1
    kl.sum().backward()
    assert (narrow.grad.dtype, weight.grad.dtype, bias.grad.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    assert float((weight.grad - expected).norm() / expected.norm()) < 0.02
