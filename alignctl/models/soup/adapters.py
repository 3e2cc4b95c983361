"""The exact mean of LoRA adapters of one base.

The mean of the weights that adapters merge to is base + sum_i w_i s_i B_i A_i. Averaging A and B by
themselves gives another matrix; instead ranks are laid side by side: A = [A_1; A_2; ...] and
B = [w_1 s_1 B_1, w_2 s_2 B_2, ...], with the new alpha equal to the new rank, so that its own scale is 1.
That is exact, members may differ in rank, alpha and targets, and a module that a member does not adapt just
lacks its ranks. The price is a rank that is the sum of the ranks.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignctl.config.paths import local_path
from alignctl.errors import UsageError
from alignctl.models.soup.files import Place, read_tensor
from alignctl.models.soup.members import ADAPTER_CONFIG, Member, open_member
from alignctl.models.soup.stream import refuse_non_finite

PREFIX = "base_model.model."
_KEY = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?")
_PLAIN_PATTERN = re.compile(r"\^?[\w-]+(\\?\.[\w-]+)*")
"""PEFT reads pattern keys as regular expressions; a stranger's could take for ever."""
MERGE_FIRST = (
    "merge each adapter into its base once with PEFT, then make the soup of the merged directories:",
    "  PeftModel.from_pretrained(BASE_MODEL, DIR).merge_and_unload().save_pretrained(NEW_DIR)",
)
CHANGES_THE_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
UNDERSTOOD = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "auto_mapping", "peft_version"),
    *("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "inference_mode"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
    *("init_lora_weights", "bias", "runtime_config", "megatron_core", "qalora_group_size", "loftq_config"),
}
"""Settings that this module heeds, or that a trained LoRA does not depend on."""


@dataclass(frozen=True, slots=True)
class LoraPair:
    """A and B of one adapted module of one member."""

    a: Place
    """[r, in]; for an embedding [r, tokens]."""
    b: Place
    """[out, r]; for an embedding [width, r]."""
    scale: float
    embedding: bool


def check_adapters(members: Sequence[Member]) -> list[str]:
    """Warnings; raises UsageError unless all are plain LoRA of one base."""
    for member in members:
        _check_plain(member)
        lora_pairs(member)
    first, *others = members
    for other in others:
        _same_base(first, other)
        _same_shapes(first, other)
    ranks = [sorted({pair.a.shape[0] for pair in lora_pairs(member).values()}) for member in members]
    if len({tuple(rank) for rank in ranks}) > 1:
        listed = ", ".join(
            f"{m.name} {'/'.join(map(str, rank))}" for m, rank in zip(members, ranks, strict=True)
        )
        return [f"the adapters have different ranks ({listed}); their mean is exact all the same"]
    return []


def _check_plain(member: Member) -> None:
    config = member.config
    if str(config.get("peft_type")).upper() != "LORA":
        raise UsageError(f"{member.name} is a {config.get('peft_type')} adapter, not LoRA", *MERGE_FIRST)
    strange = sorted(key for key, value in config.items() if value and key not in UNDERSTOOD)
    if config.get("bias") not in (None, "none"):
        strange.append("bias")
    if str(config.get("init_lora_weights")).startswith(CHANGES_THE_BASE):
        strange.append("init_lora_weights")  # the base below it is not the base that is named
    if strange:
        raise UsageError(
            f"{member.name} is more than a plain LoRA adapter: {ADAPTER_CONFIG} has "
            + ", ".join(f"{key}={config[key]!r}" for key in strange),
            "only low-rank differences have an exact mean as an adapter",
            *MERGE_FIRST,
        )


def _same_base(a: Member, b: Member) -> None:
    bases = [_base_name(member) for member in (a, b)]
    if bases[0] != bases[1]:
        raise UsageError(
            f"the adapters have different bases: {bases[0]} in {a.name}, {bases[1]} in {b.name}",
            "if that is one model under two names, write base_model_name_or_path alike in both",
            *MERGE_FIRST,
        )


def _base_name(member: Member) -> str:
    name = str(member.config["base_model_name_or_path"])
    directory = local_path(name)
    revision = member.config.get("revision")
    if directory.is_dir():
        return str(directory.resolve())
    return f"{name} at {revision}" if revision else name


