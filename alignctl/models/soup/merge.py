"""Makes a soup of full models: streams them tensor by tensor, piece by piece, and writes as it goes.

Peak memory is a few pieces per member whatever the size of the model, except for TIES, which has to see a
whole tensor of differences to trim it. Values are hashed on other threads while they are merged. Every file
is read once, by slerp twice, by TIES once more. Nothing but the output's own dtype rounds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignctl.config.soup import OutputDtype, SlerpSoup, SoupMethod, given_weights
from alignctl.errors import STORAGE_FULL, SetupError, UsageError
from alignctl.models.soup.adapter_soup import write_adapter_soup
from alignctl.models.soup.adapters import adapted_weights, base_of
from alignctl.models.soup.checks import check_members
from alignctl.models.soup.distances import sibling_warnings
from alignctl.models.soup.files import Place, places_of_model
from alignctl.models.soup.heads import align_heads, head_of
from alignctl.models.soup.members import Member
from alignctl.models.soup.methods import Recipe, mean, merge_pieces, needs_base, normaliser
from alignctl.models.soup.record import (
    SoupReport,
    member_record,
    mergekit_config,
    parameters_of,
    write_report,
)
from alignctl.models.soup.stream import FileSource, Watch, refuse_non_finite, same_hash_warnings
from alignctl.models.soup.writer import Entry, ShardWriter, float_dtypes, output_dtype

Progress = Callable[[int, int], None]
"""Called with (bytes written, bytes in all)."""
COPIED = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt"),
    "chat_template.jinja",
)


def write_soup(
    members: Sequence[Member],
    method: SoupMethod,
    directory: Path,
    *,
    weights: Sequence[float] | None = None,
    base: Member | None = None,
    seed: int = 0,
    dtype: OutputDtype = "auto",
    shard_bytes: int = 5_000_000_000,
    progress: Progress | None = None,
) -> SoupReport:
    """Merge `members` into a model (or adapter) directory, with soup.json and mergekit.yaml beside it.

    `weights` win over those of the method, and say what greedy and sweep came to. `directory` is created and
    must hold no model; soup.json is written last. Raises UsageError when the members cannot be merged,
    RunDirectoryError when one holds NaN or infinity, SetupError when the storage is full or refuses.
    """
    recipe = Recipe(method, _weights(method, weights, len(members)), seed)
    _check_method(recipe, members, base)
    warnings = check_members(members, base)
    with _storage_faults(directory):
        directory.mkdir(parents=True, exist_ok=True)
        if members[0].kind == "adapter":
            report = write_adapter_soup(members, recipe, directory, dtype, warnings)
        else:
            report = _write_full(members, recipe, directory, base, dtype, shard_bytes, warnings, progress)
        _copy_files(members[0].directory, directory)
        write_report(report, directory)
    return report


def _weights(method: SoupMethod, given: Sequence[float] | None, members: int) -> tuple[float, ...]:
    weights = tuple(given or given_weights(method) or (1.0,) * members)
    if len(weights) != members:
        raise UsageError(f"soup.weights has {len(weights)} values for {members} models")
    normaliser(weights)
    return weights


def _check_method(recipe: Recipe, members: Sequence[Member], base: Member | None) -> None:
    if needs_base(recipe.method) != (base is not None):
        raise UsageError(
            f"soup={recipe.method.method} and soup.base={base.name if base else None} do not fit",
            "task-arithmetic, ties and dare work on differences to a base, the others have none",
        )
    if isinstance(recipe.method, SlerpSoup) and len(members) != 2:
        raise UsageError(f"soup=slerp lies between two models, got {len(members)}")


def _write_full(
    members: Sequence[Member],
    recipe: Recipe,
    directory: Path,
    base: Member | None,
    dtype: OutputDtype,
    shard_bytes: int,
    warnings: Sequence[str],
    progress: Progress | None,
) -> SoupReport:
    aligned, _ = align_heads((*members, *(() if base is None else (base,))))
    entries = entries_of(aligned[0].tensors, dtype)
    _check_room(directory, sum(entry.nbytes for entry in entries))
    writer = ShardWriter(directory, entries, shard_bytes)
    with Watch(aligned) as watch:
        for entry in entries:
            _merge_one(entry, aligned, base is not None, recipe, watch, writer)
            if progress:
                progress(writer.written, writer.total)
        hashes, distances = watch.hashes(), watch.distances()
    _check_written(directory, entries)
    config = output_config(members[0].config, aligned[0], head_of(members[0]), dtype)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    found = [*same_hash_warnings(members, hashes[: len(members)]), *sibling_warnings(distances)]
    records = tuple(member_record(member, digest) for member, digest in zip(aligned, hashes, strict=True))
    return SoupReport(
        method=recipe.method.method,
        kind="full",
        parameters=parameters_of(recipe, base),
        members=records[: len(members)],
        base=records[-1] if base else None,
        dtype="+".join(float_dtypes(entries)),
        files=writer.files,
        bytes=writer.total,
        distances=distances,
        warnings=(*warnings, *found),
        mergekit=mergekit_config(recipe, members, base, float_dtypes(entries)),
    )


def entries_of(tensors: Mapping[str, Place], dtype: OutputDtype) -> list[Entry]:
    """What is written, sorted by name: every tensor in the output's dtype, those without a fraction as they
    are."""
    return [
        Entry(name, output_dtype(place.dtype, dtype), place.shape) for name, place in sorted(tensors.items())
    ]


def _merge_one(
    entry: Entry,
    models: Sequence[Member],
    with_base: bool,
    recipe: Recipe,
    watch: Watch,
    writer: ShardWriter,
) -> None:
    places = tuple(model.tensors[entry.name] for model in models)
    watch.begin(entry.name)
    start = 0
    if not entry.dtype.is_floating_point:
        for pieces in FileSource(places).pieces():
            watch.see(entry.name, pieces.members)
            refuse_different(models, entry.name, pieces.members)
            writer.write(entry.name, start, pieces.members[0])
            start += len(pieces.members[0])
        return
    source = FileSource(places[:-1], places[-1]) if with_base else FileSource(places)
    for pieces, merged in merge_pieces(recipe, entry.name, source):
        watch.see(entry.name, (*pieces.members, *(() if pieces.base is None else (pieces.base,))))
        rounded = merged.to(entry.dtype)
        if entry.dtype == torch.float16:
            _check_range(entry.name, rounded)
        writer.write(entry.name, start, rounded)
        start += len(rounded)


def refuse_different(models: Sequence[Member], name: str, pieces: Sequence[Tensor]) -> None:
    """Raise UsageError unless every model has the same values: what counts or indexes has no mean."""
    for model, piece in zip(models[1:], pieces[1:], strict=True):
        if piece.dtype != pieces[0].dtype or not torch.equal(piece, pieces[0]):
            raise UsageError(
                f"{name} ({pieces[0].dtype}) differs between {models[0].name} and {model.name}, "
                "and a buffer of whole numbers has no mean",
                "a soup averages checkpoints of one architecture",
            )


def _check_range(name: str, rounded: Tensor) -> None:
    if not bool(torch.isfinite(rounded).all()):
        raise UsageError(f"{name} has values beyond the range of float16", "take dtype=bfloat16")


def output_config(
    config: Mapping[str, Any], aligned: Member, own_head: str | None, dtype: OutputDtype
) -> dict[str, Any]:
    """config.json of the soup: the first member's, with the dtype and the head as they were written."""
    result = dict(config)
    if dtype != "auto":
        nested = result.get("text_config")
        if isinstance(nested, dict):
            result["text_config"] = _with_dtype(nested, dtype)
        result = _with_dtype(result, dtype) | {"dtype": dtype}
    head = head_of(aligned)
    if head and (not own_head or result.get("tie_word_embeddings") is True):
        result["tie_word_embeddings"] = False
    elif own_head and not head:
        result["tie_word_embeddings"] = True
    return result


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Whichever of its two names the config uses: the older one is what older readers look for."""
    return {key: dtype if key in ("dtype", "torch_dtype") else value for key, value in config.items()}


def _copy_files(source: Path, target: Path) -> None:
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _check_room(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise SetupError(
            f"{directory} has room for {free / 1e9:.1f} GB, the soup needs {needed / 1e9:.1f} GB",
            "name another place with out=DIR, or a smaller dtype",
        )


def _check_written(directory: Path, entries: Sequence[Entry]) -> None:
    found = {name: (place.dtype, place.shape) for name, place in places_of_model(directory).items()}
    if found != {entry.name: (entry.dtype, entry.shape) for entry in entries}:
        raise SetupError(f"{directory} does not read back as it was written", "check the disk")


@contextmanager
def _storage_faults(directory: Path) -> Iterator[None]:
    """Name the place and the way on when the storage is full or refuses."""
    try:
        yield
    except OSError as error:
        full = error.errno in STORAGE_FULL
        way_on = "free some space, or name another place with out=DIR" if full else "check out=DIR"
        raise SetupError(
            f"{error.filename or directory} cannot be written or read: {error.strerror}", way_on
        ) from error


def souped_tensors(
    members: Sequence[Member], weights: Sequence[float], base: Member | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The weighted mean tensor by tensor, to be loaded into a model in memory.

    Yields names in sorted order with float32 tensors (float64 where the first member's is; what has no
    fraction as it is). For adapters: the base's tensors with the mean of the adapters merged in; `base` is
    opened by the name in their config when it is not given. A tied head is not yielded. Raises like
    `write_soup`.
    """
    total = normaliser(weights)
    if len(members) > 1:  # the soup of one is that model
        check_members(members)
    if members[0].kind == "adapter":
        yield from adapted_weights(
            members, [weight / total for weight in weights], base or base_of(members[0])
        )
        return
    aligned, _ = align_heads(members)
    for name, place in sorted(aligned[0].tensors.items()):
        yield name, _mean_tensor(name, place, aligned, weights)


def _mean_tensor(name: str, first: Place, members: Sequence[Member], weights: Sequence[float]) -> Tensor:
    wide = not first.dtype.is_floating_point or first.dtype == torch.float64
    result = torch.empty(first.numel, dtype=first.dtype if wide else torch.float32)
    start = 0
    for pieces in FileSource(tuple(member.tensors[name] for member in members)).pieces():
        stop = start + len(pieces.members[0])
        if first.dtype.is_floating_point:
            refuse_non_finite(members, name, pieces.members)
            result[start:stop] = mean(pieces.members, weights)
        else:
            refuse_different(members, name, pieces.members)
            result[start:stop] = pieces.members[0]
        start = stop
    return result.view(first.shape)
