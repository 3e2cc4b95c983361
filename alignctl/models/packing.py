"""Many rows in one forward pass: the prompt once, then its k >= 1 branches (arXiv 2410.20305 for pairs).

A branch's position ids go on from the prompt's end, whichever place it has in the row, and the hidden
state of the last prompt token predicts the first token of every branch, so no prompt token is read
twice. Tokens that all prompts of a pass begin with, a system prompt above all, are read once for all of
them: the stem. Packing is by token budget and keeps the order it is given: which rows share an optimiser
step is decided by the sample order alone, never by what fits in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from alignctl.records import Example, Layout, PackedBatch

SHORTEST_STEM = 8
"""Tokens; fewer cost more in attention, whose keys are put together for every row, than they save."""


def micro_batches(examples: Sequence[Example], *, token_budget: int, layout: Layout) -> list[list[int]]:
    """Split rows, in order, into groups that each fit `token_budget` positions.

    A row longer than the budget gets a group of its own: it cannot be split.
    """
    groups: list[list[int]] = []
    spent = 0
    # Of all rows: what the rows of one group have in common may be more, never less.
    stem = stem_length(examples, layout)
    for index, example in enumerate(examples):
        whole = positions(example, layout)
        if not groups or spent + whole - stem > token_budget:
            groups.append([])
            spent = stem
        groups[-1].append(index)
        spent += whole - stem
    return groups


def stem_length(examples: Sequence[Example], layout: Layout) -> int:
    """How many tokens one pass over these rows reads once for all: those that every prompt begins with."""
    shares = layout == "shared" and len(examples) > 1
    return common_beginning(example.prompt for example in examples) if shares else 0


def common_beginning(prompts: Iterable[np.ndarray]) -> int:
    """Tokens that all of the prompts begin with; 0 where they are too few to be worth it, or no prompt.

    All but one of the shortest prompt at most: its last token predicts by itself what follows it.
    """
    first, length = np.empty(0, dtype=np.int32), None
    for prompt in prompts:
        if length is None:
            first, length = prompt, len(prompt) - 1
            continue
        length = min(length, len(prompt) - 1)
        differing = np.flatnonzero(prompt[:length] != first[:length])
        length = int(differing[0]) if len(differing) else length
        if length < SHORTEST_STEM:
            return 0
    return length if length is not None and length >= SHORTEST_STEM else 0


def positions(example: Example, layout: Layout) -> int:
    """How many positions a row takes in a forward pass."""
    if layout == "shared":
        return example.tokens
    return sum(sum(tree) for tree in _trees([example], layout))


def pack(examples: Sequence[Example], layout: Layout) -> PackedBatch:
    """Lay rows out for one forward pass, on the CPU.

    Returns a PackedBatch with K = sum of branch counts; raises ValueError for an empty batch, an empty
    prompt or an empty branch, which have no token to score from or to score.
    """
    if not examples:
        raise ValueError("a batch needs at least one row")
    for example in examples:
        if not len(example.prompt) or not all(len(branch) for branch in example.branches):
            raise ValueError(f"row {example.id} has an empty prompt or branch")
    stem = stem_length(examples, layout)
    pieces = [_shared_row(e, stem) for e in examples] if layout == "shared" else _separate_rows(examples)
    ids = np.concatenate([examples[0].prompt[:stem], *(piece for row in pieces for piece in row)])
    trees = _trees(examples, layout, stem)
    return _padded(ids, trees) if layout == "padded" else _end_to_end(ids, stem, trees, layout)


def branch_ends(batch: PackedBatch) -> Tensor:
    """int64 [K]: where, in the flattened ids, the last token of each branch lies.

    Its hidden state has read the whole answer; `score_index` stops one token short of that.
    """
    if batch.padding_mask is not None:
        width = batch.ids.shape[1]
        ends = [row * width + sum(tree) - 1 for row, tree in enumerate(batch.trees)]
    else:
        lengths = np.concatenate(batch.trees)
        starts_a_row = np.concatenate([np.arange(len(tree)) == 0 for tree in batch.trees])
        ends = batch.stem + (lengths.cumsum() - 1)[~starts_a_row]
    return torch.as_tensor(ends, dtype=torch.int64, device=batch.ids.device)


def _shared_row(example: Example, stem: int) -> list[np.ndarray]:
    return [example.prompt[stem:], *example.branches]


def _separate_rows(examples: Iterable[Example]) -> list[list[np.ndarray]]:
    return [[e.prompt, branch] for e in examples for branch in e.branches]


def _trees(examples: Iterable[Example], layout: Layout, stem: int = 0) -> tuple[tuple[int, ...], ...]:
    if layout == "shared":
        return tuple((len(e.prompt) - stem, *map(len, e.branches)) for e in examples)
    return tuple((len(e.prompt), len(branch)) for e in examples for branch in e.branches)


def _end_to_end(
    ids: np.ndarray, stem: int, trees: tuple[tuple[int, ...], ...], layout: Layout
) -> PackedBatch:
    position, score = [np.arange(stem)], []
    start = stem
    for prompt, *branches in trees:
        position.append(np.arange(stem, stem + prompt))
        offset = start + prompt
        for length in branches:
            position.append(np.arange(stem + prompt, stem + prompt + length))
            # The last prompt position predicts the branch's first token, the branch predicts its rest.
            score.append(np.concatenate([[start + prompt - 1], np.arange(offset, offset + length - 1)]))
            offset += length
        start = offset
    score_index = np.concatenate(score)
    counts = np.array([length for _, *branches in trees for length in branches])
    return PackedBatch(
        layout=layout,
        ids=torch.from_numpy(ids.astype(np.int64))[None],
        positions=torch.from_numpy(np.concatenate(position))[None],
        stem=stem,
        trees=trees,
        padding_mask=None,
        score_index=torch.from_numpy(score_index),
        targets=torch.from_numpy(ids[stem + _target_index(trees)].astype(np.int64)),
        branch=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
        counts=torch.from_numpy(counts),
    )


def _padded(ids: np.ndarray, trees: tuple[tuple[int, ...], ...]) -> PackedBatch:
    lengths = np.array([sum(tree) for tree in trees])
    longest = int(lengths.max())
    mask = np.arange(longest)[None] < lengths[:, None]
    table = np.zeros(mask.shape, dtype=np.int64)
    table[mask] = ids
    score = [
        row * longest + np.arange(prompt - 1, prompt + length - 1)
        for row, (prompt, length) in enumerate(trees)
    ]
    counts = np.array([length for _, length in trees])
    return PackedBatch(
        layout="padded",
        ids=torch.from_numpy(table),
        positions=torch.from_numpy(np.arange(longest)[None].repeat(len(trees), axis=0)),
        stem=0,
        trees=trees,
        padding_mask=torch.from_numpy(mask),
        score_index=torch.from_numpy(np.concatenate(score)),
        targets=torch.from_numpy(ids[_target_index(trees)].astype(np.int64)),
        branch=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
        counts=torch.from_numpy(counts),
    )


def _target_index(trees: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Where the completion tokens lie in the end-to-end ids behind the stem."""
    kinds = [np.repeat([False] + [True] * len(branches), [prompt, *branches]) for prompt, *branches in trees]
    return np.flatnonzero(np.concatenate(kinds))
