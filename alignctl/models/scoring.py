"""Log-probabilities of many rows without gradients: the reference pass and every evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from alignctl.models.packing import micro_batches, pack
from alignctl.models.policy import Policy, autocast, branch_logps, branch_scores, evaluating
from alignctl.records import Example, Scores

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""


@torch.no_grad()
def score(
    policy: Policy,
    examples: Sequence[Example],
    *,
    token_budget: int,
    with_top: bool,
    progress: Progress | None = None,
) -> Scores:
    """Score rows of equally many branches, longest first, each micro-batch within `token_budget`.

    `with_top` adds top-10 entropy and mass, at the price of a top-k over the vocabulary per token.
    """
    policy = replace(policy, forward_only=True)
    branches = len(examples[0].branches)
    order = sorted(range(len(examples)), key=lambda index: -examples[index].tokens)
    ranked = [examples[index] for index in order]
    parts = []
    done = 0
    # Autocast around the loop, not only inside: leaving the outermost forgets the weights it has rounded.
    with evaluating(policy.model), autocast(policy):
        for group in micro_batches(ranked, token_budget=token_budget, layout=policy.layout):
            batch = pack([ranked[index] for index in group], policy.layout).to(policy.device)
            found = branch_scores(policy, batch) if with_top else (branch_logps(policy, batch),)
            parts.append(torch.stack(found).cpu())
            done += len(group)
            if progress:
                progress(done, len(examples))
    ranked_scores = torch.cat(parts, dim=1).unflatten(1, (-1, branches))
    scores = ranked_scores[:, torch.tensor(order).argsort()]
    counts = torch.tensor([[len(branch) for branch in example.branches] for example in examples])
    if with_top:
        return Scores(scores[0], counts, scores[1], scores[2])
    return Scores(scores[0], counts)
