"""A run that does not fit is refused before its first step, with settings that fit; one that fits does so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alignctl.cli import main
from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import TrainConfig
from alignctl.models.memory import USABLE, Memory
from alignctl.models.rehearsal import weight_bytes
from alignctl.models.tiny import tiny_tokenizer
from alignctl.runners.memory import LORA, Asked, bare_policy, changes, refusal, unwatched
from alignctl.runners.training_data import prepare_data

RESIDENT = 500_000_000
MODEL = ("model=tiny", "model.layers=4", "model.hidden=512")

INTERPRETER_GB = 0.2


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Pairs of some 200 to 600 tokens, and a cache beside them."""
    monkeypatch.setenv("ALIGNCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    lines = [
        {"prompt": f"{n} " + "why " * 20, "chosen": "yes " * (10 + n), "rejected": "no " * (15 + 2 * n)}
        for n in range(40)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "dataset=pairs.jsonl"


def asked_of(*words: str, available: int) -> Asked:
    """A run on a machine of so much memory; `words` as they are typed."""
    config = load(open_conf(None), [*MODEL, *words, "train.batch_size=4", "hardware=cpu"])
    assert isinstance(config, TrainConfig)
    data = prepare_data(config, print)
    dtype = torch.bfloat16 if config.train.dtype == "bfloat16" else torch.float32
    policy = bare_policy(data, config.adapter, "shared", dtype, torch.device("cpu"))
    memory = Memory(RESIDENT + weight_bytes(policy.model), available)
    micro, checkpointing = config.hardware.micro_tokens, config.hardware.activation_checkpointing
    return Asked(
        config,
        data,
        policy,
        memory,
        micro_tokens=None if micro == "auto" else micro,
        checkpointing=None if checkpointing == "auto" else checkpointing,
    )


def tight(*words: str, share: float) -> Asked:
    """The run where there is so much of what it needs at the least."""
    least = asked_of(*words, available=10**6).plan()
    assert not least.fits
    return asked_of(*words, available=int(share * least.needed_bytes / USABLE))


def refused(asked: Asked) -> tuple[str, dict[str, float]]:
    """The message, and each named setting with the GB that it is said to need."""
    plan = asked.plan()
    assert not plan.fits
    error = refusal(asked, plan.needed_bytes)
    assert error.exit_code == 4
    assert len(error.render().splitlines()) <= 12
    found = [re.fullmatch(r"(.*)  \(about ([\d.]+) GB\)", hint) for hint in error.hints]
    return error.message, {match[1]: float(match[2]) for match in found if match}


def test_what_is_named_fits_and_is_planned_with(data: str) -> None:
    asked = tight(data, share=0.97)
    message, settings = refused(asked)
    usable = USABLE * asked.memory.available_bytes / 1e9
    assert f"may fill {usable:.1f} GB" in message
    assert "adapter=lora" in settings
    for words, said in settings.items():
        again = asked_of(data, *words.split(), available=asked.memory.available_bytes).plan()
        assert again.fits, words
        assert said == pytest.approx(again.needed_bytes / 1e9, abs=0.06)


def test_the_watch_is_named_where_it_alone_keeps_the_reference(data: str) -> None:
    _, settings = refused(tight(data, share=0.98))
    assert "watch.samples=0" in settings
    assert not [one for one in settings if "indicator" in one]


def test_a_rule_on_watched_answers_goes_with_them(data: str) -> None:
    changed = unwatched(asked_of(data, "watch.indicator=sampled", available=10**6))
    assert changed.words == ("watch.samples=0", "watch.indicator=displacement")
    load(open_conf(None), [*MODEL, data, *changed.words])


@pytest.mark.parametrize(
    "words",
    [("watch.samples=0",), ("algo=hypo", "algo.prompts_per_step=4", "algo.max_new_tokens=8")],
    ids=["unwatched", "hypo"],
)
def test_no_watch_is_named_where_the_reference_stays_anyway(data: str, words: tuple[str, ...]) -> None:
    asked = asked_of(data, *words, available=10**6)
    assert not [change for change in changes(asked) if "watch.samples=0" in change.words]


def test_a_setting_that_would_not_suffice_is_not_named(data: str) -> None:
    """Of a row of 300 tokens nothing shorter helps where the weights, gradients and moments are too much."""
    asked = tight(data, share=0.91)
    _, settings = refused(asked)
    assert settings
    assert not [words for words in settings if words.startswith("train.max_length")]


def test_settings_are_combined_where_one_is_not_enough(data: str) -> None:
    """Not even an adapter fits while every activation is kept."""
    words = ("hardware.activation_checkpointing=false", "hardware.micro_tokens=100000")
    least = asked_of(data, "adapter=lora", "hardware.activation_checkpointing=true", available=10**6).plan()
    asked = asked_of(data, *words, available=int(1.02 * least.needed_bytes / USABLE))
    _, settings = refused(asked)
    (only,) = settings
    assert only.startswith("hardware.micro_tokens=")
    assert "hardware.activation_checkpointing=true adapter=lora" in only
    assert asked_of(data, *only.split(), available=asked.memory.available_bytes).plan().fits


def test_a_micro_batch_that_was_asked_for_is_not_made_smaller_in_silence(data: str) -> None:
    words = (
        "hardware.micro_tokens=100000",
        "hardware.activation_checkpointing=false",
        "train.dtype=bfloat16",
    )
    asked = tight(data, *words, share=0.9)
    _, settings = refused(asked)
    smaller = next(word for word in settings if word.startswith("hardware.micro_tokens="))
    assert int(smaller.split()[0].partition("=")[2]) < 2000


def test_where_nothing_helps_it_is_said(data: str) -> None:
    error = refusal(asked_of(data, available=RESIDENT // 2), 10**12)
    assert error.hints == ("no setting makes it fit: take a smaller model or a larger machine",)


def test_lora_is_what_its_option_says(data: str) -> None:
    config = load(open_conf(None), [*MODEL, data, "adapter=lora"])
    assert isinstance(config, TrainConfig)
    assert config.adapter == LORA


def write_hollow(config: LlamaConfig, file: Path) -> None:
    """Weights whose header is that of the model, and whose tensors are one hole of 200 GB."""
    with torch.device("meta"):
        tensors = LlamaForCausalLM(config).state_dict()
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(file, 8 + len(text) + end)


def test_a_model_too_large_is_refused_before_a_weight_is_read(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=16384,
        intermediate_size=65536,
        num_hidden_layers=30,
        num_attention_heads=128,
        num_key_value_heads=8,
    )
    config.save_pretrained(tmp_path / "large")
    tiny_tokenizer().save_pretrained(tmp_path / "large")
    write_hollow(config, tmp_path / "large" / "model.safetensors")
    answers = []
    for flags in ([], ["--dry-run"]):
        assert main(["train", "model=./large", data, "out=mine", "hardware=cpu", *flags]) == 4
        err = capsys.readouterr().err
        answers.append(err[err.index("error:") :])
        assert "training large like this needs about" in err
        assert "no setting makes it fit" in err
    assert re.sub(r"[\d.]+ GB", "", answers[0]) == re.sub(r"[\d.]+ GB", "", answers[1])
    assert len(answers[0].splitlines()) <= 12


# --- runs ----------------------------------------------------------------------------------------------


def run(*words: str) -> tuple[float, float]:
    """Estimate and peak of a run in a process of its own, in GB."""
    settings = ("train.steps=2", "train.batch_size=4", "eval.samples=0", "dataset.eval_size=4")
    command = ["train", *MODEL, *settings, "hardware=cpu", "out=mine", "overwrite=true", *words]
    done = subprocess.run(
        [sys.executable, "-m", "alignctl.cli", *command],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, Path("mine/timing.jsonl").read_text().splitlines())
    peak = max(line["memory_gb"] for line in lines if line["split"] == "train")
    return json.loads(Path("mine/run.json").read_text())["memory_estimate_gb"], peak


# In bfloat16 a processor without instructions for it takes minutes: that is left to scripts/bench/memory.py.
@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        (),
        pytest.param(("adapter=lora",), marks=pytest.mark.long),
        pytest.param(("hardware.activation_checkpointing=true",), marks=pytest.mark.long),
    ],
)
def test_a_run_takes_what_was_said(data: str, words: tuple[str, ...]) -> None:
    estimate, peak = run(data, "dataset.limit=16", *words)
    # Beside a model this small the interpreter shows: modules loaded late, huge pages, allocator arenas.
    assert estimate == pytest.approx(peak, rel=0.15, abs=INTERPRETER_GB)


@pytest.mark.slow
@pytest.mark.long
def test_a_setting_that_is_named_is_enough(data: str) -> None:
    """This machine has more memory, so what would be decided there is said here."""
    asked = tight(data, share=0.97)
    _, settings = refused(asked)
    words = next(words for words in settings if "adapter=lora" in words)
    plan = asked_of(data, *words.split(), available=asked.memory.available_bytes).plan()
    decided = (
        f"hardware.micro_tokens={plan.micro_tokens}",
        f"hardware.activation_checkpointing={str(plan.activation_checkpointing).lower()}",
    )
    _, peak = run(data, *words.split(), *decided)
    assert peak < asked.memory.available_bytes / 1e9 + INTERPRETER_GB
