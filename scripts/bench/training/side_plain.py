"""DPO as one writes it first, over transformers' own calls: the side plain.

Chosen and rejected padded into one forward, logits of every position, log-softmax over the vocabulary, and
the reference, a second model (for an adapter, the model with it switched off), run at every step.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM
from worker import (
    BETA,
    CLIP,
    LORA_ALPHA,
    LORA_RANK,
    MICRO_PAIRS,
    Job,
    Pair,
    Timeline,
    main,
    now,
    padded_positions,
    same_adapter,
)


@dataclass(frozen=True, slots=True, eq=False)
class Models:
    """Policy and reference, which are one where an adapter is trained."""

    policy: Any
    reference: Any
    narrow: bool
    """Matrix products in bfloat16."""

    def switched_off(self) -> AbstractContextManager[None]:
        """Within it the reference is what it has to be."""
        if isinstance(self.reference, PeftModel):
            return self.reference.disable_adapter()  # type: ignore[return-value]
        return contextlib.nullcontext()


def load(job: Job) -> Models:
    """Float32 weights, on the accelerator where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32, device_map=device)
    narrow = job.case.dtype == "bfloat16"
    if job.case.adapter == "full":
        return Models(model.train(), copy.deepcopy(model).requires_grad_(False), narrow)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=LORA_RANK,
        lora_alpha=LORA_ALPHA,
        lora_dropout=0.0,
        target_modules="all-linear",
    )
    adapted = get_peft_model(model, lora).train()
    same_adapter(dict(adapted.named_parameters()))
    return Models(adapted, adapted, narrow)


def train(job: Job, batches: Sequence[Sequence[Pair]]) -> Timeline:
    """One pass over the batches."""
    models = load(job)
    trained = [p for p in models.policy.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=job.lr, weight_decay=0.0, fused=True)
    begin, ends, losses, norms = now(), [], [], []
    for batch in batches:
        losses.append(backward(models, batch))
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, CLIP)))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        ends.append(now())
    padded = map(padded_positions, batches)
    return Timeline(begin, 0.0, tuple(ends), tuple(losses), tuple(norms), tuple(padded))


def backward(models: Models, pairs: Sequence[Pair]) -> float:
    """Add the gradient of the batch's mean loss; returns the loss."""
    total = 0.0
    for start in range(0, len(pairs), MICRO_PAIRS):
        part = pairs[start : start + MICRO_PAIRS]
        chosen, rejected = answer_logps(models.policy, part, models.narrow).chunk(2)
        with torch.no_grad(), models.switched_off():
            ref_chosen, ref_rejected = answer_logps(models.reference, part, models.narrow).chunk(2)
        losses = -F.logsigmoid(BETA * ((chosen - ref_chosen) - (rejected - ref_rejected)))
        loss = losses.sum() / len(pairs)
        loss.backward()
        total += float(loss.detach())
    return total


def answer_logps(model: Any, pairs: Sequence[Pair], narrow: bool) -> Tensor:
    """Summed log-probabilities [2 B]: the chosen, then the rejected."""
    answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    prompts = [pair.prompt for pair in pairs] * 2
    longest = max(pair.longer for pair in pairs)
    ids = torch.zeros(len(answers), longest, dtype=torch.int64)
    mask, scored = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, : len(prompt)] = torch.from_numpy(prompt)
        ids[row, len(prompt) : end] = torch.from_numpy(answer)
        mask[row, :end], scored[row, len(prompt) : end] = 1, 1
    ids, mask, scored = (tensor.to(model.device) for tensor in (ids, mask, scored))
    autocast = partial(torch.autocast, model.device.type, dtype=torch.bfloat16)
    with autocast(enabled=narrow):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    logps = logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    return (logps * scored[:, 1:]).sum(1)


if __name__ == "__main__":
    main(train)