def _same_shapes(a: Member, b: Member) -> None:
    ours, theirs = lora_pairs(a), lora_pairs(b)
    for module in ours.keys() & theirs.keys():
        sizes = [(pair.b.shape[0], *pair.a.shape[1:]) for pair in (ours[module], theirs[module])]
        if sizes[0] != sizes[1] or ours[module].embedding != theirs[module].embedding:
            raise UsageError(
                f"{module} is {list(sizes[0])} in {a.name} and {list(sizes[1])} in {b.name}",
                "adapters of one base adapt equal modules",
            )
    if not_equal(a, b, "fan_in_fan_out"):
        raise UsageError(f"fan_in_fan_out differs between {a.name} and {b.name}", *MERGE_FIRST)


def not_equal(a: Member, b: Member, key: str) -> bool:
    """Whether a switch of two adapter configs differs."""
    return bool(a.config.get(key)) != bool(b.config.get(key))


def lora_pairs(member: Member) -> dict[str, LoraPair]:
    """By module, e.g. `model.layers.0.self_attn.q_proj`. Raises UsageError on any tensor that is no LoRA
    matrix, and on shapes that do not fit."""
    halves: dict[str, dict[str, Place]] = {}
    embeddings: set[str] = set()
    for key, place in member.tensors.items():
        found = _KEY.fullmatch(key)
        if found is None or not key.startswith(PREFIX) or not place.dtype.is_floating_point:
            raise UsageError(f"{member.name} holds {key}, which is no LoRA matrix", *MERGE_FIRST)
        module = found.group(1).removeprefix(PREFIX)
        halves.setdefault(module, {})[found.group(3)] = place
        if found.group(2):
            embeddings.add(module)
    try:
        return {
            module: _pair(member, module, pair, embedding=module in embeddings)
            for module, pair in sorted(halves.items())
        }
    except (TypeError, ValueError) as error:
        raise UsageError(f"ranks and alphas in the {ADAPTER_CONFIG} of {member.name}: {error}") from error


def _pair(member: Member, module: str, halves: Mapping[str, Place], *, embedding: bool) -> LoraPair:
    if halves.keys() != {"A", "B"}:
        raise UsageError(f"{member.name} holds half a LoRA pair of {module}")
    a, b = halves["A"], halves["B"]
    rank = int(_by_module(member.config.get("rank_pattern"), module, member.config.get("r") or 0))
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise UsageError(
            f"{module} of {member.name} is a convolution, whose mean is no adapter", *MERGE_FIRST
        )
    if not a.shape[0] == b.shape[1] == rank > 0:
        raise UsageError(
            f"{module} of {member.name} has A {list(a.shape)} and B {list(b.shape)}, "
            f"but {ADAPTER_CONFIG} says rank {rank}"
        )
    alpha = float(
        _by_module(member.config.get("alpha_pattern"), module, member.config.get("lora_alpha") or 0)
    )
    scale = alpha / math.sqrt(rank) if member.config.get("use_rslora") else alpha / rank
    return LoraPair(a, b, scale, embedding)


def _by_module(pattern: object, module: str, default: float) -> float:
    """What a rank or alpha pattern gives to a module: PEFT matches its keys as endings of the path."""
    for key, value in (pattern if isinstance(pattern, dict) else {}).items():
        if not _PLAIN_PATTERN.fullmatch(key):
            raise ValueError(f"{key!r} is more than the ending of a module's path")
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def modules_of(members: Sequence[Member]) -> list[str]:
    """Every module that some member adapts, sorted."""
    return sorted({module for member in members for module in lora_pairs(member)})


def used_pairs(pairs: Sequence[LoraPair | None], weights: Sequence[float]) -> list[tuple[LoraPair, float]]:
    """The pairs that bring ranks to the mean, with their weights: those present, of weight above 0.

    A module that no such member adapts keeps its first pair with weight 0.
    """
    present = [(pair, weight) for pair, weight in zip(pairs, weights, strict=True) if pair]
    return [(pair, weight) for pair, weight in present if weight] or [(present[0][0], 0.0)]


