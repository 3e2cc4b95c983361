"""`--multirun`: every combination of the given values, each in a fresh child process, one after another.

All jobs are composed and checked before the first one starts. `sweep.json` in the sweep's directory holds
each job's overrides, directory and exit code; the same sweep typed again leaves out the jobs that ended well.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hydra.core.override_parser.types import Glob

from alignctl.cli.children import STOPPED, child_command, run_child
from alignctl.cli.compose import load
from alignctl.cli.options import Conf, options
from alignctl.cli.overrides import parsed, quoted
from alignctl.config import TrainConfig, request_hash
from alignctl.errors import RunDirectoryError, UsageError
from alignctl.report.output import OutputFormat, print_note, print_result
from alignctl.train.durable import write_json
from alignctl.train.lock import LOCK, only_writer

MAX_JOBS = 256


@dataclass(frozen=True)
class Job:
    """One run of a sweep; `request` is the hash of what it computes, `exit_code` None until it ended."""

    overrides: list[str]
    out: str
    request: str
    exit_code: int | None = None


@dataclass(frozen=True)
class Sweep:
    """A checked plan."""

    directory: Path
    jobs: list[Job]
    overwrite: bool


def combinations(words: Sequence[str], conf: Conf) -> list[list[str]]:
    """The words of each job; raises UsageError for values that cannot be counted."""
    choices = [_values(word, conf) for word in words]
    jobs = 1
    for values in choices:
        jobs *= len(values)
    if jobs > MAX_JOBS:
        raise UsageError(f"--multirun would start {jobs} runs, more than {MAX_JOBS}")
    return [list(job) for job in itertools.product(*choices)]


def _values(word: str, conf: Conf) -> list[str]:
    key, equals, value = word.partition("=")
    key = key.lstrip("+")
    override = parsed(key, value) if equals else None
    if override is None:
        # A value outside Hydra's grammar, such as ~/a.jsonl,~/b.jsonl, is taken apart at its commas.
        whole = not equals or value.startswith(("[", "{", "'", '"'))
        return [word] if whole else [f"{key}={part}" for part in value.split(",")]
    if not override.is_sweep_override():
        return [word]
    if not override.is_discrete_sweep():
        raise UsageError(f"{word} has no countable values", f"list them   {key}=a,b,c")
    pattern = override.value()
    if isinstance(pattern, Glob):
        matches = [name for name in options(conf, key) if _matches(name, pattern)]
        if not matches:
            raise UsageError(f"{word} matches no option of {key}", f"options   alignctl ls {key}")
        return [f"{key}={name}" for name in matches]
    return [f"{key}={one}" for one in override.sweep_string_iterator()]


def _matches(name: str, pattern: Glob) -> bool:
    excluded = any(fnmatch.fnmatchcase(name, one) for one in pattern.exclude)
    return not excluded and any(fnmatch.fnmatchcase(name, one) for one in pattern.include)


def plan(conf: Conf, words: Sequence[str]) -> Sweep:
    """Check every job and name its directory BASE/N; BASE is `out=`, or named after what is computed."""
    with_out = [word for word in words if word.lstrip("+").startswith("out=")]
    if len(with_out) > 1:
        raise UsageError("out is given twice", "leave one of them out")
    jobs = combinations([word for word in words if word not in with_out], conf)
    configs = [_run_of(conf, [*job, *with_out]) for job in jobs]
    requests = [request_hash(config) for config in configs]
    names = "-".join(dict.fromkeys(config.algo.name for config in configs))
    digest = hashlib.sha256(" ".join(requests).encode()).hexdigest()[:8]
    base = Path(configs[0].out or f"sweeps/{names}-{digest}")
    planned = [Job(job, str(base / str(n)), requests[n]) for n, job in enumerate(jobs)]
    return Sweep(base, planned, overwrite=any(config.overwrite for config in configs))


def _run_of(conf: Conf, words: Sequence[str]) -> TrainConfig:
    config = load(conf, words)
    assert isinstance(config, TrainConfig)  # a sweep is offered for train alone
    return config


def run_sweep(conf: Conf, words: Sequence[str], output: OutputFormat) -> int:
    """Run the jobs in order; returns the first exit code that is not 0. A stopped job stops the sweep."""
    sweep = plan(conf, words)
    with only_writer(sweep.directory, sweep.directory / LOCK) as lock:
        jobs = _run_jobs(conf, sweep, lock, output)
    code = next((job.exit_code for job in jobs if job.exit_code), 0)
    print_result(
        output,
        show=lambda: print(sweep.directory / "sweep.json"),
        document=lambda: {
            "command": "train",
            "status": "failed" if code else "done",
            "out": str(sweep.directory),
            "jobs": [asdict(job) for job in jobs],
        },
        line=str(sweep.directory),
    )
    return code


def _run_jobs(conf: Conf, sweep: Sweep, lock: int, output: OutputFormat) -> list[Job]:
    jobs = resumed(sweep)
    for n, job in enumerate(jobs):
        if job.exit_code == 0:
            print_note(output, f"job {n} of {len(jobs)} is done: {job.out}")
            continue
        print_note(output, f"job {n} of {len(jobs)}: {' '.join(job.overrides)} out={job.out}")
        command = child_command(conf, "train", [*job.overrides, f"out={quoted(job.out)}"], output)
        jobs[n] = replace(job, exit_code=run_child(command, lock=lock, output=output))
        write_json(sweep.directory / "sweep.json", {"schema": 1, "jobs": [asdict(job) for job in jobs]})
        if jobs[n].exit_code in STOPPED:
            break
    return jobs


def resumed(sweep: Sweep) -> list[Job]:
    """The planned jobs, with the exit codes of the same sweep's last run."""
    file = sweep.directory / "sweep.json"
    if sweep.overwrite or not file.exists():
        return list(sweep.jobs)
    try:
        before = [Job(**job) for job in json.loads(file.read_text(encoding="utf-8"))["jobs"]]
    except (ValueError, TypeError, KeyError) as error:
        raise RunDirectoryError(f"{file} is not a sweep's record", "choose another out=") from error
    if [(job.request, job.out) for job in before] != [(job.request, job.out) for job in sweep.jobs]:
        raise RunDirectoryError(
            f"{sweep.directory} holds another sweep", "choose another out=", "or replace it   overwrite=true"
        )
    return [
        replace(job, exit_code=0 if old.exit_code == 0 else None)
        for job, old in zip(sweep.jobs, before, strict=True)
    ]
