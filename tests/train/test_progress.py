"""What the loop remembers: the best evaluation, the run of skipped steps, and the headline made of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from alignctl.errors import RunDirectoryError
from alignctl.train.progress import Kept, Progress, from_state, headline, refuse_changes
from alignctl.train.watch.rule import Verdict


def figures(loss: float, accuracy: float = 0.5) -> dict[str, dict[str, float]]:
    return {"loss": {"value": loss}, "rewards/accuracies": {"value": accuracy}}


def after(*losses: float | None, every: int = 10) -> Progress:
    """Evaluations at steps 0, 10, 20 ... with these losses."""
    progress = Progress()
    for number, loss in enumerate(losses):
        if number:
            progress = progress.stepped(number * every, applied=True, carried={}, stopped=None)
        progress = progress.evaluated(figures(-1.0 if loss is None else loss), loss)
    return progress


def test_the_start_is_kept_and_is_never_the_best() -> None:
    start = after(0.1)
    assert start.start == start.last == figures(0.1)
    assert (start.best, start.best_step, start.best_loss) == (None, None, None)
    later = after(0.1, 0.7)
    assert later.start == figures(0.1)
    assert (later.best_step, later.best_loss) == (10, 0.7)


def test_the_best_is_the_lowest_loss_and_the_first_of_equals() -> None:
    progress = after(0.69, 0.5, 0.4, 0.4, 0.6)
    assert (progress.best_step, progress.best_loss) == (20, 0.4)
    assert progress.best == figures(0.4)
    assert progress.last == figures(0.6)


def test_an_evaluation_without_a_loss_cannot_be_the_best() -> None:
    progress = after(None, None)
    assert progress.best_step is None
    assert progress.last == figures(-1.0)


def test_a_loss_that_is_no_number_does_not_displace_the_best() -> None:
    progress = after(0.69, 0.5, float("nan"))
    assert (progress.best_step, progress.best_loss) == (10, 0.5)
    recovered = after(0.69, float("nan"), 0.5)
    assert (recovered.best_step, recovered.best_loss) == (20, 0.5)


def test_an_evaluation_under_an_alarm_is_never_the_best() -> None:
    alarm = Verdict(alarm=True, since=20, keep=10, held=(10,))
    progress = after(0.69).stepped(10, applied=True, carried={}, stopped=None)
    progress = progress.evaluated(figures(0.5), 0.5, Verdict(keep=10, held=(10,)), decides=True)
    progress = progress.stepped(20, applied=True, carried={}, stopped=None)
    progress = progress.evaluated(figures(0.3), 0.3, alarm, decides=True)
    assert (progress.best_step, progress.last) == (10, figures(0.3))
    assert progress.kept(export_best=True, alarm_decides=True) == Kept(10, "alarm")
    progress = progress.stepped(30, applied=True, carried={}, stopped=None)
    progress = progress.evaluated(figures(0.4), 0.4, Verdict(keep=30, held=(30,)), decides=True)
    assert progress.kept(export_best=True, alarm_decides=True) == Kept(30, "loss")


def test_where_the_alarm_never_ends_the_lowest_loss_is_kept() -> None:
    progress, alarm = after(0.69), Verdict(alarm=True, since=10)
    for step, loss in ((10, 0.5), (20, 0.4), (30, 0.45)):
        progress = progress.stepped(step, applied=True, carried={}, stopped=None)
        progress = progress.evaluated(figures(loss), loss, alarm, decides=True)
    assert progress.kept(export_best=True, alarm_decides=True) == Kept(20, "loss")


def test_a_warning_leaves_the_lowest_loss() -> None:
    progress = after(0.69, 0.5).stepped(20, applied=True, carried={}, stopped=None)
    progress = replace(progress, held={"10": figures(0.5)})
    progress = progress.evaluated(figures(0.3), 0.3, Verdict(alarm=True, since=20, keep=10, held=(10,)))
    assert progress.kept(export_best=True) == Kept(20, "loss")
    assert progress.protected == (10, 20)


def test_skipped_steps_are_counted_in_a_row() -> None:
    progress = Progress()
    counts = []
    for step, applied in enumerate([True, False, False, True, False], start=1):
        progress = progress.stepped(step, applied=applied, carried={}, stopped=None)
        counts.append(progress.skipped_in_row)
    assert counts == [0, 1, 2, 0, 1]
    assert progress.step == 5


def test_progress_goes_through_json_unchanged() -> None:
    for progress in (Progress(), after(0.69, 0.5, 0.6).stepped(21, applied=False, carried={}, stopped=None)):
        assert from_state(json.loads(json.dumps(progress.as_state()))) == progress


def test_the_headline_has_start_kept_and_last() -> None:
    progress = after(0.69, 0.4, 0.6)
    best = headline(progress, progress.kept(export_best=True))
    assert best["loss"] == {"start": {"value": 0.69}, "best": {"value": 0.4}, "last": {"value": 0.6}}
    last = headline(progress, progress.kept(export_best=False))
    assert last["loss"] == {"start": {"value": 0.69}, "best": {"value": 0.6}, "last": {"value": 0.6}}
    assert list(best) == ["loss", "rewards/accuracies"]


def test_the_headline_of_a_run_without_a_best_or_without_any_evaluation() -> None:
    only_answers = after(None, None)
    kept = only_answers.kept(export_best=True)
    assert headline(only_answers, kept)["loss"]["best"] == {"value": -1.0}
    assert headline(Progress(), kept) == {}


def test_a_metric_that_the_start_lacked_is_empty_there() -> None:
    progress = (
        Progress()
        .evaluated({}, None)
        .stepped(1, applied=True, carried={}, stopped=None)
        .evaluated(figures(0.5), 0.5)
    )
    assert headline(progress, progress.kept(export_best=True))["loss"]["start"] is None


def test_unchanged_fingerprints_pass_and_each_changed_one_is_named() -> None:
    saved = {"data": "a" * 64, "template": "b" * 64, "model": "c" * 64}
    refuse_changes(saved, dict(saved))
    with pytest.raises(RunDirectoryError) as refusal:
        refuse_changes(saved, {**saved, "data": "d" * 64, "model": "e" * 64})
    assert refusal.value.message == "data and model changed since this run began"
    assert f"data: {'a' * 12} then, {'d' * 12} now" in refusal.value.hints
    assert f"model: {'c' * 12} then, {'e' * 12} now" in refusal.value.hints
    assert not any(hint.startswith("template") for hint in refusal.value.hints)
    assert refusal.value.exit_code == 7


def test_a_fingerprint_that_the_checkpoint_lacks_counts_as_changed() -> None:
    with pytest.raises(RunDirectoryError, match="template changed"):
        refuse_changes({"data": "a"}, {"data": "a", "template": "b"})


def test_the_first_step_that_is_skipped_is_the_first_in_a_row() -> None:
    assert Progress().stepped(1, applied=False, carried={}, stopped=None).skipped_in_row == 1


def test_the_figures_of_steps_that_the_watch_may_ask_for_are_kept_and_told() -> None:
    held = Verdict(held=(10,))
    progress = after(0.69).stepped(10, applied=True, carried={}, stopped=None)
    progress = progress.evaluated(figures(0.5), 0.5, held)
    progress = progress.stepped(20, applied=True, carried={}, stopped=None)
    progress = progress.evaluated(figures(0.4), 0.4, held)
    assert progress.held == {"10": figures(0.5)}
    told = headline(progress, Kept(10, "alarm"))
    assert told["loss"] == {"start": {"value": 0.69}, "best": {"value": 0.5}, "last": {"value": 0.4}}
