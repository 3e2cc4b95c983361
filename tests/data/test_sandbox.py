"""Foreign templates in a process of their own: what they may compute, and what stops them."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from alignctl.data.bad_rows import RowFault
from alignctl.data.sandbox import Allowance, Overrun, render_apart
from alignctl.data.template import apply_template
from alignctl.models.tiny import tiny_tokenizer
from alignctl.records import Message

LITTLE = Allowance(longest_wait=30.0, memory=128 * 2**20, characters=1000)


def rendering(template: str) -> Callable[[], tuple[str, ...]]:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return lambda: (apply_template(tokenizer, [Message("user", "alpha")], opens_answer=False),)


def _killed() -> tuple[str, ...]:
    os.kill(os.getpid(), signal.SIGUSR1)
    return ()


def test_texts_come_back_as_they_were() -> None:
    texts = ("", "naïve 你好 🙂", "\x00\x1b[2J\ud800\n", '{"fault": []}')
    assert render_apart(lambda: texts, LITTLE) == texts
    assert render_apart(rendering("{{ messages[0].content }}!"), LITTLE) == ("alpha!",)


def test_a_fault_comes_back_as_it_was() -> None:
    with pytest.raises(RowFault) as told:
        render_apart(rendering("\n{{ raise_exception('ne\x1bver') }}"), LITTLE)
    assert told.value.args == ("prompt", "the chat template refuses it", "ne\\x1bver, template line 2", "")


# Each is one call into C, or none that any limit inside the interpreter would end; with what is said of it.
HOSTILE = [
    ("{{ 'a' * 10**10 }}", "takes more than 128 MiB of memory"),
    ("{{ ('a' * 10**6) | replace('a', 'b' * 10**6) }}", "takes more than 128 MiB of memory"),
    ("{{ 'a' | center(10**10) }}", "takes more than 128 MiB of memory"),
    ("{{ '%*d' % (10**10, 1) }}", "takes more than 128 MiB of memory"),
    ("{{ (range(10**5) | list * 10**5) | join }}", "takes more than 128 MiB of memory"),
    ("{{ 7 ** (10**9) }}", "takes more than 1 s"),
    ("{% set x = 7 ** (messages[0].content|length ** 13) %}{{ x }}", "takes more than 1 s"),
    ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "takes more than 1 s"),
    ("{{ 'ab' * 501 }}", "writes more than 1000 characters"),
]


@pytest.mark.parametrize(("template", "said"), HOSTILE, ids=[case[0] for case in HOSTILE])
def test_what_takes_too_much_is_stopped(template: str, said: str) -> None:
    with pytest.raises(Overrun) as told:
        render_apart(rendering(template), LITTLE)
    assert str(told.value) == said


def test_what_waits_is_stopped() -> None:
    start = time.monotonic()
    with pytest.raises(Overrun, match=r"does not come to an end within 0\.2 s"):
        render_apart(lambda: time.sleep(600) or (), Allowance(longest_wait=0.2))
    assert time.monotonic() - start < 30


def test_what_breaks_the_process_breaks_only_the_child() -> None:
    with pytest.raises(Overrun, match="breaks the process"):
        render_apart(_killed, LITTLE)
    assert render_apart(lambda: ("still here",), LITTLE) == ("still here",)


def test_locks_that_other_threads_hold_do_not_matter() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=lambda: [json.dumps(HOSTILE) for _ in iter(stop.is_set, True)])
    thread.start()
    try:
        for _ in range(20):
            assert render_apart(rendering("{{ messages|length }}"), LITTLE) == ("1",)
    finally:
        stop.set()
        thread.join()


def test_no_child_stays_behind() -> None:
    for work in (lambda: ("fine",), _killed):
        with suppress(Overrun):
            render_apart(work, LITTLE)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
