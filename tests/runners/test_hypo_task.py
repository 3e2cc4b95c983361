"""Which prompts of their own HyPO answers at a step."""

from __future__ import annotations

from alignctl.runners.tasks.hypo import own_prompts
from alignctl.train.schedule import batch_indices


def test_every_prompt_is_answered_once_an_epoch_in_an_order_of_its_own() -> None:
    steps = [own_prompts(step, prompts=12, wanted=3, seed=0) for step in range(1, 9)]
    assert [len(places) for places in steps] == [3] * 8
    epochs = [[p for places in steps[start : start + 4] for p in places] for start in (0, 4)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]
    # Twelve pairs of the same run go another way.
    assert steps != [batch_indices(step, rows=12, batch_size=3, seed=0) for step in range(1, 9)]
    assert steps != [own_prompts(step, prompts=12, wanted=3, seed=1) for step in range(1, 9)]


def test_fewer_prompts_than_are_answered_at_a_step_come_again() -> None:
    assert sorted(own_prompts(1, prompts=2, wanted=4, seed=0)) == [0, 0, 1, 1]
