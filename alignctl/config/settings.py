"""The base of every group of settings, and the kinds of numbers that occur in them."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Base of every group: frozen, no unknown keys, no silent conversion, no NaN and no infinity."""

    # A class is built when it first checks something: most commands need few of them, completion none.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        serialize_by_alias=True,
        defer_build=True,
    )


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[str, Field(min_length=1)]
WarmUp = Annotated[float, Field(ge=0, lt=1)] | Count
"""A fraction of the steps when below 1, a number of steps otherwise."""
Weights = Annotated[tuple[float, ...], Field(strict=False)]

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_variable(key: str, name: str | None) -> None:
    """Raise ValueError, without what was typed, unless it can name a variable: it may be the secret itself,
    and a config is written to the run."""
    if name is not None and not VARIABLE.fullmatch(name):
        raise ValueError(
            f"{key} is not the name of an environment variable: "
            "it takes the NAME of the variable that holds the key, never the key itself"
        )


def check_address(key: str, address: str) -> None:
    """Raise ValueError, without the address, where it carries what may be a secret."""
    if "@" in address.partition("://")[2].partition("/")[0]:
        raise ValueError(
            f"{key} holds a user name or password: put the secret into an environment variable "
            f"and name it with {key.partition('.')[0]}.key_env=NAME"
        )
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise ValueError(f"{key} is not an address") from error
    if parts.query or parts.fragment:
        raise ValueError(f"{key} has a query or a fragment: give the part before ? and #")


def check_weights(key: str, weights: tuple[float, ...], members: int) -> None:
    """Raise ValueError unless there is one weight per member, none negative, not all zero."""
    if len(weights) != members:
        raise ValueError(f"{key} has {len(weights)} values for {members} models")
    if any(weight < 0 for weight in weights):
        raise ValueError(f"{key}={list(weights)} has a negative weight")
    if sum(weights) == 0:
        raise ValueError(f"{key} sums to 0")
