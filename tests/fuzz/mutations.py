"""How inputs are spoilt, and the manner of trying many of them.

By default every test tries the same examples each time. FUZZ_FACTOR=N tries N times as many, with new ones
in every run; Hypothesis prints how to repeat one that fails.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FACTOR = int(os.environ.get("FUZZ_FACTOR", "0"))
ODD_TEXTS = (
    *("\ud800", "\x00", "\ufeff", "\u202e", "\u2028", "e\u0301", "\U0010ffff", "\x1b[2J", "İ", "ﷺ"),
    *("\r", "\n\n", "\t", "\\", '"', "\\ud800", "\\u0000", "NaN", "-Infinity", "1e999", "null", "{}", "[]"),
)
ODD_BYTES = (
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\x1f\x8b\x08",
    b"PAR1",
    b"\x00" * 64,
)
DEEP = "\x00deep\x00"
"""Stands for lists within lists, deeper than any writer of JSON goes."""
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 10**6, 10**9, 10**12, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**400),
    *(0.0, -0.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", " ", "x", "x" * 70_000, "../x", "/etc/passwd", "http://127.0.0.1:9/", *ODD_TEXTS),
    *([], {}, [None], [[]], {"": None}, {"a": {"b": [1, "2"]}}, [10**12], ["a", 1], DEEP),
)


def fuzz(examples: int) -> settings:
    """So many examples, or FUZZ_FACTOR times as many."""
    return settings(
        max_examples=examples * max(1, FACTOR),
        derandomize=FACTOR == 0,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# --- bytes ---------------------------------------------------------------------------------------------

Change = Callable[[Callable[..., Any], bytes], bytes]


def _place(draw: Callable[..., Any], data: bytes) -> tuple[int, int]:
    start = draw(st.integers(0, len(data)))
    return start, min(len(data), start + draw(st.sampled_from((1, 2, 3, 8, 64, 1000))))


def _flip(draw: Callable[..., Any], data: bytes) -> bytes:
    if not data:
        return data
    place = draw(st.integers(0, len(data) - 1))
    return data[:place] + bytes([data[place] ^ (1 << draw(st.integers(0, 7)))]) + data[place + 1 :]


def _insert(draw: Callable[..., Any], data: bytes) -> bytes:
    start, _ = _place(draw, data)
    texts = [text.encode("utf-8", "surrogatepass") for text in ODD_TEXTS]
    added = draw(st.one_of(st.sampled_from([*texts, *ODD_BYTES]), st.binary(min_size=1, max_size=8)))
    return data[:start] + added + data[start:]


def _delete(draw: Callable[..., Any], data: bytes) -> bytes:
    start, end = _place(draw, data)
    return data[:start] + data[end:]


def _duplicate(draw: Callable[..., Any], data: bytes) -> bytes:
    start, end = _place(draw, data)
    return data[:end] + data[start:end] * draw(st.sampled_from((1, 2, 50))) + data[end:]


def _truncate(draw: Callable[..., Any], data: bytes) -> bytes:
    return data[: draw(st.integers(0, len(data)))]


CHANGES: tuple[Change, ...] = (_flip, _insert, _delete, _duplicate, _truncate)


@st.composite
def mutated(draw: Callable[..., Any], sound: Sequence[bytes], most: int = 4) -> bytes:
    """One of the sound files with up to so many changes, among them a splice with another one."""
    data = draw(st.sampled_from(sound))
    for _ in range(draw(st.integers(1, most))):
        change = draw(st.sampled_from((*CHANGES, None)))
        if change is not None:
            data = change(draw, data)
        else:
            other = draw(st.sampled_from(sound))
            data = _truncate(draw, data) + other[draw(st.integers(0, len(other))) :]
    return data


# --- JSON ----------------------------------------------------------------------------------------------


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a value, from the outside in."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, item in inner for path in _paths(item, (*at, key)))]


def replaced(value: Any, path: tuple[Any, ...], by: Callable[[Any], list[Any]]) -> Any:
    """The value with what stands at a path exchanged for what `by` makes of it: nothing, or one thing."""
    if not path:
        made = by(value)
        return made[0] if made else None
    key, *rest = path
    changed = [replaced(value[key], tuple(rest), by)] if rest else by(value[key])
    if isinstance(value, dict):
        return {
            name: changed[0] if name == key else item
            for name, item in value.items()
            if name != key or changed
        }
    return [*value[:key], *changed, *value[key + 1 :]]


@st.composite
def odd_json(draw: Callable[..., Any], sound: Sequence[Any], extra: Sequence[Any] = (), most: int = 3) -> str:
    """One of the sound values as JSON, with odd values (or `extra` ones) in up to so many places of it."""
    value = draw(st.sampled_from(sound))
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(_paths(value)))
        odd = draw(st.sampled_from((*ODD_VALUES, *extra)))
        way = draw(st.sampled_from(("replace", "replace", "wrap", "drop")))
        made = {"replace": [odd], "wrap": [[odd]], "drop": []}[way]
        value = replaced(value, path, lambda _, made=made: made)
    depth = draw(st.sampled_from((50, 990, 100_000)))
    return json.dumps(value).replace(json.dumps(DEEP), "[" * depth + "]" * depth)
