"""What the JSON beside a model's weights claims, before any of it is believed.

transformers and PEFT build what a config asks for: lists of as many layers, tables of as many labels, tensors
of such a width. A config that asks for 10^9 layers takes all memory long before anybody looks at the weights.
So every number that something is built from is held against what no model has, and, where the weights lie
beside it, against the headers of their files, which are read without the tensors.

A config can also name code: an implementation of attention on the hub, which transformers would fetch and
run, or a module for PEFT to import. Both are refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from alignctl.errors import SetupError, readable
from alignctl.models.soup.files import read_json

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MANY = 4096
WIDE = 2**22
LIMITS = (
    (re.compile(r"(.*_)?labels"), 2**16),
    (re.compile(r"(.*_)?(layers?|blocks|heads?|experts|groups|stages|codebooks|virtual_tokens)"), MANY),
    (re.compile(r"(.*_)?(size|dim|embd|inner|rank|channels|width)|d_(model|ff|kv|inner)"), WIDE),
    (re.compile(r"n_positions|n_ctx|max_(position_embeddings|sequence_length|seq_len)"), 2**27),
)
"""Keys by their ending, and more than any model has: the first that fits holds."""
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
WIDTHS = ("hidden_size", "d_model", "n_embd", "vocab_size")
"""What is a side of some tensor in every language model."""
SHARES = ("num_attention_heads", "n_head", "num_key_value_heads")
"""By which a width is divided."""
WHOLE = frozenset({*LAYERS, *WIDTHS, *SHARES})
NAMES = ("architectures", "model_type", "peft_type", "task_type", "revision")
PLAIN_NAME = re.compile(r"\w+")
"""An implementation that is part of transformers or of a package; others are repositories of the hub."""
PATTERNS = ("target_modules", "exclude_modules")
KEYS_ARE_PATTERNS = ("rank_pattern", "alpha_pattern")
LONGEST_PATTERN = 1000
REPEATS = 5
"""In a pattern: each multiplies the time it takes by the length of a module's name."""
REPEATED_GROUP = re.compile(r"\)[*+{]")
REPEAT = re.compile(r"[*+{]")


@dataclass(frozen=True, slots=True)
class Held:
    """What the headers of the weight files beside a config tell."""

    tensors: int
    elements: int
    longest: int
    """The longest side of all tensors."""


def check_claims(directory: Path) -> None:
    """Hold config.json against what is plausible and against the weights beside it; raises SetupError."""
    file = directory / CONFIG
    config = check_config(file)
    held = held_in(sorted(directory.glob("*.safetensors")))
    for key, value in _numbers(config):
        bound = _bound(key, held)
        if bound is not None and value > bound[0]:
            raise _refused(file, key, value, bound[1])


def check_config(file: Path) -> Mapping[str, Any]:
    """The config in a file whose numbers are plausible and which names no foreign code; raises SetupError."""
    config = read_json(file)
    for key, value in _items(config):
        if key in WHOLE and not _is_whole(value):
            raise _refused(file, key, value, "a whole number above 0 belongs there")
        if key in NAMES and not _is_text(value):
            raise _refused(file, key, value, "names belong there")
        if "implementation" in key:
            _refuse_fetched_code(file, key, value)
    for key, value in _numbers(config):
        limit = next((limit for ending, limit in LIMITS if ending.fullmatch(key)), None)
        if limit is not None and value > limit:
            raise _refused(file, key, value, f"no model has more than {limit}")
    return config


def check_adapter(directory: Path) -> Mapping[str, Any]:
    """The adapter's config, held against what is plausible and its own weights; raises SetupError."""
    file = directory / ADAPTER_CONFIG
    config = check_config(file)
    if config.get("megatron_config") is not None:
        raise _refused(file, "megatron_config", config["megatron_config"], "it names a module to import")
    if config.get("layer_replication"):
        why = "it builds layers that the base lacks; merge it into the base first"
        raise _refused(file, "layer_replication", config["layer_replication"], why)
    for key, pattern in _patterns(config):
        if reason := _unfit_pattern(pattern):
            raise _refused(file, key, pattern, reason)
    for scale in (config.get("lora_alpha"), *_values(config, "alpha_pattern")):
        if scale is not None and not _is_finite(scale):
            raise _refused(file, "lora_alpha", scale, "a finite number belongs there")
    if (directory / ADAPTER_WEIGHTS).is_file():
        _hold_ranks(file, config, held_in([directory / ADAPTER_WEIGHTS]))
    return config


