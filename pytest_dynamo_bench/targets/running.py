"""Runs what a target does on an event loop, so that a signal ends it in order."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as :func:`asyncio.run` does, and let SIGTERM cancel it as Ctrl-C does.

    A handler that raises does so wherever the event loop happens to be, and where that is code
    that passes over exceptions the signal is lost. So the work is cancelled, and the handler that
    was there is called when it has ended. Without one, or in another thread than the main one,
    SIGTERM is left alone.

    Raises:
        BaseException: what the work raised, or the handler.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)
    terminated = False

    async def watched() -> T:
        task = asyncio.current_task()
        assert task is not None

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        return await work

    try:
        return asyncio.run(watched())
    finally:
        # Closing the loop leaves the system's default behind.
        signal.signal(signal.SIGTERM, handler)
        if terminated:
            handler(signal.SIGTERM, None)
