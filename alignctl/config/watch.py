"""What is watched for over-optimisation while training, and what an alarm does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from alignctl.config.settings import Count, Positive, Settings

WatchAction = Literal["warn", "stop", "adapt", "off"]


class WatchSettings(Settings):
    """The watch over a training run (arXiv 2410.11677)."""

    action: WatchAction
    samples: Annotated[int, Field(ge=0)]
    indicator: Literal["displacement", "sampled", "held_out"]
    displaced: Annotated[float, Field(gt=0, lt=1)]
    kl: Positive
    window: Count
    noise: Positive
    anchor: Positive

    @property
    def decides(self) -> bool:
        """Whether an alarm decides which checkpoint becomes model/; a warning leaves that to people."""
        return self.action in ("stop", "adapt")
