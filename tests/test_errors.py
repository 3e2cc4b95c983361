"""What a message looks like at a terminal, whatever the values are that it quotes."""

from __future__ import annotations

import signal

import pytest

from alignctl.errors import LONGEST_LINE, DataError, Interrupted, SetupError, readable

ODD = [
    ("plain", "train.lr must be above 0, got -1", "train.lr must be above 0, got -1"),
    ("other scripts", "naïve 你好 🙂", "naïve 你好 🙂"),
    ("escape sequence", "a\x1b[2Jb", "a\\x1b[2Jb"),
    ("bell and backspace", "\x07\x08", "\\x07\\x08"),
    ("8-bit control", "\x9b31m", "\\x9b31m"),
    ("lone surrogate", "\ud800", "\\ud800"),
    ("right to left override", "\u202eevil", "\\u202eevil"),
    ("lines", "a\nb\r\n\tc\u2028d", "a b   c d"),
    ("indentation is kept", "  model=DIR   or none", "  model=DIR   or none"),
    ("empty", "", ""),
]


@pytest.mark.parametrize(("text", "shown"), [case[1:] for case in ODD], ids=[case[0] for case in ODD])
def test_foreign_text_becomes_one_printable_line(text: str, shown: str) -> None:
    assert readable(text) == shown


def test_a_long_text_keeps_both_ends() -> None:
    assert readable("a" * 60 + "b" * 10**7 + "c" * 20, 95) == "a" * 60 + " ... " + "b" * 10 + "c" * 20
    assert readable("x" * 95, 95) == "x" * 95
    assert len(readable("\ud800" * 10**6, 95)) == 95


def test_errors_are_rendered_readable_for_people_and_for_programs() -> None:
    error = SetupError("there is no \x1b]0;title\x07", "name \ud800 " + "y" * 10**6)
    first, second = error.render().split("\n")
    assert first == "error: there is no \\x1b]0;title\\x07"
    assert second.startswith("  name \\ud800 yyy")
    assert len(second) == LONGEST_LINE + 2
    assert error.as_json() == {"error": first.removeprefix("error: "), "hints": [second[2:]], "exit_code": 3}
    assert DataError("a\nb").render() == "error: a b"
    assert Interrupted(signal.SIGINT, "a\x1bb", "c\n").render() == "a\\x1bb\n  c "