def _hold_ranks(file: Path, config: Mapping[str, Any], held: Held) -> None:
    for rank in (config.get("r"), *_values(config, "rank_pattern")):
        if not _is_whole(rank) or isinstance(rank, list):
            raise _refused(file, "r", rank, "a whole number above 0 belongs there")
        if rank is not None and rank > held.longest:
            raise _refused(file, "r", rank, f"no tensor in {ADAPTER_WEIGHTS} is longer than {held.longest}")


def check_size(directory: Path, elements: int) -> None:
    """Hold the size of the model that a config describes against the weights; raises SetupError.

    Tied weights lie in the files once, and some models compute tables that no file holds.
    """
    held = held_in(sorted(directory.glob("*.safetensors"))).elements
    if elements > 4 * held + WIDE:
        raise SetupError(
            f"{directory / CONFIG} describes {elements} numbers, but the weights beside it hold {held}",
            "the directory is damaged or mixed from two models: copy it again",
        )


def held_in(files: list[Path]) -> Held:
    """Read the headers of weight files. Raises SetupError for one that is not sound."""
    shapes = [shape for file in files for shape in _shapes(file)]
    return Held(
        tensors=len(shapes),
        elements=sum(map(math.prod, shapes)),
        longest=max((side for shape in shapes for side in shape), default=0),
    )


def _shapes(file: Path) -> list[list[int]]:
    try:
        if not file.is_file():
            raise FileNotFoundError("it is no regular file")
        # As NumPy would: torch's own map counts as memory, more of it than a small machine grants.
        with safe_open(file, "np") as opened:
            return [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118  (not a mapping)
    except (OSError, ValueError, SafetensorError) as error:
        raise SetupError(
            f"{file} is no sound safetensors file: {readable(str(error), 200)}", "copy or convert it again"
        ) from error


# --- numbers -------------------------------------------------------------------------------------------


def _items(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values, those of configs within the config too."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            yield from _items(value)


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Keys and their numbers, each of a list for itself."""
    for key, value in _items(config):
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float):
                yield key, number


def _is_whole(value: object) -> bool:
    """A size, one for each layer, or none."""
    sizes = value if isinstance(value, list) else [value]
    return all(one is None or (type(one) is int and one > 0) for one in sizes)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= WIDE


def _is_text(value: object) -> bool:
    """A name, several, or none."""
    return all(isinstance(one, str | None) for one in (value if isinstance(value, list) else [value]))


def _bound(key: str, held: Held) -> tuple[int, str] | None:
    """The most that the weights allow for a key, and why."""
    if key in LAYERS:
        return held.tensors, f"the weights beside it are {held.tensors} tensors"
    if key in WIDTHS or key in SHARES:
        return held.longest, f"no tensor beside it is longer than {held.longest}"
    return None


# --- names of code, and patterns -----------------------------------------------------------------------


def _refuse_fetched_code(file: Path, key: str, value: object) -> None:
    for one in value.values() if isinstance(value, dict) else [value]:
        if not (one is None or isinstance(one, bool) or (isinstance(one, str) and PLAIN_NAME.fullmatch(one))):
            raise _refused(file, key, one, "it names code on the hub, which alignctl does not run")


def _patterns(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys and regular expressions that PEFT tries on the names of all modules."""
    for key in PATTERNS:
        if isinstance(config.get(key), str):
            yield key, config[key]
    for key in KEYS_ARE_PATTERNS:
        if isinstance(config.get(key), dict):
            yield from ((key, pattern) for pattern in config[key])


def _values(config: Mapping[str, Any], key: str) -> list[Any]:
    return list(config[key].values()) if isinstance(config.get(key), dict) else []


def _unfit_pattern(pattern: str) -> str | None:
    """Why a regular expression is none, or may take for ever."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return "it is no regular expression"
    repeats = len(REPEAT.findall(pattern))
    if len(pattern) > LONGEST_PATTERN or REPEATED_GROUP.search(pattern) or repeats > REPEATS:
        return f"a pattern has up to {REPEATS} repeats and none of a group, or it may take for ever"
    return None


def _refused(file: Path, key: str, value: object, why: str) -> SetupError:
    shown = readable(repr(value), 60) if isinstance(value, str | list | dict) else readable(str(value), 60)
    return SetupError(f"{file}: {readable(key, 60)}={shown}: {why}", "copy the model again, or mend the file")
