"""What `alignctl train` needs to know."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from alignctl.config.algos import (
    AlgoConfig,
    HypoConfig,
    PairwiseConfig,
    PpoConfig,
    RewardModelConfig,
    SalsaPpoConfig,
    SftConfig,
    reference_of,
    soup_weights,
)
from alignctl.config.groups import (
    AdapterConfig,
    DatasetConfig,
    DemoDataset,
    FileDataset,
    HardwareConfig,
    LoraAdapter,
    MixtureDataset,
    ModelConfig,
    NoAdapter,
)
from alignctl.config.held_out import check_held_out
from alignctl.config.rewards import GoldReward, RewardConfig
from alignctl.config.settings import (
    Count,
    NonNegative,
    Positive,
    Seed,
    Settings,
    WarmUp,
)
from alignctl.config.watch import WatchSettings

# --- loop ------------------------------------------------------------------------------------------


class TrainSettings(Settings):
    """The optimisation loop."""

    steps: Count | None
    epochs: Positive
    batch_size: Count
    lr: Positive | None
    warmup: WarmUp
    schedule: Literal["constant", "linear", "cosine"]
    max_grad_norm: Positive
    weight_decay: NonNegative
    max_length: Annotated[int, Field(ge=8)]
    max_prompt: Count
    dtype: Literal["auto", "float32", "bfloat16"]

    @model_validator(mode="after")
    def _prompt_leaves_room(self) -> TrainSettings:
        if self.max_prompt >= self.max_length:
            raise ValueError(
                f"train.max_prompt={self.max_prompt} leaves no room for an answer in "
                f"train.max_length={self.max_length}"
            )
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> TrainSettings:
        if self.steps is not None and self.warmup > self.steps:
            raise ValueError(f"train.warmup={self.warmup} is longer than train.steps={self.steps}")
        return self


class EvalSettings(Settings):
    """Evaluation while training."""

    every: Count
    pairs: Count | None
    samples: Annotated[int, Field(ge=0)]
    max_new_tokens: Count
    temperature: NonNegative


class CheckpointSettings(Settings):
    """What is kept on disk."""

    every: Count
    keep: Annotated[int, Field(ge=2)]
    export: Literal["best", "last"]


class TrainConfig(Settings):
    """Everything `alignctl train` needs to know."""

    algo: AlgoConfig
    model: ModelConfig
    dataset: DatasetConfig
    hardware: HardwareConfig
    adapter: AdapterConfig
    reward: RewardConfig
    train: TrainSettings
    eval: EvalSettings
    watch: WatchSettings
    checkpoint: CheckpointSettings
    out: str | None
    overwrite: bool
    seed: Seed

    @model_validator(mode="after")
    def _reference_can_be_had(self) -> TrainConfig:
        reference = reference_of(self.algo)
        if reference is None:
            return self
        if reference.kind == "adapter_off" and isinstance(self.adapter, NoAdapter):
            raise ValueError("algo.reference.kind=adapter_off needs a fresh adapter: adapter=lora")
        read = {"frozen": ("path",), "adapter_off": (), "soup": ("members", "weights", "alpha")}
        for key in ("path", "members", "weights", "alpha"):
            value = reference.model_dump()[key]
            if value not in (None, ()) and key not in read[reference.kind]:
                raise ValueError(
                    f"algo.reference.{key} is not read with algo.reference.kind={reference.kind}"
                )
        if reference.kind == "soup":
            soup_weights(reference)
        return self

    @model_validator(mode="after")
    def _start_can_be_had(self) -> TrainConfig:
        if not isinstance(self.algo, SalsaPpoConfig) or self.algo.policy_init == "model":
            return self
        if self.algo.reference.kind == "frozen" and self.algo.reference.path is None:
            raise ValueError("algo.policy_init=soup needs a soup: algo.reference.members=[A,B]")
        if not isinstance(self.adapter, NoAdapter):
            raise ValueError(
                "algo.policy_init=soup goes with adapter=none; to train an adapter on a soup, write it "
                "first: alignctl soup A B out=DIR, then model=DIR"
            )
        return self

    @model_validator(mode="after")
    def _updates_can_be_made(self) -> TrainConfig:
        if not isinstance(self.algo, PpoConfig):
            return self
        if self.algo.critic == "none" and self.algo.samples < 2:
            raise ValueError(
                "algo.critic=none compares a prompt's answers with one another: algo.samples=2 or more"
            )
        if self.algo.critic == "none" and self.algo.critic_warmup > 0:
            raise ValueError("algo.critic_warmup is not read with algo.critic=none")
        if self.algo.kl_target is not None and self.algo.beta == 0:
            raise ValueError("algo.kl_target steers algo.beta by factors, and from 0 it cannot move")
        if self.algo.minibatches > self.train.batch_size:
            raise ValueError(
                f"algo.minibatches={self.algo.minibatches} is more than the "
                f"train.batch_size={self.train.batch_size} prompts of a step"
            )
        if isinstance(self.adapter, LoraAdapter) and self.adapter.dropout > 0:
            raise ValueError(
                f"algo={self.algo.name} compares probabilities before and after an update, which dropout "
                "makes random: adapter.dropout=0"
            )
        return self

    @model_validator(mode="after")
    def _reward_is_read(self) -> TrainConfig:
        if isinstance(self.algo, PpoConfig):
            if isinstance(self.reward, GoldReward) and not isinstance(self.dataset, DemoDataset):
                raise ValueError(
                    "reward=gold needs a data set with a gold score (dataset=demo); "
                    "name another reward: reward=model reward.path=RUN"
                )
        elif not isinstance(self.reward, GoldReward):
            raise ValueError(f"reward={self.reward.kind} is not read by algo={self.algo.name}")
        return self

    @model_validator(mode="after")
    def _watch_can_act(self) -> TrainConfig:
        watch, learns_from_pairs = self.watch, isinstance(self.algo, PairwiseConfig | HypoConfig)
        if watch.action == "adapt" and not learns_from_pairs:
            raise ValueError(
                f"watch.action=adapt is for algorithms on pairs, not for algo={self.algo.name}: "
                "watch.action=warn or stop"
            )
        needed = learns_from_pairs and watch.action != "off" and watch.indicator == "sampled"
        if needed and watch.samples == 0:
            raise ValueError(
                "watch.indicator=sampled needs answers to read: watch.samples=16, or "
                "watch.indicator=displacement, or watch.action=off"
            )
        return self

    @model_validator(mode="after")
    def _rows_are_read(self) -> TrainConfig:
        check_held_out(self.dataset)
        for dataset in self.dataset.parts if isinstance(self.dataset, MixtureDataset) else (self.dataset,):
            if isinstance(dataset, FileDataset):
                _refuse_unread_columns(self.algo, dataset)
        return self

    @model_validator(mode="after")
    def _prompts_can_be_answered(self) -> TrainConfig:
        algo, train = self.algo, self.train
        if not isinstance(algo, PpoConfig | HypoConfig):
            if self.dataset.prompts is not None:
                raise ValueError(f"dataset.prompts is not read by algo={algo.name}")
            return self
        pairs = train.batch_size
        if isinstance(algo, HypoConfig) and self.dataset.prompts is None and algo.prompts_per_step > pairs:
            raise ValueError(
                f"algo.prompts_per_step={algo.prompts_per_step} is more than the train.batch_size="
                f"{pairs} pairs whose prompts are asked; name others: dataset.prompts=FILE"
            )
        if algo.max_new_tokens + train.max_prompt > train.max_length:
            raise ValueError(
                f"algo.max_new_tokens={algo.max_new_tokens} after train.max_prompt={train.max_prompt} "
                f"is longer than train.max_length={train.max_length}"
            )
        return self


def _refuse_unread_columns(algo: AlgoConfig, dataset: FileDataset) -> None:
    """Raise ValueError for a column that is named and that this algorithm has no use for."""
    named = dataset.columns.model_dump()
    unread = () if isinstance(algo, RewardModelConfig) else ("margin",)
    if isinstance(algo, PairwiseConfig | RewardModelConfig):
        unread += ("completion", "messages")
    for key in unread:
        if named[key] is not None:
            reader = "algo=reward reads it" if key == "margin" else "it learns from chosen and rejected"
            raise ValueError(f"dataset.columns.{key}={named[key]} is not read by algo={algo.name}: {reader}")


def learning_rate(config: TrainConfig) -> float:
    """The peak learning rate: `train.lr`, else the model option's, times the factors of adapter and algo."""
    if config.train.lr is not None:
        return config.train.lr
    scale = config.adapter.lr_scale if isinstance(config.adapter, LoraAdapter) else 1.0
    if isinstance(config.algo, SftConfig | RewardModelConfig | PpoConfig):
        scale *= config.algo.lr_scale
    return config.model.lr * scale
