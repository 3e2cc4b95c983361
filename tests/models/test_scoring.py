"""Scoring: the batch never matters, order and counts are the caller's, the policy is left as it was."""

from __future__ import annotations

import pytest
import torch

from alignctl.models.packing import pack
from alignctl.models.policy import Policy, branch_logps, branch_scores, set_attention
from alignctl.models.scoring import score

CPU = torch.device("cpu")
TREES = [(5, 3, 6), (1, 4, 2), (30, 12, 9), (9, 1, 1), (2, 20, 7), (1, 1, 1), (14, 5, 5)]


def policy_for(model, layout):
    set_attention(model, layout)
    return Policy(model, layout, torch.float64, CPU)


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize("with_top", [False, True])
def test_token_budget_does_not_matter(tiny, make_rows, layout, with_top):
    policy, rows = policy_for(tiny(), layout), make_rows(TREES)
    alone, pairs, together = (
        score(policy, rows, token_budget=budget, with_top=with_top) for budget in (1, 60, 10_000)
    )
    for found in (pairs, together):
        assert float((found.sums - alone.sums).abs().max()) < 1e-12
        assert torch.equal(found.counts, alone.counts)
        if with_top:
            assert float((found.top_entropy - alone.top_entropy).abs().max()) < 1e-12
            assert float((found.top_mass - alone.top_mass).abs().max()) < 1e-12


def test_scores_stand_in_the_order_of_the_rows(tiny, make_rows, plain_logps):
    model, rows = tiny(), make_rows(TREES)
    found = score(policy_for(model, "shared"), rows, token_budget=40, with_top=False)
    set_attention(model, "padded")
    with torch.no_grad():
        expected = plain_logps(model, rows).view(-1, 2)
    assert float((found.sums - expected).abs().max()) < 1e-10
    assert found.counts.tolist() == [list(tree[1:]) for tree in TREES]
    assert found.top_entropy is None


def test_permuting_the_rows_permutes_the_scores(tiny, make_rows):
    policy, rows = policy_for(tiny(), "shared"), make_rows(TREES)
    order = [3, 0, 6, 2, 5, 1, 4]
    before = score(policy, rows, token_budget=64, with_top=True)
    after = score(policy, [rows[index] for index in order], token_budget=64, with_top=True)
    assert float((after.sums - before.sums[order]).abs().max()) < 1e-12
    assert float((after.top_mass - before.top_mass[order]).abs().max()) < 1e-12


@pytest.mark.parametrize("branches", [1, 3])
def test_other_numbers_of_branches(tiny, make_rows, branches):
    policy = policy_for(tiny(), "shared")
    rows = make_rows([(4, *range(1, branches + 1)), (2, *range(3, branches + 3))])
    found = score(policy, rows, token_budget=8, with_top=False)
    assert found.sums.shape == (2, branches)
    with torch.no_grad():
        assert found.sums.flatten() == pytest.approx(branch_logps(policy, pack(rows, "shared")), abs=1e-12)


def test_top_figures_are_sums_over_the_tokens_of_a_branch(tiny, make_rows):
    model, (row,) = tiny(), make_rows([(6, 3)])
    policy = policy_for(model, "shared")
    logps, entropy, mass = branch_scores(policy, pack([row], "shared"))
    set_attention(model, "padded")
    ids = torch.tensor([[*row.prompt.tolist(), *row.branches[0].tolist()]])
    with torch.no_grad():
        top = model(input_ids=ids).logits[0, 5:8].softmax(-1).topk(10).values
    share = top / top.sum(-1, keepdim=True)
    assert float(mass) == pytest.approx(float(top.sum()), abs=1e-10)
    assert float(entropy) == pytest.approx(float(-(share * share.log2()).sum()), abs=1e-10)
    assert logps.shape == (1,)


@pytest.mark.parametrize("training", [True, False])
def test_the_policy_keeps_its_mode_and_its_gradients(tiny, make_rows, training):
    policy = policy_for(tiny(), "shared")
    policy.model.train(training)
    found = score(policy, make_rows(TREES), token_budget=64, with_top=False)
    assert policy.model.training is training
    assert not found.sums.requires_grad
    assert all(parameter.grad is None for parameter in policy.model.parameters())


def test_the_mode_comes_back_when_progress_ends_the_pass(tiny, make_rows):
    """A signal is raised out of the progress callback."""
    policy = policy_for(tiny(), "shared")
    policy.model.train()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(policy, make_rows(TREES), token_budget=64, with_top=False, progress=stop)
    assert policy.model.training


def test_progress_counts_rows(tiny, make_rows):
    seen: list[tuple[int, int]] = []
    score(
        policy_for(tiny(), "shared"),
        make_rows(TREES),
        token_budget=60,
        with_top=False,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (7, 7)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
