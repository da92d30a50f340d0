"""A request to stop: signals only set a flag, the second Ctrl-C is one, and all is as before afterwards."""

import os
import signal
import threading

import pytest

from pretrain.stopping import ASKING, StopRequest


def raised(number: int) -> None:
    """A real signal to this process, received when this returns."""
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_only_sets_the_flag(number):
    with StopRequest() as request:
        assert request.asked is None
        raised(number)
        assert request.asked == signal.Signals(number).name


def test_the_first_signal_is_the_one_that_asked():
    with StopRequest() as request:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            raised(number)
        assert request.asked == "SIGUSR1"


def test_the_second_interrupt_does_not_wait():
    with pytest.raises(KeyboardInterrupt), StopRequest() as request:
        raised(signal.SIGTERM)
        raised(signal.SIGINT)
        assert request.asked == "SIGTERM"
        raised(signal.SIGINT)


def test_handlers_are_put_back():
    def mine(number, frame):
        received.append(number)

    received, before = [], signal.signal(signal.SIGUSR1, mine)
    try:
        others = {number: signal.getsignal(number) for number in ASKING}
        with pytest.raises(ValueError), StopRequest() as request:
            raised(signal.SIGUSR1)
            raise ValueError
        assert {number: signal.getsignal(number) for number in ASKING} == others
        raised(signal.SIGUSR1)
        assert received == [signal.SIGUSR1] and request.asked == "SIGUSR1"
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_handler_that_another_has_put_in_its_place_stays():
    """As Lightning does at its end, which puts back those from before the training first."""
    before = signal.getsignal(signal.SIGUSR1)
    try:
        with StopRequest() as request:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            raised(signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN and request.asked is None
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_outside_the_main_thread_it_does_nothing():
    before, asked = [signal.getsignal(number) for number in ASKING], []

    def work():
        with StopRequest() as request:
            assert [signal.getsignal(number) for number in ASKING] == before
            asked.append(request.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [None]
