"""A signal ends what a target does, wherever the event loop is when it comes."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import pytest

from pytest_dynamo_bench.targets.running import run


@pytest.fixture
def handler():
    """A handler of SIGTERM that raises, as the plugin's does."""

    def interrupt(*_):
        raise KeyboardInterrupt("SIGTERM")

    previous = signal.signal(signal.SIGTERM, interrupt)
    yield interrupt
    signal.signal(signal.SIGTERM, previous)


def test_sigterm_is_not_lost_in_code_that_passes_over_exceptions(handler):
    ended = []

    async def work():
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        try:
            await asyncio.sleep(2)
        finally:
            ended.append(True)

    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        run(work())
    assert ended, "the work was not ended in order"
    assert signal.getsignal(signal.SIGTERM) is handler


def test_work_that_is_left_alone_returns_and_leaves_the_handler(handler):
    async def work():
        return 7

    assert run(work()) == 7
    assert signal.getsignal(signal.SIGTERM) is handler


def test_an_error_of_the_work_is_its_own(handler):
    async def work():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run(work())


def test_without_a_handler_sigterm_is_left_alone(handler):
    async def work():
        return signal.getsignal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert run(work()) is signal.SIG_DFL
