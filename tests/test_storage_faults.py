"""What the storage says, told with its path: errors of Python, and of libraries written in Rust."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from alignctl.errors import SetupError, storage_faults

WRITERS: dict[str, Callable[[Path], object]] = {
    "python": lambda path: path.write_bytes(b"x" * 4096),
    "safetensors": lambda path: save_file({"w": torch.zeros(4096)}, path),
    "tokenizers": lambda path: Tokenizer(models.BPE({str(n): n for n in range(999)}, [])).save(str(path)),
}


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 100 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("write", WRITERS.values(), ids=list(WRITERS))
def test_whoever_writes_a_full_storage_is_told_with_the_path(
    write: Callable[[Path], object], tmp_path: Path
) -> None:
    message = r"cannot write .*/target: File too large"
    with pytest.raises(SetupError, match=message) as error, storage_faults(tmp_path / "target"):
        write(tmp_path / "file")
    assert error.value.exit_code == 3
    assert error.value.hints[0].startswith("free some space")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOENT])
def test_every_refusal_of_the_storage_is_told(number: int) -> None:
    message = f"cannot write there: {os.strerror(number)}"
    with pytest.raises(SetupError, match=message), storage_faults("there"):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "odd"), RuntimeError("full"), OSError("no number")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, storage_faults("there"):
        raise error
    assert raised.value is error


def test_a_full_storage_that_no_part_expected_is_exit_code_3(tmp_path: Path) -> None:
    """`alignctl ls` has more to say than its output may hold."""
    with open(tmp_path / "out", "wb") as out:
        found = subprocess.run(
            ["bash", "-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" -m alignctl.cli ls", sys.executable],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=Path(__file__).parents[1],
        )
    assert found.returncode == 3
    assert found.stderr.startswith("error: cannot write a file: File too large\n")
