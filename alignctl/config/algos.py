"""The algorithms' settings: one class each, named by `algo.name`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from alignctl.config.settings import (
    Count,
    NonNegative,
    Positive,
    Settings,
    Share,
    Text,
    Weights,
    check_weights,
)

LabelNoise = Annotated[float, Field(ge=0, lt=0.5)]
Reduction = Literal["sum", "mean"]


class Reference(Settings):
    """Which model the policy is measured against."""

    kind: Literal["frozen", "adapter_off", "soup"]
    path: str | None
    members: Annotated[tuple[Text, ...], Field(strict=False)]
    weights: Weights | None
    alpha: Share | None


# --- from given answers --------------------------------------------------------------------------------


class SftConfig(Settings):
    """Supervised fine-tuning: next-token loss on the answer."""

    name: Literal["sft"]
    lr_scale: Positive


class RewardModelConfig(Settings):
    """A reward model by Bradley-Terry, arXiv 2009.01325."""

    name: Literal["reward"]
    label_noise: LabelNoise
    lr_scale: Positive


class DpoConfig(Settings):
    """Direct preference optimisation, arXiv 2305.18290."""

    name: Literal["dpo"]
    beta: Positive
    label_noise: LabelNoise
    reduction: Reduction
    reference: Reference


class IpoConfig(Settings):
    """Identity preference optimisation, arXiv 2310.12036."""

    name: Literal["ipo"]
    tau: Positive
    reduction: Reduction
    reference: Reference


class HingeConfig(Settings):
    """Hinge loss on the reward margin (RSO, arXiv 2309.06657)."""

    name: Literal["hinge"]
    beta: Positive
    reduction: Reduction
    reference: Reference


class SlicConfig(Settings):
    """SLiC: hinge on the policy's own log-likelihoods plus a regulariser, in the form of arXiv 2410.11677."""

    name: Literal["slic"]
    gamma: Positive
    alpha: NonNegative
    reference: Reference


# --- with answers of the policy's own ------------------------------------------------------------------


class HypoConfig(Settings):
    """DPO on offline pairs, KL on answers sampled online (HyPO, arXiv 2406.01462)."""

    name: Literal["hypo"]
    beta: Positive
    label_noise: LabelNoise
    reduction: Reduction
    lambda_: Annotated[float, Field(ge=0, alias="lambda")]
    estimator: Literal["full", "rloo"]
    prompts_per_step: Count
    samples: Count
    max_new_tokens: Count
    reference: Reference


class PpoConfig(Settings):
    """Proximal policy optimisation against a reward, arXiv 1707.06347 and 2009.01325."""

    name: Literal["ppo"]
    beta: NonNegative
    kl_target: Positive | None
    samples: Count
    max_new_tokens: Count
    missing_end_score: float | None
    critic: Literal["trunk", "separate", "none"]
    critic_lr_scale: Positive
    critic_weight: NonNegative
    critic_warmup: Annotated[int, Field(ge=0)]
    gamma: Share
    gae_lambda: Share
    whiten: bool
    epochs: Count
    minibatches: Count
    clip: Positive
    value_clip: Positive
    stop_length: Share
    lr_scale: Positive
    reference: Reference


class SalsaPpoConfig(PpoConfig):
    """PPO whose KL reference is a model soup (SALSA, arXiv 2411.01798)."""

    name: Literal["salsa-ppo"]  # type: ignore[assignment]
    policy_init: Literal["model", "soup"]


PairwiseConfig = DpoConfig | IpoConfig | HingeConfig | SlicConfig
AlgoConfig = Annotated[
    SftConfig | RewardModelConfig | PairwiseConfig | HypoConfig | PpoConfig | SalsaPpoConfig,
    Field(discriminator="name"),
]


def reference_of(algo: AlgoConfig) -> Reference | None:
    """The algorithm's reference; None where it has none."""
    return None if isinstance(algo, SftConfig | RewardModelConfig) else algo.reference


def soup_weights(reference: Reference) -> tuple[float, ...]:
    """The members' weights of a souped reference; ValueError when they do not fit the members."""
    n = len(reference.members)
    if n < 2:
        raise ValueError(
            f"algo.reference.kind=soup needs two members or more, got {n}: algo.reference.members=[A,B]"
        )
    if reference.alpha is not None and (n != 2 or reference.weights is not None):
        raise ValueError("algo.reference.alpha mixes two members, and goes without algo.reference.weights")
    if reference.alpha is not None:
        return 1 - reference.alpha, reference.alpha
    weights = reference.weights or (1.0,) * n
    check_weights("algo.reference.weights", weights, n)
    return weights