def joined(pairs: Sequence[LoraPair | None], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """A [R, in] and B [out, R] in float64 whose product is the weighted sum of scaled differences;
    `weights` are normalised."""
    used = used_pairs(pairs, weights)
    a = torch.cat([read_tensor(pair.a).double() for pair, _ in used])
    b = torch.cat([read_tensor(pair.b).double() * (weight * pair.scale) for pair, weight in used], dim=1)
    return a, b


def joined_names(module: str, *, embedding: bool) -> tuple[str, str]:
    """The names of A and B in an adapter file."""
    if embedding:
        return f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B"
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def joined_config(members: Sequence[Member], ranks: Mapping[str, int]) -> dict[str, Any]:
    """adapter_config.json of the soup: the first member's, with the new ranks (by module) and scale 1."""
    first = members[0]
    r = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {re.escape(module): rank for module, rank in ranks.items() if rank != r}
    config = dict(first.config) | {
        "r": r,
        "lora_alpha": r,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
        "use_rslora": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    if any(lora_pairs(member).keys() != ranks.keys() for member in members):
        config |= {"target_modules": sorted(ranks), "exclude_modules": None}
        config |= {"layers_to_transform": None, "layers_pattern": None}
    return config


def difference(pair: LoraPair, *, fan_in_fan_out: bool) -> Tensor:
    """What one adapter adds to a weight, float64, in the layout of that weight."""
    product = (read_tensor(pair.b).double() * pair.scale) @ read_tensor(pair.a).double()
    return product.T if pair.embedding or fan_in_fan_out else product


def products(pairs: Sequence[LoraPair | None]) -> np.ndarray:
    """Inner products float64 [n, n] of (D_1, D_2 - D_1, ..., D_n - D_1) for D_i = s_i B_i A_i.

    <D_i, D_j> is found from the ranks alone: the sum of (B_i^T B_j) * (A_i A_j^T).
    """
    factors = [
        (read_tensor(pair.b).double() * pair.scale, read_tensor(pair.a).double()) if pair else None
        for pair in pairs
    ]
    plain = np.zeros((len(pairs), len(pairs)))
    for i, one in enumerate(factors):
        for j, other in enumerate(factors):
            if one and other:
                plain[i, j] = float(((one[0].T @ other[0]) * (one[1] @ other[1].T)).sum())
    to_first = np.eye(len(pairs))
    to_first[1:, 0] = -1
    return to_first @ plain @ to_first.T


def base_of(member: Member) -> Member:
    """Open the model that an adapter was trained on."""
    revision = member.config.get("revision")
    return open_member(str(member.config["base_model_name_or_path"]), revision if revision else None)


def base_tensor_of(module: str, base: Member) -> str:
    """The base's name of a module's weight. Raises UsageError when it has none of that name.

    Files of some families leave out the model's own prefix.
    """
    for name in (f"{module}.weight", f"{module.partition('.')[2]}.weight"):
        if name in base.tensors:
            return name
    raise UsageError(f"the base {base.name} has no weight of {module}, which the adapters change")


def _check_finite(member: Member) -> None:
    for name, place in sorted(member.tensors.items()):
        refuse_non_finite((member,), name, (read_tensor(place),))


def adapted_weights(
    members: Sequence[Member], weights: Sequence[float], base: Member
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the base with the weighted mean of the adapters merged in; float32, or the base's
    float64; what is no number with a fraction stays as it is. Raises RunDirectoryError on NaN or infinity."""
    for member in members:
        _check_finite(member)
    pairs = [lora_pairs(member) for member in members]
    changed = {base_tensor_of(module, base): module for module in modules_of(members)}
    transposed = bool(members[0].config.get("fan_in_fan_out"))
    for name in sorted(base.tensors):
        weight = read_tensor(base.tensors[name])
        if not weight.dtype.is_floating_point:
            yield name, weight
            continue
        refuse_non_finite((base,), name, (weight,))
        total = weight.double() if name in changed else weight
        for member, share in zip(pairs, weights, strict=True):
            pair = member.get(changed.get(name, ""))
            if pair and share:
                total = total.add(difference(pair, fan_in_fan_out=transposed), alpha=share)
        yield name, total.to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
