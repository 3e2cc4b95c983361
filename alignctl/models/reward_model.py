"""A reward model: a causal language model with a linear score in place of its vocabulary, arXiv 2009.01325.

The score reads the hidden state of an answer's last token, which has seen the whole conversation; so does
transformers' sequence classifier, as which the model is saved. What such a classifier takes for the last
token is the last one that is no padding, so it is saved with a padding token that occurs nowhere else.

The score's weights start as in that paper, normal with variance 1 / (H + 1), which costs a step 0 that is
not quite indifferent. From zero the first step moves nothing but the score, and after that the layers learn
only as fast as the score grows. Measured on SmolLM2 and the demo, 30 steps of 8 pairs at lr 2e-5, loss on 48
held-out pairs: 0.642 from zero, 0.483 from a tenth of the paper's deviation, 0.333 from all of it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignctl.errors import SetupError
from alignctl.models.packing import branch_ends, micro_batches, pack
from alignctl.models.policy import (
    Policy,
    causal_lm,
    completion_hidden,
    evaluating,
    head_parameters,
    plain_attention,
)
from alignctl.models.scoring import Progress
from alignctl.records import Example, PackedBatch

TOLERANCE = 1e-3
"""Of a score, relative to the largest one: two forward passes in float32 differ by rounding alone."""
PADDING = "<|alignctl_pad|>"
"""Added where a tokenizer has nothing to spare; a name that none has given to something else."""
OTHER_MODEL = "algo=reward saves a sequence classifier; start from a model of another architecture"


class RewardModel(nn.Module):
    """A policy's model and the score on top of it: what is trained, and what a checkpoint keeps."""

    def __init__(self, model: PreTrainedModel | PeftModel, score: nn.Linear) -> None:
        super().__init__()
        self.model = model
        self.score = score


def start_reward_model(policy: Policy, *, seed: int) -> RewardModel:
    """The policy's model with a fresh score, drawn from `seed` alone.

    A vocabulary head of its own gets no gradient and is not trained; a tied one is the embedding, which is.
    """
    lm = policy.causal_lm
    weight, bias = head_parameters(lm)
    if weight is not lm.get_input_embeddings().weight:
        weight.requires_grad_(False)
    if bias is not None:
        bias.requires_grad_(False)
    hidden = weight.shape[1]
    # The meta device draws nothing; what is drawn comes from the CPU, the same numbers on every device.
    score = nn.Linear(hidden, 1, bias=False, dtype=weight.dtype, device="meta").to_empty(device=weight.device)
    drawn = torch.randn(1, hidden, generator=torch.Generator().manual_seed(seed)) / (hidden + 1) ** 0.5
    with torch.no_grad():
        score.weight.copy_(drawn)
    return RewardModel(policy.model, score)


def branch_rewards(reward_model: RewardModel, policy: Policy, batch: PackedBatch) -> Tensor:
    """Differentiable score of each branch, [K]: float32, or float64 for a float64 model.

    `policy` is how the model under the score is run forward.
    """
    hidden = completion_hidden(policy, replace(batch, score_index=branch_ends(batch)))
    # In the score's own dtype: a reward must not be rounded to bfloat16.
    return reward_model.score(hidden.to(reward_model.score.weight.dtype))[:, 0]


@torch.no_grad()
def row_rewards(
    reward_model: RewardModel,
    policy: Policy,
    examples: Sequence[Example],
    *,
    token_budget: int,
    progress: Progress | None = None,
) -> Tensor:
    """Scores [n, K] of rows of equally many branches, longest first, without gradients; on the CPU."""
    order = sorted(range(len(examples)), key=lambda index: -examples[index].tokens)
    ranked = [examples[index] for index in order]
    parts, done = [], 0
    with evaluating(policy.model):
        for group in micro_batches(ranked, token_budget=token_budget, layout=policy.layout):
            batch = pack([ranked[index] for index in group], policy.layout).to(policy.device)
            parts.append(branch_rewards(reward_model, policy, batch).cpu())
            done += len(group)
            if progress:
                progress(done, len(examples))
    rewards = torch.cat(parts).unflatten(0, (-1, len(examples[0].branches)))
    return rewards[torch.tensor(order).argsort()]


