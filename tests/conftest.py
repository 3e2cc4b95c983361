"""Fixtures shared by test files: a small exact model, rows of token ids, a private cache, one real model."""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile

# As the command line does, and before torch is imported: threads that wait sleep instead of spinning. Beside
# other test processes each takes one core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/, which shares code with some tests

from alignctl.config import PinnedModel
from alignctl.models.load import locate
from alignctl.records import Example


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("ALIGNCTL_CACHE", str(directory))
    return directory


@pytest.fixture
def workplace(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of the test's own, with an empty cache in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in the user's own cache, fetched on first use; for tests marked slow."""
    with open(Path(tempfile.gettempdir()) / "alignctl-tests.lock", "w") as lock:
        # One test process fetches it, the others wait.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return Path(locate(PinnedModel(kind="pinned", name="smollm2-135m", lr=1e-5), print).base)


@pytest.fixture
def tiny() -> Callable[..., LlamaForCausalLM]:
    """Makes a two-layer Llama in float64 throughout: its norms would otherwise compute in float32."""
    return _tiny


def _tiny(
    *, kv_heads: int = 2, tied: bool = True, dtype: torch.dtype = torch.float64, seed: int = 0
) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    return _exact(model.double()) if dtype == torch.float64 else model.to(dtype)


def _exact(model: LlamaForCausalLM) -> LlamaForCausalLM:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LlamaRMSNorm):
                norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                parent.register_module(name, norm)
    return model


@pytest.fixture
def make_rows() -> Callable[..., list[Example]]:
    """Rows of random token ids from trees of lengths: (prompt, branch, branch, ...).

    The prompts of all rows begin with the same `stem` tokens, which the lengths do not count.
    """
    return _make_rows


def _make_rows(
    trees: Sequence[tuple[int, ...]], *, vocabulary: int = 61, seed: int = 0, stem: int = 0
) -> list[Example]:
    random = np.random.default_rng(seed)

    def ids(length: int) -> np.ndarray:
        return random.integers(3, vocabulary, length, dtype=np.int32)

    beginning = ids(stem)
    return [
        Example(
            id=f"row {number}",
            prompt=np.concatenate([beginning, ids(prompt)]),
            branches=tuple(ids(length) for length in branches),
        )
        for number, (prompt, *branches) in enumerate(trees)
    ]


@pytest.fixture
def plain_logps() -> Callable[..., Tensor]:
    """Log-probability of every branch the plain way: one sequence at a time, whole logits, no packing."""
    return _plain_logps


def _plain_logps(model: nn.Module, rows: Sequence[Example]) -> Tensor:
    sums = []
    for row in rows:
        for branch in row.branches:
            ids = torch.tensor([[*row.prompt.tolist(), *branch.tolist()]])
            logps = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
            taken = logps[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
            sums.append(taken[len(row.prompt) - 1 :].sum())
    return torch.stack(sums)
