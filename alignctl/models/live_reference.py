"""A reference that is asked while the run goes on, since the answers it has to score do not exist before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel

from alignctl.models.policy import Policy, evaluating


@dataclass(frozen=True, slots=True, eq=False)
class LiveReference:
    """A frozen model beside the policy, or the policy's own model with its adapter switched off."""

    policy: Policy
    """What is run forward; shares all weights with the trained policy when `adapter_off`."""
    adapter_off: bool

    @contextmanager
    def active(self) -> Iterator[Policy]:
        """Within it `policy` computes the reference: no gradients, no dropout, no adapter."""
        model = self.policy.model
        with torch.no_grad(), evaluating(model):
            if self.adapter_off:
                assert isinstance(model, PeftModel)
                with model.disable_adapter():
                    yield self.policy
            else:
                yield self.policy
