"""The gradient of HyPO (arXiv 2406.01462): a loss on given pairs, KL(pi || ref) on the policy's own answers.

    (1 / B) sum of the pairs' losses + lambda / (P k) sum of the answers' online surrogates

for B pairs and k answers to each of P prompts. Each term is divided by its global count, so the gradient does
not depend on how rows are split into micro-batches. A prompt that has both a pair and answers is one packed
row, (prompt, chosen, rejected, y1, ..., yk), and so read once; such rows are found by their token ids, which
makes sharing a matter of speed alone. The reference reads the answers' rows only: what it says of the pairs
is known before training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from alignctl.algos import PairLoss
from alignctl.algos.online_kl import Estimator, kl_metrics, online_kl
from alignctl.algos.pairs import mean, pair_metrics, pair_view, row_weights
from alignctl.models.head import token_logps
from alignctl.models.head_kl import token_logps_and_kl
from alignctl.models.live_reference import LiveReference
from alignctl.models.packing import micro_batches, pack
from alignctl.models.policy import (
    Policy,
    branch_logps,
    completion_hidden,
    completion_logps,
    head_parameters,
    sum_by_branch,
)
from alignctl.records import Example, OnlineTokens, PackedBatch, Sampled


@dataclass(frozen=True, slots=True, eq=False)
class JointRow:
    """A prompt with its pair, with answers of the policy's own, or with both."""

    example: Example
    """Chosen and rejected come first where it has a pair, then the answers."""
    pair: int | None
    """Place among the pairs."""
    answers: int
    """How many of its branches are the policy's own, the last ones."""

    @property
    def is_own(self) -> list[bool]:
        """Per branch, whether it is the policy's own."""
        return [False] * (len(self.example.branches) - self.answers) + [True] * self.answers


def joint_rows(pairs: Sequence[Example], sampled: Sampled) -> list[JointRow]:
    """Every pair in order, with the answers to its prompt; then the answers to prompts of no pair.

    Of several pairs with one prompt the first takes the answers, and answers given twice go to the next.
    """
    waiting: dict[bytes, list[Example]] = {}
    for example in sampled.examples:
        waiting.setdefault(example.prompt.tobytes(), []).append(example)
    rows = []
    for place, pair in enumerate(pairs):
        found = waiting.get(pair.prompt.tobytes())
        own = found.pop(0).branches if found else ()
        rows.append(JointRow(replace(pair, branches=(*pair.branches, *own)), place, len(own)))
    left = [example for examples in waiting.values() for example in examples]
    return rows + [JointRow(example, None, len(example.branches)) for example in left]


def hypo_backward(
    policy: Policy,
    reference: LiveReference,
    loss: PairLoss,
    pairs: Sequence[Example],
    ref_sums: Tensor,
    sampled: Sampled,
    *,
    lambda_: float,
    estimator: Estimator,
    samples: int,
    micro_tokens: int,
) -> dict[str, float]:
    """Add the gradient over B pairs and the sampled answers to the policy's; returns the metrics.

    `ref_sums` is float [B, 2], chosen and rejected under the reference. `loss` among the metrics is the
    objective: the pairs' loss plus lambda times kl/sequence, not the surrogate's value.
    """
    rows = joint_rows(pairs, sampled)
    packed = [row.example for row in rows]
    sums, sequence, counts = [], [], []
    for group in micro_batches(packed, token_budget=micro_tokens, layout=policy.layout):
        part = [rows[index] for index in group]
        found, tokens = _scored(policy, reference, part, estimator)
        terms = []
        if found is not None:
            terms.append(_pair_term(loss, pairs, ref_sums, part, found))
            sums.append(found.detach())
        if tokens is not None:
            kl = online_kl(tokens, samples=samples, estimator=estimator)
            terms.append(lambda_ / len(sampled.texts) * kl.losses.sum())
            sequence.append(kl.sequence)
            counts.append(tokens.counts)
        torch.stack(terms).sum().backward()
    view = pair_view(pairs, torch.cat(sums), ref_sums)
    out = loss(view)
    given = pair_metrics(view, out, row_weights(pairs, out.losses))
    own = _answer_metrics(torch.cat(sequence), torch.cat(counts), sampled, samples)
    total = given["loss"] + lambda_ * own["kl/sequence"]
    return {**given, **own, "loss": total, "loss/pairs": given["loss"]}


