"""The reference cache: found for the same request, never for another, whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import TrainConfig, reference_of
from alignctl.models.policy import Policy, set_attention
from alignctl.models.reference import (
    as_tensors,
    cached_scores,
    from_tensors,
    tokens_fingerprint,
)
from alignctl.models.scoring import score
from alignctl.models.tensor_files import weights_fingerprint
from alignctl.runners.preparation import prepare_policy, resolve_device, resolve_dtype
from alignctl.runners.references import References, find_reference, score_all
from alignctl.runners.training_data import prepare_data

CPU = torch.device("cpu")
TREES = [(5, 3, 6), (1, 4, 2), (12, 5, 9)]


def policy_for(model, layout="shared", dtype=torch.float64):
    set_attention(model, layout)
    return Policy(model, layout, dtype, CPU)


def ask(policy, rows, fingerprint="weights", *, with_top=False):
    return cached_scores(policy, fingerprint, rows, token_budget=100, with_top=with_top)


def files(cache: Path) -> list[Path]:
    return sorted((cache / "reference").iterdir())


def test_the_same_request_is_found_bit_for_bit(cache, tiny, make_rows):
    policy, rows = policy_for(tiny()), make_rows(TREES)
    first, was_cached = ask(policy, rows, with_top=True)
    assert not was_cached
    second, was_cached = ask(policy_for(tiny()), make_rows(TREES), with_top=True)
    assert was_cached
    live = score(policy, rows, token_budget=100, with_top=True)
    for name, tensor in as_tensors(live).items():
        assert torch.equal(tensor, as_tensors(first)[name])
        assert torch.equal(tensor, as_tensors(second)[name])
    assert len(files(cache)) == 1


def test_any_token_makes_another_request(cache, tiny, make_rows):
    policy, rows = policy_for(tiny()), make_rows(TREES)
    ask(policy, rows)
    first, rest = rows[0], rows[1:]
    changed_prompt = first.prompt.copy()
    changed_prompt[0] += 1
    moved = [*first.branches[0], first.branches[1][0]]  # the same ids end to end, cut at another place
    others = {
        "one id": [replace(first, prompt=changed_prompt), *rest],
        "truncated": [replace(first, branches=(first.branches[0][:-1], first.branches[1])), *rest],
        "cut elsewhere": [
            replace(first, branches=(np.array(moved, np.int32), first.branches[1][1:])),
            *rest,
        ],
        "order": [*rest, first],
        "fewer rows": rows[:-1],
    }
    for name, other in others.items():
        assert not ask(policy, other)[1], name
    assert ask(policy, rows)[1]


def test_dtype_layout_weights_and_figures_make_other_requests(cache, tiny, make_rows):
    rows = make_rows(TREES)
    ask(policy_for(tiny()), rows)
    assert not ask(policy_for(tiny(), "padded"), rows)[1]
    assert not ask(policy_for(tiny(), "packed"), rows)[1]
    assert not ask(policy_for(tiny(dtype=torch.float32), dtype=torch.float32), rows)[1]
    assert not ask(policy_for(tiny(dtype=torch.float32), dtype=torch.bfloat16), rows)[1]
    assert not ask(policy_for(tiny(seed=1)), rows, "other weights")[1]
    assert not ask(policy_for(tiny()), rows, with_top=True)[1]
    assert ask(policy_for(tiny()), rows)[1]


def test_labels_and_names_of_rows_do_not_enter(make_rows):
    rows = make_rows(TREES)
    labelled = [replace(row, id="other", p_chosen=0.7, weight=2.0) for row in rows]
    assert tokens_fingerprint(labelled) == tokens_fingerprint(rows)


def test_weights_fingerprint_sees_name_shape_dtype_and_every_bit():
    one = {"a": torch.arange(6.0), "b": torch.zeros(2, 2)}
    flipped = torch.arange(6.0)
    flipped[3] = torch.nextafter(flipped[3], torch.tensor(9.0))
    prints = {
        weights_fingerprint(tensors)
        for tensors in (
            one,
            {"a": flipped, "b": torch.zeros(2, 2)},
            {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(2, 2)},
            {"c": torch.arange(6.0), "b": torch.zeros(2, 2)},
            {"a": torch.arange(6.0).bfloat16(), "b": torch.zeros(2, 2)},
            {"a": torch.arange(6.0), "b": -torch.zeros(2, 2)},
        )
    }
    assert len(prints) == 6
    assert weights_fingerprint(dict(reversed(one.items()))) == weights_fingerprint(one)
    strided = torch.arange(12.0)[::2] / 2
    assert weights_fingerprint({**one, "a": strided}) == weights_fingerprint(one)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def not_safetensors(file: Path) -> None:
    file.write_bytes(b"\x80\x04pickle?" * 50)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))


def drop_a_tensor(file: Path) -> None:
    save_file({"sums": load_file(file)["sums"]}, file)


def swap_with_another(file: Path) -> None:
    tensors = {"sums": torch.zeros(3, 2, dtype=torch.float64), "counts": torch.ones(3, 2, dtype=torch.int64)}
    save_file(tensors, file)


@pytest.mark.parametrize(
    "damage", [truncate, empty, not_safetensors, flip_a_bit, drop_a_tensor, swap_with_another]
)
def test_a_damaged_file_is_computed_again(cache, tiny, make_rows, damage):
    policy, rows = policy_for(tiny()), make_rows(TREES)
    good, _ = ask(policy, rows)
    (file,) = files(cache)
    damage(file)
    found, was_cached = ask(policy, rows)
    assert not was_cached
    assert torch.equal(found.sums, good.sums)
    assert ask(policy, rows)[1]  # and written anew


def test_concurrent_writers_leave_one_whole_file(cache, tiny, make_rows):
    rows = make_rows(TREES)
    policies = [policy_for(tiny()) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda policy: ask(policy, rows)[0].sums, policies))
    assert all(torch.equal(sums, found[0]) for sums in found)
    (file,) = files(cache)  # no temporary file is left
    assert torch.equal(from_tensors(load_file(file)).sums, found[0])


def test_tensors_and_scores_turn_into_each_other(tiny, make_rows):
    scores = score(policy_for(tiny()), make_rows(TREES), token_budget=100, with_top=True)
    named = as_tensors(scores, "held_out.")
    assert sorted(named) == ["held_out.counts", "held_out.sums", "held_out.top_entropy", "held_out.top_mass"]
    back = from_tensors(named, "held_out.")
    assert all(torch.equal(as_tensors(back)[name], tensor) for name, tensor in as_tensors(scores).items())
    with pytest.raises(KeyError):
        from_tensors(named)


# --- through real configs ------------------------------------------------------------------------------

REQUEST = (
    "model=tiny",
    "model.layers=1",
    "model.hidden=16",
    "dataset.pairs=6",
    "dataset.eval_pairs=2",
    "dataset.gold_samples=0",
    "train.batch_size=2",
    "train.dtype=float32",
)


def config_of(*changes: str) -> TrainConfig:
    keys = {change.split("=")[0] for change in changes}
    return load(open_conf(None), [*(word for word in REQUEST if word.split("=")[0] not in keys), *changes])


def truncating() -> tuple[str, str]:
    """Settings under which the longest answer loses its last token, and nothing else changes."""
    rows = prepare_data(config_of(), print).train
    longest = max(len(row.prompt) + max(map(len, row.branches)) for row in rows)
    return f"train.max_length={longest - 1}", f"train.max_prompt={max(len(row.prompt) for row in rows)}"


def references(*changes: str) -> References:
    """The reference scores that a run with these settings would use."""
    config = config_of(*changes)
    data = prepare_data(config, print)
    start = prepare_policy(
        data.source,
        config.adapter,
        seed=config.seed,
        max_length=config.train.max_length,
        device=resolve_device(config.hardware),
        dtype=resolve_dtype(config, resolve_device(config.hardware)),
    )
    wanted = reference_of(config.algo)
    assert wanted is not None
    return score_all(find_reference(wanted, config, start, data, print), data, lambda done, total: None)


def digest(cache: Path) -> str:
    return hashlib.sha256("".join(file.name for file in files(cache)).encode()).hexdigest()


SAME: Sequence[tuple[str, ...]] = (
    ("train.lr=0.5",),
    ("algo.beta=0.3",),
    ("algo=hinge",),
    ("algo=ipo",),
    ("out=elsewhere",),
    ("seed=7",),
    ("train.batch_size=3", "train.epochs=2"),
    ("adapter=lora",),  # a fresh adapter adds nothing: its reference is the base
    ("adapter=lora", "algo.reference.kind=adapter_off"),
    ("eval.every=1", "checkpoint.every=1"),
)
OTHER: Sequence[tuple[str, ...]] = (
    ("train.dtype=bfloat16",),
    ("model.seed=1",),
    ("model.layers=2",),
    ("dataset.seed=1",),
    ("adapter=lora", "adapter.dropout=0.1"),  # packed without sharing
)


def test_neither_stale_nor_missed(cache):
    first = references()
    assert not first.cached
    assert first.is_start
    kept = digest(cache)
    for changes in SAME:
        again = references(*changes)
        assert again.cached, changes
        assert torch.equal(again.train.sums, first.train.sums), changes
    assert digest(cache) == kept
    for changes in (truncating(), *OTHER):
        assert not references(*changes).cached, changes
    assert references().cached


def test_held_out_rows_are_a_request_of_their_own(cache):
    references()
    fewer = references("eval.pairs=1")
    assert not fewer.cached
    assert fewer.held_out is not None
    assert fewer.held_out.sums.shape == (1, 2)
    assert len(files(cache)) == 3  # training rows were found
