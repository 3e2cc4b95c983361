"""Completion: what is offered, and that bash, zsh and fish make of it what a person means."""

from __future__ import annotations

import os
import pty
import re
import resource
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from alignctl.cli import main
from alignctl.cli.candidates import candidates
from alignctl.cli.completion import SCRIPTS, last_word, split
from alignctl.cli.flags import FLAGS
from alignctl.cli.options import open_conf, verb_settings
from alignctl.cli.values import fields_of, words_for

ROOT = Path(__file__).parents[2]
COMMANDS = {"train": "", "soup": "", "eval": "", "ls": "", "completion": "", "doctor": ""}
needs_zsh = pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
needs_fish = pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with data, runs and a soup in it, and `alignctl` on the path."""
    place = tmp_path / "desk"
    for name in (
        "wishes.jsonl",
        "my rows.jsonl",
        "it's.jsonl",
        "notes.txt",
        "more/rows.parquet",
        ".hidden.jsonl",
    ):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("")
    for step in (40, 80):
        (place / "runs" / "seed-0" / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    for name, file in (("runs/seed-0", "run.json"), ("runs/seed-1", "run.json"), ("soups/both", "soup.json")):
        (place / name).mkdir(parents=True, exist_ok=True)
        (place / name / file).write_text('{"status": "done"}')
    program = tmp_path / "bin" / "alignctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m alignctl.cli "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("ALIGNCTL_CONF", raising=False)
    monkeypatch.chdir(place)
    return place


def offered(line: str) -> list[str]:
    """What may stand where the line ends."""
    words = line.split(" ")
    return [one.word for one in candidates(words, len(words) - 1, COMMANDS)]


# --- what is offered -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", list(COMMANDS)),
        ("so", ["soup"]),
        ("--v", ["--version"]),
        ("train ad", ["adapter="]),
        ("train algo", ["algo=", "algo."]),
        ("train algo.b", ["algo.beta="]),
        ("train algo.re", ["algo.reduction=", "algo.reference."]),
        (
            "train algo.ref",
            [f"algo.reference.{key}=" for key in ("kind", "path", "members", "weights", "alpha")],
        ),
        ("train algo=ipo algo.", ["algo.tau=", "algo.reduction=", "algo.reference."]),
        ("train algo.beta=0.2 algo.b", []),
        ("train algo=ipo algo", ["algo.tau=", "algo.reduction=", "algo.reference."]),
        ("train sche", []),
        ("train train.s", ["train.steps=", "train.schedule="]),
        ("train adapter=", ["adapter=lora", "adapter=none"]),
        (
            "train train.schedule=",
            ["train.schedule=constant", "train.schedule=linear", "train.schedule=cosine"],
        ),
        ("train overwrite=", ["overwrite=true", "overwrite=false"]),
        ("train train.lr=", []),
        ("train algo.beta=", []),
        ("train -m algo=dpo,i", ["algo=dpo,ipo"]),
        ("train -m hardware=cpu,", ["hardware=cpu,auto", "hardware=cpu,gpu"]),
        (
            "train -m train.schedule=linear,co",
            ["train.schedule=linear,constant", "train.schedule=linear,cosine"],
        ),
        ("train --mul", ["--multirun"]),
        ("eval --mul", []),
        ("train --cfg ", ["job"]),
        ("train --format j", ["json"]),
        ("train --format=q", ["--format=quiet"]),
        ("train recipe=", ["recipe=overoptimise-demo", "recipe=salsa-2seeds"]),
        ("train recipe=salsa-2seeds sft", ["sft-0.", "sft-1."]),
        ("train recipe=salsa-2seeds ppo.algo.kl", ["ppo.algo.kl_target="]),
        ("train recipe=salsa-2seeds sft-0.algo.beta", []),
        ("soup soup=ti", ["soup=ties"]),
        ("soup soup=ties soup.d", ["soup.density="]),
        ("eval judge=endpoint judge.u", ["judge.url="]),
        ("ls ad", ["adapter"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("help tr", ["train"]),
        ("help train algo=i", ["algo=ipo"]),
        ("trian al", []),
    ],
)
def test_what_may_come_next(line: str, expected: list[str], desk: Path):
    assert offered(line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train dataset=w", ["dataset=wishes.jsonl"]),
        ("train dataset=m", ["dataset=mixture", "dataset=more/", "dataset=my rows.jsonl"]),
        ("train dataset=more/", ["dataset=more/rows.parquet"]),
        ("train dataset=.h", ["dataset=.hidden.jsonl"]),
        ("train dataset=no", []),
        ("train dataset=file dataset.eval_path=w", ["dataset.eval_path=wishes.jsonl"]),
        ("train out=r", ["out=runs/"]),
        ("train model=r", ["model=runs/seed-0", "model=runs/seed-1"]),
        ("train model=runs/seed-0@", ["model=runs/seed-0@40", "model=runs/seed-0@80"]),
        (
            "train algo.reference.members=[runs/seed-0,r",
            ["algo.reference.members=[runs/seed-0,runs/seed-1"],
        ),
        ("train dataset=mixture dataset.parts=[w", ["dataset.parts=[wishes.jsonl"]),
        ("soup runs/seed-0 r", ["runs/seed-1"]),
        ("soup so", ["soups/both", "soup="]),
        ("eval ./r", ["./runs/seed-0", "./runs/seed-1"]),
        ("eval smol", ["smollm2-135m"]),
        ("eval runs/seed-0@8", ["runs/seed-0@80"]),
        ("train --config-dir m", ["more/"]),
    ],
)
def test_files_runs_and_models(line: str, expected: list[str], desk: Path):
    assert offered(line) == expected


def test_home_is_looked_into_and_stays_as_it_was_typed(desk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(desk))
    assert offered("train dataset=~/w") == ["dataset=~/wishes.jsonl"]


def test_options_of_ones_own_are_offered(desk: Path, monkeypatch: pytest.MonkeyPatch):
    (desk / "conf" / "algo").mkdir(parents=True)
    (desk / "conf" / "algo" / "mine.yaml").write_text("# Mine.\ndefaults:\n  - ipo\n\n# More.\ntau: 0.5\n")
    assert offered("train --config-dir conf algo=m") == ["algo=mine"]
    monkeypatch.setenv("ALIGNCTL_CONF", "conf")
    assert offered("train algo=mine algo.t") == ["algo.tau="]
    (desk / "conf" / "algo" / "mine.yaml").write_text("- not settings\n")
    assert offered("train algo=dp") == ["algo=dpo"], "a directory that cannot be used is as good as none"


def test_a_candidate_always_begins_with_what_was_typed(desk: Path):
    settings = [f"{key}=" for key in verb_settings(open_conf(None))]
    for line in ("train ", *(f"train {setting[:4]}" for setting in settings), "eval r", "train dataset="):
        assert all(word.startswith(line.rpartition(" ")[2]) for word in offered(line))


def test_words_of_a_value_come_from_its_type():
    conf = open_conf(None)
    chosen = {"algo": "dpo", "model": "tiny", "dataset": "file", "hardware": "auto", "adapter": "none"}
    fields = fields_of(conf, {**chosen, "reward": "gold"})
    assert words_for(fields["hardware.activation_checkpointing"].annotation) == ("true", "false", "auto")
    assert words_for(fields["dataset.on_bad"].annotation) == ("error", "drop")
    assert words_for(fields["hardware.micro_tokens"].annotation) == ("auto",)
    assert words_for(fields["train.steps"].annotation) == ()


# --- a line of bash ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "texts", "quote"),
    [
        ("a b", ["a", "b"], ""),
        ("a b ", ["a", "b", ""], ""),
        ("a  'b c", ["a", "b c"], "'"),
        ('a "b c\\"', ["a", 'b c"'], '"'),
        ('a "b\\c"', ["a", "b\\c"], ""),
        ("a b\\ c", ["a", "b c"], ""),
        ("k='v w'x", ["k=v wx"], ""),
        ("a '' ", ["a", "", ""], ""),
        ("'a\\'b", ["a\\b"], ""),
    ],
)
def test_a_line_is_split_as_bash_does(line: str, texts: list[str], quote: str):
    assert [word.text for word in split(line)] == texts
    assert last_word(line).quote == quote


# --- the shells themselves -----------------------------------------------------------------------------


def in_bash(before: str, after: str = "", breaks: str | None = None) -> list[str]:
    """COMPREPLY of the bash function, called as bash calls it; `before` ends at the cursor."""
    program = f"""
{"" if breaks is None else f"COMP_WORDBREAKS='{breaks}'"}
source <(alignctl completion bash)
COMP_LINE=$1 COMP_POINT=${{#2}}
_alignctl alignctl "$3" ''
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    # What readline replaces: from the last break, or from the quote that is open.
    signs = "\"'@><=;|&(: " if breaks is None else breaks
    quoted = last_word(before).quote
    start = before.rfind(quoted) if quoted else max(before.rfind(sign) for sign in signs)
    command = [
        "bash",
        "--norc",
        "--noprofile",
        "-c",
        program,
        "-",
        before + after,
        before,
        before[start + 1 :],
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("alignctl tr", ["train"]),
        ("alignctl train algo=h", ["hinge", "hypo"]),
        ("alignctl train 'algo=i", ["algo=ipo"]),
        ('alignctl train "dataset=it', ["dataset=it's.jsonl"]),
        ("alignctl train 'dataset=it", ["dataset=it'\\''s.jsonl"]),
        ("alignctl train dataset=my", ["my\\ rows.jsonl"]),
        ("alignctl train dataset='my", ["my rows.jsonl"]),
        ("OMP_NUM_THREADS=1 alignctl train algo=ip", ["ipo"]),
        ("alignctl eval runs/seed-0@8", ["80"]),
    ],
)
def test_bash_gets_the_rest_of_what_it_takes_for_a_word(line: str, expected: list[str], desk: Path):
    assert in_bash(line) == expected


def test_bash_with_other_word_breaks_and_a_cursor_inside_the_line(desk: Path):
    assert in_bash("alignctl train algo=ip", breaks=" ") == ["algo=ipo"]
    assert in_bash("alignctl train algo.t", " algo=ipo") == ["algo.tau="]


def press(shell: Sequence[str], setup: str, keys: str) -> list[str]:
    """The words of the line that a shell on a terminal ends up with after these keys."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ.update({"TERM": "dumb", "INPUTRC": "/dev/null", "HISTFILE": "", "PS1": "GO> "})
        os.execvp(shell[0], list(shell))
    seen = b""

    def wait(pattern: bytes) -> None:
        nonlocal seen
        until = time.monotonic() + 30
        while re.search(pattern, seen) is None:
            assert time.monotonic() < until, f"{pattern!r} never came: {seen!r}"
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 65536)
        seen = b""

    try:
        wait(rb"GO> ")
        os.write(terminal, f"{setup}; echo READY$((1))\n".encode())
        wait(rb"READY1[\s\S]*GO> ")
        # The line becomes the argument of printf, so the shell itself says which words it is made of.
        os.write(terminal, f"{keys}\x01printf 'W<%s>\\n' \x05; echo END$((1))\n".encode())
        until = time.monotonic() + 30
        while b"END1" not in seen:
            assert time.monotonic() < until, seen
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 65536)
    finally:
        os.close(terminal)
        os.waitpid(process, 0)
    return re.findall(r"^W<(.*)>\r?$", seen.decode(errors="replace").replace("\r", ""), re.MULTILINE)


PRESSED = [
    ("alignctl tr\ttr\tsche\tli\t", ["alignctl", "train", "train.schedule=linear"]),
    ("alignctl train dataset=my\t", ["alignctl", "train", "dataset=my rows.jsonl"]),
    ("alignctl train 'dataset=my\t", ["alignctl", "train", "dataset=my rows.jsonl"]),
    (
        "alignctl train dataset=it\talgo=ipo algo.t\t",
        ["alignctl", "train", "dataset=it's.jsonl", "algo=ipo", "algo.tau="],
    ),
    (
        "alignctl soup runs/seed-0 r\t--fo\tj\t",
        ["alignctl", "soup", "runs/seed-0", "runs/seed-1", "--format", "json"],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("keys", "words"), PRESSED)
def test_bash_on_a_terminal(keys: str, words: list[str], desk: Path):
    setup = "source <(alignctl completion bash)"
    assert press(["bash", "--norc", "--noprofile", "-i"], setup, keys) == words


@pytest.mark.slow
@needs_zsh
@pytest.mark.parametrize(("keys", "words"), PRESSED)
def test_zsh_on_a_terminal(keys: str, words: list[str], desk: Path):
    setup = "autoload -Uz compinit; compinit -u -D; source <(alignctl completion zsh)"
    assert press(["zsh", "-f", "-i"], setup, keys) == words


@needs_fish
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("alignctl train al", ["algo=", "algo."]),
        ("alignctl train algo=ipo algo.t", ["algo.tau="]),
        ("alignctl train 'dataset=my", ["dataset=my rows.jsonl"]),
        ("alignctl train dataset=my\\ ", ["dataset=my rows.jsonl"]),
        ("alignctl eval runs/seed-0@", ["runs/seed-0@40", "runs/seed-0@80"]),
    ],
)
def test_fish_completes(line: str, expected: list[str], desk: Path):
    program = 'alignctl completion fish | source; complete -C "$argv[1]"'
    command = ["fish", "--no-config", "-c", program, line]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [row.partition("\t")[0] for row in done.stdout.splitlines()] == expected
    assert done.stderr == ""


@pytest.mark.parametrize(
    "shell", ["bash", pytest.param("zsh", marks=needs_zsh), pytest.param("fish", marks=needs_fish)]
)
def test_each_script_is_the_shells_own_language(shell: str, desk: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert script == SCRIPTS[shell]
    assert f"alignctl completion {shell}" in script.split("_alignctl")[0], "how to use it is said at the top"
    (desk / "script").write_text(script)
    done = subprocess.run([shell, "-n", "script"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- manners -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "limit"),
    # The values of a setting come from the types, which take as long to import as all the rest.
    [(["train", "al"], 0.2), (["train", "train.schedule="], 0.4), (["eval", "r"], 0.2)],
)
def test_an_answer_comes_at_once_and_imports_nothing_heavy(words: list[str], limit: float, desk: Path):
    program = f"""
import sys
from alignctl.cli import main
code = main(["__complete", "zsh", "1", *{words!r}])
heavy = {{"torch", "hydra", "transformers", "datasets", "rich"}}
print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    taken = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.stderr == "0 []\n"
    # Processor time and the best of a few, since a busy machine says nothing about the command.
    assert min(taken) < limit


@pytest.mark.parametrize("words", [[], ["bash"], ["zsh", "7", "train"], ["zsh", "x"], ["fish"]])
def test_a_question_that_makes_no_sense_gets_no_answer(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["__complete", *words]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_every_flag_is_offered():
    assert offered("train --") == [flag.split()[0] for flag in FLAGS]


def test_other_shells_and_help(capsys: pytest.CaptureFixture[str]):
    assert main(["completion", "fihs"]) == main(["completion"]) == main(["completion", "bash", "zsh"]) == 2
    assert "did you mean   fish" in capsys.readouterr().err
    for words in (
        ["completion", "--help"],
        ["completion", "-h"],
        ["completion", "help"],
        ["help", "completion"],
    ):
        assert main(words) == 0
        assert "source <(alignctl completion bash)" in capsys.readouterr().out
