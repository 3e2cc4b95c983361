"""What an answer is worth, for the algorithms that sample their own: the settings of the group `reward`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from alignctl.config.settings import Count, Positive, Settings, Text, check_address, check_variable


class GoldReward(Settings):
    """The data set's own verifiable score (the demo has one)."""

    kind: Literal["gold"]
    normalise: bool


class ModelReward(Settings):
    """A reward model, or the implicit reward of a run of dpo, ipo, hinge or hypo (arXiv 2305.18290)."""

    kind: Literal["model"]
    path: Text
    normalise: bool


class PatternReward(Settings):
    """1 for an answer in which a regular expression is found, else 0."""

    kind: Literal["pattern"]
    pattern: Text
    normalise: bool

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"reward.pattern={value} is not a regular expression: {error}") from error
        return value


class EndpointReward(Settings):
    """A server that scores conversations."""

    kind: Literal["endpoint"]
    url: Text
    key_env: str | None
    timeout: Positive
    retries: Annotated[int, Field(ge=0, le=10)]
    batch: Count
    normalise: bool

    @field_validator("key_env")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        check_variable("reward.key_env", value)
        return value

    @field_validator("url")
    @classmethod
    def _holds_no_secret(cls, value: str) -> str:
        check_address("reward.url", value)
        return value


RewardConfig = Annotated[
    GoldReward | ModelReward | PatternReward | EndpointReward, Field(discriminator="kind")
]
