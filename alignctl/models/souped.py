"""A soup as a model in memory: the weighted mean of checkpoints, poured into the first one's modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from alignctl.errors import SetupError
from alignctl.models.load import Source, Start, fingerprints, load_weights
from alignctl.models.soup.adapters import base_of
from alignctl.models.soup.members import Member
from alignctl.models.soup.merge import souped_tensors


def vessel(members: Sequence[Member]) -> PreTrainedModel:
    """A model of the members' architecture; for adapters their base."""
    first = members[0] if members[0].kind == "full" else base_of(members[0])
    model = load_weights(Source(str(first.directory), None))
    assert isinstance(model, PreTrainedModel)  # a full directory has no adapter
    return model


@torch.no_grad()
def pour(model: PreTrainedModel, members: Sequence[Member], weights: Sequence[float]) -> Start:
    """Overwrite the model's weights with the members' weighted mean; adapters are merged into their base.

    Raises UsageError when the members cannot be averaged, SetupError when their tensors are not the model's.
    """
    state = model.state_dict()
    for name, tensor in souped_tensors(members, weights):
        if name not in state or state[name].shape != tensor.shape:
            raise SetupError(
                f"{members[0].name} stores {name}, which {type(model).__name__} does not have in that shape",
                "write the soup to disk first: alignctl soup ... out=DIR, then name DIR",
            )
        state[name].copy_(tensor)
    return Start(model, *fingerprints(model))
