"""A hub id is asked of the hub, and nobody else."""

from __future__ import annotations

import pytest
from artefacts import Place


@pytest.mark.long  # the hub's library tries again for 40 s before it gives up
@pytest.mark.parametrize("word", ["model=stranger/model", "dataset=stranger/rows"])
def test_a_hub_id_is_asked_of_the_hub_alone(word: str, place: Place) -> None:
    seen = place.train(word)
    assert seen.code == 3
    assert "HF_HUB_OFFLINE=1" in seen.text.splitlines()[-1]
    assert {event.partition(", ")[0] for event in seen.events} == {"socket.getaddrinfo ('huggingface.co'"}
