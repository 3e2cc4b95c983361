"""Real signals: the first is noted, a second Ctrl-C leaves, the handlers come back."""

from __future__ import annotations

import os
import signal
import time

import pytest

from alignctl.train.signals import stop_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_flag_and_nothing_else(number: signal.Signals) -> None:
    with stop_signals() as flag:
        assert flag.received is None
        os.kill(os.getpid(), number)
        assert flag.received == number


def test_the_first_signal_decides_the_exit_code() -> None:
    with stop_signals() as flag:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.received == signal.SIGTERM


def test_previous_handlers_come_back_even_after_an_error() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(ValueError, match="inside"), stop_signals():
        raise ValueError("inside")
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_second_ctrl_c_leaves_at_once_with_130() -> None:
    child = os.fork()
    if child == 0:
        with stop_signals():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