# --- as a sequence classifier --------------------------------------------------------------------------


def with_padding(tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer whose padding token is a token that no conversation contains.

    `ends` are the ids that end a turn or a text. The tokenizer's own padding where it is none of these, else
    a control token that neither tokenizer nor template has a use for, else a new one.
    """
    copied = copy.deepcopy(tokenizer)
    template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
    own = tokenizer.pad_token_id
    if isinstance(own, int) and own not in ends and str(tokenizer.pad_token) not in template:
        return copied
    named = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, *ends)
    spare = [
        token.content
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and number not in named and token.content not in template
    ]
    likely = [content for content in spare if "pad" in content]
    copied.add_special_tokens({"pad_token": (*likely, *spare, PADDING)[0]})
    return copied


def save_reward_model(reward_model: RewardModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write what `AutoModelForSequenceClassification.from_pretrained` opens, adapters merged.

    `tokenizer` comes from `with_padding`; a padding token without a row in the embedding gets one.
    """
    model, pad = reward_model.model, _padding_id(tokenizer)
    new_row = pad >= head_parameters(causal_lm(model))[0].shape[0]
    if isinstance(model, PeftModel) or new_row:
        model = copy.deepcopy(model)  # merging and resizing change a model in place
    lm: PreTrainedModel = model.merge_and_unload() if isinstance(model, PeftModel) else model  # type: ignore[assignment]
    if new_row:
        lm.resize_token_embeddings(pad + 1, mean_resizing=False)
    _classifier(lm, reward_model.score, pad).save_pretrained(str(directory))
    tokenizer.save_pretrained(str(directory))


@torch.no_grad()
def prove_classifier(reward_model: RewardModel, policy: Policy, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise SetupError unless the architecture's sequence classifier scores as `branch_rewards` does: what is
    trained could not be saved otherwise."""
    pad = _padding_id(tokenizer)
    classifier = _classifier(policy.causal_lm, reward_model.score, pad).eval()
    ids = np.array([number for number in range(3, 12) if number != pad], dtype=np.int32)
    row = Example(id="proof", prompt=ids[3:], branches=(ids[:3], ids[2:3]))
    exact = replace(policy, compute_dtype=reward_model.score.weight.dtype)
    with evaluating(policy.model):
        ours = branch_rewards(reward_model, exact, pack([row], policy.layout).to(policy.device))
    sequences = [torch.from_numpy(np.concatenate([row.prompt, branch])) for branch in row.branches]
    with plain_attention(policy):
        logits = [classifier(input_ids=one[None].to(policy.device)).logits for one in sequences]
    theirs = torch.cat(logits)[:, 0]
    difference = float((ours - theirs).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(theirs.abs().max())):
        raise SetupError(
            f"{type(classifier).__name__} does not score by the last token's hidden state alone: "
            f"its scores are {difference:.2g} off",
            OTHER_MODEL,
        )


def _padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)  # it comes from `with_padding`
    return pad


def _classifier(lm: PreTrainedModel, score: nn.Linear, pad: int) -> PreTrainedModel:
    """The sequence classifier of the model's architecture, around its very layers and the score.

    Raises SetupError where there is none, or none that is just that.
    """
    config = copy.deepcopy(lm.config)
    config.num_labels = 1
    for part in (config, config.get_text_config()):
        part.pad_token_id = pad
    prefix = lm.base_model_prefix
    try:
        with torch.device("meta"):
            made = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    except ValueError as error:
        raise _no_classifier(lm) from error
    layers = made.get_submodule(prefix) if prefix in dict(made.named_children()) else None
    own = {name: tuple(p.shape) for name, p in made.named_parameters() if not name.startswith(f"{prefix}.")}
    if type(layers) is not type(lm.base_model) or own != {"score.weight": tuple(score.weight.shape)}:
        raise _no_classifier(lm)
    made.register_module(prefix, lm.base_model)
    made.register_module("score", score)
    return made


def _no_classifier(lm: PreTrainedModel) -> SetupError:
    return SetupError(
        f"transformers has no sequence classifier with one linear score for {type(lm).__name__}",
        OTHER_MODEL,
    )
