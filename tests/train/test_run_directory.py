"""The run directory: who may write where, what a resume finds, what an overwrite removes."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from alignctl.config import TrainConfig, parse, request_hash
from alignctl.errors import DataError, Interrupted, RunDirectoryError, SetupError
from alignctl.train.run_directory import JsonLines, open_run
from scripts.faults.crashing import crash_everywhere

CONF = Path(__file__).parents[2] / "conf"


def config(*overrides: str) -> TrainConfig:
    with initialize_config_dir(str(CONF), version_base=None):
        composed = compose("train", ["model=tiny", *overrides])
    return parse(TrainConfig, OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def dpo() -> TrainConfig:
    return config()


def run_json(path: Path) -> dict[str, object]:
    return json.loads((path / "run.json").read_text())


def start(path: Path, settings: TrainConfig, status: str | None = None) -> None:
    """A run that was opened and left, finished or not."""
    with open_run(path, settings, ["seed=0"], ["alignctl", "train"]) as run:
        run.metrics.append({"step": 1})
        if status:
            run.finish(status)  # type: ignore[arg-type]


# --- a new run -----------------------------------------------------------------------------------------


def test_a_new_run_writes_down_its_request(tmp_path: Path, dpo: TrainConfig) -> None:
    path = tmp_path / "runs" / "first"
    with open_run(path, dpo, ["model=tiny", "train.lr=1e-4"], ["alignctl", "train", "model=tiny"]) as run:
        assert run.path == path
        assert sorted(os.listdir(path)) == [".lock", "config.yaml", "overrides.txt", "run.json"]
    assert parse(TrainConfig, yaml.safe_load((path / "config.yaml").read_text())) == dpo
    assert (path / "overrides.txt").read_text() == "model=tiny\ntrain.lr=1e-4\n"
    record = run_json(path)
    assert record["schema"] == 1
    assert record["status"] == "running"
    assert record["argv"] == ["alignctl", "train", "model=tiny"]
    assert record["request"] == request_hash(dpo)
    assert (record["seed"], record["resumes"], record["warnings"]) == (0, [], [])
    versions = record["versions"]
    assert isinstance(versions, dict)
    assert list(versions) == ["alignctl", "python", "torch", "transformers", "peft"]


def test_opening_a_run_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, alignctl.train.run_directory, alignctl.train.signals; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=CONF.parent, check=False).returncode == 0


def test_updates_merge_and_survive(tmp_path: Path, dpo: TrainConfig) -> None:
    with open_run(tmp_path, dpo, [], []) as run:
        run.update(fingerprints={"model": "abc"}, headline={"loss": {"value": float("nan")}})
        run.warn("twice")
        run.warn("twice")
        run.note_resume(5)
        run.finish("done", train_seconds=1.5)
    record = run_json(tmp_path)
    assert record["fingerprints"] == {"model": "abc"}
    assert record["headline"] == {"loss": {"value": None}}
    assert record["warnings"] == ["twice"]
    assert record["resumes"] == [{"step": 5}]
    assert (record["status"], record["train_seconds"]) == ("done", 1.5)


# --- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "~", "/.", "~/../"])
def test_root_and_home_are_refused(
    path: str, dpo: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home" if path == "~" else "/"))
    (tmp_path / "home").mkdir()
    with pytest.raises(RunDirectoryError, match="cannot be a run directory"):
        start(Path(path), dpo)
    assert os.listdir(tmp_path / "home") == []


def test_foreign_directories_and_files_are_refused_and_untouched(tmp_path: Path, dpo: TrainConfig) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(RunDirectoryError) as error:
            start(path, dpo)
        assert error.value.exit_code == 7
    with pytest.raises(RunDirectoryError, match="not a run"):
        start(tmp_path, dpo.model_copy(update={"overwrite": True}))
    with pytest.raises(SetupError, match="Not a directory"):
        start(tmp_path / "thesis.tex" / "x", dpo)
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ('{"schema": 1, "status": "runn', "cannot be read"),
        ("[" * 100000, "cannot be read"),
        ("[]", "not the record of a run"),
        ('{"name": "someone else\'s"}', "not the record of a run"),
        ('{"schema": 1, "status": "running", "request": 3}', "not the record of a run"),
        ('{"schema": 2}', "newer alignctl: schema 2, this one reads 1"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_damaged_or_strange_record_is_refused(
    tmp_path: Path, dpo: TrainConfig, content: str, message: str, overwrite: bool
) -> None:
    (tmp_path / "run.json").write_text(content)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    settings = dpo.model_copy(update={"overwrite": overwrite})
    with pytest.raises(RunDirectoryError, match=message):
        start(tmp_path, settings)
    assert (tmp_path / "run.json").read_text() == content
    assert (tmp_path / "metrics.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize("status", ["done", "stopped"])
def test_a_finished_run_is_refused_with_two_ways_on(tmp_path: Path, dpo: TrainConfig, status: str) -> None:
    start(tmp_path, dpo, status)
    with pytest.raises(RunDirectoryError, match=f"finished .status {status}") as error:
        start(tmp_path, dpo)
    assert [hint.split()[0] for hint in error.value.hints] == ["out=DIR", "overwrite=true"]
    assert run_json(tmp_path)["status"] == status


def test_other_settings_are_refused_key_by_key(tmp_path: Path, dpo: TrainConfig) -> None:
    start(tmp_path, dpo)
    other = config("train.lr=2e-4", "algo.beta=0.3", "hardware=cpu", f"out={tmp_path}", "seed=4")
    with pytest.raises(RunDirectoryError, match="started with other settings") as error:
        start(tmp_path, other)
    assert error.value.hints[:-2] == (
        "algo.beta: 0.1, now 0.3",
        "train.lr: null, now 0.0002",
        "seed: 0, now 4",
    )
    with pytest.raises(RunDirectoryError) as error:
        start(tmp_path, config("algo=ipo"))
    assert error.value.hints[0] == 'algo.name: "dpo", now "ipo"'
    assert "algo.tau: absent, now 0.1" in error.value.hints
    assert "algo.beta: 0.1, now absent" in error.value.hints
    many = config(
        "algo=ipo", "seed=4", "adapter=lora", "model.layers=1", "train.epochs=2", "train.batch_size=4"
    )
    with pytest.raises(RunDirectoryError) as error:
        start(tmp_path, many)
    assert len(error.value.render().splitlines()) <= 12
    assert any(hint.startswith("+") and hint.endswith("more") for hint in error.value.hints)


def test_a_second_writer_is_turned_away_and_told_who_the_first_is(tmp_path: Path, dpo: TrainConfig) -> None:
    with open_run(tmp_path, dpo, [], []) as run:
        run.metrics.append({"step": 1})
        holder = f"in use by process {os.getpid()} on {os.uname().nodename}"
        child = os.fork()
        if child == 0:
            try:
                start(tmp_path, dpo.model_copy(update={"overwrite": True}))
            except RunDirectoryError as error:
                os._exit(7 if holder in error.message else 2)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert (tmp_path / "metrics.jsonl").exists()


# --- going on ------------------------------------------------------------------------------------------


def test_a_killed_run_is_gone_on_with_and_its_leftovers_are_cleaned(tmp_path: Path, dpo: TrainConfig) -> None:
    path = tmp_path / "run"
    child = os.fork()
    if child == 0:
        with open_run(path, dpo, ["seed=0"], ["first"]) as run:
            run.metrics.append({"step": 1})
            run.update(decided={"micro_tokens": 512})
            (path / "checkpoints").mkdir()
            (path / "checkpoints" / ".tmp-step-000010-0123abcd").mkdir()
            (path / ".tmp-run.json-0123abcd").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert run_json(path)["status"] == "running"

    with open_run(path, config("hardware=cpu", f"out={path}"), ["hardware=cpu"], ["second"]) as run:
        assert run.record["decided"] == {"micro_tokens": 512}
        assert run.record["argv"] == ["first"]
        assert os.listdir(run.checkpoints) == []
    assert sorted(os.listdir(path)) == [
        *(".lock", "checkpoints", "config.yaml", "metrics.jsonl", "overrides.txt", "run.json"),
    ]
    assert (path / "overrides.txt").read_text() == "seed=0\n"


def test_a_failed_run_says_why_and_can_be_gone_on_with(tmp_path: Path, dpo: TrainConfig) -> None:
    with pytest.raises(DataError), open_run(tmp_path, dpo, [], []):
        raise DataError("row 3: 'chosen' is empty")
    record = run_json(tmp_path)
    assert (record["status"], record["error"]) == ("failed", "DataError: row 3: 'chosen' is empty")
    start(tmp_path, dpo)
    assert run_json(tmp_path)["status"] == "running"
    assert "error" not in run_json(tmp_path)


def fail(path: Path, settings: TrainConfig, *files: str) -> None:
    """A run that ends with a mistake in its data, after it wrote some files."""
    with open_run(path, settings, [], []) as run:
        for name in files:
            (run.path / name).write_text("{}\n")
        raise DataError("1 row cannot be used")


@pytest.mark.parametrize("made", [(), ("metrics.jsonl",), ("answers.jsonl",)])
def test_a_run_that_failed_gives_way_to_a_mended_command_unless_it_made_something(
    tmp_path: Path, dpo: TrainConfig, made: tuple[str, ...]
) -> None:
    path, mended = tmp_path / "run", config("algo.beta=0.2")
    with pytest.raises(DataError):
        fail(path, dpo, "bad_rows.jsonl", *made)
    if made:
        with pytest.raises(RunDirectoryError, match="was started with other settings"):
            start(path, mended)
        return
    start(path, mended)
    assert run_json(path)["request"] == request_hash(mended)
    assert not (path / "bad_rows.jsonl").exists()


@pytest.mark.parametrize("stop", [Interrupted(signal.SIGTERM, "stopped after saving"), KeyboardInterrupt()])
def test_an_interrupted_run_stays_unfinished(tmp_path: Path, dpo: TrainConfig, stop: BaseException) -> None:
    with pytest.raises(type(stop)), open_run(tmp_path, dpo, [], []):
        raise stop
    assert run_json(tmp_path)["status"] == "running"


def test_resume_holds_exactly_the_lines_up_to_the_checkpoint(tmp_path: Path, dpo: TrainConfig) -> None:
    with open_run(tmp_path, dpo, [], []) as run:
        run.metrics.append({"step": 1, "loss": 0.5})
        run.timing.append({"step": 1, "seconds": 2.0})
        offsets = run.offsets()
        kept = (tmp_path / "metrics.jsonl").read_bytes()
        run.metrics.append({"step": 2, "loss": 0.4})
        run.samples.append({"step": 2, "text": "later"})
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 3, "lo')
    assert offsets == {"metrics.jsonl": len(kept), "samples.jsonl": 0, "timing.jsonl": 28}

    with open_run(tmp_path, dpo, [], []) as run:
        run.rewind(offsets)
        assert (tmp_path / "metrics.jsonl").read_bytes() == kept
        assert (tmp_path / "samples.jsonl").read_bytes() == b""
        assert run.offsets() == offsets
        run.rewind({})
        assert run.offsets() == dict.fromkeys(offsets, 0)
        with pytest.raises(RunDirectoryError, match=r"metrics\.jsonl has 0 bytes, but .* it had 24"):
            run.rewind({"metrics.jsonl": 24})


def test_lines_are_strict_ordered_and_whole(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append({"step": 1, "rewards/margins": float("nan"), "a": [1, 2.5]})
    lines.append({"text": "two\nlines é"})
    assert lines.path.read_text() == (
        '{"step": 1, "rewards/margins": null, "a": [1, 2.5]}\n{"text": "two\\nlines é"}\n'
    )


def test_a_line_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append({"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(SetupError, match=r"metrics\.jsonl: File too large"):
            lines.append({"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert lines.path.read_text() == '{"step": 1}\n'


# --- overwrite -----------------------------------------------------------------------------------------


def furnish(path: Path, settings: TrainConfig) -> None:
    """A finished run with everything a run leaves, and three things of the user's."""
    start(path, settings, "done")
    for name in ("checkpoints/step-000010", "checkpoints/bad-step-000020", "model"):
        (path / name).mkdir(parents=True)
        (path / name / "model.safetensors").touch()
    for name in ("samples.jsonl", "timing.jsonl", "report.html", "notes.txt", "checkpoints/notes.txt"):
        (path / name).touch()
    (path / "plots").mkdir()


