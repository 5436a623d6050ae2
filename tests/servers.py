"""Servers in a thread of their own, for tests of what runs an event loop itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.reference_server import Character, ReferenceServer, Script

FAST = Script(time_to_first_token=0.004, inter_token_latency=0.001)


@contextmanager
def serving(
    script: Script | Callable[[int, dict], Script] = FAST,
    character: Character | None = None,
    tls=None,
) -> Iterator[ReferenceServer]:
    """A reference server on a thread of its own."""
    by = script if callable(script) else lambda index, body: script
    server = ReferenceServer(by, character, tls)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(_end(server), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end(server: ReferenceServer) -> None:
    await server.stop()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0)
