"""--multirun: planning and resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignctl.cli.options import open_conf
from alignctl.cli.sweep import Sweep, combinations, plan, resumed
from alignctl.errors import RunDirectoryError, UsageError

CONF = open_conf(None)


@pytest.mark.parametrize(
    ("words", "jobs"),
    [
        (
            ["seed=1,2", "algo=dpo,ipo"],
            ["seed=1 algo=dpo", "seed=1 algo=ipo", "seed=2 algo=dpo", "seed=2 algo=ipo"],
        ),
        (["seed=range(1,4)"], ["seed=1", "seed=2", "seed=3"]),
        (["hardware=glob(*,exclude=gpu)"], ["hardware=auto", "hardware=cpu"]),
        (["adapter.targets=[a,b]"], ["adapter.targets=[a,b]"]),
        (["dataset=~/a.jsonl,~/b.jsonl"], ["dataset=~/a.jsonl", "dataset=~/b.jsonl"]),
        (["+seed=choice(1,2)"], ["seed=1", "seed=2"]),
        (["seed=3"], ["seed=3"]),
    ],
)
def test_a_sweep_is_the_product_of_its_values(words: list[str], jobs: list[str]):
    assert [" ".join(job) for job in combinations(words, CONF)] == jobs


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=interval(0,1)", "no countable values"),
        ("algo=glob(x*)", "matches no option of algo"),
        ("seed=range(2000)", "more than 256"),
    ],
)
def test_sweeps_that_cannot_be_counted_are_refused(word: str, message: str):
    with pytest.raises(UsageError, match=message):
        combinations([word], CONF)


def test_jobs_have_their_own_directories_under_one_named_by_the_request():
    sweep = plan(CONF, ["algo=dpo,ipo", "model=tiny"])
    assert sweep.directory.name.startswith("dpo-ipo-")
    assert [job.out for job in sweep.jobs] == [f"{sweep.directory}/0", f"{sweep.directory}/1"]
    assert plan(CONF, ["algo=dpo,ipo", "model=tiny"]) == sweep
    assert plan(CONF, ["algo=dpo,ipo", "model=tiny", "seed=1"]).directory != sweep.directory
    assert plan(CONF, ["seed=1,2", "out=here"]).jobs[1].out == "here/1"


def test_every_job_is_checked_before_the_first_one_starts():
    with pytest.raises(UsageError, match=r"algo\.tau is not a setting of algo=dpo"):
        plan(CONF, ["algo=ipo,dpo", "algo.tau=0.1"])


def written(sweep: Sweep, codes: list[int | None]) -> None:
    jobs = [vars(job) | {"exit_code": code} for job, code in zip(sweep.jobs, codes, strict=True)]
    (sweep.directory / "sweep.json").write_text(json.dumps({"schema": 1, "jobs": jobs}), encoding="utf-8")


def test_the_same_sweep_again_leaves_out_what_ended_well(tmp_path: Path):
    sweep = plan(CONF, ["seed=1,2,3", f"out={tmp_path}"])
    written(sweep, [0, 1, None])
    assert [job.exit_code for job in resumed(sweep)] == [0, None, None]
    again = plan(CONF, ["seed=1,2,3", f"out={tmp_path}", "overwrite=true"])
    assert [job.exit_code for job in resumed(again)] == [None, None, None]


def test_another_sweep_in_the_same_directory_is_refused(tmp_path: Path):
    written(plan(CONF, ["seed=1,2", f"out={tmp_path}"]), [0, 0])
    with pytest.raises(RunDirectoryError, match="holds another sweep"):
        resumed(plan(CONF, ["seed=1,3", f"out={tmp_path}"]))
