"""The weight of watch.action=adapt: up by quarters under an alarm, down again, within its ends."""

from __future__ import annotations

import pytest

from alignctl.train.watch.anchor import next_anchor


@pytest.mark.parametrize("limit", [1.0, 0.3, 7.0])
def test_the_weight_goes_up_by_quarters_and_down_to_where_it_began(limit: float) -> None:
    weight, seen = 0.0, []
    for alarm in [False, True, True, True, True, True, False, True, False, False, False, False, False]:
        weight = next_anchor(weight, alarm=alarm, limit=limit)
        seen.append(weight)
    quarters = [0, 1, 2, 3, 4, 4, 3, 4, 3, 2, 1, 0, 0]
    assert seen == [limit * count / 4 for count in quarters]
