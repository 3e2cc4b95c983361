"""From `reward=` to something that scores answers: what a path holds is found out here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignctl.config import (
    DpoConfig,
    EndpointReward,
    GoldReward,
    HingeConfig,
    HypoConfig,
    IpoConfig,
    ModelReward,
    NoAdapter,
    PatternReward,
    RewardConfig,
    RewardModelConfig,
)
from alignctl.data.template import end_token_id
from alignctl.errors import SetupError
from alignctl.evaluate.judges.reading import open_reader
from alignctl.evaluate.rewards import (
    LogRatio,
    Reward,
    gold_reward,
    implicit_reward,
    model_reward,
    pattern_reward,
)
from alignctl.models.load import (
    Source,
    context_length,
    load_start,
    load_tokenizer,
    locate_path,
    vocabulary_size,
)
from alignctl.models.policy import causal_lm
from alignctl.models.score_model import load_score_model, padding_token, score_config
from alignctl.models.tensor_files import weights_fingerprint
from alignctl.records import GoldScore, Row
from alignctl.runners.checkpoints import Say, model_path, open_checkpoint
from alignctl.runners.lineage import read_config, understand
from alignctl.runners.preparation import StartingPolicy, policy_of, scoring_tokens

Trained = DpoConfig | IpoConfig | HingeConfig | HypoConfig
"""Algorithms whose policy is a reward beside its reference."""
WAYS = (
    "a reward is a run of algo=reward, or any sequence classifier with one score",
    "or a run of dpo, ipo, hinge or hypo: its log-ratio to its reference",
)
UNLIMITED = 2**30
"""Tokens that a model reads whose config names no limit."""


def open_reward(
    config: RewardConfig,
    gold: Callable[[Row, str], GoldScore] | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    say: Say,
) -> Reward:
    """The configured reward, ready; models compute in `dtype` on `device`.

    Raises SetupError when its model or server cannot be used, UsageError for an address that is none.
    """
    match config:
        case GoldReward():
            assert gold is not None  # the config has seen to it
            return gold_reward(gold)
        case PatternReward():
            return pattern_reward(config.pattern)
        case ModelReward():
            return _open_model(config, device=device, dtype=dtype, say=say)
        case EndpointReward():
            # Only here, since httpx comes with the extra `eval`.
            from alignctl.evaluate.reward_endpoint import endpoint_reward

            return endpoint_reward(config, say)


def _open_model(config: ModelReward, *, device: torch.device, dtype: torch.dtype, say: Say) -> Reward:
    """A run says by its algorithm what it holds, anything else by its config."""
    setting, run = f"reward.path={config.path}", understand(config.path).run
    algo = None if run is None else read_config(run).algo
    if isinstance(algo, Trained):
        return _open_implicit(config.path, algo, device=device, dtype=dtype, say=say)
    if algo is not None and not isinstance(algo, RewardModelConfig):
        raise SetupError(f"{setting} is a run of algo={algo.name}, which trains no reward", *WAYS)
    source = locate_path(model_path(config.path, say))
    described = score_config(setting, source)
    reader = open_reader(setting, source, described)
    pad = padding_token(setting, reader.tokenizer, reader.end, described)
    model = load_score_model(setting, source, described, pad, device=device, dtype=dtype)
    fingerprint = f"model {weights_fingerprint(model.model.state_dict())}"
    return model_reward(config.path, fingerprint, reader, model, say)


def _open_implicit(path: str, algo: Trained, *, device: torch.device, dtype: torch.dtype, say: Say) -> Reward:
    """The run's model, and the model its rewards are measured against, side by side."""
    found = open_checkpoint(path, say)
    reference = found.origin.reference
    if reference is None:
        raise SetupError(
            f"reward.path={path} has no reference that its rewards could be measured against",
            "it was a soup in memory, or lies no longer where it was when the run was trained",
            "train a reward model instead: alignctl train algo=reward, then reward.path=RUN",
        )
    context = min(context_length(source) or UNLIMITED for source in (found.source, reference))
    policy, frozen = (
        _frozen(source, context, device=device, dtype=dtype) for source in (found.source, reference)
    )
    scale = algo.tau if isinstance(algo, IpoConfig) else algo.beta
    ratio = LogRatio(
        policy=policy.policy,
        reference=frozen.policy,
        scale=scale,
        reduction=algo.reduction,
        tokenizer=load_tokenizer(found.source),
        vocabulary=vocabulary_size(found.source),
        context=context,
        token_budget=scoring_tokens(device),
    )
    fingerprint = f"log-ratio {policy.fingerprint} {frozen.fingerprint} {scale} {algo.reduction}"
    return implicit_reward(path, fingerprint, ratio, say)


def _frozen(source: Source, context: int, *, device: torch.device, dtype: torch.dtype) -> StartingPolicy:
    """A model that is only asked; adapters are merged."""
    start = load_start(source, NoAdapter(kind="none"), seed=0)
    start.model.eval().requires_grad_(False)
    return policy_of(start, dropout=0.0, max_length=context, device=device, dtype=dtype)


@torch.no_grad()
def critic_start(
    config: RewardConfig, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, say: Say
) -> nn.Linear | None:
    """Overwrite a model's layers with those of the reward model, and return its score (arXiv 2009.01325).

    None, and the model as it was, where the reward is no sequence classifier of the same architecture, shapes
    and vocabulary.
    """
    if not isinstance(config, ModelReward):
        return None
    run = understand(config.path).run
    if run is not None and not isinstance(read_config(run).algo, RewardModelConfig):
        return None
    setting, source = f"reward.path={config.path}", locate_path(model_path(config.path, say))
    described = score_config(setting, source)
    reader = load_tokenizer(source)
    pad = padding_token(setting, reader, end_token_id(reader), described)
    device = next(model.parameters()).device
    found = load_score_model(setting, source, described, pad, device=device, dtype=torch.float32).model
    own = causal_lm(model).base_model.state_dict()
    theirs = found.base_model.state_dict()
    shapes = {name: tensor.shape for name, tensor in own.items()}
    fits = shapes == {name: tensor.shape for name, tensor in theirs.items()}
    if not fits or reader.get_vocab() != tokenizer.get_vocab() or "score" not in dict(found.named_children()):
        say(f"the critic starts from the policy: {config.path} has another architecture or vocabulary")
        return None
    for name, tensor in own.items():
        tensor.copy_(theirs[name])
    score = found.get_submodule("score")
    assert isinstance(score, nn.Linear)  # a sequence classifier's head
    return score