def test_overwrite_removes_the_old_run_and_only_that(tmp_path: Path, dpo: TrainConfig) -> None:
    furnish(tmp_path, dpo)
    settings = config("overwrite=true", "algo=ipo")
    with open_run(tmp_path, settings, [], ["again"]) as run:
        assert run.record["argv"] == ["again"]
        assert sorted(os.listdir(tmp_path)) == [
            *(".lock", "checkpoints", "config.yaml", "notes.txt", "overrides.txt", "plots", "run.json"),
        ]
        assert os.listdir(run.checkpoints) == ["notes.txt"]
    assert run_json(tmp_path)["request"] == request_hash(settings)


def test_overwrite_of_nothing_is_a_new_run(tmp_path: Path, dpo: TrainConfig) -> None:
    start(tmp_path / "new", dpo.model_copy(update={"overwrite": True}), "done")
    assert run_json(tmp_path / "new")["status"] == "done"


def test_an_overwrite_cut_short_at_any_call_never_looks_finished(tmp_path: Path, dpo: TrainConfig) -> None:
    settings = dpo.model_copy(update={"overwrite": True})
    before = tmp_path / "before"
    furnish(before, dpo)

    def check(path: Path) -> None:
        complete = (path / "model").exists() and (path / "checkpoints" / "step-000010").exists()
        assert complete or run_json(path)["status"] != "done"
        start(path, settings, "done")
        assert run_json(path)["status"] == "done"
        assert (path / "notes.txt").exists()
        assert not (path / "model").exists()

    calls = ("rename", "unlink", "rmdir")
    assert crash_everywhere(before, lambda path: start(path, settings), check, calls=calls) > 10