def _answer_metrics(sequence: Tensor, counts: Tensor, sampled: Sampled, samples: int) -> dict[str, float]:
    """From the nats [K] and tokens [K] of the answers, those of one prompt together."""
    return {
        **kl_metrics(sequence, counts, samples=samples),
        "response_length": mean(counts.double()),
        "eos_rate": mean([float(ended) for ended in sampled.ended]),
    }


def _pair_term(
    loss: PairLoss, pairs: Sequence[Example], ref_sums: Tensor, part: Sequence[JointRow], found: Tensor
) -> Tensor:
    """A micro-batch's share of the mean loss over all pairs; `found` [b, 2] are its own pairs' sums."""
    places = [row.pair for row in part if row.pair is not None]
    given = [pairs[place] for place in places]
    losses = loss(pair_view(given, found, ref_sums[places])).losses
    return (losses * row_weights(given, losses)).sum() / len(pairs)


def _scored(
    policy: Policy, reference: LiveReference, rows: Sequence[JointRow], estimator: Estimator
) -> tuple[Tensor | None, OnlineTokens | None]:
    """Differentiable sums [b, 2] of the pairs among the rows and the answers' tokens; None where none are."""
    batch = pack([row.example for row in rows], policy.layout).to(policy.device)
    answered = [_answers_alone(row) for row in rows if row.answers]
    if not answered:
        return branch_logps(policy, batch).view(-1, 2), None
    # Before the policy's own pass, so that its activations are not in memory yet.
    with reference.active() as frozen:
        asked = pack(answered, frozen.layout).to(frozen.device)
        said = completion_hidden(frozen, asked) if estimator == "full" else completion_logps(frozen, asked)
    is_own = torch.tensor([own for row in rows for own in row.is_own], device=policy.device)
    hidden = completion_hidden(policy, batch)
    found = None if is_own.all() else _pair_sums(policy, hidden, batch, is_own)
    return found, _online_tokens(policy, reference, hidden, batch, is_own, said, estimator)


def _answers_alone(row: JointRow) -> Example:
    return replace(row.example, branches=row.example.branches[-row.answers :])


def _pair_sums(policy: Policy, hidden: Tensor, batch: PackedBatch, is_own: Tensor) -> Tensor:
    """[b, 2] from the hidden states [N, H] of all branches; `is_own` [K] marks the answers."""
    places = (~is_own[batch.branch]).nonzero()[:, 0]
    head = head_parameters(policy.causal_lm)
    logps = token_logps(hidden.index_select(0, places), *head, batch.targets[places])
    return sum_by_branch(logps, replace(batch, branch=batch.branch[places]))[~is_own].view(-1, 2)


def _online_tokens(
    policy: Policy,
    reference: LiveReference,
    hidden: Tensor,
    batch: PackedBatch,
    is_own: Tensor,
    said: Tensor,
    estimator: Estimator,
) -> OnlineTokens:
    """The answers' tokens; `said` is the reference's hidden states [M, H'] (full) or log-probs [M] (rloo)."""
    places = is_own[batch.branch].nonzero()[:, 0]
    own, targets, counts = hidden.index_select(0, places), batch.targets[places], batch.counts[is_own]
    head, ref_logps, kl = head_parameters(policy.causal_lm), None, None
    if estimator == "full":
        ref_head = head_parameters(reference.policy.causal_lm)
        logps, kl = token_logps_and_kl(own, *head, targets, said, *ref_head)
    else:
        logps, ref_logps = token_logps(own, *head, targets), said
    branch = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return OnlineTokens(logps, ref_logps, kl, branch, counts)
