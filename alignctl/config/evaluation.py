"""What `alignctl eval` needs to know."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from alignctl.config.groups import DatasetConfig, DemoDataset, HardwareConfig
from alignctl.config.held_out import check_held_out, holds_out
from alignctl.config.settings import (
    Count,
    NonNegative,
    Positive,
    Seed,
    Settings,
    Share,
    Text,
    check_address,
    check_variable,
)

# --- judge ---------------------------------------------------------------------------------------------


class NoJudge(Settings):
    """No win rate."""

    kind: Literal["none"]


class GoldJudge(Settings):
    """The data set's own verifiable score decides (the demo has one)."""

    kind: Literal["gold"]


class RewardJudge(Settings):
    """A reward model: the answer with the higher scalar wins."""

    kind: Literal["reward"]
    path: Text


class LocalJudge(Settings):
    """A causal language model, read by the logits of its two labels."""

    kind: Literal["local"]
    path: Text
    tie_margin: Share


class EndpointJudge(Settings):
    """Any server that speaks the OpenAI chat protocol."""

    kind: Literal["endpoint"]
    url: Text
    model: Text
    key_env: str | None
    timeout: Positive
    retries: Annotated[int, Field(ge=0, le=10)]
    max_tokens: Count
    parallel: Count

    @field_validator("key_env")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        check_variable("judge.key_env", value)
        return value

    @field_validator("url")
    @classmethod
    def _holds_no_secret(cls, value: str) -> str:
        check_address("judge.url", value)
        return value


JudgeConfig = Annotated[
    NoJudge | GoldJudge | RewardJudge | LocalJudge | EndpointJudge, Field(discriminator="kind")
]

# --- settings ------------------------------------------------------------------------------------------


class ScoringSettings(Settings):
    """How pairs are scored and answers sampled."""

    rows: Literal["all", "held_out"]
    beta: Positive | None
    dtype: Literal["float32", "bfloat16"]
    max_length: Annotated[int, Field(ge=8)] | None
    max_prompt: Count | None
    allow_overlap: bool
    samples: Annotated[int, Field(ge=0)]
    max_new_tokens: Count
    temperature: NonNegative
    opponent: str | None
    questions: str | None


class GateSettings(Settings):
    """Smallest values that every model has to reach; null = no gate."""

    accuracy: Share | None
    accuracy_logp: Share | None
    accuracy_avg: Share | None
    win_rate: Share | None
    gold: Share | None


class EvalConfig(Settings):
    """Everything `alignctl eval` needs to know."""

    models: Annotated[tuple[Text, ...], Field(strict=False)]
    reference: str | None
    dataset: DatasetConfig
    judge: JudgeConfig
    eval: ScoringSettings
    gate: GateSettings
    hardware: HardwareConfig
    out: str | None
    overwrite: bool
    seed: Seed

    @model_validator(mode="after")
    def _there_is_a_model(self) -> EvalConfig:
        if not self.models:
            raise ValueError("eval needs a model: alignctl eval MODEL ... (a run, a directory or a hub id)")
        if len(set(self.models)) != len(self.models):
            raise ValueError("the same model is given twice")
        return self

    @model_validator(mode="after")
    def _rows_can_be_had(self) -> EvalConfig:
        check_held_out(self.dataset)
        asked = self.eval.rows == "held_out" and not isinstance(self.dataset, DemoDataset)
        if asked and not holds_out(self.dataset):
            raise ValueError(
                "eval.rows=held_out, but dataset.eval_size=0 holds nothing out: the training run's own "
                "dataset.eval_size and seed, or eval.rows=all"
            )
        return self

    @model_validator(mode="after")
    def _the_judge_can_judge(self) -> EvalConfig:
        if isinstance(self.judge, GoldJudge) and not isinstance(self.dataset, DemoDataset):
            raise ValueError("judge=gold needs a data set with a gold score: dataset=demo")
        if isinstance(self.judge, GoldJudge) and self.eval.questions is not None:
            raise ValueError(f"judge=gold has no score for the questions of {self.eval.questions}")
        if isinstance(self.judge, NoJudge):
            for key, value in (("opponent", self.eval.opponent), ("questions", self.eval.questions)):
                if value is not None:
                    raise ValueError(
                        f"eval.{key}={value} needs a judge: judge=reward, judge=local or judge=endpoint"
                    )
            if self.gate.win_rate is not None:
                raise ValueError("gate.win_rate needs a judge: judge=gold, reward, local or endpoint")
        elif self.eval.samples == 0 and self.eval.questions is None:
            raise ValueError("a judge needs answers: eval.samples above 0")
        if self.gate.gold is not None and not isinstance(self.dataset, DemoDataset):
            raise ValueError("gate.gold needs a data set with a gold score: dataset=demo")
        return self
