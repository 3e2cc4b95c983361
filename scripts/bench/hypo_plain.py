"""HyPO as one writes it first, over transformers' own calls: what scripts/bench/hypo.py is measured against.

`generate(num_return_sequences=k)` on left-padded prompts, then padded forward passes of chosen, of rejected
and of the samples, for the policy and for the reference, with log-softmax over the vocabulary; the samples'
logits are kept for the answers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from alignctl.records import Example

PLAIN_PAIRS = 4
"""Pairs per backward pass: activations and logits of every padded position are kept."""

Answers = list[list[np.ndarray]]
"""By prompt."""
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What both sides do at a step."""

    pairs: int
    samples: int
    answer_tokens: int
    """Of every answer: none ends early."""
    clip: float
    """Largest norm of the gradient."""


class Plain:
    """Policy, reference and optimiser; `beta` and `lambda_` as in algo=hypo."""

    def __init__(
        self,
        models: tuple[PreTrainedModel, PreTrainedModel],
        *,
        beta: float,
        lambda_: float,
        sizes: Sizes,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        self.model, self.reference = models
        self.model.generation_config = GenerationConfig(pad_token_id=0)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), weight_decay=0.0, fused=True)
        self.beta, self.lambda_, self.sizes, self.seed = beta, lambda_, sizes, seed
        self.device = self.model.device
        narrow = dtype == torch.bfloat16
        self.autocast = partial(torch.autocast, self.device.type, dtype=torch.bfloat16, enabled=narrow)

    def score_reference(self, pairs: Sequence[Example]) -> None:
        """In the step."""

    @torch.no_grad()
    def sample(self, pairs: Sequence[Example], step: int) -> Answers:
        """`generate` on the padded prompts."""
        torch.manual_seed(self.seed + step)
        ids, mask = self.padded([pair.prompt for pair in pairs], left=True)
        with self.autocast():
            out = self.model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                num_return_sequences=self.sizes.samples,
                max_new_tokens=self.sizes.answer_tokens,
            )
        answers = out[:, ids.shape[1] :].cpu().numpy().astype(np.int32)
        return [list(answers[n : n + self.sizes.samples]) for n in range(0, len(answers), self.sizes.samples)]

    def update(
        self, pairs: Sequence[Example], answers: Answers, ref_sums: Tensor | None, lr: float
    ) -> Figures:
        """Three padded passes for each of the two models."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        dpo, nats = 0.0, 0.0
        for start in range(0, len(pairs), PLAIN_PAIRS):
            part = slice(start, start + PLAIN_PAIRS)
            losses = self.pair_losses(pairs[part])
            (losses.sum() / len(pairs)).backward()
            logps, kl = self.answer_terms(pairs[part], answers[part])
            later = kl.detach().flip(1).cumsum(1).flip(1) - kl.detach()
            online = (kl + logps * later).sum() / (len(pairs) * self.sizes.samples)
            (self.lambda_ * online).backward()
            dpo += float(losses.detach().sum()) / len(pairs)
            nats += float(kl.detach().sum()) / (len(pairs) * self.sizes.samples)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.sizes.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return {"loss/pairs": dpo, "kl/sequence": nats, "grad_norm": float(norm)}

    def pair_losses(self, pairs: Sequence[Example]) -> Tensor:
        """DPO [B]."""
        policy = [self.pair_logps(self.model, pairs, side) for side in (0, 1)]
        with torch.no_grad():
            reference = [self.pair_logps(self.reference, pairs, side) for side in (0, 1)]
        return -F.logsigmoid(self.beta * ((policy[0] - reference[0]) - (policy[1] - reference[1])))

    def pair_logps(self, model: PreTrainedModel, pairs: Sequence[Example], side: int) -> Tensor:
        """Summed log-probabilities [B] of the chosen (0) or the rejected (1)."""
        ids, mask = self.padded([np.concatenate([pair.prompt, pair.branches[side]]) for pair in pairs])
        with self.autocast():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        logps = logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        places = torch.arange(1, ids.shape[1], device=self.device)
        begins = torch.tensor([[len(pair.prompt)] for pair in pairs], device=self.device)
        return (logps * (places >= begins) * mask[:, 1:]).sum(1)

    def answer_terms(self, pairs: Sequence[Example], answers: Answers) -> tuple[Tensor, Tensor]:
        """log pi of every answer token and KL at its position, [B k, answer tokens]."""
        rows = [
            np.concatenate([pair.prompt, one])
            for pair, own in zip(pairs, answers, strict=True)
            for one in own
        ]
        ids, mask = self.padded(rows, left=True)
        log_p = self.answer_log_softmax(self.model, ids, mask)
        with torch.no_grad():
            log_q = self.answer_log_softmax(self.reference, ids, mask)
        logps = log_p.gather(2, ids[:, -self.sizes.answer_tokens :, None])[..., 0]
        return logps, (log_p.exp() * (log_p - log_q)).sum(-1)

    def answer_log_softmax(self, model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
        """[B k, answer tokens, V]."""
        with self.autocast():
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp_min(0),
                use_cache=False,
                logits_to_keep=self.sizes.answer_tokens + 1,
            ).logits
        return logits[:, :-1].float().log_softmax(-1)

    def padded(self, rows: Sequence[np.ndarray], *, left: bool = False) -> tuple[Tensor, Tensor]:
        """Ids and mask [n, longest]."""
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            place = slice(longest - len(row), None) if left else slice(len(row))
            ids[number, place], mask[number, place] = torch.from_numpy(row.astype(np.int64)), 1
        return ids.to(self.device), mask.to(self.device)
