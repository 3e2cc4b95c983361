"""SIGKILL, SIGTERM and SIGINT at random moments: the same command ends with the same bytes."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from random import Random

from scripts.faults.lab import CHAIN, Lab, Work, compare
from scripts.faults.processes import (
    Command,
    expect,
    kill_family,
    newest_checkpoint,
    record_of,
    resumes_of,
    start,
    steps_recorded,
    succeed,
)

KILLS = 3
EARLY = 0.4
"""Share of an undisturbed run's time within which a kill at a random time comes."""
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


def kill_training(lab: Lab, work: Work, random: Random) -> None:
    """Twice after a random step, once at a random time, which is often while the run is being loaded."""
    undisturbed = lab.undisturbed(work)
    steps = sorted(random.sample(range(1, work.steps), KILLS - 1))
    moments: list[int | float] = [*steps, random.uniform(0, EARLY * lab.seconds(work))]
    random.shuffle(moments)
    place, words = lab.fresh(), lab.words(work)
    run = place / work.out
    landed = sum(_kill(start(place, words), run, moment, random) for moment in moments)
    expect(landed > 0, "no kill landed")
    began, newest = steps_recorded(run) > 0, newest_checkpoint(run)
    if record_of(run).get("status") != "done":
        succeed(place, words)
        expect(not began or resumes_of(run)[-1] == newest, f"resumed {resumes_of(run)}, saved {newest}")
    compare(work, undisturbed, run)


def _kill(command: Command, run: Path, moment: int | float, random: Random) -> bool:
    """Whether the command was there to be killed."""
    if isinstance(moment, int):
        begun = len(resumes_of(run)) if steps_recorded(run) else -1
        command.wait_until(lambda: steps_recorded(run) >= moment and len(resumes_of(run)) > begun)
        time.sleep(random.uniform(0, 0.02))
    else:
        time.sleep(moment)
    command.send(signal.SIGKILL)
    return command.wait().code == -signal.SIGKILL


def kill_command(lab: Lab, work: Work, random: Random) -> None:
    """Three times at random times: a soup, an evaluation, or a chain with the stage that is under way."""
    undisturbed, seconds = lab.undisturbed(work), lab.seconds(work)
    place, words = lab.fresh(), lab.words(work)
    for moment in sorted(random.uniform(0, 0.8 * seconds) for _ in range(KILLS)):
        if _finished(work, place / work.out):
            break
        command = start(place, words)
        time.sleep(moment if work is not CHAIN else moment / KILLS)
        kill_family(command)
        command.wait()
    if not _finished(work, place / work.out):
        succeed(place, words)
    compare(work, undisturbed, place / work.out)


def _finished(work: Work, out: Path) -> bool:
    """A soup is complete or absent; an evaluation says so; a chain may always be started again."""
    if work.name == "soup":
        return out.exists()
    return record_of(out).get("status") == "done"


def stop_training(lab: Lab, work: Work, number: signal.Signals, random: Random) -> None:
    """A signal after a random step: saved at the step that was under way, and gone on from there."""
    undisturbed = lab.undisturbed(work)
    place, words = lab.fresh(), lab.words(work)
    run, after = place / work.out, random.randrange(0, work.steps - 4)
    command = start(place, words)
    command.wait_until(lambda: steps_recorded(run) >= after and record_of(run).get("decided") is not None)
    time.sleep(random.uniform(0, 0.02))
    command.send(number)
    ended = command.wait()
    expect(ended.code == CODES[number], f"signal {number} ended it with {ended.code}: {ended.said[-300:]}")
    expect(record_of(run).get("status") == "running", "a stopped run must stay unfinished")
    saved = newest_checkpoint(run)
    expect(saved == steps_recorded(run), f"saved step {saved} of {steps_recorded(run)}")
    succeed(place, words)
    expect(not saved or resumes_of(run) == [saved], f"saved {saved}, gone on from {resumes_of(run)}")
    compare(work, undisturbed, run)
